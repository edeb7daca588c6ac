"""Handwritten digits: 1,797 real images of 8x8 pixels, dealt to disjoint parts.

The images ship with scikit-learn (UCI "Optical Recognition of Handwritten Digits", test
part). They are dealt in the order of a hash of their pixels, the same on every machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

NUM_CLASSES = 10
TRAIN_PER_CLASS = 70
TEST_PER_CLASS = 20

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
