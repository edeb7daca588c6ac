"""Families of tasks on the handwritten digits, and pools of them.

Everything here is the same on every machine: permutations come from raw PCG64 output (which
NumPy guarantees, unlike its shuffling), and rotated pixels are rounded to multiples of 1/1024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.datasets.digits_parts import NUM_CLASSES, Features, Labels, digits_parts
from nsr_gym.errors import InvalidValueError, unknown
from nsr_gym.tasks import SPLITS, Split, Task, TaskPool, check_split

SIDE = 8
DEFAULT_SIZE = 50
PARTIAL_PIXELS = (4, 12, 64, 64)
"""How many pixels the tasks of the family "partial" permute, in turn: two easy, two hard.

Chosen on the train split: at rank 1 a task of 4 pixels ends its third visit at 0.93 and one of 64
at 0.70, at rank 8 at 0.94 and 0.91."""


def pixel_permutation(seed: int) -> Labels:
    """Return the fixed pixel permutation of a seed.

    Returns:
        (64,) int64; new pixel j is old pixel `permutation[j]`.
    """
    return _permutation(seed, SIDE * SIDE)


def partial_permutation(seed: int, pixels: int) -> Labels:
    """Return the fixed permutation of a seed that moves some pixels among themselves.

    Args:
        seed: of the choice of the pixels and of their order.
        pixels: how many take part, 1 to 64; the others stay.

    Returns:
        (64,) int64; new pixel j is old pixel `permutation[j]`.
    """
    raw = np.asarray(np.random.PCG64(seed).random_raw(2 * SIDE * SIDE))
    chosen = np.sort(np.argsort(raw[: SIDE * SIDE], kind="stable")[:pixels])
    permutation = np.arange(SIDE * SIDE, dtype=np.int64)
    permutation[chosen] = chosen[np.argsort(raw[SIDE * SIDE :][:pixels], kind="stable")]
    return permutation


def rotation_matrix(angle: float) -> NDArray[np.float64]:
    """Return the linear map that rotates a flattened 8x8 image.

    Args:
        angle: in degrees, counterclockwise, about the image's centre.

    Returns:
        (64, 64) float64; `x @ matrix` rotates the rows of x (n, 64) with bilinear
        interpolation and black outside the image.
    """
    from scipy.ndimage import rotate

    # Rotation is linear in the pixels: rotating the 64 unit images once is the whole map.
    units = np.eye(SIDE * SIDE).reshape(-1, SIDE, SIDE)
    turned = rotate(units, angle, axes=(2, 1), reshape=False, order=1, mode="constant", cval=0.0)
    return np.asarray(turned, dtype=np.float64).reshape(len(units), -1)


def _permutation(seed: int, length: int) -> Labels:
    raw = np.random.PCG64(seed).random_raw(length)
    return np.argsort(np.asarray(raw), kind="stable").astype(np.int64)


def _permutation_task(name: str, definition: dict[str, Any]) -> Task:
    return _rearranged(name, definition, pixel_permutation(definition["seed"]))


def _partial_task(name: str, definition: dict[str, Any]) -> Task:
    order = partial_permutation(definition["seed"], definition["pixels"])
    return _rearranged(name, definition, order)


def _rearranged(name: str, definition: dict[str, Any], order: Labels) -> Task:
    train, test = digits_parts().train, digits_parts().test
    return _task(name, definition, train.x[:, order], train.y, test.x[:, order], test.y)


def _rotation_task(name: str, definition: dict[str, Any]) -> Task:
    parts = digits_parts()
    matrix = rotation_matrix(definition["angle"])

    def turn(x: Features) -> Features:
        # Rounded, so that the last bits of other processors and releases do not show.
        turned: Features = (np.round(x @ matrix * 1024.0) / 1024.0).astype(np.float32)
        return turned

    return _task(
        name, definition, turn(parts.train.x), parts.train.y, turn(parts.test.x), parts.test.y
    )


def _labels_task(name: str, definition: dict[str, Any]) -> Task:
    parts = digits_parts()
    labels = np.array(definition["labels"], dtype=np.int64)
    return _task(
        name, definition, parts.train.x, labels[parts.train.y], parts.test.x, labels[parts.test.y]
    )


def _task(
    name: str, definition: dict[str, Any], x_train: Features, y_train: Labels,
    x_test: Features, y_test: Labels,
) -> Task:  # fmt: skip
    return Task(
        name=name,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        classes=tuple(range(NUM_CLASSES)),
        definition=definition,
    )


# Each family lists its definitions by split without end or up to its limit; a pool takes the
# first ones, so that a larger pool begins with the smaller one.


def _permutation_definitions(split: Split) -> Iterator[dict[str, Any]]:
    # Even seeds are train, odd ones test.
    return ({"kind": "permutation", "seed": seed} for seed in count(SPLITS.index(split), 2))


def _partial_definitions(split: Split) -> Iterator[dict[str, Any]]:
    # Even seeds are train, odd ones test.
    for i, seed in enumerate(count(SPLITS.index(split), 2)):
        pixels = PARTIAL_PIXELS[i % len(PARTIAL_PIXELS)]
        yield {"kind": "partial", "seed": seed, "pixels": pixels}


def _rotation_definitions(split: Split) -> Iterator[dict[str, Any]]:
    # 2.5, 12.5, ... are train and 7.5, 17.5, ... test: interleaved, mirror images of each other,
    # and 0, which the backbone has learned, in neither. Steps of 13 go round the circle evenly,
    # so that small pools cover it too.
    offset = 2.5 + 5.0 * SPLITS.index(split)
    for i in range(FAMILIES["rotation"].limit):
        yield {"kind": "rotation", "angle": offset + 10.0 * (13 * i % 36)}


def _labels_definitions(split: Split) -> Iterator[dict[str, Any]]:
    # Label maps are dealt to train and test in turn; a repeated one or the identity is skipped.
    seen = {tuple(range(NUM_CLASSES))}
    turn = 0
    for seed in count():
        labels = tuple(_permutation(seed, NUM_CLASSES).tolist())
        if labels in seen:
            continue
        seen.add(labels)
        if SPLITS[turn % len(SPLITS)] == split:
            yield {"kind": "labels", "labels": list(labels)}
        turn += 1


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of tasks on the digits.

    Attributes:
        summary: one line for listings.
        limit: largest pool per split.
        definitions: lists the definitions of a split, in the order of the pool.
        build: makes the task from its name and definition.
    """

    summary: str
    limit: int
    definitions: Callable[[Split], Iterator[dict[str, Any]]]
    build: Callable[[str, dict[str, Any]], Task]


FAMILIES: dict[str, Family] = {
    "permutation": Family(
        summary="pixels in a fixed random order per task (unrelated tasks)",
        limit=1000,
        definitions=_permutation_definitions,
        build=_permutation_task,
    ),
    "rotation": Family(
        summary="images turned by an angle per task (related tasks: transfer)",
        limit=36,
        definitions=_rotation_definitions,
        build=_rotation_task,
    ),
    "labels": Family(
        summary="same images, other labels per task (similarity misleads)",
        limit=1000,
        definitions=_labels_definitions,
        build=_labels_task,
    ),
    "partial": Family(
        summary="some pixels in a fixed random order per task (easy and hard tasks)",
        limit=1000,
        definitions=_partial_definitions,
        build=_partial_task,
    ),
}

MIXED = ("permutation", "labels", "partial", "rotation")
"""The families of the mixed pool, in its order."""


def digits_pool(
    kind: str = "permutation", split: str = "test", size: int | None = None
) -> TaskPool:
    """Return the pool of tasks of one family and split.

    Every task has 700 training and 200 test images of 64 features in [0, 1] and 10 classes.
    Pools of split train and test share no permutation, angle or label map; the images under
    them are the same. About 230 kB per task (labels: the images are shared).

    Args:
        kind: one of `FAMILIES`: `"permutation"`, `"rotation"`, `"labels"`, `"partial"`.
        split: `"train"` or `"test"`.
        size: number of tasks, 1 to the family's limit (1,000; rotation 36); default 50, or
            the limit where that is smaller. A larger pool begins with the smaller one.

    Returns:
        The pool, cached; each task's `definition` says what was done to the images.

    Raises:
        UnknownNameError: no such kind or split.
        InvalidValueError: a size out of range.
    """
    if kind not in FAMILIES:
        raise unknown("kind of digits task", kind, FAMILIES)
    limit = FAMILIES[kind].limit
    if size is None:
        size = default_size(kind)
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or not 1 <= size <= limit:
        raise InvalidValueError(
            f"A pool of kind {kind!r} has 1 to {limit} tasks per split, got size {size!r}."
        )
    return _pool(kind, check_split(split), int(size))


def default_size(kind: str) -> int:
    """Return how many tasks a family's pool has where nobody says."""
    return min(DEFAULT_SIZE, FAMILIES[kind].limit)


def mixed_positions() -> dict[str, range]:
    """Return where the tasks of each family lie in the mixed pool, in its order."""
    positions, first = {}, 0
    for kind in MIXED:
        positions[kind] = range(first, first + default_size(kind))
        first = positions[kind].stop
    return positions


@lru_cache(maxsize=2)
def mixed_pool(split: str = "test") -> TaskPool:
    """Return the pools of all families one after another, called `"digits-mixed"`.

    Args:
        split: `"train"` or `"test"`.

    Raises:
        UnknownNameError: no such split.
    """
    pools = [digits_pool(kind, split) for kind in MIXED]
    return TaskPool(
        name="digits-mixed",
        split=check_split(split),
        tasks=tuple(task for pool in pools for task in pool),
    )


@lru_cache(maxsize=16)
def _pool(kind: str, split: Split, size: int) -> TaskPool:
    family = FAMILIES[kind]
    tasks = tuple(
        family.build(f"{kind}-{split}-{i}", definition)
        for i, definition in enumerate(islice(family.definitions(split), size))
    )
    return TaskPool(name=f"digits-{kind}", split=split, tasks=tasks)
