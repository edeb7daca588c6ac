"""Where image data lies, and files that are whole, known and readable or refused.

Data is looked for below one folder: the argument `root`, else the environment variable
`NSR_GYM_DATA`, else `~/.cache/nsr-gym-data`. Nothing is downloaded unless asked for.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import DataError, InvalidValueError

VARIABLE = "NSR_GYM_DATA"
DEFAULT_ROOT = "~/.cache/nsr-gym-data"

Root = str | os.PathLike[str] | None

TORCHVISION: dict[str, tuple[str, tuple[dict[str, Any], ...]]] = {
    "cifar-10": ("CIFAR10", ({},)),
    "cifar-100": ("CIFAR100", ({},)),
    "mnist": ("MNIST", ({},)),
    "fashion-mnist": ("FashionMNIST", ({},)),
    "svhn": ("SVHN", ({"split": "train"}, {"split": "test"})),
}
"""Name -> class of `torchvision.datasets` and the arguments of each download."""

BY_HAND = {
    "notmnist": (
        "curl -L http://commondatastorage.googleapis.com/books1000/notMNIST_small.tar.gz | "
        "tar -xz -C {root}"
    ),
    "five_datasets_small": "python unpack.py --root {root}",
    "tiny-imagenet-32": "python unpack.py --root {root}",
}
"""Name -> shell command that gets what torchvision does not have."""

DAMAGED_ARRAYS = (
    OSError, EOFError, LookupError, OverflowError, RuntimeError, SyntaxError, TypeError,
    ValueError, lzma.LZMAError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy and its zip reader raise on a file that is cut, foreign, or holds pickled objects."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """One part of a data set, as its files have it.

    Attributes:
        x: (n, C, H, W) uint8, C = 1 (grey) or 3 (red, green, blue); read-only.
        y: (n,) int64, the data set's own labels from 0; read-only.
        variant: `"official"`, or the name of a copy that differs from the official files.
        skipped: files that could not be read and are left out.
    """

    x: NDArray[np.uint8]
    y: NDArray[np.int64]
    variant: str = "official"
    skipped: int = 0

    def __post_init__(self) -> None:
        if self.x.ndim != 4 or self.x.dtype != np.uint8 or self.x.shape[1] not in (1, 3):
            raise DataError(
                f"Expected images (n, 1 or 3, H, W) uint8; got {self.x.shape} {self.x.dtype}."
            )
        if self.y.shape != (len(self.x),) or not len(self.y):
            raise DataError(
                f"Expected one label for each of {len(self.x)} images, at least one; got "
                f"{self.y.shape}."
            )
        for array in (self.x, self.y):
            array.flags.writeable = False


def data_root(root: Root = None) -> Path:
    """Return the folder that image data is looked for in.

    Args:
        root: the folder; None: the environment variable `NSR_GYM_DATA`, else
            `~/.cache/nsr-gym-data`.

    Raises:
        InvalidValueError: it is no path.
    """
    chosen = root if root is not None else os.environ.get(VARIABLE) or DEFAULT_ROOT
    try:
        return Path(chosen).expanduser()
    except (TypeError, RuntimeError) as error:  # RuntimeError: a home directory nobody has
        raise InvalidValueError(
            f"Expected a folder as a path (text or os.PathLike); got {chosen!r} ({error})."
        ) from error


def fetch_command(name: str, root: Path) -> str:
    """Return the shell command that puts a data set where the readers look for it."""
    if name in TORCHVISION:
        code = f"from nsr_gym.datasets import fetch; fetch({name!r}, root={str(root)!r})"
        return f'python -c "{code}"'
    return BY_HAND[name].format(root=root)


def read_file(path: Path, name: str, root: Path, expected: str) -> bytes:
    """Read a whole file of a data set.

    Args:
        path: of the file.
        name: of the data set, for the command that fetches it.
        root: the folder that data is looked for in.
        expected: what the file should be, for the message.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise missing(path, name, root, expected) from error
    except OSError as error:
        raise unreadable(path, name, root, expected, error) from error


def unreadable(path: Path, name: str, root: Path, expected: str, error: OSError) -> DataError:
    """Build the error for a file or folder that is there, or may be, and cannot be looked into."""
    return DataError(
        f"{path} cannot be read ({error}); expected {expected}. Mend its permissions, or "
        f"remove it and fetch it again: `{fetch_command(name, root)}`."
    )


def missing(path: Path, name: str, root: Path, expected: str) -> DataError:
    """Build the error for a file or folder that is not there."""
    return DataError(
        f"{path} is missing; expected {expected}. Fetch it with `{fetch_command(name, root)}`, "
        f"or say where the data lies (argument `root`, environment variable {VARIABLE})."
    )


def damaged(path: Path, name: str, root: Path, problem: str) -> DataError:
    """Build the error for a file that is there and cannot be used."""
    return DataError(
        f"{path} is partial, damaged or another file: {problem}. Remove it and fetch it again: "
        f"`{fetch_command(name, root)}`."
    )


def variant_of(
    data: bytes, known: Mapping[str, str], path: Path, name: str, root: Path, *, by: str = "md5"
) -> str:
    """Tell by its checksum which variant of a file this is.

    Args:
        data: the file's content.
        known: checksum (hex) -> name of the variant.
        path: of the file, for the message; `name` and `root` as in `read_file`.
        name: of the data set.
        root: the folder that data is looked for in.
        by: `"md5"` (what official sources publish) or `"sha256"`.

    Returns:
        The variant's name.

    Raises:
        DataError: the file is none of them.
    """
    found = hashlib.new(by, data, usedforsecurity=False).hexdigest()
    if found not in known:
        listed = ", ".join(f"{checksum} ({variant})" for checksum, variant in known.items())
        raise damaged(path, name, root, f"its {by} is {found}, expected {listed}")
    return known[found]
