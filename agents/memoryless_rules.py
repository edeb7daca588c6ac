"""Rules without a bank: the memoryless heuristics, and the start from nothing.

On a cyclic stream the oldest directions are those of the task that comes next but for the
adapter's size: a rule that trains and keeps on every visit has overwritten a task's directions
by the time it returns, however it splits the rank. Only discarding (`PinOneAgent`) keeps any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.agents.base import Ints, LiveRuleAgent, RandomState, State
from nsr_gym.agents.thresholds import loss_threshold
from nsr_gym.envs.memory import DISCARD, UPDATE
from nsr_gym.errors import InvalidValueError


class GreedyAgent(LiveRuleAgent):
    """The whole rank to the newcomer: every switch overwrites everything."""

    access = "memoryless"

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        return self.action(len(observation)), state


class UniformAgent(LiveRuleAgent):
    """An equal share of the rank to each task, max(1, R // M), M the largest where it is drawn."""

    access = "memoryless"

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        share = max(1, self.config.max_rank // self.config.max_tasks)
        return self.action(len(observation), rank=self.rank_index(share)), state


class LossProportionalAgent(LiveRuleAgent):
    """Rank in proportion to the active adapter's loss on the newcomer.

    The share of R is loss / (loss + log C), the scaled loss that is observed; of the grantable
    ranks the nearest is taken, on a logarithmic scale.
    """

    access = "memoryless"

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        share = np.maximum(self.layout.read(observation, "active_loss")[:, 0], 1e-6)
        target = np.log(share * self.config.max_rank)
        distance = np.abs(np.log(self.config.ranks) - target[:, None])
        return self.action(len(observation), rank=distance.argmin(axis=1)), state


class RecencyAgent(LiveRuleAgent):
    """Half the rank to the newcomer, so that the two latest tasks share the subspace."""

    access = "memoryless"

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        rank = self.rank_index(max(1, self.config.max_rank // 2))
        return self.action(len(observation), rank=rank), state


class RandomRankAgent(LiveRuleAgent):
    """Any rank, uniformly."""

    access = "memoryless"

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        numbers, state = RandomState.draw(state, len(observation), 1)
        rank = (numbers[:, 0] * len(self.config.ranks)).astype(np.int64)
        return self.action(len(observation), rank=rank), state

    def initial_state(self, seeds: Sequence[int]) -> State:
        """Return the state to begin n episodes with."""
        return RandomState.start(seeds)


class PinOneAgent(LiveRuleAgent):
    """Keep the first task for good; learn every other one in a scratch copy and revert.

    The optimum of reading B of the regret theorem under its assumptions (knowledge is held whole
    or not at all, and of one task): it fails on M - 1 of M tasks. Its scratch copy makes it hold
    twice the bytes of the other rules while it learns. Where the active adapter already fits
    the arrived task, only its lightest direction is trained; nothing of a visit is kept after
    the first.
    """

    access = "memoryless"

    def __init__(self, env: Any, *, threshold: float | None = None) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            threshold: loss in nats below which the active adapter counts as fitting; None
                takes the value calibrated on train-split streams.

        Raises:
            InvalidValueError: a threshold that is not positive, or a single grantable rank.
        """
        super().__init__(env)
        if len(self.config.ranks) == 1:
            raise InvalidValueError(
                "Expected at least two ranks: with one, every visit overwrites the whole adapter "
                f"and nothing can be pinned; got {list(self.config.ranks)}."
            )
        self.threshold = loss_threshold(env, threshold)

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        empty = self.layout.read(observation, "adapter_empty")[:, 0] > 0.5
        loss = self.layout.unscale_loss(self.layout.read(observation, "active_loss")[:, 0])
        fits = ~empty & (loss < self.threshold)
        full = len(self.config.ranks) - 1
        return self.action(
            len(observation),
            rank=np.where(fits, 0, full),
            reserve=np.where(empty, UPDATE, DISCARD),
        ), state


class FreshAgent(LiveRuleAgent):
    """Start every visit afresh at full rank; nothing survives a switch."""

    access = "visit"

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        return self.action(len(observation)), state
