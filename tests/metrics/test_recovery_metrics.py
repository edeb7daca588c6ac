from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nsr_gym.errors import InvalidValueError
from nsr_gym.metrics import recovery as rec


def test_steps_count_from_before_the_first_update_and_censor_what_never_gets_there() -> None:
    curves = [[0.9, 0.9, 0.9], [0.1, 0.76, 0.9], [0.1, 0.2, 0.3], [0.1, 0.2, 0.9]]
    reference = [0.8, 0.8, 0.8, math.nan]
    steps = rec.recovery_steps(curves, reference)
    assert steps.tolist() == [0, 1, rec.CENSORED, rec.NO_REFERENCE]  # 0.95 x 0.8 = 0.76 counts
    assert rec.tries(steps, 2)[:3].tolist() == [1, 2, 3]
    assert math.isnan(rec.tries(steps, 2)[3])


def test_an_accuracy_kept_in_float32_still_meets_its_own_threshold() -> None:
    curve = np.array([[0.1, 0.76]], dtype=np.float32)
    assert rec.recovery_steps(curve, [0.8]).tolist() == [1]


def test_a_median_in_the_censored_part_is_later_than_any_step() -> None:
    summary = rec.summarise_recovery([rec.CENSORED, rec.CENSORED, 2, rec.NO_REFERENCE], 15)
    assert summary == rec.Recovery(3, math.inf, 2 / 3, (16 + 16 + 3) / 3)
    assert rec.summarise_recovery([0, 1, 3, rec.CENSORED], 15).median_steps == 2
    assert rec.summarise_recovery([0, rec.CENSORED], 15).median_steps == math.inf
    nothing = rec.summarise_recovery([rec.NO_REFERENCE], 15)
    assert nothing.returns == 0
    assert math.isnan(nothing.mean_tries)


def test_the_reference_is_the_end_of_the_previous_visit_of_the_same_task() -> None:
    ends = rec.previous_end([0, 1, 0, 0], [[0, 0.5], [0, 0.6], [0, 0.7], [0, 0.8]])
    assert np.isnan(ends[:2]).all()
    assert ends[2:].tolist() == [0.5, 0.7]


def test_shortfall_is_the_area_below_the_reference_after_the_first_update() -> None:
    # Steps 1..3 lie .3, .1 and -.1 below .8: the surplus does not pay for the deficit.
    area = rec.shortfall([[0.0, 0.5, 0.7, 0.9], [0.0, 0.5, 0.7, 0.9]], [0.8, math.nan])
    assert area[0] == pytest.approx(0.4)
    assert math.isnan(area[1])


def test_savings_compare_tries_with_those_of_the_first_visit() -> None:
    # The first visit needs step 3 (4 tries) to 0.95 x 0.8, the return step 0 (1 try).
    curves = [[0.1, 0.3, 0.6, 0.8], [0.78, 0.8, 0.8, 0.8]]
    assert rec.savings([0, 0], curves) == 4.0
    assert rec.savings([0, 0], [curves[0], curves[0]]) == 1.0
    assert math.isnan(rec.savings([0, 1], curves))


def test_the_lowest_accuracy_of_a_visit_shows_the_dip() -> None:
    assert rec.minimum_accuracy([[0.8, 0.4, 0.9]]).tolist() == [0.4]


@given(
    arrays(np.float64, (6, 5), elements=st.floats(0, 1)),
    arrays(np.float64, 6, elements=st.floats(0, 1)),
)
def test_a_higher_share_never_recovers_earlier(curves: np.ndarray, reference: np.ndarray) -> None:
    low = rec.tries(rec.recovery_steps(curves, reference, share=0.5), 4)
    high = rec.tries(rec.recovery_steps(curves, reference, share=0.95), 4)
    assert (low <= high).all()


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="one reference per curve"):
        rec.recovery_steps([[0.1, 0.2]], [0.1, 0.2])
    with pytest.raises(InvalidValueError, match="share"):
        rec.recovery_steps([[0.1, 0.2]], [0.1], share=1.5)
    with pytest.raises(InvalidValueError, match="NaN"):
        rec.minimum_accuracy([[math.nan, 0.2]])
