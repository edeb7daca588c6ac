"""Instances: reproducible, disjoint between train and test, and what their names promise."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest

from nsr_gym.errors import InvalidValueError, UnknownNameError
from nsr_gym.regret.instances import INSTANCES, draw_allocation, draw_paging_costs, is_odd
from nsr_gym.regret.problems import AllocationProblem, observation_kernel


def draw(split: str, number: int, **given: Any) -> AllocationProblem:
    return draw_allocation(split=split, number=number, **{"num_tasks": 4, **given})


def right(problem: AllocationProblem) -> tuple[int, ...]:
    assert (problem.optimal.sum(axis=1) == 1).all()
    return tuple(problem.optimal.argmax(axis=1).tolist())


@pytest.mark.parametrize(("m", "a"), [(2, 2), (3, 3), (4, 4), (3, 5), (2, 6), (10, 10)])
def test_train_and_test_share_no_assignment(m: int, a: int) -> None:
    sets = {
        split: {right(draw(split, number, num_tasks=m, num_allocations=a)) for number in range(300)}
        for split in ("train", "test")
    }
    assert not sets["train"] & sets["test"]
    for split, odd in (("train", False), ("test", True)):
        for assigned in sets[split]:
            assert len(set(assigned)) == m
            assert is_odd(np.array(assigned), a) == odd


def test_small_sets_of_instances_are_exhausted() -> None:
    # All twelve even and all twelve odd permutations of four come up.
    for split in ("train", "test"):
        assert len({right(draw(split, number)) for number in range(INSTANCES)}) == 12


def test_is_odd_counts_inversions() -> None:
    for order in permutations(range(5)):
        inversions = sum(a > b for i, a in enumerate(order) for b in order[i + 1 :])
        assert is_odd(np.array(order), 5) == bool(inversions % 2)


def test_one_task_has_the_same_instances_in_both_splits() -> None:
    for number in range(5):
        assert right(draw("train", number, num_tasks=1)) == (0,)
        assert right(draw("test", number, num_tasks=1)) == (0,)


def test_an_instance_is_a_function_of_split_and_number() -> None:
    given = {"rewards": "random", "obs": "classes:2"}
    first, again = draw("train", 3, **given), draw("train", 3, **given)
    assert (first.rewards == again.rewards).all()
    assert (first.kernel == again.kernel).all()
    assert (first.rewards != draw("train", 4, **given).rewards).any()
    assert (first.rewards != draw("test", 3, **given).rewards).any()
    # What is right does not depend on what else is drawn.
    assert right(first) == right(draw("train", 3))


def test_equal_rewards_lose_the_gap() -> None:
    problem = draw("train", 0, gap=0.3, best=2.0, num_allocations=6)
    assert problem.rewards.shape == (4, 6)
    assert (problem.best == 2.0).all()
    assert problem.gaps[~problem.optimal] == pytest.approx(0.3)


def test_random_rewards_lose_the_gap_to_twice_that() -> None:
    gaps = np.concatenate(
        [p.gaps[~p.optimal] for p in (draw("test", n, rewards="random") for n in range(50))]
    )
    assert (gaps >= 0.5).all()
    assert (gaps <= 1.0).all()
    assert gaps.mean() == pytest.approx(0.75, abs=0.03)


def test_compromise_is_near_every_tasks_best_and_right_for_none() -> None:
    for number in range(20):
        problem = draw("test", number, rewards="compromise", num_allocations=6)
        assert right(problem) == right(draw("test", number, num_allocations=6))
        near = np.isclose(problem.gaps, 0.05).all(axis=0)
        assert near.sum() == 1
        others = ~problem.optimal & ~near
        assert problem.gaps[others] == pytest.approx(0.5)
    assert draw("train", 0, rewards="compromise").num_allocations == 5


def test_which_tasks_look_alike_is_drawn() -> None:
    kernels = [draw("train", number, obs="classes:2").kernel for number in range(30)]
    for kernel in kernels:
        assert kernel.sum(axis=0).tolist() == [2, 2]
    assert len({tuple(kernel[:, 0]) for kernel in kernels}) > 1
    channel = draw("train", 0, obs="channel:0.4").kernel
    assert (channel == observation_kernel("channel:0.4", 4)).all()


def test_a_table_of_rewards_is_the_one_instance() -> None:
    table = [[1, 0, 0.5], [0, 1, 0.5]]
    for split, number in (("train", 0), ("test", 7)):
        problem = draw(split, number, num_tasks=2, rewards=table, obs="classes:2")
        assert problem.rewards.tolist() == table
        assert problem.kernel.tolist() == [[1, 0], [0, 1]]


def test_costs_of_paging() -> None:
    def costs(split: str, number: int, kind: str) -> list[float]:
        drawn = draw_paging_costs(split=split, number=number, num_tasks=50, delta=2.0, costs=kind)
        return [float(cost) for cost in drawn]

    assert costs("train", 3, "equal") == [2.0] * 50
    assert costs("train", 3, "random") == costs("train", 3, "random")
    assert costs("train", 3, "random") != costs("test", 3, "random")
    assert costs("train", 3, "random") != costs("train", 4, "random")
    assert all(2.0 <= cost <= 4.0 for cost in costs("test", 9, "random"))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"split": "validation"}, UnknownNameError, "split"),
        ({"number": INSTANCES}, InvalidValueError, "0 to 999"),
        ({"number": -1}, InvalidValueError, "0 to 999"),
        ({"number": True}, InvalidValueError, "0 to 999"),
        ({"number": 0.0}, InvalidValueError, "0 to 999"),
        ({"num_tasks": 0}, InvalidValueError, "num_tasks"),
        ({"num_tasks": 2.5}, InvalidValueError, "num_tasks"),
        ({"num_allocations": 3}, InvalidValueError, "at least 4"),
        ({"num_allocations": 4, "rewards": "compromise"}, InvalidValueError, "at least 5"),
        ({"rewards": "equel"}, UnknownNameError, "equal"),
        ({"rewards": [[1, 0]]}, InvalidValueError, "4 rows"),
        ({"rewards": np.eye(4), "num_allocations": 5}, InvalidValueError, "5 columns"),
        ({"gap": 0.0}, InvalidValueError, "gap"),
        ({"gap": float("nan")}, InvalidValueError, "gap"),
        ({"best": float("inf")}, InvalidValueError, "best"),
        ({"obs": "blindfold"}, UnknownNameError, "blind"),
    ],
)
def test_bad_arguments_are_refused(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        draw_allocation(**{"split": "train", "number": 0, "num_tasks": 4, **given})


@pytest.mark.parametrize(
    ("given", "error"),
    [({"delta": 0.0}, InvalidValueError), ({"costs": "equl"}, UnknownNameError)],
)
def test_bad_costs_are_refused(given: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        draw_paging_costs(**{"split": "train", "number": 0, "num_tasks": 4, "delta": 1.0, **given})
