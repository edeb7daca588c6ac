"""Reading C: square roots, the convex programme, and what no policy gets below."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from nsr_gym.errors import InvalidValueError
from nsr_gym.regret.instances import draw_allocation
from nsr_gym.regret.problems import AllocationProblem
from nsr_gym.regret.recovery import (
    first_cycle_tries,
    recovery_cost,
    relative_ratio,
    solve_recovery,
    visit_local_tries,
)


def random_problem(seed: int) -> AllocationProblem:
    """Right allocations as they come (shared by some tasks), a kernel with zeros now and then."""
    rng = np.random.default_rng(seed)
    m, o = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    a = m + int(rng.integers(0, 2))
    right = rng.integers(a, size=m) if seed % 3 == 0 else rng.permutation(a)[:m]
    kernel = rng.dirichlet(np.full(o, rng.choice([0.1, 1.0, 5.0])), size=m)
    kernel[kernel < 0.02] = 0.0
    return AllocationProblem(np.eye(a)[right] - 1.0, kernel / kernel.sum(axis=1, keepdims=True))


def blind(num_tasks: int) -> AllocationProblem:
    return draw_allocation(split="test", number=5, num_tasks=num_tasks, gap=1.0, best=0.0)


@pytest.mark.parametrize("redraw", [False, True])
@pytest.mark.parametrize(("m", "per_visit"), [(2, 1), (5, 4), (10, 9)])
def test_blind_costs_m_minus_one_wrong_tries_a_visit(m: int, per_visit: int, redraw: bool) -> None:
    solution = solve_recovery(blind(m), redraw=redraw)
    assert solution.value / m == pytest.approx(per_visit)
    assert solution.policy == pytest.approx(np.full((1, m), 1 / m))
    solution.certificate.verify()


def test_deterministic_memoryless_policies_never_finish() -> None:
    for allocation in range(4):
        assert recovery_cost(blind(4), np.eye(4)[[allocation]], redraw=False) == np.inf
        assert recovery_cost(blind(4), np.eye(4)[[allocation]], redraw=True) == np.inf


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("redraw", [False, True])
def test_value_bound_and_other_methods_agree(seed: int, redraw: bool) -> None:
    solution = solve_recovery(random_problem(seed), redraw=redraw)
    solution.certificate.verify(1e-9)
    assert len(solution.certificate.checks) == 2
    assert solution.value == recovery_cost(solution.problem, solution.policy, redraw=redraw)


@pytest.mark.parametrize("seed", [1, 4, 7])
@pytest.mark.parametrize("redraw", [False, True])
def test_a_general_optimiser_finds_no_better(seed: int, redraw: bool) -> None:
    rng = np.random.default_rng(seed)
    m, o = 3, 2
    kernel = rng.dirichlet(np.ones(o), size=m)
    problem = AllocationProblem(np.eye(m) - 1.0, kernel)

    def policy(logits: np.ndarray) -> np.ndarray:
        weights = np.exp(logits.reshape(o, m) - logits.max())
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    found = min(
        minimize(
            lambda x: recovery_cost(problem, policy(x), redraw=redraw),
            rng.normal(size=o * m),
            method="BFGS",
        ).fun
        for _ in range(3)
    )
    assert found == pytest.approx(solve_recovery(problem, redraw=redraw).value, abs=1e-4)
    assert found >= solve_recovery(problem, redraw=redraw).value - 1e-9
    if not redraw:
        roots = np.sqrt(kernel)
        assert found == pytest.approx((roots.sum(axis=0) ** 2).sum() - m, abs=1e-4)
        optimum = solve_recovery(problem, redraw=False).policy
        assert optimum == pytest.approx(roots.T / roots.T.sum(axis=1, keepdims=True))


def test_classes_and_channels_in_closed_form() -> None:
    # n equal classes of g tasks: blind within each. A channel that is drawn again at every try
    # ends with probability q if its symbol is believed.
    for n, tries in [(1, 90), (2, 40), (5, 10), (10, 0)]:
        problem = draw_allocation(split="train", number=0, num_tasks=10, obs=f"classes:{n}")
        for redraw in (False, True):
            value = solve_recovery(problem, redraw=redraw).value
            assert value == pytest.approx(tries, abs=1e-8)
    channel = draw_allocation(split="train", number=0, num_tasks=10, obs="channel:0.9")
    assert solve_recovery(channel, redraw=True).value == pytest.approx(10 / 0.9 - 10)
    fixed = 10 * (np.sqrt(0.9) + 9 * np.sqrt(0.1 / 9)) ** 2 - 10
    assert solve_recovery(channel, redraw=False).value == pytest.approx(fixed)


def test_tasks_that_share_the_right_allocation_add_up_before_the_root() -> None:
    # Two of three tasks share allocation 1, 1/3 of the mass on the other: 2 sqrt(2) + 3 - 3.
    problem = AllocationProblem([[0, 1], [0, 1], [1, 0]], np.ones((3, 1)))
    solution = solve_recovery(problem, redraw=False)
    assert solution.value == pytest.approx(2 * np.sqrt(2))
    assert solution.policy[0] == pytest.approx(np.array([1, np.sqrt(2)]) / (1 + np.sqrt(2)))
    solution.certificate.verify()


def test_overlapping_sets_of_right_allocations_are_solved_numerically() -> None:
    # Allocation 1 is right for both tasks, 0 and 2 for one each: play 1.
    problem = AllocationProblem([[1, 1, 0], [0, 1, 1]], np.ones((2, 1)))
    solution = solve_recovery(problem, redraw=False)
    assert solution.certificate.method == "barrier method"
    assert solution.value == pytest.approx(0.0, abs=1e-9)
    solution.certificate.verify()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), redraw=st.booleans(), mix=st.floats(0, 1))
def test_no_policy_beats_the_optimum(seed: int, redraw: bool, mix: float) -> None:
    problem = random_problem(seed)
    solution = solve_recovery(problem, redraw=redraw, check=False)
    drawn = np.random.default_rng(seed).dirichlet(
        np.ones(problem.num_allocations), size=problem.num_observations
    )
    cost = recovery_cost(problem, mix * solution.policy + (1 - mix) * drawn, redraw=redraw)
    assert cost >= solution.value * (1 - 1e-9) - 1e-9


@pytest.mark.parametrize("redraw", [False, True])
def test_the_exact_cost_is_the_mean_of_played_visits(redraw: bool) -> None:
    problem = random_problem(4)
    shape = problem.num_observations, problem.num_allocations
    policy = np.random.default_rng(0).dirichlet(np.full(shape[1], 5.0), size=shape[0])
    rng = np.random.default_rng(1)
    n, total, variance = 20_000, 0.0, 0.0
    for task in range(problem.num_tasks):
        wrong = np.zeros(n)
        going = np.ones(n, dtype=bool)
        symbols = rng.choice(problem.num_observations, size=n, p=problem.kernel[task])
        while going.any():
            if redraw:
                symbols = rng.choice(problem.num_observations, size=n, p=problem.kernel[task])
            chosen = (rng.random(n)[:, None] >= policy.cumsum(axis=1)[symbols, :-1]).sum(axis=1)
            going &= ~problem.optimal[task, chosen]
            wrong += going
        total, variance = total + wrong.mean(), variance + wrong.var() / n
    assert abs(total - recovery_cost(problem, policy, redraw=redraw)) <= 3 * np.sqrt(variance)


@pytest.mark.parametrize("m", [2, 5, 10])
def test_tries_with_memory_by_simulation(m: int) -> None:
    rng = np.random.default_rng(m)
    local, first = [], []
    for _ in range(4000):
        right = rng.permutation(m)
        # Within the visit only: any order of all allocations.
        local.append(np.flatnonzero(rng.permutation(m) == right[0])[0])
        tries, left = 0, list(range(m))
        for answer in right:
            tries += int(np.flatnonzero(rng.permutation(left) == answer)[0])
            left.remove(answer)
        first.append(tries)
    for sample, expected in [(local, visit_local_tries(m)), (first, first_cycle_tries(m))]:
        error = np.std(sample) / np.sqrt(len(sample))
        assert abs(np.mean(sample) - expected) <= 3 * error
    assert visit_local_tries(m) == (m - 1) / 2
    assert first_cycle_tries(m) == m * (m - 1) / 4


def test_ratios_to_the_bound() -> None:
    for m in (2, 5, 10):
        for cycles in (1, 2, 10):
            bound = cycles * m * (m - 1)
            absolute = cycles * solve_recovery(blind(m), redraw=False).value
            assert absolute / bound == pytest.approx(1.0)
            relative = (absolute - first_cycle_tries(m)) / bound
            assert relative == pytest.approx(relative_ratio(cycles))
    assert relative_ratio(1) == 0.75


def test_counts_out_of_range_are_refused() -> None:
    for call in (visit_local_tries, first_cycle_tries, relative_ratio):
        with pytest.raises(InvalidValueError, match="at least 1"):
            call(0)
