"""Agents of reading C come out at the values that theory gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from nsr_gym.regret.problems import AllocationProblem
from nsr_gym.regret.recovery import solve_recovery

BLIND, UNTIL = "NSR/BlindAllocation-v0", "NSR/UntilRecovered-v0"
M = 10
Regrets = Callable[..., np.ndarray]
Agrees = Callable[[np.ndarray, float], bool]


def env_of(env_id: str, n: int = 3, **arguments: Any) -> Any:
    return gym.make_vec(env_id, n, vectorization_mode=None, **arguments)


def test_until_recovered_uniform_random_tries_m_less_one(regrets: Regrets, agrees: Agrees) -> None:
    for agent in ("uniform-random", "best-memoryless"):
        assert agrees(regrets(UNTIL, agent, 200), 5 * M * (M - 1))


@pytest.mark.parametrize("told", [{"instance": None}, {"agent_arguments": {"shuffle": True}}])
def test_elimination_tries_half_of_that(
    told: dict[str, Any], regrets: Regrets, agrees: Agrees
) -> None:
    lost = regrets(UNTIL, "elimination", 200, order="iid", **told)
    assert agrees(lost, 5 * M * (M - 1) / 2)
    # In ascending order a cycle costs the same on every instance: each position comes once.
    assert (regrets(UNTIL, "elimination", cycles=1, instance=None) == M * (M - 1) / 2).all()


def test_the_history_aware_reference_pays_in_the_first_cycle_only(
    regrets: Regrets, agrees: Agrees
) -> None:
    first = regrets(UNTIL, "history-aware", 400, cycles=1, instance=None)
    assert agrees(first, M * (M - 1) / 4)
    assert (regrets(UNTIL, "history-aware", 400, cycles=4, instance=None) == first).all()
    # Allocations that are nobody's do not tempt it later; nor does the order of later cycles.
    for told in ({"num_allocations": 13}, {"order": "reshuffled", "obs": "full"}):
        once, often = (regrets(UNTIL, "history-aware", 9, cycles=c, **told) for c in (1, 3))
        assert (often == once).all()
    # Without leaving out what others have, every position costs itself.
    plain = {"distinct": False}
    assert (regrets(UNTIL, "history-aware", agent_arguments=plain) == M * (M - 1) / 2).all()


@pytest.mark.parametrize("redraw", [False, True])
def test_best_memoryless_comes_out_at_the_optimum_of_a_random_kernel(
    redraw: bool, regrets: Regrets, agrees: Agrees
) -> None:
    kernel = np.random.default_rng(4).dirichlet(np.ones(3), size=4)
    told = {"num_tasks": 4, "obs": kernel.tolist(), "redraw": redraw}
    problem = env_of(UNTIL, **told).unwrapped.engine.problem
    optimum = solve_recovery(problem, redraw=redraw).value
    if not redraw:
        assert optimum == pytest.approx((np.sqrt(kernel).sum(axis=0) ** 2).sum() - 4)
    assert agrees(regrets(UNTIL, "best-memoryless", 400, cycles=20, **told), 20 * optimum)


@pytest.mark.parametrize("period", [2, 5, 10])
def test_a_clock_divides_the_tasks_of_reading_c(
    period: int, regrets: Regrets, agrees: Agrees
) -> None:
    counted = {"agent_arguments": {"period": period}, "feedback": "last-reward"}
    for agent, told in (("clock", counted), ("best-memoryless", {"clock": period})):
        lost = regrets(UNTIL, agent, 100, **told)
        per_visit = M / period - 1  # uniform among the tasks that share a count
        assert agrees(lost, 5 * M * per_visit) if per_visit else (lost == 0).all()


def test_a_clock_stays_where_the_symbol_is_redrawn(regrets: Regrets, agrees: Agrees) -> None:
    told = {"num_tasks": 4, "obs": "channel:0.7", "redraw": True, "clock": 2}
    problem = env_of(UNTIL, **told).unwrapped.engine.problem
    optimum = sum(  # even and odd tasks are told apart, and are problems of their own
        solve_recovery(
            AllocationProblem(problem.rewards[part::2], problem.kernel[part::2]), redraw=True
        ).value
        for part in (0, 1)
    )
    assert agrees(regrets(UNTIL, "best-memoryless", 200, cycles=20, **told), 20 * optimum)


@pytest.mark.parametrize("start", [0, 1, 9])
def test_the_last_action_synchronises_within_one_visit(start: int, regrets: Regrets) -> None:
    lost = regrets(UNTIL, "last-action", agent_arguments={"start": start})
    assert (lost == -start % M).all()


@pytest.mark.parametrize("env_id", [BLIND, UNTIL])
def test_a_symbol_that_tells_the_task_is_as_good_as_counting(env_id: str, regrets: Regrets) -> None:
    told = {"obs": "full", "instance": None, "agent_arguments": {"distinct": False}}
    counted = regrets(env_id, "history-aware", 5, **told)
    assert (regrets(env_id, "history-aware", 5, order="reshuffled", **told) == counted).all()
