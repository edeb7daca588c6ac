"""Dynamic programme over what can be held: the clairvoyant optimum of reading B for given visits.

Nothing is assumed beyond the rules of the environment: which places there are, what a start
from each costs, and that one visit stores one result in one place. So it holds where the closed
form does not (forced storing, transfer), and checks the closed form where that does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import InvalidValueError
from nsr_gym.regret.problems import Floats, PagingProblem

STATES = 5_000
"""Different contents of the places up to which the programme is solved."""
Ints = NDArray[np.int64]
Entry = tuple[int, int]  # task and rank of a stored solution
State = tuple[tuple[Entry, ...], tuple[Entry, ...]]  # entries of the slots, of the Bank


@dataclass(frozen=True, eq=False)
class HeldStates:
    """Everything that can be held in a problem, and what a visit makes of it.

    Attributes:
        problem: the problem.
        states: S contents, the empty one first.
        costs: (M, S) cost of a visit from its cheapest start.
        successors: (M, S, W) contents that a visit of the task can leave behind.
    """

    problem: PagingProblem
    states: tuple[State, ...]
    costs: Floats
    successors: Ints

    def optimum(self, visits: Sequence[int]) -> tuple[float, Ints]:
        """Return the smallest total cost of given visits, and a plan that attains it.

        Args:
            visits: tasks in the order of their visits; nothing is held before the first.

        Returns:
            The cost by backward induction, and the plan, (len(visits), 3).
        """
        choices = np.empty((len(visits), len(self.states)), dtype=np.int32)
        to_go = np.zeros(len(self.states))
        for t in range(len(visits) - 1, -1, -1):
            after = self.successors[visits[t]]
            best = to_go[after].argmin(axis=1)
            choices[t] = np.take_along_axis(after, best[:, None], axis=1)[:, 0]
            to_go = self.costs[visits[t]] + to_go[choices[t]]
        return float(to_go[0]), self._plan(visits, choices)

    def _plan(self, visits: Sequence[int], choices: NDArray[np.int32]) -> Ints:
        """Play the chosen contents in the places of the environment."""
        problem, state = self.problem, 0
        places: list[Entry | None] = [None] * (problem.capacity * problem.max_rank)
        plan = np.zeros((len(visits), 3), dtype=np.int64)
        for t, task in enumerate(visits):
            state = int(choices[t, state])
            recall, _ = cheapest_start(problem, places, task)
            place, rank = self._action(places, task, self.states[state])
            plan[t] = recall, place, rank
            places = stored(places, place, task, rank)
        return plan

    def _action(self, places: list[Entry | None], task: int, wanted: State) -> tuple[int, int]:
        """Return the place and the rank that lead to the wanted contents."""
        problem = self.problem
        ranks = range(int(problem.forced), problem.max_rank + 1)
        return next(
            (place, rank)
            for rank, place in product(ranks, range(len(places)))
            if rank <= free_units(problem, places, place)
            and _contents(problem, stored(places, place, task, rank)) == wanted
        )


def held_states(problem: PagingProblem, limit: int = STATES) -> HeldStates | None:
    """List everything that can be held.

    Args:
        problem: the problem.
        limit: different contents at most.

    Returns:
        The states with their costs and successors, None where there are more than `limit`.
    """
    m = problem.num_tasks
    states: list[State] = [((), ())]
    index = {states[0]: 0}
    following: list[list[list[int]]] = []
    for state in states:  # grows while it is read
        following.append([])
        for task in range(m):
            after = _successors(problem, state, task)
            for new in after:
                if new not in index:
                    index[new] = len(states)
                    states.append(new)
            following[-1].append([index[new] for new in after])
        if len(states) > limit:
            return None
    width = max(len(after) for by_task in following for after in by_task)
    successors = np.empty((m, len(states), width), dtype=np.int64)
    costs = np.empty((m, len(states)))
    for s, state in enumerate(states):
        places = _places(problem, state)
        for task in range(m):
            reached = following[s][task]
            successors[task, s] = reached + reached[:1] * (width - len(reached))
            costs[task, s] = cheapest_start(problem, places, task)[1]
    return HeldStates(problem, tuple(states), costs, successors)


def clairvoyant(problem: PagingProblem, visits: Sequence[int]) -> tuple[float, Ints]:
    """Return the optimum of given visits, in any order, for a policy that knows them all.

    Args:
        problem: the problem.
        visits: tasks, each in 0..M-1, in the order of their visits.

    Returns:
        Its total cost, in units of reward, and its plan, (len(visits), 3) as in `Solution`.

    Raises:
        InvalidValueError: a task that does not exist, or too many contents to list.
    """
    if not all(0 <= task < problem.num_tasks for task in visits):
        raise InvalidValueError(
            f"Expected visits of the tasks 0 to {problem.num_tasks - 1}; got {list(visits)!r}."
        )
    held = held_states(problem)
    if held is None:
        raise too_many(problem)
    return held.optimum(visits)


def too_many(problem: PagingProblem) -> InvalidValueError:
    """Build the error for a problem that is too large for the programme."""
    return InvalidValueError(
        f"Expected at most {STATES} different contents of the places, so that they can be listed; "
        f"{problem.num_tasks} tasks and {problem.capacity} solutions of rank {problem.max_rank} "
        "have more. Use fewer tasks (6 with whole solutions always fit), a smaller capacity, or "
        "neither forced storing nor transfer, where there is a closed form."
    )


def cheapest_start(
    problem: PagingProblem, places: Sequence[Entry | None], task: int
) -> tuple[int, float]:
    """Return where a visit starts most cheaply, 0 afresh or p + 1 from place p, and its cost."""
    best, least = 0, float(problem.delta[task])
    for place in range(len(places)):
        cost = start_cost(problem, places, task, place + 1)
        if cost < least:
            best, least = place + 1, cost
    return best, least


def start_cost(
    problem: PagingProblem, places: Sequence[Entry | None], task: int, recall: int
) -> float:
    """Return what a visit costs that starts afresh (0, or an empty place) or from place p (p + 1).

    The solution of task j at rank r saves the visited task i, of its cost delta_i, the share
    1 - residual[r] where i = j, and transfer[i, j] of that share elsewhere; an entry of the Bank
    costs the recall error on top.
    """
    entry = places[recall - 1] if recall else None
    delta = float(problem.delta[task])
    if entry is None:
        return delta
    source, rank = entry
    worth = 1.0 if source == task else float(problem.transfer[task, source])
    in_bank = recall - 1 >= problem.slots * problem.max_rank
    saved = worth * (1.0 - problem.residual[rank])
    return delta * (1.0 - saved) + (problem.recall_error if in_bank else 0.0)


def free_units(problem: PagingProblem, places: Sequence[Entry | None], place: int) -> int:
    """Return the units of rank that a result put into a place can have."""
    others = sum(entry[1] for p, entry in enumerate(places) if entry and p != place)
    return problem.capacity * problem.max_rank - others


def stored(places: Sequence[Entry | None], place: int, task: int, rank: int) -> list[Entry | None]:
    """Return the places after a result has been stored; rank 0 stores nothing."""
    after = list(places)
    if rank:
        after[place] = (task, rank)
    return after


def _successors(problem: PagingProblem, state: State, task: int) -> list[State]:
    """Return the contents that a visit can leave behind, without repetitions."""
    free = problem.capacity * problem.max_rank - sum(rank for part in state for _, rank in part)
    after = {} if problem.forced else {state: None}  # a dictionary keeps the order
    for part, size in enumerate(_sizes(problem)):
        entries = state[part]
        empty = [-1] if len(entries) < size else []
        for replaced in [*empty, *range(len(entries))]:
            kept = entries if replaced < 0 else entries[:replaced] + entries[replaced + 1 :]
            units = free + (0 if replaced < 0 else entries[replaced][1])
            for rank in range(1, min(problem.max_rank, units) + 1):
                new = _canonical(problem, (*kept, (task, rank)))
                after[(new, state[1]) if part == 0 else (state[0], new)] = None
    return list(after)


def _sizes(problem: PagingProblem) -> tuple[int, int]:
    """Return how many places are slots, and how many entries of the Bank.

    Without a recall error they do not differ, and all count as slots.
    """
    total, slots = problem.capacity * problem.max_rank, problem.slots * problem.max_rank
    return (slots, total - slots) if problem.recall_error else (total, 0)


def _canonical(problem: PagingProblem, entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Return entries in a fixed order.

    A second copy of a whole solution is as good as an empty place. At divisible rank it is not: it
    occupies units that other places could use.
    """
    return tuple(sorted(set(entries) if problem.max_rank == 1 else entries))


def _contents(problem: PagingProblem, places: Sequence[Entry | None]) -> State:
    slots, _ = _sizes(problem)
    parts = ([entry for entry in part if entry] for part in (places[:slots], places[slots:]))
    first, second = (_canonical(problem, part) for part in parts)
    return first, second


def _places(problem: PagingProblem, state: State) -> list[Entry | None]:
    slots, bank = _sizes(problem)
    first, second = state
    return [
        *first, *[None] * (slots - len(first)), *second, *[None] * (bank - len(second))
    ]  # fmt: skip
