"""Random numbers by position: uniform, independent along both axes, the same wherever asked for."""

from __future__ import annotations

import numpy as np
from scipy import stats

from nsr_gym.noise import normal, uniform


def test_a_number_depends_on_its_key_and_counter_alone() -> None:
    keys, counters = np.arange(5, dtype=np.uint64)[:, None], np.arange(7)
    block = uniform(keys, counters)
    assert block.shape == (5, 7)
    assert uniform(3, 4) == block[3, 4]
    np.testing.assert_array_equal(uniform(keys[::-1], counters), block[::-1])


def test_numbers_are_uniform_along_counters_and_along_keys() -> None:
    for numbers in (uniform(12345, np.arange(20_000)), uniform(np.arange(20_000), 0)):
        assert numbers.min() >= 0.0
        assert numbers.max() < 1.0
        assert stats.kstest(numbers, "uniform").pvalue > 1e-3


def test_neighbours_are_not_correlated() -> None:
    block = uniform(np.arange(300)[:, None], np.arange(301))
    for first, second in ((block[:, :-1], block[:, 1:]), (block[:-1], block[1:])):
        # Of 90,000 pairs; four standard errors of an uncorrelated sample.
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 4 / 300
    # A key and the next one do not give the same sequence one step apart.
    assert abs(np.corrcoef(block[:-1, 1:].ravel(), block[1:, :-1].ravel())[0, 1]) < 4 / 300


def test_large_keys_and_counters_are_taken_without_a_warning() -> None:
    assert 0 <= uniform(np.uint64(2**64 - 1), np.uint64(2**64 - 1)) < 1


def test_normal_numbers_are_normal_and_known_by_position() -> None:
    drawn = normal(np.arange(200)[:, None], np.arange(500))
    assert drawn.shape == (200, 500)
    assert np.isfinite(drawn).all()
    assert abs(drawn.mean()) < 4 / np.sqrt(drawn.size)
    assert abs(drawn.std() - 1) < 4 / np.sqrt(2 * drawn.size)
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.3
    assert normal(7, 3) == drawn[7, 3]
