"""Nested answers are compared to the bit, types included; differences are named by path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nsr_gym.envs.comparing import describe, difference, overwrite


@pytest.mark.parametrize(
    ("ours", "theirs", "exact", "quantity"),
    [
        (np.array([np.nan, 1.0]), np.array([np.nan, 1.0]), True, None),
        (np.array([-0.0]), np.array([0.0]), True, "x[0]"),
        (np.array([1]), np.array([1.0]), True, "x"),
        (np.array([1]), np.array([1.0]), False, None),
        (np.float32(0.1), 0.1, False, None),
        (np.float64(0.1), 0.1, True, "x"),
        (float("nan"), float("nan"), True, None),
        ({"a": (1, [2])}, {"a": (1, [3])}, True, "x['a'][1][0]"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True, None),
        ((1, 2), (1, 2, 3), True, "x"),
        (np.array([None, {"k": np.zeros(2)}]), np.array([None, {"k": np.ones(2)}]), True,
         "x[1]['k'][0]"),
        (np.array(["a", "b"]), np.array(["a", "c"]), True, "x[1]"),
        (True, 1, True, "x"),
    ],
)  # fmt: skip
def test_nested_values_are_compared(
    ours: Any, theirs: Any, exact: bool, quantity: str | None
) -> None:
    found = difference(ours, theirs, path=("x",), exact=exact)
    assert (found and found.quantity) == quantity


def test_every_returned_array_is_overwritten() -> None:
    inner = np.array([1, 2])
    objects = np.array([None, {"k": inner}], dtype=object)
    answer = ({"a": np.zeros(2, np.float32)}, np.array([True]), objects)
    overwrite(answer)
    assert answer[0]["a"].tolist() == [1.0, 1.0]
    assert answer[1].tolist() == [False]
    assert objects.tolist() == [None, None]
    assert inner.tolist() == [2, 3]


def test_a_difference_tells_row_values_and_extent() -> None:
    theirs = np.zeros((3, 2))
    ours = theirs.copy()
    ours[1, 1] = ours[2, 0] = 0.5
    found = difference({"a": ours}, {"a": theirs}, path=("info",))
    assert found is not None
    assert (found.quantity, found.row) == ("info['a'][1][1]", 1)
    assert (found.ours, found.theirs) == ("0.5 (float64)", "0.0 (float64)")
    assert found.extent == "2 of 6 values differ"


def test_the_tolerance_is_absolute_plus_relative() -> None:
    for value, apart, passes in ((0.0, 1e-3, True), (0.0, 2e-3, False), (1e3, 1.0, True)):
        found = difference(
            np.array([value + apart]), np.array([value]), path=("x",), tolerance=1e-3
        )
        assert (found is None) == passes
    assert difference(np.array([1]), np.array([2]), path=("x",), tolerance=10.0) is not None


def test_descriptions_stay_short() -> None:
    assert describe(np.zeros((2, 3), np.float32)) == "an array of float32, shape (2, 3)"
    assert describe({"a": 1}) == "a mapping with the keys ['a']"
    assert len(describe("x" * 1000)) < 200
