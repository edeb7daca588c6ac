"""Variants of the bank's rules for where more than recognising a task is to be decided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.agents.bank_rules import (
    BankRule,
    OracleAgent,
    SimilarityAgent,
    TrialLossAgent,
    lowest,
    most_similar,
    own_entry,
)
from nsr_gym.agents.base import Ints, State
from nsr_gym.agents.thresholds import loss_threshold, rank_cuts, similarity_threshold
from nsr_gym.envs.memory import ADD, DISCARD, UPDATE


class NearestAgent(SimilarityAgent):
    """Recall the most similar entry always; update it above the threshold, else add a new one.

    Where tasks are related, a new one starts better from its neighbour than afresh.
    """

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        nearest = self.held(observation)[:, 0].astype(np.int64)
        return self.decide(observation, nearest, own=self.find(observation) > 0), state


class TrialLossNearestAgent(TrialLossAgent):
    """Recall the entry with the lowest trial loss if it beats the bare backbone.

    It is updated if its loss lies below the threshold; else the result is a new entry.
    """

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        recall = helpful(self, observation)
        return self.decide(observation, recall, own=self.find(observation) > 0), state


class OracleNearestAgent(OracleAgent):
    """Knows the task: recall its own entry, for a new task the one with the lowest trial loss.

    The latter only if it beats the bare backbone. Needs `observe_task_id=True`.
    """

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        own = self.find(observation)
        recall = np.where(own > 0, own, helpful(self, observation))
        return self.decide(observation, recall, own=own > 0), state


class ThriftyRule(BankRule):
    """Spend a byte budget unevenly: low ranks on easy tasks, high ones on hard tasks.

    A new task is granted a rank by the bare backbone's loss on it, or the largest that fits where
    that one does not; a returning task keeps the rank of its entry. If nothing fits any more, the
    task is learned at the largest rank and the result discarded: what is held stays. Where the
    observation shows that there is no byte budget, the largest rank is granted always.
    """

    def __init__(self, env: Any, *, cuts: Sequence[float] | None = None) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            cuts: Q - 1 losses of the bare backbone in nats, ascending: how many of them a task
                reaches is the index of its rank; none at all: always the largest. None takes
                those calibrated on train-split streams.

        Raises:
            InvalidValueError: the cuts do not fit the environment's ranks.
        """
        super().__init__(env, keep=True)
        self.cuts = rank_cuts(env, cuts)

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        n, ranks, largest = len(observation), np.array(self.config.ranks), self.rank
        rows, own = np.arange(n), self.find(observation)
        recall, returns = self.start(observation, own), own > 0
        room = self.room(observation, np.tile(np.arange(len(ranks)), (n, 1)))
        room &= np.arange(len(ranks)) <= self._wanted(observation)[:, None]
        fits = room.any(axis=1)
        fitting = np.where(fits, len(ranks) - 1 - room[:, ::-1].argmax(axis=1), largest)
        stored = self.layout.read(observation, "stored_rank")[rows, np.maximum(own - 1, 0)]
        # The least rank that holds the entry whole.
        same = np.searchsorted(ranks, np.rint(stored * self.config.max_rank))
        same = np.where(self._budgeted(observation), same, largest)
        reserve = np.where(recall > 0, ADD, UPDATE)
        reserve = np.where(fits, reserve, DISCARD)
        return self.action(
            n,
            recall=recall,
            rank=np.where(returns, same, fitting),
            reserve=np.where(returns, UPDATE, reserve),
        ), state

    def start(self, observation: NDArray[Any], own: Ints) -> Ints:
        """Return what to recall, (n,), where the task's own entries are `own` (0: it is new)."""
        return own

    def _wanted(self, observation: NDArray[Any]) -> Ints:
        """Return the index of the rank that each task is worth, (n,)."""
        bare = self.layout.unscale_loss(self.layout.read(observation, "bare_loss")[:, 0])
        if not self.cuts:
            return np.full(len(bare), self.rank)
        worth = np.searchsorted(np.array(self.cuts), bare, side="right")
        return np.where(self._budgeted(observation), worth, self.rank)

    def _budgeted(self, observation: NDArray[Any]) -> NDArray[np.bool_]:
        """Return whether there may be a byte budget, (n,): an entry takes a share of it."""
        left = self.layout.read(observation, "budget_left")[:, 0]
        return np.asarray((left < 1.0) | ~self.held(observation).any(axis=1))


class ThriftyAgent(ThriftyRule):
    """The thrifty rule that recognises tasks by their trial losses."""

    def __init__(
        self, env: Any, *, cuts: Sequence[float] | None = None, threshold: float | None = None
    ) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            cuts: as for `ThriftyRule`.
            threshold: loss in nats below which an entry counts as fitting; None takes the
                value calibrated on train-split streams.

        Raises:
            InvalidValueError: a threshold that is not positive, or as for `ThriftyRule`.
        """
        super().__init__(env, cuts=cuts)
        self.threshold = loss_threshold(env, threshold)

    def find(self, observation: NDArray[Any]) -> Ints:
        """Return which viewed entry is the task's own, (n,) in 1..S, or 0 for none."""
        return lowest(self.trial_loss(observation), self.threshold)


class SimilarityThriftyAgent(ThriftyRule):
    """The thrifty rule that recognises tasks by their similarity.

    An easy task is fitted well by entries of other tasks, a hard one badly by its own of low rank,
    so that here the trial loss can tell less than the similarity.
    """

    def __init__(
        self, env: Any, *, cuts: Sequence[float] | None = None, threshold: float | None = None
    ) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            cuts: as for `ThriftyRule`.
            threshold: cosine similarity from which an entry counts as the same task; None
                takes the value calibrated on train-split streams.

        Raises:
            InvalidValueError: a threshold outside [-1, 1], or as for `ThriftyRule`.
        """
        super().__init__(env, cuts=cuts)
        self.threshold = similarity_threshold(env, threshold)

    def find(self, observation: NDArray[Any]) -> Ints:
        """Return which viewed entry is the task's own, (n,) in 1..S, or 0 for none."""
        return most_similar(self, observation, self.threshold)


class VersatileAgent(ThriftyAgent):
    """All at once: recognises by trial losses, pins, spends bytes by difficulty, warm-starts.

    The thrifty rule that starts a new task from the entry with the lowest trial loss if that beats
    the bare backbone.
    """

    def start(self, observation: NDArray[Any], own: Ints) -> Ints:
        """Return what to recall, (n,), where the task's own entries are `own` (0: it is new)."""
        return np.where(own > 0, own, helpful(self, observation))


class OracleThriftyAgent(ThriftyRule):
    """The thrifty rule that knows the task. Needs `observe_task_id=True`."""

    def find(self, observation: NDArray[Any]) -> Ints:
        """Return which viewed entry is the task's own, (n,) in 1..S, or 0 for none."""
        return own_entry(self, observation)


def similarity_pin(
    env: Any, *, threshold: float | None = None, rank: int | None = None
) -> SimilarityAgent:
    """Return the similarity rule that never lets go of what a full bank holds."""
    return SimilarityAgent(env, threshold=threshold, rank=rank, keep=True)


def trial_loss_pin(
    env: Any, *, threshold: float | None = None, rank: int | None = None
) -> TrialLossAgent:
    """Return the trial-loss rule that never lets go of what a full bank holds."""
    return TrialLossAgent(env, threshold=threshold, rank=rank, keep=True)


def oracle_pin(env: Any, *, rank: int | None = None) -> OracleAgent:
    """Return the oracle that never lets go of what a full bank holds."""
    return OracleAgent(env, rank=rank, keep=True)


def helpful(rule: BankRule, observation: NDArray[Any]) -> Ints:
    """Return which viewed entry is the best start, (n,) in 1..S; 0 if a fresh one is better.

    An entry is better than a fresh start if its trial loss is lower than the bare backbone's loss.
    """
    bare = rule.layout.unscale_loss(rule.layout.read(observation, "bare_loss")[:, 0])
    return lowest(rule.trial_loss(observation), bare)
