r"""Reading C, run until recovered: the policy pi(a|o) with the fewest wrong tries.

Our reading C of the regret theorem of Neural Subspace Reallocation (arXiv 2606.30067, abstract): a
visit of a task goes on until a right allocation has been tried, every wrong try costs Delta_switch,
and the policy sees a symbol only. Tries until success are geometric: with probability p of a
right one there are 1/p - 1 wrong ones on average. Costs are counted in wrong tries per cycle.

*Blind.* With one right allocation for each of M tasks, all different, the p_m add up to 1 at most,
and sum_m 1/p_m - M is least, M (M-1), where they are all 1/M: M - 1 wrong tries in each visit.

*Observation fixed during a visit.* The cost splits over symbols. Let w_g(o) be the sum of O(o|m)
over the tasks that share the set g of right allocations, sets of different tasks being equal or
disjoint. sum_g w_g / pi(g|o), the pi(g|o) adding up to 1, is at least (sum_g sqrt(w_g))^2 by the
Cauchy-Schwarz inequality, with equality at pi(g|o) proportional to sqrt(w_g).

*Observation drawn again at every try.* p_m = sum_o O(o|m) pi(right for m|o) is linear in pi and
1/p is convex: a convex programme.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from nsr_gym.errors import InvalidValueError
from nsr_gym.regret.convex import lower_bound, minimise_inverse
from nsr_gym.regret.problems import AllocationProblem, Floats, constant_symbols
from nsr_gym.regret.solution import Certificate, Solution, checked_policy

STARTS = 3
"""Interior points that the convex programme is solved from as a check."""
_TRACE = 1e-6  # below: a zero that the barrier keeps from being one, or too rare to matter


def solve_recovery(problem: AllocationProblem, *, redraw: bool, check: bool = True) -> Solution:
    """Return the stationary policy of reading C with the fewest expected wrong tries.

    Args:
        problem: its largest reward marks the right allocations of a task; the kernel is O(o|m).
        redraw: whether the symbol is drawn again at every try of a visit, or once for the visit.
        check: whether to solve it again: the closed form numerically, the convex programme from
            further starts.

    Returns:
        The solution; its value is the expected number of wrong tries per cycle, to be multiplied
        by Delta_switch for a cost. `certificate.bound` is proved by the gradient at the policy;
        it meets the value to within rounding, or about 1e-5 where tasks' sets of right
        allocations overlap without being equal.
    """
    closed = not redraw and _grouped(problem)
    solve = _together if redraw else _by_symbol
    checks = {}
    if closed:
        policy, least = _square_roots(problem)
        if check:
            checks["closed form"] = least
            other = solve(problem, _start(problem, 0))
            checks["barrier method"] = recovery_cost(problem, other, redraw=False)
    else:
        policy = _without_traces(problem, solve(problem, _start(problem, 0)), redraw=redraw)
        for number in range(1, STARTS if check else 1):
            other = solve(problem, _start(problem, number))
            checks[f"start {number + 1}"] = recovery_cost(problem, other, redraw=redraw)
    value = recovery_cost(problem, policy, redraw=redraw)
    certificate = Certificate(
        method="square roots of the observation's weights" if closed else "barrier method",
        value=value,
        bound=_proved(problem, policy, redraw=redraw),
        checks=checks,
        proof=(
            "Wrong tries are convex in pi(a|o): they lie above their linearisation at the policy, "
            "whose smallest value over all policies is the bound."
        ),
    )
    unit = "expected wrong tries per cycle"
    matters = None if constant_symbols(problem.kernel) else redraw
    return Solution("C", value, unit, policy, certificate, problem, redraw=matters)


def recovery_cost(problem: AllocationProblem, policy: ArrayLike, *, redraw: bool) -> float:
    """Return the exact expected number of wrong tries per cycle of a stationary policy.

    Args:
        problem: as in `solve_recovery`.
        policy: (O, A), pi(a|o).
        redraw: whether the symbol is drawn again at every try of a visit.

    Returns:
        The sum over tasks; infinite where a visit may never end.

    Raises:
        InvalidValueError: no policy for this problem.
    """
    success = checked_policy(problem, policy) @ problem.optimal.T  # (O, M) of a right try
    kernel = problem.kernel.T
    if redraw:
        success, kernel = (kernel * success).sum(axis=0), np.ones(problem.num_tasks)
    tried = kernel > 0
    if not success[tried].all():
        return float("inf")
    # Rounding can leave a probability a hair above 1.
    return float((kernel[tried] * np.maximum(0.0, 1.0 / success[tried] - 1.0)).sum())


def visit_local_tries(num_tasks: int) -> float:
    """Return the expected wrong tries per visit with memory within the visit only, (M-1)/2.

    No allocation is tried twice; the right one is equally likely to come first, second, ..., M-th.

    Raises:
        InvalidValueError: no task.
    """
    return (_at_least_one("num_tasks", num_tasks) - 1) / 2


def first_cycle_tries(num_tasks: int) -> float:
    """Return the expected wrong tries of the history-aware learner in all, M (M-1)/4.

    It tries no allocation twice in a visit and none that is known to be another task's: the i-th
    task has M - i + 1 left, (M - i)/2 wrong tries. After the first cycle there are none.

    Raises:
        InvalidValueError: no task.
    """
    return _at_least_one("num_tasks", num_tasks) * (num_tasks - 1) / 4


def relative_ratio(cycles: int) -> float:
    """Return the best blind policy's regret to the history-aware one over T(M-1)Delta_switch.

    T = C M visits: (C M (M-1) - M (M-1)/4) / (C M (M-1)) = 1 - 1/(4C), at least 3/4.

    Raises:
        InvalidValueError: no cycle.
    """
    return 1.0 - 1.0 / (4.0 * _at_least_one("cycles", cycles))


def _grouped(problem: AllocationProblem) -> bool:
    """Whether any two tasks have the same right allocations or none in common."""
    right = problem.optimal.astype(np.int64)
    common, sizes = right @ right.T, right.sum(axis=1)
    same = (common == sizes[:, None]) & (common == sizes[None, :])
    return bool((same | (common == 0)).all())


def _square_roots(problem: AllocationProblem) -> tuple[Floats, float]:
    """Return the closed form's policy and value."""
    sets = np.unique(problem.optimal, axis=0)  # (G, A)
    first = sets.argmax(axis=1)  # one right allocation stands for its group
    members = problem.optimal[:, first]  # (M, G) whether a task is of a group
    roots = np.sqrt(problem.kernel.T @ members)  # (O, G)
    totals = roots.sum(axis=1)
    policy = np.zeros((problem.num_observations, problem.num_allocations))
    seen = totals > 0
    policy[np.ix_(seen, first)] = roots[seen] / totals[seen, None]
    policy[~seen] = 1.0 / problem.num_allocations  # a symbol that never shows
    return policy, float((totals**2).sum()) - problem.num_tasks


def _start(problem: AllocationProblem, number: int) -> Floats:
    """Return the uniform policy, or one between it and a random one."""
    o, a = problem.num_observations, problem.num_allocations
    uniform = np.full((o, a), 1.0 / a)
    if number == 0:
        return uniform
    drawn = np.random.default_rng(number).dirichlet(np.ones(a), size=o)
    return np.asarray((uniform + drawn) / 2.0)


def _together(problem: AllocationProblem, start: Floats) -> Floats:
    """Solve the convex programme of an observation drawn again at every try."""
    return minimise_inverse(np.ones(problem.num_tasks), _redrawn(problem), start)


def _by_symbol(problem: AllocationProblem, start: Floats) -> Floats:
    """Solve for each symbol by itself, as for an observation that stays."""
    policy = start.copy()
    for o, weights in enumerate(problem.kernel.T):
        used = weights > 0
        if used.any():
            right = problem.optimal[used, None, :].astype(np.float64)
            policy[o] = minimise_inverse(weights[used], right, start[o : o + 1])[0]
    return policy


def _without_traces(problem: AllocationProblem, policy: Floats, *, redraw: bool) -> Floats:
    """Return the policy without the tiny probabilities that the barrier leaves, if no worse."""
    kept = np.where(policy < _TRACE, 0.0, policy)
    kept /= kept.sum(axis=1, keepdims=True)
    costs = [recovery_cost(problem, each, redraw=redraw) for each in (kept, policy)]
    return kept if costs[0] <= costs[1] else policy


def _proved(problem: AllocationProblem, policy: Floats, *, redraw: bool) -> float:
    """Return the lower bound that the gradient at a policy proves."""
    if redraw:
        total = lower_bound(np.ones(problem.num_tasks), _redrawn(problem), policy)
    else:
        right = problem.optimal[:, None, :].astype(np.float64)
        total = sum(
            lower_bound(weights, right, policy[o : o + 1])
            for o, weights in enumerate(problem.kernel.T)
        )
    return total - problem.num_tasks


def _redrawn(problem: AllocationProblem) -> Floats:
    """Return (M, O, A): O(o|m) where a is right for m, else 0."""
    return np.asarray(problem.kernel[:, :, None] * problem.optimal[:, None, :])


def _at_least_one(name: str, number: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
        raise InvalidValueError(
            f"Expected {name} to be a whole number of at least 1; got {number!r}."
        )
    return int(number)
