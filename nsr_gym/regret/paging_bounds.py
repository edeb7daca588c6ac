"""Bounds of reading B in closed form: misses, recall error, divisible knowledge.

The boundary argument behind them is in `nsr_gym.regret.paging`. All are our reading B of the
regret theorem of Neural Subspace Reallocation (arXiv 2606.30067, abstract).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from nsr_gym.errors import InvalidValueError
from nsr_gym.regret.problems import Floats

_GRID = 4_000  # intervals of the grid on which a function of the rank is evaluated


def miss_bound(num_tasks: int, cycles: int, capacity: int) -> int:
    """Return the fewest misses of any policy, M + (C-1) max(0, M-c).

    Args:
        num_tasks: M.
        cycles: C >= 1, each visiting every task once, in any order.
        capacity: c = k + K, solutions that can be held.

    Raises:
        InvalidValueError: a number out of range.
    """
    _check(num_tasks=(num_tasks, 1), cycles=(cycles, 1))
    return num_tasks + (cycles - 1) * later_cycle_misses(num_tasks, capacity)


def later_cycle_misses(num_tasks: int, capacity: int) -> int:
    """Return the fewest misses of a cycle after the first, max(0, M-c).

    Raises:
        InvalidValueError: a number out of range.
    """
    _check(num_tasks=(num_tasks, 1), capacity=(capacity, 0))
    return max(0, num_tasks - capacity)


def iid_miss_rate(num_tasks: int, capacity: int) -> float:
    """Return the smallest rate of misses of an online policy when every visit's task is drawn.

    Each of the M tasks is equally likely at every visit, whatever came before; at most c of them
    are held: 1 - c/M. Any policy that keeps its c places full attains it, LRU among them.

    Raises:
        InvalidValueError: a number out of range.
    """
    return later_cycle_misses(num_tasks, capacity) / num_tasks


def recall_error_limit(num_tasks: int, delta: float) -> float:
    """Return the recall error below which a Bank beats holding one solution, (1 - 1/M) Delta.

    Per later cycle a Bank that recalls every task with error eps costs M eps, holding one task for
    good costs (M-1) Delta_switch.

    Args:
        num_tasks: M.
        delta: Delta_switch, in units of reward.

    Raises:
        InvalidValueError: no task.
    """
    _check(num_tasks=(num_tasks, 1))
    return (1.0 - 1.0 / num_tasks) * delta


def optimal_misses(visits: Sequence[Hashable], capacity: int, *, forced: bool = False) -> int:
    """Return the fewest misses over given visits, for a policy that knows them all.

    Whatever is next used farthest in the future goes (Belady, IBM Systems Journal 1966); unless
    storing is forced, that can be the newcomer itself.

    Args:
        visits: tasks in the order of their visits; nothing is held before the first.
        capacity: c, solutions that can be held; at least 1 where storing is forced.
        forced: whether the present task has to be held after its visit.

    Raises:
        InvalidValueError: a capacity out of range.
    """
    _check(capacity=(capacity, int(forced)))
    following: list[float] = []  # when the visited task comes again
    seen: dict[Hashable, float] = {}
    for t in range(len(visits) - 1, -1, -1):
        following.append(seen.get(visits[t], inf))
        seen[visits[t]] = t
    held: dict[Hashable, float] = {}
    misses = 0
    for task, again in zip(visits, reversed(following), strict=True):
        misses += task not in held
        held[task] = again
        if len(held) > capacity:
            others = (other for other in held if not (forced and other == task))
            del held[max(others, key=held.__getitem__)]
    return misses


@dataclass(frozen=True)
class DivisibleBound:
    """What a later cycle costs at least where solutions can be kept in part, in Delta_switch.

    Attributes:
        real: M c_env(kR/M), c_env the lower convex envelope of c; for ranks that need not be whole.
        whole: the optimum over whole ranks.
        pinned: M - k, with whole solutions pinned; above the others where the bound
            (M-k)Delta_switch fails.
    """

    real: float
    whole: float
    pinned: float


def divisible_bound(
    residual: Sequence[float] | Callable[[float], float],
    num_tasks: int,
    slots: int,
    rank: int | None = None,
) -> DivisibleBound:
    """Return the bounds for divisible knowledge.

    Any ranks r_m with sum k R cost sum_m c(r_m) >= sum_m c_env(r_m) >= M c_env(kR/M), c_env being
    convex and not increasing. Over whole ranks the bound is attained by mixing the two ends
    of an edge of the table's envelope where the numbers come out whole, which is not always, so
    that optimum is found exactly.

    Args:
        residual: share of Delta_switch left to pay at ranks 0, 1, ..., R: 1 at 0, 0 at R, not
            increasing; or that function of a real rank (its envelope is then taken on a grid of
            4,000 intervals: exact to rounding at kR/M where the function is convex).
        num_tasks: M.
        slots: k, solutions of full rank that fit (with a Bank: k + K).
        rank: R; needed with a function.

    Raises:
        InvalidValueError: no rank with a function, another one than the table's, numbers out of
            range, or residuals that do not fall from 1 to 0.
    """
    _check(num_tasks=(num_tasks, 1), slots=(slots, 0))
    if callable(residual):
        if rank is None:
            raise InvalidValueError("Expected the full rank R with a function of the rank.")
        _check(rank=(rank, 1))
        table = np.array([float(residual(r)) for r in range(rank + 1)])
    else:
        table = np.array(residual, dtype=np.float64)
        if rank is not None and rank != len(table) - 1:
            raise InvalidValueError(
                f"Expected a table of {rank + 1} residuals for rank {rank}; got {len(table)}."
            )
    falling = table.ndim == 1 and len(table) > 1 and bool((np.diff(table) <= 0).all())
    if not falling or abs(table[0] - 1) > 1e-9 or abs(table[-1]) > 1e-9:
        raise InvalidValueError(
            f"Expected residuals that fall from 1 (nothing kept) to 0 (all kept); got {residual!r}."
        )
    largest = len(table) - 1
    share = min(slots * largest / num_tasks, float(largest))
    if callable(residual):
        ranks = np.union1d(np.linspace(0.0, largest, _GRID + 1), [share])
        values = np.array([float(residual(float(r))) for r in ranks])
    else:
        ranks, values = np.arange(largest + 1.0), table
    corners = _envelope(ranks, values)
    real = num_tasks * float(np.interp(share, ranks[corners], values[corners]))
    least = np.zeros(min(slots, num_tasks) * largest + 1)  # by units that may still be used
    for _ in range(num_tasks):
        # Rank r leaves u - r units; what does not fit is infinitely dear.
        costs = [
            np.pad(least, (r, 0), constant_values=inf)[: len(least)] for r in range(len(table))
        ]
        least = (np.array(costs) + table[:, None]).min(axis=0)
    return DivisibleBound(
        real=real, whole=float(least[-1]), pinned=float(max(0, num_tasks - slots))
    )


def _envelope(x: Floats, y: Floats) -> list[int]:
    """Return the positions of the corners of the lower convex envelope of points, by rising x."""
    corners: list[int] = []
    for i in range(len(x)):
        while len(corners) > 1:
            a, b = corners[-2:]
            # b lies on or above the line from a to i
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break
            corners.pop()
        corners.append(i)
    return corners


def _check(**numbers: tuple[int, int]) -> None:
    for name, (number, least) in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
            raise InvalidValueError(
                f"Expected {name} to be a whole number of at least {least}; got {number!r}."
            )
