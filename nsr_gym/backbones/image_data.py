"""Images to pretrain on: read from a file, hashed, drawn with flips and crops."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nsr_gym.errors import DataError, FileFormatError

_ARRAYS = ("x_train", "y_train", "x_val", "y_val")
_EDGE = 4
"""Zero pixels around an image, of which a crop takes the size of the image."""


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


def read_images(path: Path) -> ImageSet:
    """Read a file of arrays `x_train`, `y_train`, `x_val`, `y_val`, as NumPy's `savez` writes it.

    Args:
        path: such as `tiny-imagenet-32.npz`. Nothing in it is unpickled.

    Raises:
        FileFormatError: there is no such file, or it is none of arrays.
        DataError: arrays are missing or do not fit each other.
    """
    if not path.is_file():
        raise FileFormatError(
            f"Expected an .npz file of images at {path}; there is none. Say where it lies with "
            "`--data FILE`."
        )
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("one array instead of several")
            missing = [name for name in _ARRAYS if name not in file.files]
            arrays = {name: file[name] for name in _ARRAYS if name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise FileFormatError(
            f"Expected an .npz file of the arrays {', '.join(_ARRAYS)} in {path}; it cannot be "
            f"read ({error}). Make or fetch it again."
        ) from error
    if missing:
        raise DataError(f"Expected the arrays {', '.join(_ARRAYS)} in {path}; no {missing[0]}.")
    digest = hashlib.sha256()
    for name in _ARRAYS:
        _check(path, name, arrays)
        digest.update(f"{name}{arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return ImageSet(**arrays, sha256=digest.hexdigest())


def _check(path: Path, name: str, arrays: dict[str, NDArray[np.generic]]) -> None:
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
    top = int(np.asarray(arrays["y_train"]).max())
    if np.asarray(array).min() < 0 or np.asarray(array).max() > top:
        raise DataError(f"Expected labels from 0 to {top} in {name} of {path}; others are there.")


def channels(x: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel in [0, 1], to three digits."""
    # Integers of at most 255 squared: sums in 64 bits are exact.
    flat = x.reshape(-1, x.shape[-1])
    mean = flat.mean(axis=0, dtype=np.float64) / 255.0
    square = np.zeros(flat.shape[1])
    for part in np.array_split(flat, 1 + len(flat) // 1_000_000):
        square += (part.astype(np.float64) ** 2).sum(axis=0)
    std = np.sqrt(square / len(flat) / 255.0**2 - mean**2)
    return tuple(np.round(mean, 3).tolist()), tuple(np.round(std, 3).tolist())


def batches(
    x: Tensor, y: Tensor, size: int, rng: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch in random order: images flipped and moved by up to four pixels, labels.

    What is left over is not seen in this epoch.

    Args:
        x: (n, 3, H, W) uint8 on any device.
        y: (n,) int64 there.
        size: images of a batch.
        rng: a generator of the CPU, so that every device sees the same batches.

    Yields:
        ((size, 3, H, W) float32 in [0, 1], (size,) int64).
    """
    side, device = x.shape[-1], x.device
    order = torch.randperm(len(x), generator=rng)
    for chosen in order.split(size):
        if len(chosen) < size:
            return
        flip = torch.rand(size, generator=rng) < 0.5
        top, left = torch.randint(2 * _EDGE + 1, (2, size), generator=rng)
        along = torch.arange(side)
        columns = torch.where(flip[:, None], side - 1 - along, along) + left[:, None]
        rows = along + top[:, None]
        index = chosen.to(device)
        padded = functional.pad(x[index], (_EDGE,) * 4)
        image = torch.arange(size, device=device)[:, None, None, None]
        channel = torch.arange(x.shape[1], device=device)[None, :, None, None]
        crop = padded[
            image, channel, rows.to(device)[:, None, :, None], columns.to(device)[:, None, None, :]
        ]
        yield crop.float() / 255.0, y[index]
