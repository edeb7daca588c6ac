"""Small packed sets for measuring without the official files: .npz files of plain arrays."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.datasets.sources import (
    LabelledImages,
    Root,
    damaged,
    data_root,
    missing,
    read_file,
    variant_of,
)
from nsr_gym.errors import DataError

OFFLINE_FIVE = ("gtsrb10", "mnist", "cifar10", "notmnist", "fashion_mnist")
"""The sets in `five_datasets_small.npz`; GTSRB stands in for SVHN."""

FIVE_SMALL = {
    "31e3a3fe96444bd73dc74ca4357a732c899ff73eac44a050cea51bb64c974e20": "five_datasets_small"
}
"""Sha256 of that file -> variant."""


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
    arrays = _load(root, path, _FIVE, wanted, data)
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
    names = [f"{k}_{p}" for p in ("train", "val") for k in "xy"]
    arrays = _load(folder, path, _TINY, names)
    return {
        part: LabelledImages(
            np.ascontiguousarray(arrays[f"x_{part}"].transpose(0, 3, 1, 2)),
            arrays[f"y_{part}"].astype(np.int64),
            _TINY,
        )
        for part in ("train", "val")
    }


_PARTS = ("train", "test")
_FIVE, _TINY = "five_datasets_small", "tiny-imagenet-32"


def _load(
    root: Path, path: Path, name: str, wanted: list[str], data: bytes | None = None
) -> dict[str, NDArray[Any]]:
    # The zip's own checksums guard every array; pickled objects are refused.
    try:
        # Opened here: NumPy leaves a file that is no zip open.
        with path.open("rb") if data is None else io.BytesIO(data) as stream:
            file = np.load(stream, allow_pickle=False)
            return {key: file[key] for key in wanted}
    except FileNotFoundError as error:
        raise missing(path, name, root, "a .npz file of arrays") from error
    except PermissionError as error:
        raise DataError(f"{path} cannot be read ({error}); mend its permissions.") from error
    except (OSError, EOFError, LookupError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise damaged(path, name, root, f"expected arrays {', '.join(wanted)} ({error})") from error
