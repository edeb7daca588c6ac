"""Reading B: the boundary argument, the dynamic programme and clairvoyant paging agree."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import product
from math import exp
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsr_gym.errors import InvalidValueError
from nsr_gym.regret.held import clairvoyant, held_states
from nsr_gym.regret.paging import plan_cost, solve_paging
from nsr_gym.regret.paging_bounds import (
    divisible_bound,
    iid_miss_rate,
    later_cycle_misses,
    miss_bound,
    optimal_misses,
    recall_error_limit,
)
from nsr_gym.regret.problems import PagingProblem

FALLING = (1.0, 0.45, 0.2, 0.0)
BULGING = (1.0, 0.9, 0.7, 0.0)


def cyclic(num_tasks: int, cycles: int) -> list[int]:
    return [task for _ in range(cycles) for task in range(num_tasks)]


def lru_misses(visits: Sequence[int], capacity: int) -> int:
    held: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for task in visits:
        misses += task not in held
        held[task] = None
        held.move_to_end(task)
        if len(held) > capacity:
            held.popitem(last=False)
    return misses


def decay(rank: float) -> float:
    """exp(-r/2), shifted and scaled to 1 at 0 and 0 at 8."""
    return (exp(-rank / 2) - exp(-4)) / (1 - exp(-4))


def random_problem(seed: int, **given: Any) -> PagingProblem:
    rng = np.random.default_rng(seed)
    m = int(rng.integers(2, 5))
    return PagingProblem(
        **{
            "num_tasks": m,
            "slots": int(rng.integers(1, 3)),
            "bank": int(rng.integers(0, 3)),
            "delta": 1.0 + rng.random(m),
            "recall_error": float(rng.choice([0.0, 0.1, 1.2])),
            **given,
        }
    )


@pytest.mark.parametrize("cycles", [1, 2, 4])
@pytest.mark.parametrize(("m", "k"), [(m, k) for m in (3, 4, 5) for k in range(1, m + 1)])
def test_dynamic_programme_gives_the_miss_bound(m: int, k: int, cycles: int) -> None:
    bound = m + (cycles - 1) * (m - k)
    problem = PagingProblem(num_tasks=m, slots=k)
    cost, plan = clairvoyant(problem, cyclic(m, cycles))
    assert cost == plan_cost(problem, plan) == bound
    assert miss_bound(m, cycles, k) == bound
    assert optimal_misses(cyclic(m, cycles), k) == bound
    solution = solve_paging(problem, cycles)
    assert solution.value == solution.certificate.bound == bound
    assert set(solution.certificate.checks) == {
        "dynamic programme",
        "farthest next use",
        "closed form",
    }
    solution.certificate.verify(0)


@pytest.mark.parametrize(("k", "misses"), [(1, 20), (2, 16), (3, 12), (4, 8), (5, 5)])
def test_forced_storing_costs_more(k: int, misses: int) -> None:
    solution = solve_paging(PagingProblem(num_tasks=5, slots=k, forced=True), 4)
    solution.certificate.verify(0)
    assert solution.value == solution.certificate.checks["farthest next use"] == misses
    # The argument stands for the problem's own value.
    again = solve_paging(PagingProblem(num_tasks=5, slots=k), 4, forced=True)
    assert again.value == misses
    # Stored after every visit, the plan itself says so.
    assert (solution.policy[:, 2] == 1).all()


def test_lru_misses_everything_until_the_whole_cycle_fits() -> None:
    visits = cyclic(10, 10)
    assert [lru_misses(visits, c) for c in range(1, 11)] == [100] * 9 + [10]
    optimum = [91, 82, 73, 64, 55, 46, 37, 28, 19, 10]
    assert [optimal_misses(visits, c) for c in range(1, 11)] == optimum
    assert [miss_bound(10, 10, c) for c in range(1, 11)] == optimum
    problems = [PagingProblem(num_tasks=10, slots=c) for c in range(1, 11)]
    assert [solve_paging(p, 10, check=False).value for p in problems] == optimum


def test_slots_and_bank_add_up() -> None:
    for slots, bank in [(1, 4), (3, 2), (5, 0)]:
        assert solve_paging(PagingProblem(num_tasks=8, slots=slots, bank=bank), 3).value == 14
    assert later_cycle_misses(8, 5) == 3
    assert later_cycle_misses(8, 9) == 0


def test_order_within_a_cycle_does_not_enter() -> None:
    rng = np.random.default_rng(0)
    problem = PagingProblem(num_tasks=5, slots=2)
    for _ in range(10):
        visits = np.concatenate([rng.permutation(5) for _ in range(4)]).tolist()
        assert clairvoyant(problem, visits)[0] >= miss_bound(5, 4, 2)
    # Pinning attains it: the row of task m in cycle j, whenever the task comes in that cycle.
    plan = solve_paging(problem, 4).policy
    rows = [cycle * 5 + task for cycle, task in zip(np.repeat(range(4), 5), visits, strict=True)]
    assert plan_cost(problem, plan[rows], visits) == miss_bound(5, 4, 2)


@settings(deadline=None, max_examples=60)
@given(
    visits=st.lists(st.integers(0, 4), min_size=1, max_size=14),
    capacity=st.integers(1, 5),
    forced=st.booleans(),
)
def test_farthest_next_use_is_optimal_for_any_visits(
    visits: list[int], capacity: int, forced: bool
) -> None:
    problem = PagingProblem(num_tasks=5, slots=capacity, forced=forced)
    cost, plan = clairvoyant(problem, visits)
    assert cost == optimal_misses(visits, capacity, forced=forced)
    assert cost == plan_cost(problem, plan, visits)
    assert cost <= lru_misses(visits, capacity)


def test_capacity_none_misses_everything_and_cannot_be_forced() -> None:
    assert optimal_misses([0, 0, 1], 0) == 3
    with pytest.raises(InvalidValueError, match="at least 1"):
        optimal_misses([0, 0, 1], 0, forced=True)


@pytest.mark.parametrize("seed", range(25))
def test_unequal_costs_and_recall_errors_against_the_dynamic_programme(seed: int) -> None:
    solution = solve_paging(random_problem(seed), 3)
    assert solution.certificate.method == "pinning the best contents"
    assert "dynamic programme" in solution.certificate.checks
    solution.certificate.verify()


def test_the_dearest_tasks_are_held_and_a_slot_saves_the_recall_error() -> None:
    delta = [1.0, 5.0, 2.0, 4.0]
    problem = PagingProblem(num_tasks=4, slots=1, bank=1, delta=delta, recall_error=0.5)
    # Tasks 1 and 3 are held, one of them in the Bank.
    assert solve_paging(problem, 2).value == pytest.approx(12.0 + 1.0 + 2.0 + 0.5)
    # An error as large as relearning makes the Bank worthless.
    useless = PagingProblem(num_tasks=4, slots=1, bank=1, delta=delta, recall_error=4.0)
    assert solve_paging(useless, 2).value == pytest.approx(12.0 + 7.0)


def test_recall_error_limit_is_where_the_bank_stops_paying() -> None:
    m, delta = 10, 2.0
    limit = recall_error_limit(m, delta)
    assert limit == pytest.approx(1.8)
    for error, pays in [(limit - 1e-9, True), (limit + 1e-9, False)]:
        assert (m * error < (m - 1) * delta) == pays


def test_divisible_example() -> None:
    bound = divisible_bound(decay, 10, 1, 8)
    assert bound.real == pytest.approx(6.64, abs=0.005)
    assert bound.whole == pytest.approx(6.79, abs=0.005)
    assert bound.pinned == 9
    table = [1.0, *(decay(r) for r in range(1, 8)), 0.0]
    assert divisible_bound(table, 10, 1).whole == pytest.approx(bound.whole)
    # A later cycle of the whole plan costs just that, below the bound (M - k) Delta.
    costs = [solve_paging(PagingProblem(num_tasks=10, residual=table), c).value for c in (1, 2)]
    assert costs[1] - costs[0] == pytest.approx(bound.whole)


def test_a_residual_that_bulges_upwards_leaves_the_bound_as_it_was() -> None:
    # Not convex: its envelope is the straight line, and whole solutions are pinned.
    bound = divisible_bound(BULGING, 6, 2)
    assert bound.real == pytest.approx(4.0)
    assert bound.whole == bound.pinned == 4.0
    assert divisible_bound(lambda r: 1 - (r / 3) ** 2, 6, 2, 3).real == pytest.approx(4.0)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_whole_ranks_are_chosen_best_and_the_envelope_bounds_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, k, largest = int(rng.integers(1, 5)), int(rng.integers(1, 4)), int(rng.integers(1, 5))
    table = np.array([1.0, *np.sort(rng.random(largest - 1))[::-1], 0.0])
    bound = divisible_bound(table.tolist(), m, k)
    every = [
        table[list(ranks)].sum()
        for ranks in product(range(largest + 1), repeat=m)
        if sum(ranks) <= k * largest
    ]
    assert bound.whole == pytest.approx(min(every))
    assert bound.real <= bound.whole + 1e-12
    assert bound.whole <= bound.pinned + 1e-12
    delta = 1.0 + rng.random(m)
    problem = PagingProblem(num_tasks=m, slots=k, delta=delta, residual=table.tolist())
    least = min(
        delta @ table[list(ranks)]
        for ranks in product(range(largest + 1), repeat=m)
        if sum(ranks) <= k * largest
    )
    solution = solve_paging(problem, 3, check=False)
    assert solution.value == pytest.approx(delta.sum() + 2 * least)


@pytest.mark.parametrize("residual", [FALLING, BULGING, (1.0, 0.4, 0.0), (1.0, 0.8, 0.0)])
@pytest.mark.parametrize("bank", [0, 1])
def test_divisible_knowledge_against_the_dynamic_programme(
    residual: tuple[float, ...], bank: int
) -> None:
    problem = PagingProblem(num_tasks=3, bank=bank, delta=[1, 1.5, 2], residual=residual)
    solution = solve_paging(problem, 3)
    assert solution.certificate.checks["dynamic programme"] == pytest.approx(solution.value)


def test_transfer_is_used_between_tasks() -> None:
    # Task 1 starts from task 0 for a tenth, no other pair helps; one slot, three cycles.
    transfer = np.zeros((3, 3))
    transfer[1, 0] = 0.9
    problem = PagingProblem(num_tasks=3, transfer=transfer)
    solution = solve_paging(problem, 3)
    assert solution.value == pytest.approx((1 + 0.1 + 1) + 2 * (0 + 0.1 + 1))
    assert solution.certificate.method == "dynamic programme over held states"
    solution.certificate.verify()
    # Task 0 stays in its place, and task 1 starts from there.
    assert solution.policy[4, 0] == 1
    assert solution.value < miss_bound(3, 3, 1)


@pytest.mark.parametrize("seed", range(10))
def test_the_dynamic_programme_does_not_lose_what_the_plan_pays(seed: int) -> None:
    transfer = np.random.default_rng(seed).random((4, 4)) * 0.9
    problem = random_problem(seed, num_tasks=4, delta=1.0, transfer=transfer, forced=seed % 2 == 0)
    solution = solve_paging(problem, 3)
    solution.certificate.verify()
    assert solution.policy.shape == (12, 3)


@settings(deadline=None, max_examples=80)
@given(seed=st.integers(0, 10_000), cycles=st.integers(1, 4))
def test_no_plan_beats_the_optimum(seed: int, cycles: int) -> None:
    rng = np.random.default_rng(seed)
    m = int(rng.integers(2, 5))
    whole = rng.random() < 0.6
    transfer = rng.random((m, m)) * 0.8 if rng.random() < 0.4 else 0.0
    problem = PagingProblem(
        num_tasks=m,
        slots=1,
        bank=int(rng.integers(0, 2)) if whole else 0,
        delta=1.0 + rng.random(m),
        forced=bool(whole and rng.random() < 0.3),
        recall_error=float(rng.choice([0.0, 0.2])) if whole else 0.0,
        residual=(1.0, 0.0) if whole else FALLING,
        transfer=transfer,
    )
    solution = solve_paging(problem, cycles, check=False)
    size = problem.capacity * problem.max_rank
    for _ in range(20):
        plan = rng.integers(0, (size + 1, size, problem.max_rank + 1), size=(m * cycles, 3))
        # Half of the rows as in the optimal plan: neighbours of it are the hardest to beat.
        kept = rng.random(len(plan)) < 0.5
        plan[kept] = solution.policy[kept]
        assert plan_cost(problem, plan) >= solution.value - 1e-9


def test_iid_visits_are_missed_at_the_rate_of_what_is_not_held() -> None:
    visits = np.random.default_rng(0).integers(10, size=100_000)
    for capacity, rate in [(2, 0.8), (5, 0.5), (9, 0.1)]:
        assert iid_miss_rate(10, capacity) == pytest.approx(rate)
        assert lru_misses(visits.tolist(), capacity) / len(visits) == pytest.approx(rate, abs=0.006)


def test_relative_regret_is_what_the_theorem_says() -> None:
    for m, cycles in product((2, 5, 10), (1, 2, 6)):
        bankless, bank = (
            solve_paging(PagingProblem(num_tasks=m, bank=k, delta=3.0), cycles, check=False).value
            for k in (0, m - 1)
        )
        assert bankless == 3.0 * (cycles * (m - 1) + 1)
        assert bankless - bank == 3.0 * (cycles - 1) * (m - 1)


def test_too_many_states_are_refused_with_advice() -> None:
    big = PagingProblem(num_tasks=30, slots=8, forced=True)
    with pytest.raises(InvalidValueError, match="Use fewer tasks"):
        solve_paging(big, 2)
    assert held_states(big, limit=100) is None
    # Six tasks with whole solutions always fit: in either, in both, or in neither.
    most = PagingProblem(num_tasks=6, slots=6, bank=6, recall_error=0.1)
    held = held_states(most)
    assert held is not None
    assert len(held.states) == 4**6


def test_bad_arguments_are_refused() -> None:
    problem = PagingProblem(num_tasks=3)
    for cycles in (0, 1.5, True):
        with pytest.raises(InvalidValueError, match="cycles"):
            solve_paging(problem, cycles)  # type: ignore[arg-type]
    for plan in ([[2, 0, 0]] * 3, [[0, 0]] * 3, [[0.5, 0, 0]] * 3, [[0, 0, -1]] * 3):
        with pytest.raises(InvalidValueError, match="plan"):
            plan_cost(problem, plan)
    with pytest.raises(InvalidValueError, match="tasks 0 to 2"):
        clairvoyant(problem, [0, 3])
    with pytest.raises(InvalidValueError, match="rank R"):
        divisible_bound(decay, 10, 1)
    with pytest.raises(InvalidValueError, match="got 3"):
        divisible_bound([1, 0.5, 0], 10, 1, 8)
    with pytest.raises(InvalidValueError, match="fall from 1"):
        divisible_bound([1, 0.5, 0.6, 0], 10, 1)
    with pytest.raises(InvalidValueError, match="num_tasks"):
        miss_bound(0, 1, 1)
