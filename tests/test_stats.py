from __future__ import annotations

import math

import numpy as np
import pytest

from nsr_gym import stats
from nsr_gym.errors import InvalidValueError


def test_iqm_is_the_mean_of_the_middle_half() -> None:
    assert float(stats.iqm([0, 1, 2, 3, 4, 5, 6, 1000])) == (2 + 3 + 4 + 5) / 4
    assert float(stats.iqm([[0, 1, 2, 3], [4, 5, 6, 1000]])) == 3.5
    assert stats.iqm([[0, 1, 2, 9], [4, 5, 6, 99]], axis=1).tolist() == [1.5, 5.5]


def test_the_same_seed_gives_the_same_interval_and_another_a_close_one() -> None:
    scores = np.random.default_rng(0).normal(size=20)
    first = stats.bootstrap_interval(scores, rng=1)
    assert first == stats.bootstrap_interval(scores, rng=1)
    other = stats.bootstrap_interval(scores, rng=2)
    assert first != other
    assert other.low == pytest.approx(first.low, abs=0.1)
    assert first.low < first.point < first.high


def test_one_run_has_no_interval_and_says_so() -> None:
    interval = stats.bootstrap_interval([0.5])
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert str(interval) == "0.500 (1 run: no interval)"


def test_the_interval_covers_the_mean_about_as_often_as_it_promises() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        i = stats.bootstrap_interval(
            rng.normal(size=40), statistic=stats.mean, replicates=400, rng=rng
        )
        hits += i.low <= 0 <= i.high
    assert 0.88 <= hits / 200 <= 0.99


def test_the_stratified_interval_keeps_tasks_apart() -> None:
    # Runs agree within each task: resampling within tasks changes nothing, whatever the tasks.
    scores = np.tile([0.0, 0.5, 1.0, 0.2], (6, 1))
    interval = stats.stratified_interval(scores, replicates=200)
    assert interval.low == interval.high == interval.point
    assert interval.runs == 6


def test_the_stratified_interval_is_that_of_runs_where_there_is_one_task() -> None:
    scores = np.random.default_rng(0).normal(size=30)
    flat = stats.bootstrap_interval(scores)
    column = stats.stratified_interval(scores[:, None])
    assert column.low == pytest.approx(flat.low, abs=0.05)
    assert column.high == pytest.approx(flat.high, abs=0.05)


def test_pairing_takes_out_what_streams_share() -> None:
    stream = np.random.default_rng(0).normal(size=10) * 100
    difference = stats.paired_difference(stream + 0.25, stream)
    assert (difference.point, difference.low, difference.high) == pytest.approx((0.25,) * 3)
    with pytest.raises(InvalidValueError, match="common seeds"):
        stats.paired_difference([1.0, 2.0], [1.0])


def test_probability_of_improvement_counts_ties_one_half() -> None:
    assert stats.probability_of_improvement([2.0, 3.0], [1.0, 1.0]) == 1.0
    assert stats.probability_of_improvement([1.0, 1.0], [1.0]) == 0.5
    # Task 1: 3 of 4 pairs won; task 2: none.
    value = stats.probability_of_improvement([[1, 0], [4, 0]], [[0, 1], [2, 1]])
    assert value == pytest.approx((3 / 4 + 0) / 2)


def test_profile_and_optimality_gap() -> None:
    assert stats.performance_profile([[0.0, 0.5], [1.0, 0.5]], [0.0, 0.5]).tolist() == [0.75, 0.25]
    assert stats.optimality_gap([0.5, 2.0]) == pytest.approx(0.25)


def test_a_band_is_as_wide_as_the_interval_of_each_point() -> None:
    values = np.random.default_rng(0).normal(size=(12, 3))
    low, high = stats.mean_band(values, replicates=5_000)
    one = stats.bootstrap_interval(values[:, 1], statistic=stats.mean)
    assert (low[1], high[1]) == pytest.approx((one.low, one.high), abs=0.05)
    assert np.isnan(stats.mean_band(values[:1])[0]).all()


@pytest.mark.parametrize("scores", [[], [[1.0]], [1.0, math.nan], [1.0, math.inf]])
def test_scores_that_cannot_be_used_are_refused(scores: list[float]) -> None:
    with pytest.raises(InvalidValueError, match="Scores must be"):
        stats.bootstrap_interval(scores)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="confidence"):
        stats.bootstrap_interval([1.0, 2.0], confidence=95)
    with pytest.raises(InvalidValueError, match="replicates"):
        stats.bootstrap_interval([1.0, 2.0], replicates=0)
