"""Tasks of images: bytes are kept, numbers are made when they are asked for.

Five data sets, or the 60,000 images of CIFAR-100, are 150 to 500 MB as bytes and four times that
as float32. Tasks of one pool share the bytes and convert what is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from operator import index as as_integer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import DataError, InvalidValueError
from nsr_gym.tasks import Task

_BLOCK = 4096
"""Images that are converted or hashed at a time; bounds the memory beside the result."""


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """How bytes become the numbers that a backbone sees.

    In this order: black pixels around the image, resizing (bicubic, Pillow's, as in the ViT
    lineage of benchmarks), centre crop, grey to three equal channels, values to [0, 1], mean and
    standard deviation. No random augmentation.

    Attributes:
        size: side of the result in pixels.
        resize: side before the centre crop; None: the size. Images that have it stay as they are.
        pad: black pixels on each side, added first.
        mean: subtracted, per channel; None: nothing.
        std: divided by, per channel; None: nothing.
    """

    size: int = 32
    resize: int | None = None
    pad: int = 0
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("size", "resize", "pad"):
            value = getattr(self, name)
            least = 0 if name == "pad" else self.size if name == "resize" else 1
            if name == "resize" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidValueError(
                    f"Expected {name} to be a whole number of at least {least}; got {value!r}."
                )
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is None:
                continue
            numbers = np.asarray(value, dtype=np.float64)
            least_fits = name == "mean" or bool((numbers > 0).all())
            if numbers.shape != (3,) or not np.isfinite(numbers).all() or not least_fits:
                raise InvalidValueError(
                    f"Expected {name} as three finite numbers (std: above 0); got {value!r}."
                )
            object.__setattr__(self, name, tuple(numbers.tolist()))

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return images (n, 1 or 3, H, W) uint8 as (n, 3, size, size) float32."""
        if self.pad:
            edge = (self.pad, self.pad)
            images = np.pad(images, ((0, 0), (0, 0), edge, edge))
        side = self.resize or self.size
        if images.shape[2:] != (side, side):
            images = _resized(images, side)
        cut = round((side - self.size) / 2)
        images = images[:, :, cut : cut + self.size, cut : cut + self.size]
        x = np.empty((len(images), 3, self.size, self.size), dtype=np.float32)
        np.divide(images, np.float32(255), out=x, dtype=np.float32)  # one grey channel fills three
        if self.mean is not None:
            x -= np.array(self.mean, dtype=np.float32)[:, None, None]
        if self.std is not None:
            x /= np.array(self.std, dtype=np.float32)[:, None, None]
        return x

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content


def _resized(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    from PIL import Image

    made = np.empty((*images.shape[:2], side, side), dtype=np.uint8)
    for target, source in zip(made, images, strict=True):
        pixels = source[0] if len(source) == 1 else np.ascontiguousarray(source.transpose(1, 2, 0))
        small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        array = np.asarray(small)
        target[:] = array if array.ndim == 2 else array.transpose(2, 0, 1)
    return made


@dataclass(frozen=True, eq=False)
class Segment:
    """Some images of one data set.

    Attributes:
        images: (N, C, H, W) uint8, the whole data set, shared and not copied.
        index: (n,) int64, which of them, in order.
        transform: how they become numbers.
    """

    images: NDArray[np.uint8]
    index: NDArray[np.int64]
    transform: ImageTransform


class ImagePart:
    """The training, test or validation images of a task, n in all.

    Attributes:
        segments: one per data set that the images come from, one after another.
        shape: (n, 3, S, S).
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        """Put segments together.

        Raises:
            DataError: no images, or segments of different sizes.
        """
        self.segments = tuple(segments)
        sizes = {segment.transform.size for segment in self.segments}
        n = sum(len(segment.index) for segment in self.segments)
        if len(sizes) != 1 or not n:
            raise DataError(
                f"Expected at least one image, all of one size; got {n} images of sides "
                f"{sorted(sizes)}."
            )
        side = sizes.pop()
        self.shape = (n, 3, side, side)

    def __len__(self) -> int:
        """Return the number of images n."""
        return self.shape[0]

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return images start..stop-1 as numbers, made anew.

        Args:
            start: first image.
            stop: end; None: to the last.

        Returns:
            (stop - start, 3, S, S) float32, read-only.
        """
        start, stop, _ = slice(start, stop).indices(len(self))
        x = np.empty((max(stop - start, 0), *self.shape[1:]), dtype=np.float32)
        offset = 0
        for segment in self.segments:
            first, last = max(start - offset, 0), min(stop - offset, len(segment.index))
            for begin in range(first, last, _BLOCK):
                end = min(begin + _BLOCK, last)
                place = slice(offset + begin - start, offset + end - start)
                x[place] = segment.transform(segment.images[segment.index[begin:end]])
            offset += len(segment.index)
        x.flags.writeable = False
        return x

    @cached_property
    def digest(self) -> str:
        """Sha256 (hex) over the images' bytes and how they become numbers."""
        digest = hashlib.sha256()
        for segment in self.segments:
            shape = [len(segment.index), *segment.images.shape[1:]]
            head = json.dumps([shape, segment.transform.to_json()], sort_keys=True)
            digest.update(f"|{head}|".encode())
            for begin in range(0, len(segment.index), _BLOCK):
                block = segment.images[segment.index[begin : begin + _BLOCK]]
                digest.update(np.ascontiguousarray(block).data)
        return digest.hexdigest()


class ImageTask(Task):
    """A task whose images stay bytes until they are read.

    `x_train`, `x_test` and `x_val` are made anew each time they are asked for (float32,
    read-only): hold on to what you read, or read pieces through the parts. Two tasks have the same
    `content_hash` where bytes, labels, classes and transforms are the same; it says nothing about
    a plain `Task` with the same numbers, since hashing those would mean making them all.

    Attributes:
        train: the training images.
        test: the test images.
        val: the validation images; None: there are none.
    """

    train: ImagePart
    test: ImagePart
    val: ImagePart | None

    def __init__(
        self,
        *,
        name: str,
        train: ImagePart,
        y_train: NDArray[np.int64],
        test: ImagePart,
        y_test: NDArray[np.int64],
        classes: Sequence[int],
        val: ImagePart | None = None,
        y_val: NDArray[np.int64] | None = None,
        definition: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the task; arguments are as in `Task`, images as parts.

        Raises:
            DataError: labels that do not fit the images or the classes, images of two parts that
                differ in size, or a validation part without images or labels.
        """
        labels = tuple(as_integer(c) for c in classes)
        given = [("train", train, y_train), ("test", test, y_test)]
        if val is not None and y_val is not None:
            given.append(("val", val, y_val))
        elif val is not None or y_val is not None:
            raise DataError(f"Task {name!r}: expected val and y_val together; got one of them.")
        for part, images, y in given:
            if y.shape != (len(images),) or y.min() < 0 or y.max() >= len(labels):
                raise DataError(
                    f"Task {name!r}: expected {len(images)} labels in 0..{len(labels) - 1} for "
                    f"the {part} images; got {y.shape}, {y.min()}..{y.max()}."
                )
            y.flags.writeable = False
        shapes = [images.shape[1:] for _, images, _ in given]
        if len(set(shapes)) != 1 or len(set(labels)) != len(labels):
            raise DataError(
                f"Task {name!r}: expected distinct classes and images of one size; got "
                f"{labels} and {shapes}."
            )
        values = {
            "name": name,
            "train": train,
            "test": test,
            "y_train": y_train,
            "y_test": y_test,
            "val": val,
            "y_val": y_val,
            "classes": labels,
            "definition": dict(definition or {}),
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # As in `Task`, without making the numbers.
        self.__dict__.update(state)
        for images, y in self._given():
            y.flags.writeable = False
            for segment in images.segments:
                segment.images.flags.writeable = False

    def _given(self) -> list[tuple[ImagePart, NDArray[np.int64]]]:
        given = [(self.train, self.y_train), (self.test, self.y_test)]
        if self.val is not None and self.y_val is not None:
            given.append((self.val, self.y_val))
        return given

    @property
    def x_train(self) -> NDArray[np.float32]:
        """(n, 3, S, S) float32, made anew."""
        return self.train.read()

    @property
    def x_test(self) -> NDArray[np.float32]:
        """(m, 3, S, S) float32, made anew."""
        return self.test.read()

    @property
    def x_val(self) -> NDArray[np.float32] | None:
        """(v, 3, S, S) float32, made anew; None: there is no validation part."""
        return None if self.val is None else self.val.read()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(3, S, S)."""
        return self.train.shape[1:]

    @cached_property
    def content_hash(self) -> str:
        """Sha256 (hex) over bytes, labels, classes and transforms."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for images, y in self._given():
            digest.update(f"|{images.digest}|".encode())
            digest.update(y.astype("<i8").data)
        return digest.hexdigest()
