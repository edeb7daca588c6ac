"""Streams from elsewhere: Avalanche benchmarks and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsr_gym.datasets.arrays import pool_from_arrays, read_dataset, task_from_arrays
from nsr_gym.errors import DataError, InvalidValueError
from nsr_gym.streams import TaskStream
from nsr_gym.tasks import TaskPool, check_split


class Experience(Protocol):
    """What is needed of an experience of Avalanche."""

    current_experience: int
    dataset: Any


class Benchmark(Protocol):
    """What is needed of a benchmark of Avalanche."""

    train_stream: Sequence[Experience]
    test_stream: Sequence[Experience]


@dataclass(frozen=True)
class ImportedStream:
    """Tasks and the order in which they are visited.

    `ContinualEnv(stream.pool, backbone, visits=stream.visits)` plays it, every episode in this
    order.

    Attributes:
        pool: the tasks.
        visits: positions in the pool, one per visit.
    """

    pool: TaskPool
    visits: tuple[int, ...]

    def stream(self) -> TaskStream:
        """Return the stream of one episode: all tasks take part, visits are as given."""
        return TaskStream.from_pool(self.pool, members=range(len(self.pool)), visits=self.visits)


def from_arrays(
    tasks: Mapping[str, Sequence[ArrayLike]],
    *,
    split: str,
    visits: Sequence[str] | Sequence[int] | None = None,
    name: str = "user",
    classes: Sequence[int] | None = None,
) -> ImportedStream:
    """Make a stream of tasks given as arrays.

    Args:
        tasks: by name, `(x_train, y_train, x_test, y_test)`; see `pool_from_arrays`.
        split: `"train"` or `"test"`.
        visits: task names, or positions in `tasks`, one per visit; None: each task once.
        name: of the pool.
        classes: of every task; by default those that occur in it.

    Raises:
        DataError: data that cannot be used.
        UnknownNameError: no such split, or a visit to a task that is not there.
        InvalidValueError: visits that are no list, no visits, or positions outside the pool.
    """
    if isinstance(tasks, Mapping):
        for task, arrays in tasks.items():
            if not _is_list(arrays):
                raise DataError(
                    f"Task {task!r}: expected a list of the 4 arrays (x_train, y_train, x_test, "
                    f"y_test); got {type(arrays).__name__}."
                )
    pool = pool_from_arrays(tasks, split=split, name=name, classes=classes)
    if visits is None:
        return ImportedStream(pool, tuple(range(len(pool))))
    if not _is_list(visits):
        raise InvalidValueError(
            f"Expected visits as a list of task names or of positions in 0..{len(pool) - 1}; got "
            f"{visits!r}."
        )
    chosen = [pool.index(v) if isinstance(v, str) else v for v in visits]
    return ImportedStream(pool, checked_positions("visits", chosen, len(pool)))


def from_avalanche(
    benchmark: Benchmark,
    *,
    split: str,
    order: Sequence[int] | None = None,
    join: bool = False,
    name: str = "avalanche",
    classes: Sequence[int] | None = None,
) -> ImportedStream:
    """Make a stream of an Avalanche benchmark (written against 0.6; it need not be installed).

    Every training experience is a visit. Visits that belong to one test experience are visits to
    one task. Which belong together is told by `order`, else by the classes: each training
    experience goes with the test experience that has the same classes, where no two test
    experiences share theirs; else by number, where both streams have equally many.

    Args:
        benchmark: anything with `train_stream` and `test_stream`, whose experiences have
            `dataset` (examples `(x, y)` or `(x, y, t)`, x a tensor; where `order` is None also
            `targets`, the labels of all examples) and `current_experience`.
        split: `"train"` or `"test"`: what the pool is for.
        order: for each training experience the number of its test experience.
        join: a task has one training set. False: visits to one task must bring the same examples.
            True: where they bring others, they are joined, and every visit draws from all.
        name: of the pool.
        classes: of every task; by default those that occur in it.

    Returns:
        Tasks in the order of their first visits, named `"<name>-<test experience>"`.

    Raises:
        DataError: no benchmark, data that cannot be used, or visits to one task with different
            examples.
        InvalidValueError: an `order` that is no list, of another length or out of range, or none
            where neither classes nor numbers tell.
        UnknownNameError: no such split.
    """
    chosen_split = check_split(split)
    trains, tests = (_experiences(benchmark, f"{part}_stream") for part in ("train", "test"))
    if not trains or not tests:
        raise DataError(
            f"Expected a benchmark with experiences in both streams; got {len(trains)} for "
            f"training and {len(tests)} for testing."
        )
    if order is None:
        belongs = _matched(trains, tests)
    else:
        belongs = checked_positions("order", order, len(tests))
        if len(order) != len(trains):
            raise InvalidValueError(
                f"Expected order to have one entry for each of {len(trains)} training "
                f"experiences; got {len(order)}."
            )
    members = list(dict.fromkeys(belongs))
    tasks = []
    for member in members:
        title = f"{name}-{member}"
        visits = [e for e, own in zip(trains, belongs, strict=True) if own == member]
        x, y, spans = _training(title, visits, join)
        test = read_dataset(title, "test", tests[member].dataset)
        definition = {
            "kind": "avalanche",
            "test_experience": member,
            "train_experiences": [i for i, own in enumerate(belongs) if own == member],
            "examples_per_visit": spans,
        }
        tasks.append(task_from_arrays(title, x, y, *test, classes=classes, definition=definition))
    pool = TaskPool(name=name, split=chosen_split, tasks=tuple(tasks))
    return ImportedStream(pool, tuple(members.index(own) for own in belongs))


def _training(
    title: str, visits: Sequence[Experience], join: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64], list[int]]:
    """Return the training examples of a task, and how many each of its visits brings."""
    parts: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []
    spans = []
    for visit in visits:
        x, y = read_dataset(title, "train", visit.dataset)
        spans.append(len(y))
        if any(np.array_equal(x, old) and np.array_equal(y, labels) for old, labels in parts):
            continue
        if parts and not join:
            raise DataError(
                f"Task {title!r}: training experience {visit.current_experience} brings other "
                "examples than an earlier visit to the same task. Pass `join=True` to let every "
                "visit draw from all of them, or `order` to make them separate tasks."
            )
        parts.append((x, y))
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return x, y, spans


def _matched(trains: Sequence[Experience], tests: Sequence[Experience]) -> tuple[int, ...]:
    """Return the test experience of each training experience."""
    known = [_classes(test) for test in tests]
    if len(set(known)) == len(known):
        found = [known.index(c) if c in known else -1 for c in map(_classes, trains)]
        if min(found) >= 0:
            return tuple(found)
    if len(trains) == len(tests):
        numbers = {test.current_experience: i for i, test in enumerate(tests)}
        own = [numbers.get(train.current_experience, -1) for train in trains]
        if min(own) >= 0:
            return tuple(own)
    raise InvalidValueError(
        f"Which of {len(tests)} test experiences belongs to each of {len(trains)} training "
        "experiences is told neither by their classes nor by their numbers; pass `order`, for "
        "each training experience the number of its test experience."
    )


def _classes(experience: Experience) -> frozenset[int]:
    try:
        return frozenset(int(label) for label in experience.dataset.targets)
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            "Expected data sets with `targets`, the labels of all examples, to tell which "
            f"experiences belong together; that of experience {experience.current_experience} has "
            f"none that can be read ({error}). Pass `order`, for each training experience the "
            "number of its test experience, and none are needed."
        ) from error


def _experiences(benchmark: Any, stream: str) -> list[Experience]:
    """Return the experiences of a benchmark's stream, each with what is needed of it."""
    try:
        found = list(getattr(benchmark, stream))
    except (AttributeError, TypeError) as error:
        raise DataError(
            f"Expected a benchmark of Avalanche, with train_stream and test_stream; got "
            f"{type(benchmark).__name__}, whose {stream} cannot be read ({error})."
        ) from error
    for number, experience in enumerate(found):
        data = getattr(experience, "dataset", None)
        sized = hasattr(data, "__getitem__") and hasattr(data, "__len__")
        if not sized or not hasattr(experience, "current_experience"):
            raise DataError(
                f"Expected experiences of {stream} with `current_experience` and a `dataset` that "
                f"has a length and examples (x, y); number {number}, of type "
                f"{type(experience).__name__}, has not both."
            )
    return found


def _is_list(values: Any) -> bool:
    if isinstance(values, np.ndarray):
        return values.ndim == 1
    return isinstance(values, Sequence) and not isinstance(values, str | bytes)


def checked_positions(what: str, values: Any, length: int) -> tuple[int, ...]:
    """Return positions in a list after checking them.

    Args:
        what: their name, for the message.
        values: a list or array of whole numbers.
        length: positions are in 0..length-1.

    Raises:
        InvalidValueError: no list, an empty one, or values that are no such numbers.
    """
    whole = []
    if _is_list(values):
        whole = [v for v in values if isinstance(v, int | np.integer) and not isinstance(v, bool)]
    if not whole or len(whole) != len(values) or min(whole) < 0 or max(whole) >= length:
        raise InvalidValueError(
            f"Expected {what} as a list of whole numbers in 0..{length - 1}, at least one; got "
            f"{values!r}."
        )
    return tuple(int(v) for v in whole)
