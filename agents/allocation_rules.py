"""Rules for environments of allocations (readings A and C) that learn nothing.

They know the instance or need not: a table pi(a|o), one allocation for good, and two that get by
without the task because the order is fixed: a count of the visits, and the own last action.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsr_gym.agents.allocation_base import AllocationAgent
from nsr_gym.agents.base import Ints, RandomState, State
from nsr_gym.envs.arguments import check_whole
from nsr_gym.errors import InvalidValueError
from nsr_gym.regret.problems import AllocationProblem, Floats, table


class TablePolicyAgent(AllocationAgent):
    """A stationary policy pi(a|o): what it plays depends on the symbol alone.

    With a clock the policy may also be one over pairs (o, clock), row o p + clock.
    """

    def __init__(self, env: Any, *, policy: ArrayLike) -> None:
        """Fit the policy to an environment.

        Args:
            env: the environment.
            policy: (O, A) or (O p, A); rows are distributions over allocations.

        Raises:
            InvalidValueError: another shape, or rows that are no distributions.
        """
        super().__init__(env)
        self.policy = table("policy", policy)
        period = int(self.config.clock)
        rows = (self.num_symbols, self.num_symbols * period) if period else (self.num_symbols,)
        if self.policy.shape[0] not in rows or self.policy.shape[1] != self.num_allocations:
            raise InvalidValueError(
                f"Expected a policy with {' or '.join(map(str, rows))} rows and "
                f"{self.num_allocations} columns; got shape {self.policy.shape}."
            )
        totals = self.policy.sum(axis=1)
        if (self.policy < 0).any() or not np.allclose(totals, 1.0, rtol=0, atol=1e-9):
            raise InvalidValueError(
                "Expected every row of the policy to be a distribution over allocations; got rows "
                f"that add up to {np.round(totals, 6).tolist()} with a smallest entry of "
                f"{self.policy.min():g}."
            )
        self.policy.setflags(write=False)
        self._reads_clock = period > 0 and len(self.policy) != self.num_symbols
        self._bounds = _bounds(self.policy)

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n,) for observations (n, size), and the next state."""
        row = self.symbol(observation)
        if self._reads_clock:
            clock = self.layout.read(observation, "clock")
            row = row * clock.shape[1] + clock.argmax(axis=1)
        numbers, state = RandomState.draw(state, len(row), 1)
        return _draw(self._bounds[row], numbers), state

    def initial_state(self, seeds: Sequence[int]) -> State:
        """Return the state to begin n episodes with."""
        return RandomState.start(seeds)


class PinAgent(AllocationAgent):
    """Always the same allocation: the best memoryless policy of reading A with equal gaps, blind.

    In reading C it never finishes unless that allocation is right for every task.
    """

    def __init__(self, env: Any, *, allocation: int = 0) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            allocation: which one.

        Raises:
            InvalidValueError: there is no such allocation.
        """
        super().__init__(env)
        _check_below("allocation", allocation, self.num_allocations)
        self.allocation = int(allocation)

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n,) for observations (n, size), and the next state."""
        return np.full(len(observation), self.allocation, dtype=np.int64), state


class ClockAgent(AllocationAgent):
    """Counts the visits modulo p and plays, for each count, what is best for its tasks.

    In a fixed order the tasks whose numbers agree modulo g = gcd(p, M) share their counts. In
    reading A it plays the allocation with the best mean reward over them, which costs M - g wrong
    visits a cycle in the long run where gaps are equal, and nothing at p = M; in reading C one of
    their right allocations, uniformly. It knows the instance, not the symbol.
    """

    def __init__(self, env: Any, *, period: int | None = None, states: int | None = None) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            period: p; None for M.
            states: in place of a period, how many counts it can tell apart; it takes the largest
                divisor of M not above that, the best period that this buys.

        Raises:
            InvalidValueError: both are given, a number below 1, tasks in another order, an
                instance that is not known, or no feedback where a success ends the visit.
        """
        super().__init__(env)
        self.need_fixed_order()
        if self.config.visit_steps is None:
            self.need_feedback("last-reward", "last-action+reward")
        if period is not None and states is not None:
            raise InvalidValueError("Expected a period or a number of states; got both.")
        if states is not None:
            check_whole("states", states, least=1)
            period = max(d for d in range(1, states + 1) if self.num_tasks % d == 0)
        self.period = self.num_tasks if period is None else period
        check_whole("period", self.period, least=1)
        self._bounds = _bounds(self._policy(self.known_problem()))

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n,) for observations (n, size), and the next state."""
        n = len(observation)
        state = self.initial_state(range(n)) if state is None else state
        visits = self.visits(observation, state[1], state[2])
        numbers, drawn = RandomState.draw(state, n, 1)
        assert drawn is not None
        return _draw(self._bounds[visits % self.period], numbers), (*drawn, visits)

    def initial_state(self, seeds: Sequence[int]) -> tuple[NDArray[Any], ...]:
        """Return the state to begin n episodes with: random numbers, and visits that are over."""
        return *RandomState.start(seeds), np.zeros(len(seeds), dtype=np.int64)

    def _policy(self, problem: AllocationProblem) -> Floats:
        """Return what is played at each count, (p, A) probabilities."""
        common = gcd(self.period, self.num_tasks)
        policy = np.zeros((self.period, self.num_allocations))
        for count in range(self.period):
            tasks = np.arange(count % common, self.num_tasks, common)
            if self.config.visit_steps is None:
                right = problem.optimal[tasks].any(axis=0)
                policy[count] = right / right.sum()
            else:
                policy[count, problem.rewards[tasks].mean(axis=0).argmax()] = 1.0
        return policy


class LastActionAgent(AllocationAgent):
    """Keeps nothing, yet finds its way: the observation shows its own last action and reward.

    After a success it plays the right allocation of the task that follows, otherwise the last
    allocation again, until its task comes: at most M - 1 wrong steps in total, however many cycles
    follow. In reading C a wrong try is followed by the successor too.
    """

    def __init__(self, env: Any, *, use_reward: bool = True, start: int = 0) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment; in reading A with one step a visit.
            use_reward: whether to wait for a success; else it plays the successor in any case, and
                is right always or never.
            start: task whose right allocation it begins with; 0 is the task that comes first.

        Raises:
            InvalidValueError: the environment withholds the last action and reward, has another
                order, several steps a visit or an unknown instance, the right allocations are not
                one for each task and equally good, or there is no such task.
        """
        super().__init__(env)
        self.need_fixed_order()
        self.need_feedback("last-action+reward")
        if self.config.visit_steps not in (None, 1):
            raise InvalidValueError(
                "LastActionAgent needs visits of one step, steps=1, since it cannot tell a switch "
                f"from a step within a visit; the environment has steps={self.config.visit_steps}."
            )
        problem = self.known_problem()
        _check_below("start", start, self.num_tasks)
        if (problem.optimal.sum(axis=1) > 1).any() or (problem.optimal.sum(axis=0) > 1).any():
            raise InvalidValueError(
                "LastActionAgent needs one right allocation for each task and no two tasks with "
                "the same one, since the allocation stands for the task."
            )
        if np.ptp(problem.best) > 0:
            raise InvalidValueError(
                "LastActionAgent needs tasks whose best rewards are equal, since it takes the "
                f"highest reward for a success; got best rewards {problem.best.tolist()}."
            )
        right = problem.optimal.argmax(axis=1)
        self._first = int(right[start])
        # An allocation that is right for no task is never played, whatever follows it here.
        self._successor = np.full(self.num_allocations, self._first, dtype=np.int64)
        self._successor[right] = np.roll(right, -1)
        self._waits = use_reward and self.config.visit_steps == 1

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n,) for observations (n, size), and the next state."""
        shown = self.layout.read(observation, "last_action")
        last = shown.argmax(axis=1)
        action = self._successor[last]
        if self._waits:
            action = np.where(self.succeeded(observation), action, last)
        return np.where(shown.any(axis=1), action, self._first), state


def _bounds(policy: Floats) -> Floats:
    """Return the cumulative probabilities (rows, A - 1) that a uniform number is held against.

    The last bound is left out, and bounds that rounding left short of 1 are 1: no allocation of
    probability 0 is ever drawn.
    """
    sums = np.cumsum(policy, axis=1)
    return np.asarray(np.where(sums >= sums[:, -1:], 1.0, sums)[:, :-1])


def _draw(bounds: Floats, numbers: Floats) -> Ints:
    """Return (n,) allocations for uniform numbers (n, 1) in [0, 1)."""
    return np.asarray((numbers >= bounds).sum(axis=1))


def _check_below(name: str, value: Any, limit: int) -> None:
    check_whole(name, value, least=0)
    if value >= limit:
        raise InvalidValueError(f"Expected {name} to be below {limit}; got {value!r}.")
