"""The tables behind the readings: kernels by name, clocks, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nsr_gym.errors import InvalidValueError, UnknownNameError
from nsr_gym.regret.problems import (
    AllocationProblem,
    PagingProblem,
    observation_kernel,
    with_clock,
)


@pytest.mark.parametrize("m", [1, 2, 5, 10])
@pytest.mark.parametrize("obs", ["blind", "full", "classes:1", "channel:0", "channel:0.3"])
def test_kernels_are_distributions(obs: str, m: int) -> None:
    kernel = observation_kernel(obs, m)
    assert (kernel >= 0).all()
    assert kernel.sum(axis=1) == pytest.approx(1.0)
    AllocationProblem(np.eye(m), kernel)


def test_kernels_say_what_their_names_say() -> None:
    assert observation_kernel("blind", 3).tolist() == [[1], [1], [1]]
    assert (observation_kernel("full", 3) == np.eye(3)).all()
    assert observation_kernel("classes:2", 5).sum(axis=0).tolist() == [3, 2]
    assert (observation_kernel("classes:5", 5) == np.eye(5)).all()
    channel = observation_kernel("channel:0.7", 4)
    assert np.diag(channel) == pytest.approx(0.7)
    assert channel[~np.eye(4, dtype=bool)] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "obs",
    [
        "blind:1",
        "full:",
        "classes",
        "classes:0",
        "classes:5",
        "classes:1.5",
        "classes:x",
        "classes:inf",
        "channel",
        "channel:",
        "channel:1.1",
        "channel:-0.1",
        "channel:nan",
        3,
    ],
)
def test_kernels_with_numbers_out_of_range_are_refused(obs: Any) -> None:
    with pytest.raises(InvalidValueError, match="Expected"):
        observation_kernel(obs, 4)


def test_a_misspelt_kernel_is_answered_with_the_right_name() -> None:
    with pytest.raises(UnknownNameError, match="channel:q"):
        observation_kernel("chanel:0.3", 4)


@pytest.mark.parametrize(("m", "period"), [(4, 1), (4, 2), (4, 3), (6, 4), (5, 5), (3, 7)])
def test_the_clock_is_what_many_cycles_show(m: int, period: int) -> None:
    kernel = np.random.default_rng(0).dirichlet(np.ones(2), size=m)
    counts = np.zeros((m, period))
    for visit in range(m * period):
        counts[visit % m, visit % period] += 1 / period
    expected = kernel[:, :, None] * counts[:, None, :]
    assert with_clock(kernel, period) == pytest.approx(expected.reshape(m, -1))


def test_best_gaps_and_optimal_allocations() -> None:
    problem = AllocationProblem([[1, 0.5, 1], [0, 2, -1]], np.ones((2, 1)))
    assert problem.best.tolist() == [1, 2]
    assert problem.gaps.tolist() == [[0, 0.5, 0], [2, 0, 3]]
    assert problem.optimal.tolist() == [[True, False, True], [False, True, False]]
    assert (problem.num_tasks, problem.num_allocations, problem.num_observations) == (2, 3, 1)


def test_tables_are_copied_and_read_only() -> None:
    rewards = np.eye(2)
    problem = AllocationProblem(rewards, np.ones((2, 1)))
    rewards[0, 0] = 5
    assert problem.rewards[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        problem.rewards[0, 0] = 5
    paging = PagingProblem(num_tasks=2)
    with pytest.raises(ValueError, match="read-only"):
        paging.delta[0] = 5


@pytest.mark.parametrize(
    ("rewards", "kernel"),
    [
        (np.eye(2), np.ones((3, 1))),
        (np.eye(2), [[0.5], [1.0]]),
        (np.eye(2), [[1.5, -0.5], [0.5, 0.5]]),
        ([[1, np.nan], [0, 1]], np.ones((2, 1))),
        ([1, 2], np.ones((2, 1))),
        ([[1, 2], [3]], np.ones((2, 1))),
        (np.zeros((0, 2)), np.zeros((0, 1))),
    ],
)
def test_tables_that_are_no_problem_are_refused(rewards: Any, kernel: Any) -> None:
    with pytest.raises(InvalidValueError, match="Expected"):
        AllocationProblem(rewards, kernel)


def test_delta_switch_is_the_minimum_over_tasks_and_held_states() -> None:
    assert PagingProblem(num_tasks=3, delta=[3, 2, 4]).delta_switch == 2
    transfer = [[0, 0.5, 0], [0, 0, 0.25], [0, 0, 0]]
    assert PagingProblem(num_tasks=3, delta=[3, 2, 4], transfer=transfer).delta_switch == 1.5
    # The diagonal is not used, nor can a single task transfer.
    assert PagingProblem(num_tasks=1, delta=2, transfer=0.9).delta_switch == 2


def test_plain_problems_are_those_of_the_closed_form() -> None:
    assert PagingProblem(num_tasks=3, slots=2, bank=4).plain
    assert PagingProblem(num_tasks=3, slots=2, bank=4).capacity == 6
    assert PagingProblem(num_tasks=3, transfer=np.eye(3) * 0.5).plain
    for given in ({"residual": (1, 0.5, 0)}, {"recall_error": 0.1}, {"transfer": 0.1}):
        assert not PagingProblem(num_tasks=3, **given).plain
    assert PagingProblem(num_tasks=3, residual=[1, 0.5, 0]).max_rank == 2


@pytest.mark.parametrize(
    "given",
    [
        {"num_tasks": 0},
        {"num_tasks": 2.0},
        {"slots": 0},
        {"slots": True},
        {"bank": -1},
        {"delta": 0},
        {"delta": [1, 2]},
        {"delta": "much"},
        {"delta": float("inf")},
        {"forced": 1},
        {"recall_error": -0.1},
        {"recall_error": float("nan")},
        {"residual": (1,)},
        {"residual": (0.9, 0)},
        {"residual": (1, 0.1)},
        {"residual": (1, 0.2, 0.3, 0)},
        {"residual": 0.5},
        {"transfer": 1.0},
        {"transfer": -0.1},
        {"transfer": np.zeros((2, 2))},
        {"transfer": "some"},
        {"transfer": True},
    ],
)
def test_paging_values_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match="Expected"):
        PagingProblem(**{"num_tasks": 3, **given})
