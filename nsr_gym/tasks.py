"""Tasks and pools of tasks: immutable arrays with names, classes and fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from operator import index as as_integer
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import DataError, InvalidValueError, unknown
from nsr_gym.task_arrays import checked_features, checked_labels

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

_PARTS = ("train", "test", "val")


def check_split(split: str) -> Split:
    """Return `split` if it is `"train"` or `"test"`.

    Raises:
        UnknownNameError: for any other name.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return split


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """One data distribution to be learned: a training part and a test part.

    Accuracies to be reported are measured on the test part. Where there is a validation part,
    what decisions rest on is measured there, see `TaskData.validation`.

    The arrays are converted to the types below, copied where somebody else could still
    write to them, and read-only afterwards. Values are taken as they are: scaling images
    to [0, 1] is the caller's business.

    Attributes:
        name: unique within a pool.
        x_train: (n, d) or (n, C, H, W) float32, one row per example, n >= 1.
        y_train: (n,) int64, each in 0..num_classes-1: a position in `classes`.
        x_test: (m, ...) float32 with the features of `x_train`, m >= 1.
        y_test: (m,) int64, as `y_train`.
        classes: the global label behind each output of the head, num_classes of them.
        x_val: (v, ...) float32 as `x_train`, v >= 1; None: no validation part.
        y_val: (v,) int64, as `y_train`; None as `x_val`.
        definition: what generated the task, as plain JSON (`{}` for data of unknown origin).

    Raises:
        DataError: empty parts, lengths or features that do not match, NaN or infinite
            values, labels that are no integers or out of range, repeated classes.
    """

    name: str
    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    classes: tuple[int, ...]
    x_val: NDArray[np.float32] | None = None
    y_val: NDArray[np.int64] | None = None
    definition: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise DataError(f"A task's name must be a non-empty string, got {self.name!r}.")
        try:
            classes = tuple(as_integer(c) for c in self.classes)
        except TypeError as error:
            raise DataError(
                f"Task {self.name!r}: classes must be integer labels, got {self.classes!r}."
            ) from error
        if not classes or len(set(classes)) != len(classes):
            raise DataError(
                f"Task {self.name!r}: classes must be distinct labels, at least one, got {classes}."
            )
        object.__setattr__(self, "classes", classes)
        if (self.x_val is None) != (self.y_val is None):
            raise DataError(
                f"Task {self.name!r}: expected x_val and y_val together; got one of them. Give "
                "images and labels of the validation part, or neither."
            )
        for part in self.parts:
            x = checked_features(self.name, part, getattr(self, f"x_{part}"))
            y = checked_labels(self.name, part, getattr(self, f"y_{part}"), len(classes))
            if len(x) != len(y):
                raise DataError(
                    f"Task {self.name!r}: x_{part} has {len(x)} examples and y_{part} has "
                    f"{len(y)} labels; give one label per example."
                )
            object.__setattr__(self, f"x_{part}", x)
            object.__setattr__(self, f"y_{part}", y)
        for part in self.parts[1:]:
            shape = getattr(self, f"x_{part}").shape[1:]
            if self.x_train.shape[1:] != shape:
                raise DataError(
                    f"Task {self.name!r}: features have shape {self.x_train.shape[1:]} in x_train "
                    f"and {shape} in x_{part}; all parts need the same."
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # NumPy forgets the read-only flag in pickles; the copy has to be as safe as the original.
        self.__dict__.update(state)
        for key in self._arrays:
            getattr(self, key).flags.writeable = False

    @property
    def parts(self) -> tuple[str, ...]:
        """`"train"`, `"test"`, and `"val"` where there is a validation part."""
        return _PARTS[:2] if self.y_val is None else _PARTS

    @property
    def validated(self) -> bool:
        """Whether there is a validation part."""
        return self.y_val is not None

    @property
    def _arrays(self) -> tuple[str, ...]:
        return tuple(f"{kind}_{part}" for part in self.parts for kind in "xy")

    @property
    def num_classes(self) -> int:
        """Number of classes, the width of the head."""
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: (d,) or (C, H, W)."""
        return tuple(self.x_train.shape[1:])

    @cached_property
    def content_hash(self) -> str:
        """Sha256 (hex) over arrays and classes, whatever the task is called."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for key in self._arrays:
            array: NDArray[Any] = getattr(self, key)
            # Little-endian bytes, so that the hash is the same on every machine.
            little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            digest.update(f"|{key}{array.shape}{array.dtype.name}|".encode())
            digest.update(little.data)
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 (hex) over name, arrays and classes."""
        return hashlib.sha256(f"{self.name}|{self.content_hash}".encode()).hexdigest()


@dataclass(frozen=True, eq=False, kw_only=True)
class TaskPool:
    """The tasks from which the streams of one split are drawn.

    Attributes:
        name: of the family, such as `"digits-permutation"`.
        split: `"train"` (controllers are trained on it) or `"test"` (they are judged on it).
        tasks: at least one; distinct names, equal feature shapes and numbers of classes, and
            validation parts for all or for none.

    Raises:
        UnknownNameError: a split that does not exist.
        DataError: no tasks, repeated names, or tasks that one model cannot learn together.
    """

    name: str
    split: Split
    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        check_split(self.split)
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if not self.tasks:
            raise DataError(f"Pool {self.name!r} has no tasks; give at least one.")
        first = self.tasks[0]
        for task in self.tasks:
            if task.input_shape != first.input_shape:
                raise DataError(
                    f"Pool {self.name!r}: features of task {task.name!r} have shape "
                    f"{task.input_shape}, those of {first.name!r} {first.input_shape}; "
                    "bring all tasks of a pool to one shape."
                )
            if task.num_classes != first.num_classes:
                raise DataError(
                    f"Pool {self.name!r}: task {task.name!r} has {task.num_classes} classes, "
                    f"{first.name!r} has {first.num_classes}; give all tasks of a pool the same "
                    "number (pass `classes` where a class has no examples)."
                )
            if task.parts != first.parts:
                without = task if first.validated else first
                raise DataError(
                    f"Pool {self.name!r}: task {without.name!r} has no validation part, others "
                    "have one; give all tasks of a pool one (`x_val` and `y_val`), or none."
                )
        if len(self._index) != len(self.tasks):
            names = [task.name for task in self.tasks]
            repeated = sorted({name for name in names if names.count(name) > 1})
            raise DataError(f"Pool {self.name!r} has several tasks called {repeated}; rename them.")

    @cached_property
    def _index(self) -> dict[str, int]:
        return {task.name: i for i, task in enumerate(self.tasks)}

    @property
    def num_classes(self) -> int:
        """Number of classes of every task."""
        return self.tasks[0].num_classes

    @property
    def validated(self) -> bool:
        """Whether the tasks have validation parts."""
        return self.tasks[0].validated

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example of every task."""
        return self.tasks[0].input_shape

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 (hex) over name, split and the tasks' fingerprints in order."""
        parts = [self.name, self.split, *(task.fingerprint for task in self.tasks)]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()

    def index(self, name: str) -> int:
        """Return the position of the task called `name`.

        Raises:
            UnknownNameError: no task of the pool has that name.
        """
        try:
            return self._index[name]
        except KeyError:
            raise unknown(f"task in pool {self.name!r}", name, self._index) from None

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)


def check_disjoint(train: TaskPool, test: TaskPool) -> None:
    """Make sure that no task of one pool is a task of the other.

    Tasks are compared by content, so renaming a task does not hide it.

    Raises:
        DataError: a task is in both pools.
        InvalidValueError: the pools are not one of split train and one of split test.
    """
    if (train.split, test.split) != ("train", "test"):
        raise InvalidValueError(
            f"Expected a pool of split 'train' and one of split 'test', got {train.split!r} "
            f"({train.name!r}) and {test.split!r} ({test.name!r})."
        )
    seen = {task.content_hash: task.name for task in train}
    for task in test:
        if task.content_hash in seen:
            raise DataError(
                f"Task {task.name!r} of test pool {test.name!r} has the same data as task "
                f"{seen[task.content_hash]!r} of train pool {train.name!r}; what a controller "
                "was trained on cannot judge it, remove the task from one of them."
            )
