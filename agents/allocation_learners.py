"""Agents that find the right allocations of readings A and C by trying them.

`EliminationAgent` remembers within a visit only, `HistoryAwareAgent` for good: it is the policy
that the regret of all others is held against.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.agents.allocation_base import AllocationAgent
from nsr_gym.agents.base import Ints, RandomState, State
from nsr_gym.regret.problems import Floats

_OPEN, _WRONG_NOW, _TAKEN = 0, 1, 2
"""An allocation in the present visit: nothing against it; tried in vain; another task's."""


class AllocationLearner(AllocationAgent):
    """An agent that needs the reward of its last step."""

    def __init__(self, env: Any) -> None:
        """Fit the agent to an environment.

        Raises:
            InvalidValueError: the environment withholds the last reward.
        """
        super().__init__(env)
        self.need_feedback("last-reward", "last-action+reward")

    def last_reward(self, observation: NDArray[Any]) -> Floats:
        """Return (n,) the reward of the last step in [0, 1], 1 for the highest of the table."""
        return self.layout.read(observation, "last_reward")[:, 0].astype(np.float64)


class EliminationAgent(AllocationLearner):
    """Tries no allocation twice within a visit and holds on to the right one; forgets at a switch.

    Visit-local: in reading C it tries (M - 1) / 2 wrong allocations a visit on average, however
    often a task returns. Once all were tried without full success it plays the best of them.
    """

    def __init__(self, env: Any, *, shuffle: bool = False) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            shuffle: whether to try in random order, drawn anew in every visit, instead of in
                ascending order.

        Raises:
            InvalidValueError: the environment withholds the last reward.
        """
        super().__init__(env)
        self.shuffle = shuffle

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n,) for observations (n, size), and the next state."""
        n = len(observation)
        state = self.initial_state(range(n)) if state is None else state
        steps, last, earned = state[1], state[2], state[3].copy()
        earned[np.arange(n), last] = self.last_reward(observation)
        if self.config.visit_steps is None:
            switched = self.succeeded(observation) | (steps == 0)
        else:
            switched = steps % np.uint64(self.config.visit_steps) == 0
        earned[switched] = -1.0
        numbers, drawn = RandomState.draw(state, n, self.num_allocations)
        assert drawn is not None
        first = 1.0 + numbers if self.shuffle else 1.0
        score = np.where(earned < 0, first, np.where(earned >= 1.0, 2.0, earned))
        action = score.argmax(axis=1)
        return action, (*drawn, action, earned)

    def initial_state(self, seeds: Sequence[int]) -> tuple[NDArray[Any], ...]:
        """Return the state to begin n episodes with.

        Random numbers, the last action, and what each allocation earned in the present visit,
        (n, A), -1 where it was not tried.
        """
        n = len(seeds)
        earned = np.full((n, self.num_allocations), -1.0)
        return *RandomState.start(seeds), np.zeros(n, dtype=np.int64), earned


class HistoryAwareAgent(AllocationLearner):
    """Learns the right allocation of each task in its first visits and recalls it on every return.

    *Fixed order.* It knows M and counts the visits, so that it knows which task is present. For
    each task it tries what it has not tried, in ascending order, until it is right, and recalls
    that for good; if nothing is fully right, the best of what it has seen. In reading A with one
    step a visit and one right allocation each, it is wrong M - j times in cycle j: relative
    to the best blind policy it is C(C-1)/2 ahead after C <= M cycles. In reading C, leaving out
    what is right for other tasks, it makes M(M-1)/4 wrong tries on average in the first cycle and
    none later.

    *Reshuffled and i.i.d. order.* It cannot know the task and goes by the observed symbol. Within a
    visit it repeats no wrong allocation and holds the right one. Otherwise it plays the allocation
    that earned most with this symbol, each counted as if it had succeeded once more than it has:
    what was never tried comes first, and bad luck at first is not the end. In reshuffled cycles it
    leaves out what was right in the present cycle. With one symbol and i.i.d. tasks nothing can be
    learned across visits, and in visits of one step it ties with every other policy.
    """

    def __init__(self, env: Any, *, distinct: bool | None = None) -> None:
        """Fit the reference to an environment.

        Args:
            env: the environment.
            distinct: whether it knows that no two tasks share a right allocation, and leaves
                out those taken by others. None: it does, but for reading A in a fixed order, where
                the plain learner is meant, and with a table of rewards, where they may share.

        Raises:
            InvalidValueError: the environment withholds the last reward.
        """
        super().__init__(env)
        self._counts_tasks = self.config.order == "fixed"
        if distinct is None:
            named = self.config.visit_steps is None or isinstance(self.config.rewards, str)
            distinct = named and (self.config.visit_steps is None or not self._counts_tasks)
        self.distinct = distinct
        self._keys = self.num_tasks if self._counts_tasks else self.num_symbols

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n,) for observations (n, size), and the next state."""
        n = len(observation)
        state = self.initial_state(range(n)) if state is None else state
        steps, visits, key, last, closed, counts, earned = state
        counts, earned = tally(counts, earned, key, last, self.last_reward(observation), steps > 0)
        rows, now = np.arange(n), self.visits(observation, steps, visits)
        success = self.succeeded(observation)
        if self._counts_tasks:
            key = now % self.num_tasks
            right = (counts > 0) & (earned == counts)
            right[rows, key] = False
            closed = _TAKEN * (right.any(axis=1) & self.distinct)
        else:
            key = self.symbol(observation)
            closed = self._close(closed, last, success, steps > 0, visits, now)
        score = self._score(counts[rows, key], earned[rows, key])
        held = np.flatnonzero(success & (now == visits) & (steps > 0))
        score[held, last[held]] = 3.0  # right in this visit, whatever the symbol says
        # Set back rather than struck out: if nothing is open, something must be played.
        action = np.where(closed != _OPEN, score - 10.0, score).argmax(axis=1)
        return action, (steps + 1, now, key, action, closed, counts, earned)

    def initial_state(self, seeds: Sequence[int]) -> tuple[NDArray[Any], ...]:
        """Return the state to begin n episodes with.

        Steps, visits that are over, the key (task or symbol) and action of the last step, what
        speaks against each allocation (n, A), and how often each was played and what it earned
        under each key (n, K, A).
        """
        n, a = len(seeds), self.num_allocations
        numbers = [np.zeros(n, dtype=np.int64) for _ in range(4)]
        tables = [np.zeros((n, self._keys, a)) for _ in range(2)]
        return *numbers, np.full((n, a), _OPEN), *tables

    def _score(self, counts: Floats, earned: Floats) -> Floats:
        """Rate allocations (n, A): 2 never failed, 1 not tried, below that by what they earned."""
        # A task's reward is always the same; under a symbol it varies, and one more success is
        # lent to each allocation, so that the first failures do not rule it out.
        lent = 0.0 if self._counts_tasks else 1.0
        mean = (lent + earned) / np.maximum(lent + counts, 1.0)
        return np.where(counts == 0, 1.0, np.where(earned == counts, 2.0, mean))

    def _close(
        self,
        closed: Ints,
        last: Ints,
        success: NDArray[np.bool_],
        begun: NDArray[np.bool_],
        visits: Ints,
        now: Ints,
    ) -> Ints:
        """Update what speaks against each allocation after a step, where tasks are not counted."""
        rows, closed = np.arange(len(last)), closed.copy()
        closed[rows, last] = np.where(success | ~begun, closed[rows, last], _WRONG_NOW)
        if self.config.order == "reshuffled" and self.distinct:
            over = np.flatnonzero(success & (now > visits))
            closed[over, last[over]] = _TAKEN
        closed[(now > visits)[:, None] & (closed == _WRONG_NOW)] = _OPEN
        closed[now // self.num_tasks > visits // self.num_tasks] = _OPEN
        return closed


def tally(
    counts: Floats, earned: Floats, key: Ints, action: Ints, reward: Floats, seen: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Add the last step to what is known, leaving the arguments as they are.

    Args:
        counts: (n, K, A) how often each allocation was played under each key.
        earned: (n, K, A) the sum of what it earned.
        key: (n,) of the last step.
        action: (n,) of the last step.
        reward: (n,) of the last step.
        seen: (n,) whether there was one.

    Returns:
        Both tables.
    """
    rows, counts, earned = np.flatnonzero(seen), counts.copy(), earned.copy()
    cell = rows, key[rows], action[rows]
    counts[cell] += 1.0
    earned[cell] += reward[rows]
    return counts, earned
