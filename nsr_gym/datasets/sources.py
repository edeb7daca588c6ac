"""Where image data lies, and files that are whole, known and readable or refused.

Data is looked for below one folder: the argument `root`, else the environment variable
`NSR_GYM_DATA`, else `~/.cache/nsr-gym-data`. Nothing is downloaded unless asked for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import DataError, InvalidValueError, unknown

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

_BY_HAND = {
    "notmnist": (
        "curl -L http://commondatastorage.googleapis.com/books1000/notMNIST_small.tar.gz | "
        "tar -xz -C {root}"
    ),
    "five_datasets_small": "python unpack.py --root {root}",
    "tiny-imagenet-32": "python unpack.py --root {root}",
}


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
    """
    chosen = root if root is not None else os.environ.get(VARIABLE) or DEFAULT_ROOT
    return Path(chosen).expanduser()


def fetch_command(name: str, root: Path) -> str:
    """Return the shell command that puts a data set where the readers look for it."""
    if name in TORCHVISION:
        code = f"from nsr_gym.datasets import fetch; fetch({name!r}, root={str(root)!r})"
        return f'python -c "{code}"'
    return _BY_HAND[name].format(root=root)


def fetch(name: str, *, root: Root = None) -> None:
    """Download a data set's official files through torchvision, which checks their md5s.

    Args:
        name: one of `TORCHVISION`.
        root: as in `data_root`; made where it is missing.

    Raises:
        DataError: the download failed, or the data set has no download in torchvision.
        UnknownNameError: no such data set.
        MissingDependencyError: torchvision cannot be imported.
    """
    folder = data_root(root)
    if name in _BY_HAND:
        raise DataError(
            f"{name} has no download in torchvision; get it with `{fetch_command(name, folder)}`."
        )
    if name not in TORCHVISION:
        raise unknown("image data set", name, [*TORCHVISION, *_BY_HAND])
    from nsr_gym.datasets.vision import load_torchvision

    kind, downloads = TORCHVISION[name]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for arguments in downloads:
            getattr(load_torchvision().datasets, kind)(str(folder), download=True, **arguments)
    except (OSError, RuntimeError) as error:  # what torchvision and urllib raise
        raise DataError(
            f"The download of {name} into {folder} failed ({error}); check the connection and "
            f"run `{fetch_command(name, folder)}` again."
        ) from error


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
        raise DataError(
            f"{path} cannot be read ({error}); expected {expected}. Mend its permissions, or "
            f"remove it and fetch it again: `{fetch_command(name, root)}`."
        ) from error


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


def with_download(read: Callable[[], Any], name: str, root: Path, download: bool) -> Any:
    """Read a data set, and where that fails and a download is asked for, fetch it and try again.

    A copy that the readers accept is never replaced by a download.

    Raises:
        InvalidValueError: `download` is no bool.
        DataError: the data cannot be read, or not be fetched.
    """
    if not isinstance(download, bool):
        raise InvalidValueError(f"Expected download to be True or False; got {download!r}.")
    try:
        return read()
    except DataError:
        if not download:
            raise
    fetch(name, root=root)
    return read()
