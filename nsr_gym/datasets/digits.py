"""Handwritten digits: 1,797 real images of 8x8 pixels, and three families of tasks on them.

The images ship with scikit-learn (UCI "Optical Recognition of Handwritten Digits", test
part). Everything here is the same on every machine: images are dealt to the parts in the
order of a hash of their pixels, permutations come from raw PCG64 output (which NumPy
guarantees, unlike its shuffling), and rotated pixels are rounded to multiples of 1/1024.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import count, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import InvalidValueError, unknown
from nsr_gym.tasks import SPLITS, Split, Task, TaskPool, check_split

NUM_CLASSES = 10
SIDE = 8
TRAIN_PER_CLASS = 70
TEST_PER_CLASS = 20
DEFAULT_SIZE = 50

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of the images.

    Attributes:
        x: (n, 64) float32 in [0, 1], rows of the 8x8 image one after another; read-only.
        y: (n,) int64, the digit; read-only.
        index: (n,) int64, positions in `sklearn.datasets.load_digits`; read-only.
    """

    x: Features
    y: Labels
    index: Labels


@dataclass(frozen=True, kw_only=True)
class DigitsParts:
    """The disjoint parts of the images.

    No two of the 1,797 images are pixel-equal, so parts with distinct indices share no image.

    Attributes:
        base: 897 images (84 to 93 per digit) for pretraining the backbone, never used by a task.
        train: 700 images (70 per digit), the training part of every task.
        test: 200 images (20 per digit), the test part of every task.
    """

    base: Part
    train: Part
    test: Part


@cache
def digits_parts() -> DigitsParts:
    """Load the images and deal them to the parts (cached, a second for the first call).

    Within each digit the images are ordered by the sha256 of their pixels; the first 20 are
    test, the next 70 train, the rest base. The order inside a part is independent of it (the
    sha256 of that hash), so that the first k images of a part are a fair sample of it.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    levels = pixels.astype(np.uint8)  # 0..16
    y = labels.astype(np.int64)
    hashes = [hashlib.sha256(image.tobytes()).digest() for image in levels]
    dealt = sorted(range(len(y)), key=lambda i: hashes[i])
    by_class = [[i for i in dealt if y[i] == digit] for digit in range(NUM_CLASSES)]
    held = TEST_PER_CLASS + TRAIN_PER_CLASS

    def part(begin: int, end: int | None) -> Part:
        chosen = [i for members in by_class for i in members[begin:end]]
        chosen.sort(key=lambda i: hashlib.sha256(hashes[i]).digest())
        index = np.array(chosen, dtype=np.int64)
        x = levels[index].astype(np.float32) / np.float32(16.0)
        arrays = (x, y[index], index)
        for array in arrays:
            array.flags.writeable = False
        return Part(x=arrays[0], y=arrays[1], index=arrays[2])

    return DigitsParts(
        base=part(held, None), train=part(TEST_PER_CLASS, held), test=part(0, TEST_PER_CLASS)
    )


def pixel_permutation(seed: int) -> Labels:
    """Return the fixed pixel permutation of a seed.

    Returns:
        (64,) int64; new pixel j is old pixel `permutation[j]`.
    """
    return _permutation(seed, SIDE * SIDE)


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
    parts = digits_parts()
    pixels = pixel_permutation(definition["seed"])
    return _task(
        name, definition, parts.train.x[:, pixels], parts.train.y, parts.test.x[:, pixels],
        parts.test.y,
    )  # fmt: skip


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
}


def digits_pool(
    kind: str = "permutation", split: str = "test", size: int | None = None
) -> TaskPool:
    """Return the pool of tasks of one family and split.

    Every task has 700 training and 200 test images of 64 features in [0, 1] and 10 classes.
    Pools of split train and test share no permutation, angle or label map; the images under
    them are the same. About 230 kB per task (labels: the images are shared).

    Args:
        kind: one of `FAMILIES`: `"permutation"`, `"rotation"`, `"labels"`.
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
        size = min(DEFAULT_SIZE, limit)
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or not 1 <= size <= limit:
        raise InvalidValueError(
            f"A pool of kind {kind!r} has 1 to {limit} tasks per split, got size {size!r}."
        )
    return _pool(kind, check_split(split), int(size))


@lru_cache(maxsize=16)
def _pool(kind: str, split: Split, size: int) -> TaskPool:
    family = FAMILIES[kind]
    tasks = tuple(
        family.build(f"{kind}-{split}-{i}", definition)
        for i, definition in enumerate(islice(family.definitions(split), size))
    )
    return TaskPool(name=f"digits-{kind}", split=split, tasks=tasks)
