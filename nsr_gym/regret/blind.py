r"""Reading A, blind identification: the best stationary policy pi(a|o), and what bounds it.

Our reading A of the regret theorem of Neural Subspace Reallocation (arXiv 2606.30067, abstract): M
tasks recur, every step plays one allocation and pays R[m, a], and the policy sees only a symbol
drawn afresh from O(o|m). Regret is counted per cycle and per step of a visit, against the
best allocation of every task: a cycle of visits of L steps loses L times that.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, log

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.optimize import linprog

from nsr_gym.errors import InvalidValueError
from nsr_gym.regret.problems import AllocationProblem, Floats
from nsr_gym.regret.solution import Certificate, Solution, checked_policy

ENUMERATED = 20_000
"""Deterministic policies up to which all of them are tried as a check."""


def solve_blind(problem: AllocationProblem, *, check: bool = True) -> Solution:
    """Return the best stationary policy of reading A.

    The expected reward of a cycle, sum_o sum_a pi(a|o) sum_m O(o|m) R[m, a], is linear in pi and
    splits over the symbols, so that an allocation of largest sum_m O(o|m) R[m, a] for each of them
    is optimal among all policies, stochastic ones included.

    Args:
        problem: rewards and observation kernel.
        check: whether to solve it again, as a linear programme (whose dual then is the bound) and,
            for at most 20,000 deterministic policies, by enumeration.

    Returns:
        The solution; its value is the regret per cycle and step of a visit, in units of reward.
    """
    worth = problem.kernel.T @ problem.rewards  # (O, A) reward of a cycle where o shows and a plays
    policy = np.eye(problem.num_allocations)[worth.argmax(axis=1)]
    total = float(problem.best.sum())
    value = policy_regret(problem, policy)
    bound, checks = total - float(worth.max(axis=1).sum()), {}
    if check:
        checks["closed form"] = bound
        checks["linear programme"], bound = (total - found for found in _programme(worth))
        if problem.num_allocations**problem.num_observations <= ENUMERATED:
            checks["enumeration"] = total - _enumerate(worth)
    certificate = Certificate(
        method="the best allocation for each observation",
        value=value,
        bound=bound,
        checks=checks,
        proof=(
            "The reward is linear in pi(a|o): any y(o) that is at least sum_m O(o|m) R[m, a] for "
            "every a (a point of the dual linear programme) gives sum_o y(o), which no policy's "
            "reward exceeds."
        ),
    )
    return Solution(
        "A", value, "regret per cycle and step of a visit", policy, certificate, problem
    )


def policy_regret(problem: AllocationProblem, policy: ArrayLike) -> float:
    """Return the exact expected regret of a stationary policy, per cycle and step of a visit.

    Args:
        problem: rewards and observation kernel.
        policy: (O, A), pi(a|o).

    Returns:
        sum_m sum_o O(o|m) sum_a pi(a|o) G[m, a], in units of reward.

    Raises:
        InvalidValueError: no policy for this problem.
    """
    played = problem.kernel @ checked_policy(problem, policy)  # (M, A)
    return float((played * problem.gaps).sum())


@dataclass(frozen=True)
class Gaps:
    r"""What the bound of reading A is made of.

    *The bound.* Let S_m be the allocations that are optimal for m. Any other one loses at least
    Delta on m, so a policy pi loses per cycle and step at least

        Delta sum_m (1 - sum_o O(o|m) sum_{a in S_m} pi(a|o))
        = Delta (M - sum_o sum_a pi(a|o) sum_{m: a in S_m} O(o|m))
        >= Delta (M - sum_o max_a sum_{m: a in S_m} O(o|m)) = Delta M E,

    since pi(.|o) adds up to 1. E is `allocation_error`: the smallest probability of playing an
    allocation that is wrong, tasks being equally likely. With one optimal allocation for each task
    and no two alike, the inner sum has one term and E is the Bayes error P_e of naming the task.
    With nothing to see, O = 1, it is Delta (M - max_a #{m: a in S_m}), which is Delta (M - 1)
    where the optima are distinct. It is attained where every wrong allocation loses Delta.

    Attributes:
        delta: Delta, the smallest loss over tasks and allocations that are not optimal for
            them, per step (Delta_switch is L times that); nan where none is wrong.
        cross_task: the smallest loss where the optimal allocation of one task is wrong for
            another; nan where that does not happen. Where it exceeds Delta, an allocation that is
            optimal for no task is a compromise, and with this number the theorem is false.
        factor: M - max_a #{m: a optimal for m}, what M - 1 has to be replaced by; M - 1 where the
            optima are distinct.
        duplicates: M - 1 - factor, further tasks that share the most shared optimal allocation.
        bayes_error: P_e = 1 - (1/M) sum_o max_m O(o|m), of naming the task.
        allocation_error: E, see above; at most P_e.
        information: I(m;o) in nats, tasks being equally likely.
        fano: 1 - (I + ln 2) / ln M, which P_e is at least; 0 where that is negative.
        bound: Delta M E, regret per cycle and step; 0 where nothing is wrong.
    """

    delta: float
    cross_task: float
    factor: int
    duplicates: int
    bayes_error: float
    allocation_error: float
    information: float
    fano: float
    bound: float


def gap_report(problem: AllocationProblem) -> Gaps:
    """Return what the bound of reading A is made of; see `Gaps`.

    Args:
        problem: rewards and observation kernel.
    """
    m, kernel, gaps, optimal = problem.num_tasks, problem.kernel, problem.gaps, problem.optimal
    wrong = ~optimal
    delta = float(gaps[wrong].min()) if wrong.any() else float("nan")
    # Optimal for some task and wrong for the one at hand, which is then another.
    crossed = wrong & optimal.any(axis=0)
    factor = m - int(optimal.sum(axis=0).max())
    # Each is an error 1 - (...) that rounding may leave a hair below 0.
    bayes_error = max(0.0, 1.0 - float(kernel.max(axis=0).sum()) / m)
    right = kernel.T @ optimal  # (O, A) sum over the tasks that a is optimal for
    allocation_error = max(0.0, 1.0 - float(right.max(axis=1).sum()) / m)
    information = _information(kernel)
    return Gaps(
        delta=delta,
        cross_task=float(gaps[crossed].min()) if crossed.any() else float("nan"),
        factor=factor,
        duplicates=m - 1 - factor,
        bayes_error=bayes_error,
        allocation_error=allocation_error,
        information=information,
        fano=max(0.0, 1.0 - (information + log(2)) / log(m)) if m > 1 else 0.0,
        bound=delta * m * allocation_error if wrong.any() else 0.0,
    )


def clock_regret(num_tasks: int, period: int) -> int:
    """Return the long-run regret per cycle of a blind policy that sees the visit modulo p.

    Tasks in a fixed order, wrong allocations lose 1. The clock shows the task modulo g = gcd(p, M)
    and nothing else, so that g tasks are got right, one for each remainder.

    Args:
        num_tasks: M.
        period: p >= 1.

    Returns:
        M - gcd(p, M).

    Raises:
        InvalidValueError: a number below 1.
    """
    _check_least(1, num_tasks=num_tasks, period=period)
    return num_tasks - gcd(period, num_tasks)


def states_regret(num_tasks: int, states: int) -> int:
    """Return the long-run regret per cycle of a blind policy with n internal states.

    Open loop, tasks in a fixed order, wrong allocations lose 1. n states can count modulo any
    p <= n, and the best p divides M. Stochastic transitions do no better in the long run: a
    recurrent class of period p is in step with the cycle only modulo gcd(p, M).

    Args:
        num_tasks: M.
        states: n >= 1.

    Returns:
        M - (largest divisor of M that is not above n).

    Raises:
        InvalidValueError: a number below 1.
    """
    _check_least(1, num_tasks=num_tasks, states=states)
    return num_tasks - max(d for d in range(1, min(num_tasks, states) + 1) if num_tasks % d == 0)


@dataclass(frozen=True)
class LearnerRegret:
    """The learner that never tries an allocation twice on a task, against the best blind policy.

    Attributes:
        wrong: its expected number of wrong steps.
        relative: wrong steps of the best blind policy, C (M - 1), less these: what the
            history-aware learner gains.
    """

    wrong: float
    relative: float


def learner_regret(num_tasks: int, cycles: int) -> LearnerRegret:
    """Return what learning costs over few cycles.

    Visits of one step, right or wrong is told, every task's right allocation is equally likely to
    be any of M, and the learner tries them on each task without repetition. A task
    whose right allocation comes u-th has min(C, u - 1) wrong steps; summed over u = 1..M that is
    the expectation over all M tasks. The relative regret is C (C - 1) / 2 up to C = M and
    C (M - 1) - M (M - 1) / 2 beyond.

    Args:
        num_tasks: M.
        cycles: C >= 0.

    Returns:
        Counts of steps; in units of reward they are multiplied by the gap.

    Raises:
        InvalidValueError: no task, or a negative number of cycles.
    """
    _check_least(1, num_tasks=num_tasks)
    _check_least(0, cycles=cycles)
    wrong = sum(min(cycles, tried) for tried in range(num_tasks))
    return LearnerRegret(wrong=float(wrong), relative=float(cycles * (num_tasks - 1) - wrong))


def _programme(worth: Floats) -> tuple[float, float]:
    """Solve max sum worth * pi over distributions; return its value and a proved upper bound."""
    o, a = worth.shape
    rows = sparse.kron(sparse.eye(o), np.ones((1, a)), format="csr")
    found = linprog(-worth.ravel(), A_eq=rows, b_eq=np.ones(o), bounds=(0, None), method="highs")
    price = -np.asarray(found.eqlin.marginals)
    # The solver's dual point is feasible up to its tolerance; raised by what it lacks it bounds.
    lacking = np.maximum(0.0, (worth - price[:, None]).max(axis=1))
    return -float(found.fun), float((price + lacking).sum())


def _enumerate(worth: Floats) -> float:
    """Return the best reward over every function from observations to allocations."""
    totals = np.zeros(1)
    for row in worth:
        totals = np.add.outer(totals, row).ravel()
    return float(totals.max())


def _information(kernel: Floats) -> float:
    joint = kernel / len(kernel)
    independent = joint.sum(axis=0)[None, :] / len(kernel)
    seen = joint > 0
    ratio = joint[seen] / np.broadcast_to(independent, joint.shape)[seen]
    return max(0.0, float((joint[seen] * np.log(ratio)).sum()))


def _check_least(least: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
            raise InvalidValueError(
                f"Expected {name} to be a whole number of at least {least}; got {number!r}."
            )
