"""Rules that use the bank: what to recall, and whether the result is kept."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.agents.base import Ints, LiveRuleAgent, RandomState, State, find_engine
from nsr_gym.agents.thresholds import loss_threshold, similarity_threshold
from nsr_gym.envs.memory import ADD, DISCARD, UPDATE
from nsr_gym.errors import InvalidValueError

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


class BankRule(LiveRuleAgent):
    """A rule that takes an entry for the arrived task's own, updates it, and adds what is new.

    Attributes:
        rank: index of the granted rank.
        keep: whether a full bank is left as it is.
    """

    def __init__(self, env: Any, *, rank: int | None = None, keep: bool = False) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            rank: the granted rank, one of the environment's `ranks`; None grants the largest.
            keep: pin what is held: discard a result that would be added to a full bank. A bank is
                full when it holds as many entries as it may, or when another one of the granted
                rank would exceed its byte budget.

        Raises:
            InvalidValueError: a rank that cannot be granted, or `keep` is not a bool.
        """
        super().__init__(env)
        ranks = self.config.ranks
        if isinstance(rank, bool) or (rank is not None and rank not in ranks):
            raise InvalidValueError(
                f"Expected rank to be one of the environment's ranks {list(ranks)}; got {rank!r}."
            )
        if not isinstance(keep, bool):
            raise InvalidValueError(f"Expected keep to be True or False; got {keep!r}.")
        self.rank = len(ranks) - 1 if rank is None else ranks.index(rank)
        self.keep = keep
        self._cost = _entry_bytes(env, self.config.max_rank)
        self._shared = _shared_bytes(env, self.config.view_size)

    @abc.abstractmethod
    def find(self, observation: NDArray[Any]) -> Ints:
        """Return which viewed entry is the task's own, (n,) in 1..S, or 0 for none."""

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        return self.decide(observation, self.find(observation)), state

    def decide(
        self, observation: NDArray[Any], recall: Ints, *, own: Bools | None = None, rank: Any = None
    ) -> Ints:
        """Put actions (n, 3) together.

        Args:
            observation: (n, size).
            recall: (n,) entries to start from, 0 for a fresh start.
            own: (n,) whether the recalled entry is the task's own: it is updated, while from
                another one a new entry is made. None takes every recalled one for the task's own.
            rank: (n,) indices of the granted ranks; None grants the rule's rank.
        """
        own = recall > 0 if own is None else own & (recall > 0)
        granted = np.broadcast_to(self.rank if rank is None else rank, recall.shape)
        # After a fresh start an update adds.
        reserve = np.where(own | (recall == 0), UPDATE, ADD)
        if self.keep:
            reserve = np.where(~own & ~self.room(observation, granted), DISCARD, reserve)
        return self.action(len(recall), recall=recall, rank=granted, reserve=reserve)

    def held(self, observation: NDArray[Any]) -> Bools:
        """Return which places of the view hold an entry, (n, S)."""
        return np.asarray(self.layout.read(observation, "stored_rank") > 0)

    def trial_loss(self, observation: NDArray[Any]) -> Floats:
        """Return the losses in nats of trial loads, (n, S); infinite where there is no entry."""
        loss = self.layout.unscale_loss(self.layout.read(observation, "trial_loss"))
        return np.where(self.held(observation), loss, np.inf)

    def room(self, observation: NDArray[Any], rank: NDArray[Any]) -> Bools:
        """Return whether another entry fits beside those held.

        Args:
            observation: (n, size).
            rank: indices of ranks, (n,), or (n, Q) for several of each.

        Returns:
            Bools of the shape of `rank`.
        """
        places = (-1, *[1] * (rank.ndim - 1))
        open_ = self.layout.read(observation, "occupancy")[:, 0] < 1.0
        free = self.free_bytes(observation)
        fits = self._cost[np.array(self.config.ranks)[rank]] <= free.reshape(places)
        return np.asarray(open_.reshape(places) & fits)

    def free_bytes(self, observation: NDArray[Any]) -> Floats:
        """Return how many bytes are left, (n,); infinite without a byte budget.

        The observation gives the share that is left. The entries in view, whose sizes follow from
        their ranks, and what they share (a basis, a summary) make up the rest, so that the budget
        need not be known. Where not all entries are in view, the answer is too low. Before anything
        is held, a budget does not show.
        """
        left = self.layout.read(observation, "budget_left")[:, 0].astype(np.float64)
        stored = self.layout.read(observation, "stored_rank") * self.config.max_rank
        used = self._cost[np.rint(stored).astype(np.int64)].sum(axis=1)
        used += self._shared[self.held(observation).sum(axis=1)]
        spent = 1.0 - left
        budget = np.divide(used, spent, out=np.full(len(left), np.inf), where=spent > 0)
        with np.errstate(invalid="ignore"):  # infinity times 0 cannot be: then spent is 1
            # The share was rounded to float32; an entry that fits exactly must still fit.
            return np.asarray(budget * (left + _ROUNDING))


class SimilarityAgent(BankRule):
    """Recall the most similar entry above a threshold, and update it.

    The rule that the NSR abstract (arXiv 2606.30067) finds as good as a learned controller.
    """

    def __init__(
        self,
        env: Any,
        *,
        threshold: float | None = None,
        rank: int | None = None,
        keep: bool = False,
    ) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            threshold: cosine similarity from which an entry counts as the same task; None
                takes the value calibrated on train-split streams.
            rank: as for `BankRule`.
            keep: as for `BankRule`.

        Raises:
            InvalidValueError: a threshold outside [-1, 1], or as for `BankRule`.
        """
        super().__init__(env, rank=rank, keep=keep)
        self.threshold = similarity_threshold(env, threshold)

    def find(self, observation: NDArray[Any]) -> Ints:
        """Return which viewed entry is the task's own, (n,) in 1..S, or 0 for none."""
        return most_similar(self, observation, self.threshold)


class TrialLossAgent(BankRule):
    """Recall the viewed entry with the lowest loss on a trial load, if that is low enough."""

    def __init__(
        self,
        env: Any,
        *,
        threshold: float | None = None,
        rank: int | None = None,
        keep: bool = False,
    ) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            threshold: loss in nats below which an entry counts as fitting; None takes the
                value calibrated on train-split streams.
            rank: as for `BankRule`.
            keep: as for `BankRule`.

        Raises:
            InvalidValueError: a threshold that is not positive, or as for `BankRule`.
        """
        super().__init__(env, rank=rank, keep=keep)
        self.threshold = loss_threshold(env, threshold)

    def find(self, observation: NDArray[Any]) -> Ints:
        """Return which viewed entry is the task's own, (n,) in 1..S, or 0 for none."""
        return lowest(self.trial_loss(observation), self.threshold)


class OracleAgent(BankRule):
    """Knows the task: recall its own entry, start afresh where there is none.

    The history-aware reference of the regret theorem: it learns a task on its first visit
    and recalls it on every return. Needs `observe_task_id=True`.
    """

    def find(self, observation: NDArray[Any]) -> Ints:
        """Return which viewed entry is the task's own, (n,) in 1..S, or 0 for none."""
        return own_entry(self, observation)


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


def most_similar(rule: BankRule, observation: NDArray[Any], least: float) -> Ints:
    """Return whether the first viewed entry is at least so similar, (n,) 1 or 0."""
    # The view is sorted by similarity.
    similar = rule.layout.read(observation, "similarity")[:, 0] >= least
    return (rule.held(observation)[:, 0] & similar).astype(np.int64)


def lowest(loss: Floats, below: float | Floats) -> Ints:
    """Return where in the view (n, S) the lowest loss lies, in 1..S; 0 if it is not `below`.

    Args:
        loss: (n, S).
        below: one bound, or one for each row, (n,).
    """
    best = loss.argmin(axis=1)
    return np.where(loss[np.arange(len(loss)), best] < below, best + 1, 0)


def own_entry(rule: LiveRuleAgent, observation: NDArray[Any]) -> Ints:
    """Return whether the first viewed entry was last trained on the arrived task, (n,) 1 or 0.

    Raises:
        AccessError: the environment does not tell; it needs `observe_task_id=True`.
    """
    # The environment puts a task's own entries first.
    return (rule.layout.read(observation, "same_task")[:, 0] > 0.5).astype(np.int64)


def _entry_bytes(env: Any, max_rank: int) -> Ints:
    """Return the bytes of an entry of rank 0 (none) to R, (R + 1,)."""
    bank = find_engine(env).memory.bank
    ranks = np.arange(max_rank + 1)
    kinds = bank.store.entry_bytes(ranks)
    total = np.sum(list(kinds.values()), axis=0)
    return np.asarray(total + (ranks > 0) * bank.embedding.itemsize * bank.embedding_dim)


def _shared_bytes(env: Any, entries: int) -> Ints:
    """Return the bytes that 0 to `entries` entries of a bank hold in common, (entries + 1,)."""
    counts = np.arange(entries + 1)
    kinds = find_engine(env).memory.bank.store.shared_bytes(counts)
    return np.asarray(np.sum([np.zeros_like(counts), *kinds.values()], axis=0))


_ROUNDING = 1e-6
"""Share of a byte budget that rounding to float32 may hide; less than any entry takes."""
