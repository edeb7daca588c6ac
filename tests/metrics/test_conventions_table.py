from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nsr_gym.errors import DataError
from nsr_gym.metrics import matrix
from nsr_gym.metrics.conventions import last_cycle
from nsr_gym.metrics.episodes import Episode

# Tasks 1, 0 come, then 0, 1: the last cycle is visits 2 and 3, in the order 0, 1.
RETENTION = np.array([[0.1, 0.8], [0.7, 0.5], [0.9, 0.4], [0.6, 0.8]])


def episode(tasks: list[int]) -> Episode:
    return Episode(
        environment="NSR/Hand-v0",
        agent="made by hand",
        access="bank",
        seed=0,
        split="test",
        stream_hash="",
        num_tasks=2,
        tasks=np.array(tasks),
        task_names=("a", "b", "a", "b"),
        curves=np.zeros((4, 2)),
        rewards={},
        retention=RETENTION,
        baseline=np.array([0.1, 0.2]),
        nbytes=np.zeros(4),
    )


def test_the_matrix_is_that_of_the_last_cycle_in_the_order_of_its_visits() -> None:
    r, bare = last_cycle(episode([1, 0, 0, 1]))
    np.testing.assert_array_equal(r, [[0.9, 0.4], [0.6, 0.8]])
    np.testing.assert_array_equal(bare, [0.1, 0.2])
    values = matrix.matrix_metrics(r, bare)
    assert values["acc"] == pytest.approx((0.6 + 0.8) / 2)
    assert values["bwt_gem"] == pytest.approx(0.6 - 0.9)
    assert values["fwt_gem"] == pytest.approx(0.4 - 0.2)
    r, bare = last_cycle(episode([0, 1, 1, 0]))
    np.testing.assert_array_equal(r, [[0.4, 0.9], [0.8, 0.6]])
    np.testing.assert_array_equal(bare, [0.2, 0.1])


def test_a_last_cycle_that_repeats_a_task_makes_no_matrix() -> None:
    with pytest.raises(DataError, match="each of 2 tasks once"):
        last_cycle(episode([0, 1, 1, 1]))
    short = dataclasses.replace(episode([0, 1, 1, 0]), num_tasks=5)
    with pytest.raises(DataError, match="each of 5 tasks once"):
        last_cycle(short)
