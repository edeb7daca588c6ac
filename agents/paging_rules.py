"""Rules for reading B: start from what is held, and decide what goes when all places are taken.

All that these rules know is in the observation; none keeps a state but for random numbers.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsr_gym.agents.base import Ints, RandomState, RuleAgent, State, find_engine
from nsr_gym.envs.arguments import check_number
from nsr_gym.errors import InvalidValueError


class PagingAgent(RuleAgent):
    """What the agents of reading B share.

    Attributes:
        num_slots: k R, places of the active subspace; they come before those of the Bank.
        num_places: P = (k + K) R, also the units of rank that there are.
        max_rank: R, of a whole solution.
    """

    family = "paging"

    def __init__(self, env: Any) -> None:
        """Fit the agent to an environment (single or vector, wrapped or not)."""
        super().__init__(env)
        _, self.num_places, ranks = map(int, find_engine(env).action_space.nvec)
        self.max_rank = ranks - 1
        self.num_slots = int(self.config.slots) * self.max_rank


class RetentionRule(PagingAgent):
    """Starts from the most similar place, and stores what it had to learn at full rank.

    After a hit nothing changes. After a miss the result goes to the first empty place while units
    of rank are free; then the rule names the place to overwrite, or none. Where storing is forced,
    a hit updates its own place, and a rule that would discard overwrites the last place.
    """

    first_place = 0
    """First place that results are stored in."""

    def __init__(self, env: Any, *, threshold: float = 0.5) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            threshold: similarity above which a place is taken for the visited task's.

        Raises:
            InvalidValueError: a threshold outside [0, 1].
        """
        super().__init__(env)
        check_number("threshold", threshold, low=0.0, high=1.0)
        self.threshold = float(threshold)

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        rank = self._units(observation, "stored_rank", self.max_rank)
        held = rank > 0
        similarity = np.where(held, self.layout.read(observation, "similarity"), -1.0)
        best = similarity.argmax(axis=1)
        hit = similarity.max(axis=1) > self.threshold
        free = self.num_places - self._units(observation, "occupancy", self.num_places)[:, 0]
        place, keep, state = self.place(observation, rank, free, state)
        if self.config.forced:
            place = np.where(keep, place, self.num_places - 1)
            keep = np.ones_like(keep)
        # A place can be given the units that are free and those that it has.
        granted = np.minimum(self.max_rank, free + rank[np.arange(len(rank)), place])
        after_hit = self.max_rank if self.config.forced else 0
        stored = np.where(hit, after_hit, np.where(keep, granted, 0))
        actions = np.stack([np.where(hit, best + 1, 0), np.where(hit, best, place), stored], axis=1)
        return actions.astype(np.int64), state

    def place(
        self, observation: NDArray[Any], rank: Ints, free: Ints, state: State
    ) -> tuple[Ints, NDArray[np.bool_], State]:
        """Choose where the result of a miss goes.

        Args:
            observation: (n, size).
            rank: (n, P) stored, 0 where a place is empty.
            free: (n,) units of rank that are free.
            state: of the rule.

        Returns:
            (n,) places, (n,) whether to store there, and the next state.
        """
        empty = (rank == 0) & (np.arange(self.num_places) >= self.first_place)
        room = empty.any(axis=1) & (free >= self.max_rank)
        # The evicted place is the first of those that rank lowest.
        order = np.where(rank > 0, self.worth(observation), np.iinfo(np.int64).max)
        place = np.where(room, empty.argmax(axis=1), order.argmin(axis=1))
        return place, room | self.evicts, state

    evicts = True
    """Whether anything held is ever overwritten."""

    @abc.abstractmethod
    def worth(self, observation: NDArray[Any]) -> Ints:
        """Return (n, P) numbers, the smallest at the place that is to go."""

    def _units(self, observation: NDArray[Any], name: str, whole: int) -> Ints:
        """Return a field in whole units instead of shares, free of float32's rounding."""
        shares = self.layout.read(observation, name).astype(np.float64)
        return np.rint(shares * whole).astype(np.int64)

    def _visits(self, observation: NDArray[Any], name: str) -> Ints:
        return self._units(observation, name, self.config.num_visits)


class LRUAgent(RetentionRule):
    """Overwrites what was used least recently: no hit at all in a cycle that does not fit."""

    def worth(self, observation: NDArray[Any]) -> Ints:
        """Return (n, P) minus the visits since each place was used."""
        return -self._visits(observation, "age")


class FIFOAgent(RetentionRule):
    """Overwrites what was stored first."""

    def worth(self, observation: NDArray[Any]) -> Ints:
        """Return (n, P) minus the visits since each solution was stored."""
        return -self._visits(observation, "stored_age")


class LFUAgent(RetentionRule):
    """Overwrites what was used least often; of equals, what was used least recently."""

    def worth(self, observation: NDArray[Any]) -> Ints:
        """Return (n, P) uses, and below them, in the same number, minus the age."""
        uses = self._visits(observation, "uses")
        return np.asarray(uses * (self.config.num_visits + 1) - self._visits(observation, "age"))


class PinRetentionAgent(RetentionRule):
    """Keeps what it stored first and discards the rest.

    With equal costs and whole solutions that it may discard, nothing is better in fixed and
    reshuffled cycles, whatever a policy knows, nor for i.i.d. tasks, which no policy foresees.
    """

    evicts = False

    def worth(self, observation: NDArray[Any]) -> Ints:
        """Return (n, P) zeros: no place is ever to go."""
        return np.zeros((len(observation), self.num_places), dtype=np.int64)


class BankAgent(PinRetentionAgent):
    """The history-aware reference: stores every task in the Bank once and recalls it ever after.

    It pays for the first visits and, at each return, the recall error.
    """

    def __init__(self, env: Any, *, threshold: float = 0.5) -> None:
        """Fit the reference to an environment.

        Args:
            env: the environment.
            threshold: similarity above which a place is taken for the visited task's.

        Raises:
            InvalidValueError: the Bank is too small for all tasks, or the threshold lies outside
                [0, 1].
        """
        super().__init__(env, threshold=threshold)
        tasks, bank = self.config.num_tasks, self.config.bank
        if bank is not None and bank < tasks:
            raise InvalidValueError(
                f"The history-aware reference needs a Bank for all {tasks} tasks; this one holds "
                f"{bank}. Set bank=None, which is one entry for each task."
            )
        self.first_place = self.num_slots


class UniformRetentionAgent(RetentionRule):
    """Overwrites any place, or discards the result, uniformly; empty places are not preferred.

    Empty places count where a unit of rank is free.
    """

    def place(
        self, observation: NDArray[Any], rank: Ints, free: Ints, state: State
    ) -> tuple[Ints, NDArray[np.bool_], State]:
        """Choose where the result of a miss goes."""
        numbers, state = RandomState.draw(state, len(rank), 1)
        takes = (rank > 0) | (free[:, None] > 0)
        choices = takes.sum(axis=1) + (0 if self.config.forced else 1)
        choice = (numbers[:, 0] * choices).astype(np.int64)
        # The first place with more of those that take the result before and at it than chosen.
        chosen = takes.cumsum(axis=1) > choice[:, None]
        return chosen.argmax(axis=1), chosen.any(axis=1), state

    def worth(self, observation: NDArray[Any]) -> Ints:
        """Return (n, P) zeros: all are alike."""
        return np.zeros((len(observation), self.num_places), dtype=np.int64)

    def initial_state(self, seeds: Sequence[int]) -> State:
        """Return the state to begin n episodes with."""
        return RandomState.start(seeds)


class PagingPlanAgent(PagingAgent):
    """Plays a plan, one action for each visit of the fixed order.

    The number of the visit follows from the observed share of visits left.
    """

    def __init__(self, env: Any, *, plan: ArrayLike) -> None:
        """Fit the plan to an environment.

        Args:
            env: the environment.
            plan: (V, 3) whole numbers, (recall, place, rank) for each visit.

        Raises:
            InvalidValueError: another shape or type, numbers out of range, or an order that is
                not fixed.
        """
        super().__init__(env)
        if self.config.order != "fixed":
            raise InvalidValueError(
                f"A plan needs order='fixed'; the environment has order={self.config.order!r}."
            )
        values, visits = np.asarray(plan), self.config.num_visits
        upper = (self.num_places + 1, self.num_places, self.max_rank + 1)
        fits = values.dtype.kind in "iu" and values.shape == (visits, 3)
        if not fits or not ((values >= 0) & (values < upper)).all():
            raise InvalidValueError(
                f"Expected a plan of {visits} rows of whole numbers (recall, place, rank) below "
                f"{upper}; got type {values.dtype} and shape {values.shape}."
            )
        self.plan = values.astype(np.int64)
        self.plan.setflags(write=False)

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        left = self.layout.read(observation, "visits_left")[:, 0].astype(np.float64)
        visit = np.rint((1.0 - left) * len(self.plan)).astype(np.int64)
        return self.plan[np.minimum(visit, len(self.plan) - 1)], state
