"""Reading A: closed form, linear programme and enumeration agree; the numbers of its failures."""

from __future__ import annotations

from itertools import product
from math import lcm, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsr_gym.errors import DataError, InvalidValueError
from nsr_gym.regret.blind import (
    clock_regret,
    gap_report,
    learner_regret,
    policy_regret,
    solve_blind,
    states_regret,
)
from nsr_gym.regret.instances import draw_allocation
from nsr_gym.regret.problems import AllocationProblem, with_clock
from nsr_gym.regret.solution import Certificate

M, GAP, CYCLES = 10, 0.5, 50


def random_problem(seed: int, *, distinct: bool) -> AllocationProblem:
    """Random rewards and kernel; each task its own optimum (`distinct`), or as it comes."""
    rng = np.random.default_rng(seed)
    m = int(rng.choice([2, 3, 5]))
    a, o = m + int(rng.integers(0, 2)), int(rng.integers(1, 5))
    rewards = rng.random((m, a))
    if distinct:
        rewards[np.arange(m), rng.permutation(a)[:m]] = 1.0 + rng.random(m)
    kernel = rng.dirichlet(np.full(o, rng.choice([0.2, 1.0, 5.0])), size=m)
    return AllocationProblem(rewards, kernel)


def instance(obs: str, rewards: str = "equal") -> AllocationProblem:
    return draw_allocation(split="test", number=7, num_tasks=M, rewards=rewards, gap=GAP, obs=obs)


@pytest.mark.parametrize("seed", range(60))
def test_closed_form_linear_programme_and_enumeration_agree(seed: int) -> None:
    solution = solve_blind(random_problem(seed, distinct=True))
    solution.certificate.verify(1e-12)
    assert set(solution.certificate.checks) == {"closed form", "linear programme", "enumeration"}
    report = gap_report(solution.problem)
    bound = solution.problem.num_tasks * report.bayes_error * report.delta
    assert report.bound == pytest.approx(bound, abs=1e-12)  # distinct optima: E is P_e
    assert solution.value >= bound - 1e-12


@pytest.mark.parametrize("seed", range(60))
def test_bound_holds_where_tasks_share_optimal_allocations(seed: int) -> None:
    problem = random_problem(seed, distinct=False)
    problem = AllocationProblem(np.round(problem.rewards, 1), problem.kernel)  # with ties too
    report = gap_report(problem)
    assert solve_blind(problem).value >= report.bound - 1e-12
    assert report.allocation_error <= report.bayes_error + 1e-12


def test_without_the_duplicates_correction_the_bound_would_be_false() -> None:
    # Three of four tasks share an allocation: one wrong task per cycle, not three.
    problem = AllocationProblem([[1, 0], [1, 0], [1, 0], [0, 1]], np.ones((4, 1)))
    report = gap_report(problem)
    assert solve_blind(problem).value == pytest.approx(1.0)
    assert (report.factor, report.duplicates, report.bound) == (1, 2, pytest.approx(1.0))
    assert problem.num_tasks * report.bayes_error * report.delta == pytest.approx(3.0)


def test_blind_regret_is_m_minus_one_gaps() -> None:
    for m in (1, 2, 5, 10, 20):
        problem = draw_allocation(split="train", number=0, num_tasks=m, gap=GAP)
        assert solve_blind(problem).value == pytest.approx((m - 1) * GAP)
        assert gap_report(problem).bound == pytest.approx((m - 1) * GAP)
        assert gap_report(problem).factor == m - 1


@pytest.mark.parametrize(("n", "regret"), [(1, 4.5), (2, 4.0), (5, 2.5), (10, 0.0)])
def test_classes_that_reveal_the_task(n: int, regret: float) -> None:
    solution = solve_blind(instance(f"classes:{n}"))
    assert solution.value == pytest.approx(regret, abs=1e-12)
    assert gap_report(solution.problem).bound == pytest.approx(regret, abs=1e-12)


@pytest.mark.parametrize(("q", "regret"), [(0.1, 4.5), (0.3, 3.5), (0.5, 2.5), (0.9, 0.5), (1, 0)])
def test_channel_that_reveals_the_task_partly(q: float, regret: float) -> None:
    solution = solve_blind(instance(f"channel:{q}"))
    assert solution.value == pytest.approx(regret, abs=1e-12)
    assert gap_report(solution.problem).bound == pytest.approx(regret, abs=1e-12)


@pytest.mark.parametrize("m", [5, 6, 10, 12])
def test_clock_gives_m_minus_the_common_divisor(m: int) -> None:
    for period in (*range(1, m + 3), 2 * m):
        blind = draw_allocation(split="train", number=1, num_tasks=m, gap=1.0)
        seen = AllocationProblem(blind.rewards, with_clock(blind.kernel, period))
        assert solve_blind(seen).value == pytest.approx(clock_regret(m, period), abs=1e-9)
    assert clock_regret(m, m) == 0


@pytest.mark.parametrize("m", [3, 4, 5, 6])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_internal_states_count_modulo_a_divisor(m: int, n: int) -> None:
    # Every deterministic controller of n states, each state with the output that fits most often.
    best = 0.0
    for after in product(range(n), repeat=n):
        state, path = 0, []
        for _ in range(n):  # past what does not recur
            state = after[state]
        horizon = lcm(*range(1, n + 1)) * m
        for visit in range(horizon):
            path.append((state, visit % m))
            state = after[state]
        counts = np.zeros((n, m))
        np.add.at(counts, tuple(np.array(path).T), 1)
        best = max(best, counts.max(axis=1).sum() * m / horizon)
    assert states_regret(m, n) == pytest.approx(m - best)


def test_compromise_makes_the_cross_task_gap_the_wrong_delta() -> None:
    solution = solve_blind(instance("blind", "compromise"))
    report = gap_report(solution.problem)
    assert solution.value == pytest.approx(0.5)
    assert report.cross_task == pytest.approx(0.5)
    assert solution.value < (M - 1) * report.cross_task  # the theorem with it would be false
    assert report.delta == pytest.approx(0.05)
    assert report.bound == pytest.approx(0.45)  # with the minimum over all it holds
    assert solution.value >= report.bound


@pytest.mark.parametrize(
    ("cycles", "relative", "absolute"), [(2, 1, 18), (5, 10, 45), (10, 45, 90), (30, 225, 270)]
)
def test_few_cycles_leave_the_learner_little_to_gain(
    cycles: int, relative: int, absolute: int
) -> None:
    regret = learner_regret(M, cycles)
    assert regret.relative == relative
    assert cycles * (M - 1) == absolute
    gained = cycles * (cycles - 1) / 2 if cycles <= M else cycles * (M - 1) - M * (M - 1) / 2
    assert regret.relative == gained
    # The learner itself: the right allocation comes at a random place in its list.
    rng = np.random.default_rng(cycles)
    tried = rng.integers(0, M, size=(4000, M))
    wrong = np.minimum(tried, cycles).sum(axis=1)
    assert abs(wrong.mean() - regret.wrong) <= 3 * wrong.std() / np.sqrt(len(wrong))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), mix=st.floats(0, 1))
def test_no_policy_beats_the_optimum_nor_the_bound(seed: int, mix: float) -> None:
    problem = random_problem(seed, distinct=seed % 2 == 0)
    solution = solve_blind(problem, check=False)
    shape = (problem.num_observations, problem.num_allocations)
    drawn = np.random.default_rng(seed).dirichlet(np.full(shape[1], 0.5), size=shape[0])
    other = mix * solution.policy + (1 - mix) * drawn
    assert policy_regret(problem, other) >= solution.value - 1e-12
    assert policy_regret(problem, other) >= gap_report(problem).bound - 1e-12


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000))
def test_fano_bounds_the_bayes_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m = int(rng.integers(2, 12))
    kernel = rng.dirichlet(np.full(int(rng.integers(1, 12)), 0.3), size=m)
    report = gap_report(AllocationProblem(np.eye(m), kernel))
    assert 0 <= report.fano <= report.bayes_error + 1e-12
    assert 0 <= report.information <= log(m) + 1e-12


def test_information_of_the_two_extremes() -> None:
    blind, full = gap_report(instance("blind")), gap_report(instance("full"))
    assert (blind.information, full.information) == (0.0, pytest.approx(log(M)))
    assert (blind.bayes_error, full.bayes_error) == (pytest.approx(1 - 1 / M), 0.0)
    assert full.bound == 0.0


def test_where_nothing_is_wrong_there_is_no_gap_and_no_bound() -> None:
    report = gap_report(AllocationProblem([[1.0], [2.0]], np.ones((2, 1))))
    assert np.isnan(report.delta)
    assert np.isnan(report.cross_task)
    assert report.bound == 0.0


def test_certificate_with_a_wrong_bound_or_check_is_refused() -> None:
    good = solve_blind(instance("blind")).certificate
    assert good.gap <= 1e-12
    Certificate(good.method, 4.5, 4.5, {"other": 4.5}, good.proof).verify()
    for bound, other in [(4.4, 4.5), (4.5, 4.6), (float("nan"), 4.5)]:
        with pytest.raises(DataError, match="not proved optimal"):
            Certificate(good.method, 4.5, bound, {"other": other}, good.proof).verify()


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (np.ones((2, 3)) / 3, "shape"),
        ([[0.5, 0.4]], "distribution"),
        ([[1.5, -0.5]], "distribution"),
        ([["a", "b"]], "table of numbers"),
    ],
)
def test_what_is_no_policy_is_refused(policy: object, message: str) -> None:
    problem = AllocationProblem(np.eye(2), np.ones((2, 1)))
    with pytest.raises(InvalidValueError, match=message):
        policy_regret(problem, policy)  # type: ignore[arg-type]


def test_counts_out_of_range_are_refused() -> None:
    for call in (
        lambda: clock_regret(10, 0),
        lambda: states_regret(0, 1),
        lambda: learner_regret(10, -1),
        lambda: learner_regret(True, 1),
    ):
        with pytest.raises(InvalidValueError, match="whole number"):
            call()
