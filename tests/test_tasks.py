"""Tasks are validated, immutable and identified by their content."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nsr_gym.errors import DataError, InvalidValueError, UnknownNameError
from nsr_gym.tasks import Task, TaskPool, check_disjoint


def make(name: str = "t", shift: float = 0.0, **changes: Any) -> Task:
    values: dict[str, Any] = {
        "x_train": np.arange(12.0).reshape(4, 3) + shift,
        "y_train": np.array([0, 1, 0, 1]),
        "x_test": np.ones((2, 3)) + shift,
        "y_test": np.array([1, 0]),
        "classes": (3, 7),
    }
    return Task(name=name, **{**values, **changes})


def test_a_task_holds_float32_features_and_int64_labels_and_knows_its_shape() -> None:
    task = make(x_train=np.zeros((4, 3), np.uint8), y_train=np.zeros(4, np.uint8))
    assert task.x_train.dtype == np.float32
    assert task.y_train.dtype == np.int64
    assert task.num_classes == 2
    assert task.input_shape == (3,)
    image = make(x_train=np.zeros((4, 1, 2, 2)), x_test=np.zeros((2, 1, 2, 2)))
    assert image.input_shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.array([[1.0, np.nan, 0.0]] * 4)}, "x_train has NaN or infinite.*4 of 4"),
        ({"x_test": np.array([[1.0, 2.0, 0.0], [np.inf, 0, 0]])}, "x_test.*1 of 2.*number 1"),
        ({"x_train": np.full((4, 3), 1e300)}, "x_train has NaN or infinite"),
        ({"x_train": np.zeros((0, 3)), "y_train": np.zeros(0, int)}, r"x_train has shape \(0, 3\)"),
        ({"x_test": np.zeros((2, 0))}, r"x_test has shape \(2, 0\)"),
        ({"x_train": np.zeros(4)}, r"expected \(n, d\) or \(n, C, H, W\)"),
        ({"x_train": [[1.0], [1.0, 2.0]]}, "equally shaped"),
        ({"x_train": [["a", "b", "c"]] * 4}, "no numeric array"),
        ({"y_train": np.array([0, 1, 2, 1])}, r"labels 0\.\.2 and the task 2 classes"),
        ({"y_test": np.array([-1, 0])}, r"labels -1\.\.0"),
        ({"y_train": np.array([0.0, 1.0, 0.0, 1.0])}, "float64; expected .n,. integers"),
        ({"y_train": np.array([[0], [1], [0], [1]])}, r"y_train has shape \(4, 1\)"),
        ({"y_train": np.array([0, 1, 0])}, "4 examples and y_train has 3 labels"),
        ({"x_test": np.zeros((2, 5))}, r"\(3,\) in x_train and \(5,\) in x_test"),
        ({"x_val": np.ones((2, 3))}, "x_val and y_val together"),
        ({"y_val": np.array([0])}, "x_val and y_val together"),
        ({"x_val": np.ones((2, 3)), "y_val": np.array([0])}, "2 examples and y_val has 1 labels"),
        ({"x_val": np.ones((1, 3)), "y_val": np.array([2])}, r"y_val has labels 2\.\.2"),
        ({"x_val": np.ones((1, 5)), "y_val": np.array([0])}, r"in x_train and \(5,\) in x_val"),
        ({"classes": (3, 3)}, "distinct"),
        ({"classes": ()}, "at least one"),
        ({"classes": (0.5, 1)}, "integer labels"),
        ({"classes": 2}, "integer labels"),
    ],
)
def test_data_that_cannot_be_used_is_refused_with_the_task_named(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        make("odd", **changes)
    assert "'odd'" in str(caught.value)


def test_a_task_without_a_name_is_refused() -> None:
    with pytest.raises(DataError, match="non-empty string"):
        make("")


def test_nobody_can_write_to_a_task_and_the_callers_array_stays_writable() -> None:
    x = np.zeros((4, 3), np.float32)
    task = make(x_train=x, x_test=x[:2])
    x[0, 0] = 5.0
    assert task.x_train[0, 0] == 0.0
    assert task.x_test[0, 0] == 0.0
    for copied in (task, copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        with pytest.raises(ValueError, match="read-only"):
            copied.x_train[0, 0] = 1.0
        with pytest.raises(ValueError, match="read-only"):
            copied.y_test[0] = 1


def test_a_read_only_view_of_a_writable_array_is_copied() -> None:
    x = np.zeros((4, 3), np.float32)
    view = x[:]
    view.flags.writeable = False
    task = make(x_train=view)
    x[:] = 7.0
    assert not task.x_train.any()


def test_read_only_arrays_are_shared_so_that_pools_and_mapped_files_cost_nothing(
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 3), np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    task = make(x_train=mapped)
    assert np.shares_memory(task.x_train, mapped)
    assert np.shares_memory(make("other", x_train=task.x_train).x_train, task.x_train)


def test_the_fingerprint_changes_with_name_data_labels_and_classes_only() -> None:
    task = make()
    assert make().fingerprint == task.fingerprint
    assert make(definition={"kind": "x"}).fingerprint == task.fingerprint
    assert make("u").fingerprint != task.fingerprint
    assert make("u").content_hash == task.content_hash
    others = [
        make(shift=1e-3),
        make(y_train=np.array([1, 1, 0, 1])),
        make(y_test=np.array([0, 0])),
        make(classes=(7, 3)),
        make(x_train=np.arange(12.0).reshape(4, 3)[::-1]),
    ]
    assert len({t.content_hash for t in [task, *others]}) == len(others) + 1
    assert pickle.loads(pickle.dumps(task)).fingerprint == task.fingerprint


def test_a_validation_part_is_part_of_the_content_and_none_leaves_it_as_it_was() -> None:
    plain = make()
    assert not plain.validated
    # Of tasks written down before there were validation parts.
    assert plain.fingerprint == "75867c37dabb9b065094a0f0c7ea16b634451173076fead0bd199924158be860"
    validated = make(x_val=np.zeros((1, 3)), y_val=np.array([1]))
    assert validated.validated
    assert validated.x_val is not None
    assert validated.x_val.dtype == np.float32
    others = [
        make(x_val=np.ones((1, 3)), y_val=np.array([1])),
        make(x_val=np.zeros((1, 3)), y_val=np.array([0])),
    ]
    assert len({t.content_hash for t in (plain, validated, *others)}) == 4
    copied = pickle.loads(pickle.dumps(validated))
    assert copied.fingerprint == validated.fingerprint
    with pytest.raises(ValueError, match="read-only"):
        copied.x_val[0, 0] = 1.0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_pool_has_validation_parts_for_all_tasks_or_for_none(order: tuple[int, int]) -> None:
    tasks = [make("plain"), make("other", 1.0, x_val=np.zeros((1, 3)), y_val=np.array([1]))]
    with pytest.raises(DataError, match="task 'plain' has no validation part"):
        TaskPool(name="p", split="train", tasks=tuple(tasks[i] for i in order))
    assert TaskPool(name="p", split="train", tasks=(tasks[1],)).validated
    assert not TaskPool(name="p", split="train", tasks=(tasks[0],)).validated


def test_the_memory_layout_of_the_input_does_not_change_the_fingerprint() -> None:
    x = np.arange(12.0).reshape(4, 3)
    assert make(x_train=np.asfortranarray(x)).fingerprint == make().fingerprint
    assert make(x_train=x.astype(">f8")).fingerprint == make().fingerprint


def test_a_pool_finds_its_tasks_and_has_a_fingerprint_of_all_of_them() -> None:
    pool = TaskPool(name="p", split="train", tasks=(make("a"), make("b", 1.0)))
    assert len(pool) == 2
    assert [task.name for task in pool] == ["a", "b"]
    assert pool[pool.index("b")].name == "b"
    assert (pool.input_shape, pool.num_classes) == ((3,), 2)
    with pytest.raises(UnknownNameError, match=r"'p'.*'c'"):
        pool.index("c")
    swapped = TaskPool(name="p", split="train", tasks=(make("b", 1.0), make("a")))
    as_test = TaskPool(name="p", split="test", tasks=pool.tasks)
    assert len({pool.fingerprint, swapped.fingerprint, as_test.fingerprint}) == 3


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ((), "no tasks"),
        ((make("a"), make("a", 1.0)), r"called \['a'\]"),
        ((make("a"), make("b", x_train=np.ones((4, 5)), x_test=np.ones((2, 5)))), "'b'.*one shape"),
        ((make("a"), make("b", classes=(1, 2, 3))), "'b' has 3 classes, 'a' has 2"),
    ],
)
def test_tasks_that_do_not_fit_together_are_no_pool(tasks: tuple[Task, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TaskPool(name="p", split="train", tasks=tasks)


def test_a_split_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"no split 'tests'. Did you mean 'test'"):
        TaskPool(name="p", split="tests", tasks=(make(),))  # type: ignore[arg-type]


def test_a_task_in_both_splits_is_found_even_under_another_name() -> None:
    train = TaskPool(name="p", split="train", tasks=(make("a"), make("b", 1.0)))
    check_disjoint(train, TaskPool(name="q", split="test", tasks=(make("a", 2.0),)))
    with pytest.raises(DataError, match=r"'c' of test pool 'q'.*'b' of train pool 'p'"):
        check_disjoint(train, TaskPool(name="q", split="test", tasks=(make("c", 1.0),)))
    with pytest.raises(InvalidValueError, match="one of split 'test'"):
        check_disjoint(train, train)
