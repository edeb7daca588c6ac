"""Checks of the arrays that tasks are made of."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsr_gym.errors import DataError

_Array = TypeVar("_Array", bound=NDArray[Any])


def checked_features(task: str, part: str, values: ArrayLike) -> NDArray[np.float32]:
    """Return features as read-only float32 numbers, (n, d) or (n, C, H, W).

    Args:
        task: name of the task, for the message.
        part: `"train"`, `"test"` or `"val"`, for the message.
        values: the features; copied where somebody else could still write to them.

    Raises:
        DataError: no numbers, another shape, or NaN or infinite values.
    """
    try:
        with np.errstate(over="ignore"):  # what does not fit float32 is reported below, as inf
            x = np.asarray(values, dtype=np.float32, order="C")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"Task {task!r}: x_{part} is no numeric array of equally shaped examples ({error})."
        ) from error
    if x.ndim < 2 or x.size == 0:
        raise DataError(
            f"Task {task!r}: x_{part} has shape {x.shape}; expected (n, d) or (n, C, H, W) with "
            "at least one example and one feature."
        )
    if not np.isfinite(x).all():
        bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
        raise DataError(
            f"Task {task!r}: x_{part} has NaN or infinite values in {len(bad)} of {len(x)} "
            f"examples (the first is number {bad[0]}); fill or drop them."
        )
    return _read_only(x)


def integer_labels(task: str, part: str, values: ArrayLike) -> NDArray[Any]:
    """Return labels as an array after checking that they are integers, (n,) with n >= 1.

    Args:
        task: name of the task, for the message.
        part: `"train"`, `"test"` or `"val"`, for the message.
        values: the labels.

    Raises:
        DataError: another shape or type, or no labels.
    """
    y = np.asarray(values)
    if y.ndim != 1 or y.size == 0 or y.dtype.kind not in "iu":
        raise DataError(
            f"Task {task!r}: y_{part} has shape {y.shape} and type {y.dtype}; expected (n,) "
            "integers, at least one (use `.astype(int)` or `.argmax(1)` where that is meant)."
        )
    return y


def checked_labels(task: str, part: str, values: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Return labels as read-only int64 numbers, (n,).

    Args:
        task: name of the task, for the message.
        part: `"train"`, `"test"` or `"val"`, for the message.
        values: the labels; copied where somebody else could still write to them.
        num_classes: labels are in 0..num_classes-1.

    Raises:
        DataError: another shape or type, no labels, or labels out of range.
    """
    y = integer_labels(task, part, values)
    if y.min() < 0 or y.max() >= num_classes:
        raise DataError(
            f"Task {task!r}: y_{part} has labels {y.min()}..{y.max()} and the task {num_classes} "
            f"classes; labels must be in 0..{num_classes - 1} (`task_from_arrays` maps labels)."
        )
    return _read_only(y.astype(np.int64, order="C", copy=False))


def _read_only(array: _Array) -> _Array:
    """Return an array that nobody can write to: itself if so already, else a copy."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            array = array.copy()
            array.flags.writeable = False
            return array
        owner = owner.base
    return array
