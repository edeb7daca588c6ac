"""Tasks from a user's own data.

A task is a training part and a test part. Features have n examples along the first axis and
then `(d,)` for vectors or `(C, H, W)` for images; labels are n integers:

    import numpy as np
    from nsr_gym.datasets import pool_from_arrays

    rng = np.random.default_rng(0)

    def task():
        x, w = rng.normal(size=(300, 16)), rng.normal(size=(16, 4))
        y = (x @ w).argmax(axis=1)
        return x[:200], y[:200], x[200:], y[200:]  # x_train, y_train, x_test, y_test

    train = pool_from_arrays({f"a{i}": task() for i in range(20)}, split="train")
    test = pool_from_arrays({f"b{i}": task() for i in range(20)}, split="test")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsr_gym.errors import DataError
from nsr_gym.task_arrays import integer_labels
from nsr_gym.tasks import Task, TaskPool, check_split


class MapDataset(Protocol):
    """What a data set has to offer: torch's map-style data sets do, and so does a list."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, index: int, /) -> Any:
        """Return one example, a tuple that begins with its features and its label."""


def task_from_arrays(
    name: str,
    x_train: ArrayLike,
    y_train: ArrayLike,
    x_test: ArrayLike,
    y_test: ArrayLike,
    *,
    classes: Sequence[int] | None = None,
    definition: Mapping[str, Any] | None = None,
) -> Task:
    """Make a task of four arrays.

    Args:
        name: unique within a pool.
        x_train: (n, d) or (n, C, H, W), anything that NumPy reads as numbers; kept as float32
            with the values as they are, so scale images to [0, 1] first.
        y_train: (n,) integers, the data set's own labels.
        x_test: (m, ...) as `x_train`.
        y_test: (m,) as `y_train`.
        classes: the labels in the order of the head's outputs; by default those that occur,
            ascending. Needed where a class has no examples.
        definition: where the data comes from, as plain JSON.

    Returns:
        The task; its labels are positions in `classes`.

    Raises:
        DataError: data that cannot be used; the message names the task and the array.
    """
    labels = {
        "train": integer_labels(name, "train", y_train),
        "test": integer_labels(name, "test", y_test),
    }
    if classes is None:
        classes = np.union1d(labels["train"], labels["test"]).tolist()
    known = np.asarray(classes)
    if known.ndim != 1 or known.dtype.kind not in "iu":
        raise DataError(f"Task {name!r}: classes must be integer labels, got {classes!r}.")
    order = np.argsort(known, kind="stable")
    positions: dict[str, NDArray[np.int64]] = {}
    for part, y in labels.items():
        foreign = np.setdiff1d(y, known)
        if foreign.size:
            raise DataError(
                f"Task {name!r}: y_{part} has labels {foreign[:5].tolist()} that are not among "
                f"`classes` ({known.tolist()}); list them there or drop those examples."
            )
        positions[part] = order[np.searchsorted(known, y, sorter=order)].astype(np.int64)
    return Task(
        name=name,
        x_train=np.asarray(x_train),
        y_train=positions["train"],
        x_test=np.asarray(x_test),
        y_test=positions["test"],
        classes=tuple(known.tolist()),
        definition=dict(definition or {}),
    )


def task_from_datasets(
    name: str,
    train: MapDataset,
    test: MapDataset,
    *,
    classes: Sequence[int] | None = None,
    definition: Mapping[str, Any] | None = None,
) -> Task:
    """Make a task of two map-style data sets, read once from the first to the last example.

    Args:
        name: unique within a pool.
        train: examples `(x, y)` or `(x, y, ...)`: x a tensor or array (d,) or (C, H, W), y an
            integer (a number, or a tensor of one).
        test: as `train`.
        classes: as in `task_from_arrays`.
        definition: as in `task_from_arrays`.

    Returns:
        The task.

    Raises:
        DataError: an empty data set, or examples of another kind or of different shapes.
    """
    x_train, y_train = read_dataset(name, "train", train)
    x_test, y_test = read_dataset(name, "test", test)
    return task_from_arrays(
        name, x_train, y_train, x_test, y_test, classes=classes, definition=definition
    )


def pool_from_arrays(
    tasks: Mapping[str, Sequence[ArrayLike]],
    *,
    split: str,
    name: str = "user",
    classes: Sequence[int] | None = None,
) -> TaskPool:
    """Make a pool of tasks given as arrays.

    Args:
        tasks: by name, `(x_train, y_train, x_test, y_test)` as in `task_from_arrays`.
        split: `"train"` or `"test"`.
        name: of the pool.
        classes: of every task; by default those that occur in it.

    Returns:
        The pool, tasks in the order given.

    Raises:
        DataError: data that cannot be used, or tasks that do not fit together.
        UnknownNameError: a split that does not exist.
    """
    check_split(split)
    if not isinstance(tasks, Mapping):
        raise DataError(
            f"Pool {name!r}: expected a mapping of task names to (x_train, y_train, x_test, "
            f"y_test), got {type(tasks).__name__}; for tasks made already use `TaskPool`."
        )
    for task, arrays in tasks.items():
        if len(arrays) != 4:
            raise DataError(
                f"Task {task!r}: expected the 4 arrays (x_train, y_train, x_test, y_test), "
                f"got {len(arrays)}."
            )
    made = tuple(task_from_arrays(task, *arrays, classes=classes) for task, arrays in tasks.items())
    return TaskPool(name=name, split=check_split(split), tasks=made)


def read_dataset(
    task: str, part: str, dataset: MapDataset
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read a map-style data set once, from the first to the last example.

    Args:
        task: name of the task, for messages.
        part: `"train"` or `"test"`, for messages.
        dataset: as in `task_from_datasets`.

    Returns:
        Features (n, d) or (n, C, H, W) and the data set's own labels (n,).

    Raises:
        DataError: an empty data set, or examples of another kind or of different shapes.
    """
    where = f"Task {task!r}, {part} data set"
    length = len(dataset)
    if length == 0:
        raise DataError(f"{where}: it is empty; give at least one example.")
    x: NDArray[np.float32] | None = None
    y = np.empty(length, dtype=np.int64)
    for i in range(length):
        example = dataset[i]
        if not isinstance(example, (tuple, list)) or len(example) < 2:
            raise DataError(f"{where}: example {i} is a {type(example).__name__}, expected (x, y).")
        features = _array(f"{where}: x of example {i}", example[0])
        if x is None:
            x = np.empty((length, *features.shape), dtype=np.float32)
        if features.shape != x.shape[1:]:
            raise DataError(
                f"{where}: example {i} has shape {features.shape}, the first {x.shape[1:]}; "
                "resize all examples to one shape."
            )
        x[i] = features
        try:
            y[i] = example[1].__index__()
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"{where}: the label of example {i} is {example[1]!r}, expected an integer."
            ) from error
    assert x is not None
    return x, y


def _array(what: str, value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):  # a torch tensor, perhaps on another device or with a gradient
        value = value.detach().cpu().numpy()
    if not hasattr(value, "shape") and not isinstance(value, (list, tuple)):
        raise DataError(
            f"{what} is a {type(value).__name__}, expected a tensor or array; give the data set a "
            "transform that makes one (for images torchvision's `ToTensor()`)."
        )
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what} has type {array.dtype}, expected numbers.")
    return array
