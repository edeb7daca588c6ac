"""Small packed sets for measuring without the official files: .npz files of plain arrays."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.datasets.sources import (
    DAMAGED_ARRAYS,
    LabelledImages,
    Root,
    damaged,
    data_root,
    missing,
    read_file,
    variant_of,
)
from nsr_gym.errors import DataError, FileFormatError

OFFLINE_FIVE = ("gtsrb10", "mnist", "cifar10", "notmnist", "fashion_mnist")
"""The sets in `five_datasets_small.npz`; GTSRB stands in for SVHN."""

FIVE_SMALL = {
    "31e3a3fe96444bd73dc74ca4357a732c899ff73eac44a050cea51bb64c974e20": "five_datasets_small"
}
"""Sha256 of that file -> variant."""

_PARTS = ("train", "test")
_ARRAYS = ("x_train", "y_train", "x_val", "y_val")
_FIVE, _TINY = "five_datasets_small", "tiny-imagenet-32"


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet:
    """Labelled images of two parts.

    Attributes:
        x_train: (n, H, W, 3) uint8.
        y_train: (n,) int64, from 0.
        x_val: (m, H, W, 3) uint8.
        y_val: (m,) int64.
        sha256: over the values of all four.
    """

    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_val: NDArray[np.uint8]
    y_val: NDArray[np.int64]
    sha256: str

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        return int(self.y_train.max()) + 1


def read_offline_five(root: Path, name: str) -> dict[str, LabelledImages]:
    """Read one of the five sets in `root/five_datasets_small.npz`.

    4,000 training and 1,000 test images of ten classes. GTSRB (ten traffic signs) stands in for
    SVHN, so that results on these five are no results on the published 5-Datasets.

    Args:
        root: the folder that data is looked for in.
        name: one of `OFFLINE_FIVE`.

    Returns:
        `"train"` and `"test"`: images (n, C, H, W), labels 0 to 9.

    Raises:
        DataError: the file is missing, unreadable or damaged.
    """
    path = root / f"{_FIVE}.npz"
    data = read_file(path, _FIVE, root, "a .npz file of five small data sets")
    variant = variant_of(data, FIVE_SMALL, path, _FIVE, root, by="sha256")
    wanted = [f"{name}_{k}_{part}" for part in _PARTS for k in "xy"]
    try:
        arrays = _load(io.BytesIO(data), wanted)
    except DAMAGED_ARRAYS as error:
        problem = f"expected arrays {', '.join(wanted)} ({error})"
        raise damaged(path, _FIVE, root, problem) from error
    parts = {}
    for part in _PARTS:
        x, y = arrays[f"{name}_x_{part}"], arrays[f"{name}_y_{part}"]
        x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
        parts[part] = LabelledImages(np.ascontiguousarray(x), y.astype(np.int64), variant)
    return parts


def tiny_imagenet_32(root: Root = None) -> dict[str, LabelledImages]:
    """Read Tiny-ImageNet at 32 x 32 from `tiny-imagenet-32.npz`, for pretraining.

    Pixels come from JPEG mosaics of halved images, so figures on it are not comparable with
    those published for Tiny-ImageNet at 64 x 64.

    Args:
        root: as in `data_root`.

    Returns:
        `"train"` (100,000 images) and `"val"` (10,000): (n, 3, 32, 32), labels 0 to 199 in the
        sorted order of the WordNet ids.

    Raises:
        DataError: the file is missing, unreadable or damaged.
    """
    folder = data_root(root)
    path = folder / f"{_TINY}.npz"
    try:
        found = read_images(path)
    except FileFormatError as error:
        if not path.exists():
            raise missing(path, _TINY, folder, "a .npz file of arrays") from error
        raise damaged(path, _TINY, folder, str(error)) from error
    parts = {"train": (found.x_train, found.y_train), "val": (found.x_val, found.y_val)}
    return {
        part: LabelledImages(np.ascontiguousarray(x.transpose(0, 3, 1, 2)), y, _TINY)
        for part, (x, y) in parts.items()
    }


def read_images(path: Path) -> ImageSet:
    """Read a file of arrays `x_train`, `y_train`, `x_val`, `y_val`, as NumPy's `savez` writes it.

    Args:
        path: such as `tiny-imagenet-32.npz`. Nothing in it is unpickled.

    Raises:
        FileFormatError: there is no such file, or it is none of arrays.
        DataError: arrays are missing or do not fit each other, or the file may not be read.
    """
    try:
        with path.open("rb") as stream:
            arrays = _load(stream, _ARRAYS)
    except FileNotFoundError as error:
        raise FileFormatError(
            f"Expected an .npz file of images at {path}; there is none. Say where it lies with "
            "`--data FILE`."
        ) from error
    except PermissionError as error:
        raise DataError(f"{path} cannot be read ({error}); mend its permissions.") from error
    except _Lacking as error:
        raise DataError(f"Expected the arrays {', '.join(_ARRAYS)} in {path}; {error}.") from error
    except DAMAGED_ARRAYS as error:
        raise FileFormatError(
            f"Expected an .npz file of the arrays {', '.join(_ARRAYS)} in {path}; it cannot be "
            f"read ({error}). Make or fetch it again."
        ) from error
    digest = hashlib.sha256()
    for name in _ARRAYS:
        _check(path, name, arrays)
        digest.update(f"{name}{arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return ImageSet(**arrays, sha256=digest.hexdigest())


def _check(path: Path, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    array = arrays[name]
    if name.startswith("x"):
        side = arrays["x_train"].shape[1:2]
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != (*side, *side, 3):
            raise DataError(
                f"Expected {name} in {path} as (n, side, side, 3) uint8, of one side in both "
                f"parts; got {array.shape} {array.dtype}."
            )
        return
    images = len(arrays["x" + name[1:]])
    if array.dtype != np.int64 or array.shape != (images,) or not images:
        raise DataError(
            f"Expected {name} in {path} as one int64 label for each of its {images} images, at "
            f"least one; got {array.shape} {array.dtype}."
        )
    top = int(arrays["y_train"].max())
    if array.min() < 0 or array.max() > top:
        raise DataError(f"Expected labels from 0 to {top} in {name} of {path}; others are there.")


class _Lacking(LookupError):
    """An array is not in the file."""


def _load(stream: IO[bytes], wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
    # The zip's own checksums guard every array; pickled objects are refused. The caller opens the
    # file: NumPy leaves one that is no zip open.
    file = np.load(stream, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("one array instead of several")
    for name in wanted:
        if name not in file.files:
            raise _Lacking(f"no {name}")
    return {name: file[name] for name in wanted}
