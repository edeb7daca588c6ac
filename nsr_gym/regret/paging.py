r"""Reading B, relearning under fixed capacity: the cheapest way to use what can be held.

Our reading B of the regret theorem of Neural Subspace Reallocation (arXiv 2606.30067, abstract):
M tasks recur C times, k active slots and K entries of a Bank hold c = k + K solutions, and a visit
that does not start from the task's own solution relearns it for Delta_switch.

*The boundary argument.* In a cycle after the first, a visit starts from the task's own solution
only if that is held at the boundary before the cycle: the task was last present before it and is
not present again until the visit. At most c solutions are held at a boundary, and each
task is visited once per cycle, so a later cycle has at most c hits; the first has none. Whatever
a policy knows and draws, it misses M + (C-1)(M-c) times at least, and pinning any c tasks does
no worse. The order within a cycle does not enter. Tasks that cost differently, entries
of the Bank that cost a recall error, and solutions kept in part (rank r of R) change only what
the best contents at the boundary are: those of a small knapsack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from nsr_gym.errors import InvalidValueError
from nsr_gym.regret.held import (
    Entry,
    Ints,
    cheapest_start,
    free_units,
    held_states,
    start_cost,
    stored,
    too_many,
)
from nsr_gym.regret.paging_bounds import miss_bound, optimal_misses
from nsr_gym.regret.problems import PagingProblem
from nsr_gym.regret.solution import Certificate, Solution

CHECKED = 1_500
"""Contents up to which the dynamic programme is solved as a check of the closed form."""
_BOUNDARY = (
    "At the boundary before a later cycle at most (k + K) R units of rank are held, and a task "
    "unseen since cannot be held otherwise when it comes: every later cycle costs at least the "
    "cheapest choice of ranks (a knapsack), the first all tasks' delta."
)
_INDUCTION = (
    "Backward induction over everything that can be held after each visit: no action of the "
    "environment, at any visit, leads to a smaller cost, whatever the policy knows."
)


def solve_paging(
    problem: PagingProblem, cycles: int, *, forced: bool | None = None, check: bool = True
) -> Solution:
    """Return the cheapest plan for C cycles in the fixed order.

    By the boundary argument (see the module) where storing is free to choose and nothing
    transfers, or where all tasks can be held; else by a dynamic programme over held states.

    Args:
        problem: capacity and costs.
        cycles: C >= 1.
        forced: in place of the problem's own value.
        check: whether to solve small problems by the dynamic programme too.

    Returns:
        The solution; its value is the cost of all visits, in units of reward. In the cases of the
        closed form it is the optimum of reshuffled cycles too: the row of task m in cycle j
        (from 0) is j M + m, and is played whenever in the cycle the task comes.

    Raises:
        InvalidValueError: no whole number of cycles, or storing is forced or knowledge transfers
            and there are too many states for the dynamic programme.
    """
    if isinstance(cycles, bool) or not isinstance(cycles, int | np.integer) or cycles < 1:
        raise InvalidValueError(
            f"Expected cycles to be a whole number of at least 1; got {cycles!r}."
        )
    if forced is not None:
        problem = replace(problem, forced=forced)
    visits = [task for _ in range(int(cycles)) for task in range(problem.num_tasks)]
    transfers = bool(problem.transfer[~np.eye(problem.num_tasks, dtype=bool)].any())
    later, ranks, in_bank = _knapsack(problem)
    closed = not transfers and (not problem.forced or bool((ranks > 0).all()))
    held = held_states(problem, CHECKED) if closed and check else None
    checks = {}
    if closed:
        plan = _pinned(problem, int(cycles), ranks, in_bank)
        bound = float(problem.delta.sum()) + (int(cycles) - 1) * later
        if held is not None:
            checks["dynamic programme"] = held.optimum(visits)[0]
    else:
        held = held_states(problem)
        if held is None:
            raise too_many(problem)
        bound, plan = held.optimum(visits)
    equal = float(problem.delta[0])
    if problem.plain and (problem.delta == equal).all():
        misses = optimal_misses(visits, problem.capacity, forced=problem.forced)
        checks["farthest next use"] = equal * misses
        if closed:
            checks["closed form"] = equal * miss_bound(
                problem.num_tasks, int(cycles), problem.capacity
            )
    value = plan_cost(problem, plan)
    certificate = Certificate(
        method="pinning the best contents" if closed else "dynamic programme over held states",
        value=value,
        bound=bound,
        checks=checks,
        proof=_BOUNDARY if closed else _INDUCTION,
    )
    return Solution("B", value, "cost of all visits", plan, certificate, problem)


def plan_cost(
    problem: PagingProblem, plan: ArrayLike, visits: Sequence[int] | None = None
) -> float:
    """Return the exact cost of playing a plan, by the rules of `NSR/Paging`.

    Args:
        problem: capacity and costs.
        plan: (V, 3) whole numbers: start afresh (0) or from place p (p + 1); the place where the
            result goes; the rank at which it is stored, 0 for not at all (R where storing is
            forced). An empty place is a fresh start, a rank beyond the free units is cut.
        visits: (V,) tasks; the fixed order where None.

    Returns:
        The cost of all visits, in units of reward.

    Raises:
        InvalidValueError: another shape, or numbers out of range.
    """
    rows, size = np.asarray(plan), problem.capacity * problem.max_rank
    upper = (size + 1, size, problem.max_rank + 1)
    tasks = np.arange(len(rows)) % problem.num_tasks if visits is None else np.asarray(visits)
    fits = rows.dtype.kind in "iu" and rows.shape == (len(tasks), 3)
    if not fits or not ((rows >= 0) & (rows < upper)).all():
        raise InvalidValueError(
            f"Expected a plan of {len(tasks)} rows of whole numbers (recall, place, rank) below "
            f"{upper}; got type {rows.dtype} and shape {rows.shape}."
        )
    places: list[Entry | None] = [None] * size
    total = 0.0
    for task, (recall, place, rank) in zip(tasks.tolist(), rows.tolist(), strict=True):
        total += start_cost(problem, places, task, recall)
        wanted = problem.max_rank if rank == 0 and problem.forced else rank
        granted = min(wanted, free_units(problem, places, place))
        places = stored(places, place, task, granted)
    return total


def _knapsack(problem: PagingProblem) -> tuple[float, Ints, Ints]:
    """Choose the best contents of the places at the boundary of two cycles.

    At most k R entries lie in slots, all entries have (k + K) R units of rank together. That at
    most K R entries lie in the Bank follows: with more, a slot would be empty and better.

    Returns:
        The cost of a cycle that begins with them, and for each task, (M,), at which rank it is
        held (0: not) and whether in the Bank.
    """
    m, largest = problem.num_tasks, problem.max_rank
    units = min(problem.capacity, m) * largest
    slots = min(problem.slots * largest if problem.recall_error else units, m)
    # What one task can be given: units, places in slots, and the share and error left to pay.
    options = [(0, 0, 1.0, 0.0)]
    for rank in range(1, largest + 1):
        options.append((rank, 1, problem.residual[rank], 0.0))
        if problem.recall_error:
            options.append((rank, 0, problem.residual[rank], float(problem.recall_error)))
    least = np.zeros((units + 1, slots + 1))  # by units and slots that may still be used
    chosen = np.zeros((m, units + 1, slots + 1), dtype=np.int64)
    for task in range(m):
        costs = np.full((len(options), units + 1, slots + 1), np.inf)
        for i, (rank, slot, share, error) in enumerate(options):
            if rank <= units and slot <= slots:
                before = least[: units + 1 - rank, : slots + 1 - slot]
                costs[i, rank:, slot:] = before + problem.delta[task] * share + error
        chosen[task], least = costs.argmin(axis=0), costs.min(axis=0)
    ranks, in_bank = np.zeros(m, dtype=np.int64), np.zeros(m, dtype=np.int64)
    u, s = units, slots
    for task in range(m - 1, -1, -1):
        rank, slot, _, error = options[chosen[task, u, s]]
        ranks[task], in_bank[task] = rank, error > 0
        u, s = u - rank, s - slot
    return float(least[units, slots]), ranks, in_bank


def _pinned(problem: PagingProblem, cycles: int, ranks: Ints, in_bank: Ints) -> Ints:
    """Return the plan that stores these tasks in the first cycle and never lets go of them."""
    places: list[Entry | None] = [None] * (problem.capacity * problem.max_rank)
    first_free = [0, problem.slots * problem.max_rank] if in_bank.any() else [0, 0]
    first = np.zeros((problem.num_tasks, 3), dtype=np.int64)
    for task, (rank, bank) in enumerate(zip(ranks.tolist(), in_bank.tolist(), strict=True)):
        if rank:
            place = first_free[bank]
            first_free[bank] += 1
            places[place] = (task, rank)
            first[task] = 0, place, rank
    later = first.copy()
    for task in range(problem.num_tasks):
        later[task, 0] = cheapest_start(problem, places, task)[0]
    return np.concatenate([first, *[later] * (cycles - 1)])
