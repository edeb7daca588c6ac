"""CIFAR-10 and CIFAR-100 in their "python version".

The official files are pickles, and nothing is ever unpickled here in the usual sense. Two locks:
a file whose md5 is not one of those below is refused before it is looked into; and the three
names that such a file refers to (NumPy's array, type and array maker) stand for plain holders
defined here, so that reading runs no code but this module's. Every other name is refused.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from nsr_gym.datasets.sources import LabelledImages, damaged, read_file, variant_of

Files = dict[str, dict[str, str]]

CIFAR10: dict[str, Files] = {
    "train": {
        "data_batch_1": {"c99cafc152244af753f735de768cd75f": "official"},
        "data_batch_2": {"d4bba439e000b95fd0a9bffe97cbabec": "official"},
        "data_batch_3": {"54ebc095f3ab1f0389bbae665268c751": "official"},
        "data_batch_4": {"634d18415352ddfa80567beed471001a": "official"},
        "data_batch_5": {"482c414d41f54cd18b22e5b47cb7c3cb": "official"},
    },
    "test": {"test_batch": {"40351d587109b95175f43aff81a1287e": "official"}},
}  # fmt: skip
"""Part -> file -> md5 -> variant."""

CIFAR100: dict[str, Files] = {
    "train": {
        "train": {
            "16019d7e3df5f24257cddd939b257f8d": "official",
            "a19872f1eea00313db9d58a23dce524d": "reordered-copy",
        }
    },
    "test": {
        "test": {
            "f0ef6b0ae62326f3e7ffdfab6717acfc": "official",
            "66ab8d6d957b441f20d9b74bbd2073fd": "reordered-copy",
        }
    },
}
"""As `CIFAR10`. The copy has the official images, labels and sequence of labels, but within a
class its images stand in another order. Tasks made of either are the same: they order images by
a hash of their pixels."""

_PIXELS = 3 * 32 * 32


def read_cifar10(root: Path, part: str) -> LabelledImages:
    """Read CIFAR-10 from `root/cifar-10-batches-py`.

    Args:
        root: the folder that data is looked for in.
        part: `"train"` (50,000 images) or `"test"` (10,000).

    Returns:
        Images (n, 3, 32, 32), labels 0 to 9.

    Raises:
        DataError: files are missing, unreadable, partial or not the official ones.
    """
    return _read(root, "cifar-10", root / "cifar-10-batches-py", CIFAR10[part], b"labels", 10)


def read_cifar100(root: Path, part: str) -> LabelledImages:
    """Read CIFAR-100 from `root/cifar-100-python`, with fine labels.

    Args:
        root: the folder that data is looked for in.
        part: `"train"` (50,000 images) or `"test"` (10,000).

    Returns:
        Images (n, 3, 32, 32), labels 0 to 99 in alphabetical order of the classes.

    Raises:
        DataError: files are missing, unreadable, partial, or neither official nor a known copy.
    """
    return _read(root, "cifar-100", root / "cifar-100-python", CIFAR100[part], b"fine_labels", 100)


def _read(
    root: Path, name: str, folder: Path, files: Files, key: bytes, num_classes: int
) -> LabelledImages:
    images, labels, variants = [], [], set()
    for file, known in files.items():
        path = folder / file
        data = read_file(path, name, root, f"a file of {name} (python version)")
        variants.add(variant_of(data, known, path, name, root))
        try:
            content = _Reader(io.BytesIO(data), encoding="bytes").load()
            x, y = content[b"data"].array(), np.array(content[key], dtype=np.int64)
        # A pickle that is cut or foreign fails in as many ways as there are opcodes.
        except Exception as error:
            raise damaged(path, name, root, f"it is no CIFAR pickle ({error!r})") from error
        if x.shape != (len(y), _PIXELS) or not len(y) or y.min() < 0 or y.max() >= num_classes:
            problem = f"expected (n, {_PIXELS}) pixels and n labels below {num_classes}, got "
            raise damaged(path, name, root, f"{problem}{x.shape} and {y.shape}")
        images.append(x.reshape(-1, 3, 32, 32))
        labels.append(y)
    return LabelledImages(
        images[0] if len(images) == 1 else np.concatenate(images),
        np.concatenate(labels),
        "+".join(sorted(variants)),
    )


class _Dtype:
    """Stands for `numpy.dtype`: the type's code and nothing else."""

    def __init__(self, code: bytes, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like: of no meaning for single bytes."""


class _Array:
    """Stands for `numpy.ndarray`: shape, type and bytes, checked when they are asked for."""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.raw = state

    def array(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return a read-only view of the bytes."""
        code, size = self.dtype.code, math.prod(self.shape)
        if code != b"u1" or self.fortran or type(self.raw) is not bytes or size != len(self.raw):
            raise ValueError(f"no plain bytes of shape {self.shape}, but type {code!r}")
        return np.frombuffer(self.raw, dtype=np.uint8).reshape(self.shape)


def _make(kind: Any, *_: Any) -> _Array:
    """Stands for `numpy.core.multiarray._reconstruct`, which makes an empty array."""
    if kind is not _Array:
        raise ValueError("an array of a foreign kind")
    return _Array()


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _make,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _NAMES[module_name, global_name]
        except KeyError:
            found = f"{module_name}.{global_name}"
            raise pickle.UnpicklingError(f"it refers to {found}, which is refused") from None
