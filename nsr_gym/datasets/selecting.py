"""Which images of a data set train, validate and are left out, and in which order they stand.

Everything follows from the sha256 of the images' pixels: it is the same on every machine and for
every copy of the data, in whatever order the files have it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nsr_gym.datasets.sources import LabelledImages
from nsr_gym.errors import DataError, InvalidValueError

Index = NDArray[np.int64]
Keys = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Selection:
    """The images of one part of a data set, ready to be chosen from.

    Attributes:
        images: the part.
    """

    images: LabelledImages

    @cached_property
    def keys(self) -> Keys:
        """(n, 2) uint64, two independent numbers per image, from the hash of its pixels."""
        raw = b"".join(hashlib.sha256(image.data).digest()[:16] for image in self.images.x)
        return np.frombuffer(raw, dtype=">u8").reshape(-1, 2).astype(np.uint64)

    def of_class(self, label: int, share: float, held: bool) -> Index:
        """Return the images of a class that are held out for validation, or the others.

        The images with the smallest first keys are held out. Equal images have equal keys, so
        none of a class is on both sides. (CIFAR-100 has a few equal images under two labels.)

        Args:
            label: of the class.
            share: of the class's images that are held out, in [0, 1).
            held: whether to return those that are held out, or the others.

        Returns:
            (k,) positions, in the order of their second keys: the first few are a fair sample.

        Raises:
            DataError: no image is left.
        """
        members = np.flatnonzero(self.images.y == label)
        first = self.keys[members, 0]
        count = round(share * len(members))
        if share > 0 and len(members):
            count = max(count, 1)
            bound = np.partition(first, count - 1)[count - 1]
            members = members[(first <= bound) == held]
        elif held:
            members = members[:0]
        if not len(members):
            which = "held out for validation" if held else "left to train on"
            raise DataError(
                f"Class {label}: no image is {which} of {np.sum(self.images.y == label)} at a "
                f"share of {share}; take another share or more data."
            )
        order: Index = members[np.argsort(self.keys[members, 1], kind="stable")]
        return order

    def of_classes(
        self, labels: Sequence[int], *, share: float, held: bool, per_class: int | None = None
    ) -> tuple[Index, Index]:
        """Return images of some classes, mixed.

        Args:
            labels: the classes.
            share: as in `of_class`.
            held: as in `of_class`.
            per_class: at most so many of each class; None: all.

        Returns:
            (k,) positions in the part, in the order of their second keys, and (k,) positions of
            their labels in `labels`.

        Raises:
            DataError: a class without images.
            InvalidValueError: `per_class` is no whole number of at least 1.
        """
        check_per_class(per_class)
        chosen = [self.of_class(label, share, held)[:per_class] for label in labels]
        index = np.concatenate(chosen)
        place = np.repeat(np.arange(len(labels), dtype=np.int64), [len(c) for c in chosen])
        order = np.argsort(self.keys[index, 1], kind="stable")
        return index[order], place[order]


def check_per_class(count: int | None) -> None:
    """Make sure that a number of images per class is None or at least 1.

    Raises:
        InvalidValueError: it is something else.
    """
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InvalidValueError(
            f"Expected images per class as None (all) or a whole number of at least 1; "
            f"got {count!r}."
        )


def deal_parts(images: LabelledImages, share: float) -> tuple[LabelledImages, LabelledImages]:
    """Deal a data set without parts of its own to a training and a test part, by class.

    Args:
        images: the data set.
        share: of each class that becomes test, by the same rule as validation images.

    Returns:
        The training and the test part.
    """
    whole = Selection(images)
    labels = np.unique(images.y).tolist()
    parts = []
    for held in (False, True):
        index = np.sort(np.concatenate([whole.of_class(c, share, held) for c in labels]))
        skipped = 0 if held else images.skipped  # counted once
        parts.append(LabelledImages(images.x[index], images.y[index], images.variant, skipped))
    return parts[0], parts[1]
