"""Rules that use the bank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.agents.base import Ints, LiveRuleAgent, RandomState, State
from nsr_gym.agents.thresholds import loss_threshold, thresholds
from nsr_gym.envs.memory import ADD
from nsr_gym.errors import InvalidValueError


class SimilarityAgent(LiveRuleAgent):
    """Recall the most similar entry above a threshold at full rank, and update it.

    The rule that the NSR abstract (arXiv 2606.30067) finds as good as a learned controller.
    """

    def __init__(self, env: Any, *, threshold: float | None = None) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            threshold: cosine similarity from which an entry counts as the same task; None
                takes the value calibrated on train-split streams.

        Raises:
            InvalidValueError: a threshold outside [-1, 1].
        """
        super().__init__(env)
        self.threshold = thresholds(env).similarity if threshold is None else threshold
        if not -1.0 <= self.threshold <= 1.0:
            raise InvalidValueError(f"Expected a threshold in [-1, 1]; got {threshold!r}.")

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        held = self.layout.read(observation, "stored_rank")[:, 0] > 0
        similar = self.layout.read(observation, "similarity")[:, 0] >= self.threshold
        return self.action(len(observation), recall=held & similar), state


class TrialLossAgent(LiveRuleAgent):
    """Recall the viewed entry with the lowest loss on a trial load, if that is low enough."""

    def __init__(self, env: Any, *, threshold: float | None = None) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            threshold: loss in nats below which an entry counts as fitting; None takes the
                value calibrated on train-split streams.

        Raises:
            InvalidValueError: a threshold that is not positive.
        """
        super().__init__(env)
        self.threshold = loss_threshold(env, threshold)

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        loss = self.layout.unscale_loss(self.layout.read(observation, "trial_loss"))
        loss = np.where(self.layout.read(observation, "stored_rank") > 0, loss, np.inf)
        best = loss.argmin(axis=1)
        fits = loss[np.arange(len(loss)), best] < self.threshold
        return self.action(len(observation), recall=np.where(fits, best + 1, 0)), state


class OracleAgent(LiveRuleAgent):
    """Knows the task: recall its own entry at full rank, start afresh where there is none.

    The history-aware reference of the regret theorem: it learns a task on its first visit
    and recalls it on every return. Needs `observe_task_id=True`.
    """

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        own = self.layout.read(observation, "same_task")[:, 0] > 0.5
        return self.action(len(observation), recall=own), state


class RandomAgent(LiveRuleAgent):
    """An entry in view or none, a rank, a use of the result: each uniformly.

    What a closed bank refuses is projected.
    """

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        numbers, state = RandomState.draw(state, len(observation), 3)
        held = (self.layout.read(observation, "stored_rank") > 0).sum(axis=1)
        choices = np.stack(
            [held + 1, np.full(len(held), len(self.config.ranks)), np.full(len(held), ADD + 1)], 1
        )
        return (numbers * choices).astype(np.int64), state

    def initial_state(self, seeds: Sequence[int]) -> State:
        """Return the state to begin n episodes with."""
        return RandomState.start(seeds)
