"""Which images of a data set train, judge, decide and are left out, and in which order they stand.

Everything follows from the sha256 of the images' pixels: it is the same on every machine and for
every copy of the data, in whatever order the files have it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nsr_gym.datasets.sources import LabelledImages
from nsr_gym.errors import DataError, InvalidValueError

Index = NDArray[np.int64]
Keys = NDArray[np.uint64]
Part = Literal["train", "held", "val"]
"""Images to train on, images held out to judge on, and images held out to decide on."""

_MISSING = {"train": "left to train on", "held": "held out", "val": "left to decide on"}


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

    def of_class(
        self, label: int, part: Part = "train", *, share: float = 0.0, val: int = 0
    ) -> Index:
        """Return one part of the images of a class.

        The images with the smallest first keys are held out to judge on, those with the largest
        to decide on. Equal images have equal keys, so none of a class is in two parts. (CIFAR-100
        has a few equal images under two labels.)

        Args:
            label: of the class.
            part: which images.
            share: of the class's images that are held out to judge on, in [0, 1).
            val: how many are held out to decide on, of those not held out to judge on; no more
                than half of them, at least one. 0: none.

        Returns:
            (k,) positions, in the order of their second keys: the first few are a fair sample.

        Raises:
            DataError: no image is left.
        """
        members = np.flatnonzero(self.images.y == label)
        first = self.keys[members, 0]
        held, decides = np.zeros((2, len(members)), dtype=bool)
        if share > 0 and len(members):
            held = first <= np.sort(first)[max(round(share * len(members)), 1) - 1]
        others = np.sort(first[~held])
        if val > 0 and len(others):
            decides = ~held & (first >= others[-max(min(val, len(others) // 2), 1)])
        chosen = members[{"train": ~held & ~decides, "held": held, "val": decides}[part]]
        if not len(chosen):
            raise DataError(
                f"Class {label}: no image is {_MISSING[part]} of {len(members)}, with a share of "
                f"{share} held out to judge on and {val} images to decide on; take other numbers "
                "or more data."
            )
        order: Index = chosen[np.argsort(self.keys[chosen, 1], kind="stable")]
        return order

    def of_classes(
        self,
        labels: Sequence[int],
        part: Part = "train",
        *,
        share: float = 0.0,
        val: int = 0,
        per_class: int | None = None,
    ) -> tuple[Index, Index]:
        """Return images of some classes, mixed.

        Args:
            labels: the classes.
            part: as in `of_class`.
            share: as in `of_class`.
            val: as in `of_class`.
            per_class: at most so many of each class; None: all.

        Returns:
            (k,) positions in the part, in the order of their second keys, and (k,) positions of
            their labels in `labels`.

        Raises:
            DataError: a class without images.
            InvalidValueError: `per_class` is no whole number of at least 1.
        """
        check_per_class(per_class)
        every = [self.of_class(label, part, share=share, val=val) for label in labels]
        chosen = [index[:per_class] for index in every]
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


def check_val_per_class(count: int) -> None:
    """Make sure that a number of validation images per class is a whole number.

    Raises:
        InvalidValueError: it is something else, or below 0.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise InvalidValueError(
            f"Expected val_per_class as a whole number, 0 for no validation images; got {count!r}."
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
    sides: tuple[Part, Part] = ("train", "held")
    for side in sides:
        index = np.sort(np.concatenate([whole.of_class(c, side, share=share) for c in labels]))
        skipped = 0 if side == "held" else images.skipped  # counted once
        parts.append(LabelledImages(images.x[index], images.y[index], images.variant, skipped))
    return parts[0], parts[1]
