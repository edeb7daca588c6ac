from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nsr_gym.errors import InvalidValueError
from nsr_gym.metrics import matrix, visits

# The published run of Avalanche 0.6.0 on the stream A, B, A, B; A fell by 0.58 to 0.34.
TASKS = [0, 1, 0, 1]
RETENTION = np.array([[0.92, 0.10], [0.34, 0.915], [0.91, 0.765], [0.775, 0.915]])
# Two accuracies per visit: before and after it; each ends at what is retained.
CURVES = np.array([[0.1, 0.92], [0.1, 0.915], [0.34, 0.91], [0.765, 0.915]])


def test_forgetting_leaves_out_the_task_in_training_and_keeps_the_best_visit() -> None:
    values = visits.forgetting_by_visit(TASKS, CURVES, RETENTION)
    # After visit 2: A lost .92 - .34. After the return to A: only B counts, .915 - .765 (the
    # framework's own .080 averages in A's .01). At the end: A against its best visit, .92.
    assert np.isnan(values[0])
    assert values[1:] == pytest.approx([0.58, 0.15, 0.145])
    assert visits.forgetting(TASKS, CURVES, RETENTION) == pytest.approx(0.145)


def test_backward_transfer_against_the_last_and_the_first_visit() -> None:
    # Only A is not the task visited last: its last visit ended at .91, its first at .92.
    assert visits.bwt(TASKS, CURVES, RETENTION) == pytest.approx(0.775 - 0.91)
    first = visits.bwt(TASKS, CURVES, RETENTION, since="first")
    assert first == pytest.approx(0.775 - 0.92)


def test_a_discarded_result_counts_as_lost_unless_only_what_was_kept_is_asked_for() -> None:
    retention = np.full((4, 2), 0.1)
    assert visits.bwt(TASKS, CURVES, retention) == pytest.approx(0.1 - 0.91)
    assert visits.bwt(TASKS, CURVES, retention, level="retained") == 0.0
    assert visits.forgetting(TASKS, CURVES, retention, level="retained") == 0.0


def test_the_other_metrics_by_hand() -> None:
    values = visits.visit_metrics(TASKS, CURVES, RETENTION, [0.08, 0.06])
    assert values["acc"] == pytest.approx((0.775 + 0.915) / 2)
    means = [0.92, (0.34 + 0.915) / 2, (0.91 + 0.765) / 2, (0.775 + 0.915) / 2]
    assert values["aia"] == pytest.approx(np.mean(means))
    assert values["fwt"] == pytest.approx(0.10 - 0.06)
    assert values["reentry_accuracy"] == pytest.approx((0.34 + 0.765) / 2)
    assert visits.previous_visit(TASKS).tolist() == [-1, -1, 0, 1]
    assert visits.is_return(TASKS).tolist() == [False, False, True, True]


@given(
    arrays(np.float64, (4, 4), elements=st.floats(0, 1)),
    arrays(np.float64, 4, elements=st.floats(0, 1)),
)
def test_with_every_task_visited_once_they_are_the_matrix_metrics(
    retention: np.ndarray, baseline: np.ndarray
) -> None:
    tasks = np.arange(4)
    curves = np.stack([np.zeros(4), np.diag(retention)], axis=1)
    values = visits.visit_metrics(tasks, curves, retention, baseline)
    expected = matrix.matrix_metrics(retention, baseline)
    assert values["acc"] == pytest.approx(expected["acc"])
    assert values["aia"] == pytest.approx(expected["aia"])
    assert values["fwt"] == pytest.approx(expected["fwt_gem"])
    for name in ("bwt", "bwt_retained", "bwt_since_first"):
        assert values[name] == pytest.approx(expected["bwt_gem"])
    assert values["forgetting"] == pytest.approx(expected["forgetting_first_peak"])
    assert math.isnan(values["reentry_accuracy"])


def test_one_task_has_no_transfer_and_no_forgetting() -> None:
    values = visits.visit_metrics([0, 0], [[0.1, 0.5], [0.5, 0.6]], [[0.5], [0.6]], [0.1])
    assert values["acc"] == 0.6
    undefined = ("fwt", "bwt", "bwt_retained", "bwt_since_first", "forgetting")
    assert all(math.isnan(values[name]) for name in undefined)


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="one row per visit"):
        visits.acc([0, 1, 0], RETENTION)
    with pytest.raises(InvalidValueError, match="one row per visit"):
        visits.acc([0, 1, 0, 2], RETENTION)
    with pytest.raises(InvalidValueError, match="task indices"):
        visits.acc([0.0, 1.0], RETENTION)
    with pytest.raises(InvalidValueError, match="4 visits but 3"):
        visits.bwt(TASKS, CURVES[:3], RETENTION)
    with pytest.raises(InvalidValueError, match="since"):
        visits.bwt(TASKS, CURVES, RETENTION, since="middle")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="level"):
        visits.bwt(TASKS, CURVES, RETENTION, level="both")  # type: ignore[arg-type]
