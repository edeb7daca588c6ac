from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nsr_gym.errors import InvalidValueError
from nsr_gym.metrics.matrix import matrix_metrics

# Rows: after learning task 1, 2, 3. Task 1 improves once and then falls, task 2 improves after
# its own step, so that no two conventions of forgetting agree.
GOLDEN = [[0.6, 0.2, 0.1], [0.8, 0.9, 0.3], [0.7, 0.95, 0.5]]
BASELINE = [0.1, 0.1, 0.2]


def test_every_convention_on_a_matrix_worked_by_hand() -> None:
    values = matrix_metrics(GOLDEN, BASELINE)
    by_hand = {
        "acc": (0.7 + 0.95 + 0.5) / 3,  # last row
        "aia": (0.6 + (0.8 + 0.9) / 2 + (0.7 + 0.95 + 0.5) / 3) / 3,
        "accuracy_diaz": (0.6 + 0.8 + 0.9 + 0.7 + 0.95 + 0.5) / 6,  # = 4.45 / 6
        "learning_accuracy": (0.6 + 0.9 + 0.5) / 3,  # diagonal
        "bwt_gem": ((0.7 - 0.6) + (0.95 - 0.9)) / 2,  # = 0.075
        "bwt_ucb": ((0.7 - 0.6) + (0.95 - 0.9)) / 3,  # = 0.05
        "bwt_diaz": ((0.8 - 0.6) + (0.7 - 0.6) + (0.95 - 0.9)) / 3,  # = 0.35 / 3
        "fwt_gem": ((0.2 - 0.1) + (0.3 - 0.2)) / 2,  # = 0.1
        "fwt_continuum": (0.2 + 0.3) / 2,
        "forgetting_chaudhry": ((0.8 - 0.7) + (0.9 - 0.95)) / 2,  # = 0.025
        "forgetting_max": ((0.8 - 0.7) + (0.95 - 0.95)) / 2,  # = 0.05
        "forgetting_first_peak": ((0.6 - 0.7) + (0.9 - 0.95)) / 2,  # = -0.075
        "forgetting_coda": ((0.6 - 0.8) + ((0.8 - 0.7) + (0.9 - 0.95)) / 2) / 2,  # = -0.0875
    }
    assert values.keys() == by_hand.keys()
    assert values == pytest.approx(by_hand)


def test_one_task_has_accuracy_but_no_transfer_and_no_forgetting() -> None:
    values = matrix_metrics([[0.7]], [0.1])
    for name in ("acc", "aia", "accuracy_diaz", "learning_accuracy"):
        assert values.pop(name) == 0.7
    assert all(math.isnan(value) for value in values.values())


def test_forward_transfer_needs_a_baseline() -> None:
    assert math.isnan(matrix_metrics(GOLDEN)["fwt_gem"])


@given(arrays(np.float64, (5, 5), elements=st.floats(0, 1)))
def test_conventions_are_related_as_their_definitions_say(matrix: np.ndarray) -> None:
    values = matrix_metrics(matrix)
    assert values["forgetting_first_peak"] == -values["bwt_gem"]
    assert values["bwt_ucb"] == pytest.approx(values["bwt_gem"] * 4 / 5)
    assert values["forgetting_max"] >= max(0.0, values["forgetting_chaudhry"])
    assert values["forgetting_chaudhry"] >= values["forgetting_first_peak"]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[0.5, 0.5]], "must be square"),
        ([0.5], "2 dimension"),
        (np.empty((0, 0)), "non-empty"),
        ([[0.5, math.nan], [0.5, 0.5]], "1 NaN"),
        ([[50.0, 0.0], [40.0, 60.0]], "Divide percentages by 100"),
        ([[-0.1]], r"lie in \[0, 1\]"),
    ],
)
def test_what_is_no_accuracy_matrix_is_refused(matrix: object, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        matrix_metrics(matrix)  # type: ignore[arg-type]


def test_a_baseline_of_another_length_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="3 values, got 2"):
        matrix_metrics(GOLDEN, [0.1, 0.1])
