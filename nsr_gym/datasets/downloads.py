"""Downloads of image data, when they are asked for, through torchvision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nsr_gym.datasets.image_files import check_kept
from nsr_gym.datasets.sources import (
    BY_HAND,
    TORCHVISION,
    VARIABLE,
    Root,
    data_root,
    fetch_command,
)
from nsr_gym.errors import DataError, InvalidValueError, unknown


def fetch(name: str, *, root: Root = None) -> None:
    """Download a data set's official files through torchvision, which checks their md5s.

    Args:
        name: one of `TORCHVISION`.
        root: as in `data_root`; made where it is missing.

    Raises:
        DataError: the download failed, the folder cannot be made, the data set has no download
            in torchvision, or a damaged file is in the way that torchvision would not replace.
        UnknownNameError: no such data set.
        MissingDependencyError: torchvision cannot be imported.
    """
    folder = data_root(root)
    if name in BY_HAND:
        raise DataError(
            f"{name} has no download in torchvision; get it with `{fetch_command(name, folder)}`."
        )
    if name not in TORCHVISION:
        raise unknown("image data set", name, [*TORCHVISION, *BY_HAND])
    from nsr_gym.datasets.vision import load_torchvision

    kind, downloads = TORCHVISION[name]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"Expected {folder} as a folder, or a place where one can be made; got {error}. Choose "
            f"another (argument `root`, environment variable {VARIABLE})."
        ) from error
    check_kept(name, folder)
    try:
        for arguments in downloads:
            getattr(load_torchvision().datasets, kind)(str(folder), download=True, **arguments)
    except (OSError, RuntimeError) as error:  # what torchvision and urllib raise
        raise DataError(
            f"The download of {name} into {folder} failed ({error}); check the connection and "
            f"the permissions there, and run `{fetch_command(name, folder)}` again."
        ) from error


def with_download(read: Callable[[], Any], name: str, root: Path, download: bool) -> Any:
    """Read a data set, and where that fails and a download is asked for, fetch it and try again.

    A copy that the readers accept is never replaced by a download.

    Raises:
        InvalidValueError: `download` is no bool.
        DataError: the data cannot be read, or not be fetched; where no download exists, it says
            what is the matter with the files.
    """
    if not isinstance(download, bool):
        raise InvalidValueError(f"Expected download to be True or False; got {download!r}.")
    try:
        return read()
    except DataError as error:
        if not download:
            raise
        if name in BY_HAND:
            raise DataError(f"{error} ({name} has no download in torchvision.)") from error
    fetch(name, root=root)
    return read()
