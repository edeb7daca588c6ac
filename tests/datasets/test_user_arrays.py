"""A user's own arrays and data sets become tasks, or are refused with the place named."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from nsr_gym.datasets import arrays as arrays_module
from nsr_gym.datasets import pool_from_arrays, task_from_arrays, task_from_datasets
from nsr_gym.errors import DataError, UnknownNameError

X = np.arange(12.0).reshape(4, 3)


def test_the_labels_of_a_data_set_become_positions_among_its_classes() -> None:
    task = task_from_arrays("t", X, [30, 10, 20, 10], X[:2], [20, 40])
    assert task.classes == (10, 20, 30, 40)
    assert task.y_train.tolist() == [2, 0, 1, 0]
    assert task.y_test.tolist() == [1, 3]
    given = task_from_arrays("t", X, [30, 10, 20, 10], X[:2], [20, 10], classes=(20, 30, 10, 5))
    assert given.classes == (20, 30, 10, 5)
    assert given.y_train.tolist() == [1, 2, 0, 2]


def test_a_label_outside_the_classes_and_a_label_that_is_no_integer_are_refused() -> None:
    with pytest.raises(DataError, match=r"Task 't': y_test has labels \[9\]"):
        task_from_arrays("t", X, [0, 1, 0, 1], X[:2], [0, 9], classes=(0, 1))
    with pytest.raises(DataError, match=r"Task 't': y_train .*float64"):
        task_from_arrays("t", X, [0.0, 1.0, 0.0, 1.0], X[:2], [0, 1])
    with pytest.raises(DataError, match="Task 't': x_train has NaN"):
        task_from_arrays("t", X * np.nan, [0, 1, 0, 1], X[:2], [0, 1])
    with pytest.raises(DataError, match="'t': classes must be integer labels"):
        task_from_arrays("t", X, [0, 1, 0, 1], X[:2], [0, 1], classes=("cat", "dog"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="distinct"):
        task_from_arrays("t", X, [0, 1, 0, 1], X[:2], [0, 1], classes=(0, 1, 1))


def test_the_protocol_printed_in_the_module_runs_and_is_at_most_20_lines() -> None:
    text = arrays_module.__doc__ or ""
    code = textwrap.dedent(text[text.index("    import numpy") :])
    assert len(code.strip().splitlines()) <= 20
    names: dict[str, Any] = {}
    exec(code, names)
    assert (len(names["train"]), len(names["test"])) == (20, 20)
    assert (names["train"].input_shape, names["test"].num_classes) == ((16,), 4)


def test_a_pool_is_made_of_a_mapping_of_arrays() -> None:
    arrays = (X, [0, 1, 0, 1], X[:2], [0, 1])
    pool = pool_from_arrays({"a": arrays, "b": (X + 1, *arrays[1:])}, split="train", name="mine")
    assert [task.name for task in pool] == ["a", "b"]
    assert (pool.name, pool.split, pool.input_shape) == ("mine", "train", (3,))
    with pytest.raises(UnknownNameError, match="no split"):
        pool_from_arrays({"a": arrays}, split="val")
    with pytest.raises(DataError, match=r"'a': expected the 4 arrays.*got 2"):
        pool_from_arrays({"a": arrays[:2]}, split="test")
    with pytest.raises(DataError, match="expected a mapping"):
        pool_from_arrays([arrays], split="test")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no tasks"):
        pool_from_arrays({}, split="test")


def test_a_class_without_examples_is_declared_by_classes() -> None:
    full, partial = (X, [0, 1, 2, 1], X, [0, 1, 2, 0]), (X, [0, 1, 0, 1], X, [0, 1, 0, 0])
    with pytest.raises(DataError, match="pass `classes`"):
        pool_from_arrays({"a": full, "b": partial}, split="test")
    pool = pool_from_arrays({"a": full, "b": partial}, split="test", classes=(0, 1, 2))
    assert pool.num_classes == 3


def test_torch_data_sets_become_a_task() -> None:
    x = torch.rand(5, 1, 4, 4, requires_grad=True)
    data = TensorDataset(x, torch.tensor([3, 5, 3, 5, 5]), torch.zeros(5))
    task = task_from_datasets("t", data, data)
    np.testing.assert_array_equal(task.x_train, x.detach().numpy())
    assert task.input_shape == (1, 4, 4)
    assert task.classes == (3, 5)
    assert task.y_test.tolist() == [0, 1, 0, 1, 1]


def test_any_sequence_of_pairs_is_a_data_set() -> None:
    pairs = [([0.0, 1.0], 1), (np.array([2.0, 3.0]), np.int32(0))]
    task = task_from_datasets("t", pairs, pairs)
    assert task.x_train.tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert task.y_train.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "train data set: it is empty"),
        ([1.0], "example 0 is a float"),
        ([(np.zeros(2), 0), (np.zeros(3), 1)], r"example 1 has shape \(3,\), the first \(2,\)"),
        ([(np.zeros(2), 0.5)], "label of example 0 is 0.5"),
        ([(np.zeros(2), "cat")], "label of example 0 is 'cat'"),
        ([(np.zeros(2), torch.tensor([1, 2]))], "label of example 0"),
        ([(object(), 0)], "transform"),
        ([(["a", "b"], 0)], "x of example 0"),
        ([(np.array([np.nan, 0.0]), 0)], "NaN"),
    ],
)
def test_examples_that_cannot_be_used_are_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        task_from_datasets("mine", data, [(np.zeros(2), 0)])
    assert "'mine'" in str(caught.value)
