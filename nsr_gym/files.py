"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

TEMPORARY = ".tmp-"
"""How the names of unfinished files begin."""


def take_lock(file: IO[Any], *, wait: bool) -> None:
    """Lock an open file for this process; closing it, or the end of the process, lets go of it.

    On systems without such locks nothing happens.

    Args:
        file: open for writing.
        wait: whether to wait for another process that has it.

    Raises:
        OSError: another process has it, and it is not to be waited for.
    """
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name in the same folder and rename it when it is complete.

    Whoever reads, or kills the process, at any time finds the previous file or the new one.

    Args:
        path: the file; an existing one is replaced.
        write: writes the content to the path it is given.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{TEMPORARY}{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole_folder(folder: Path, write: Callable[[Path], Any]) -> None:
    """Write a folder of files under a temporary name beside it and rename it when it is complete.

    A new folder appears whole. One that is there already is set aside first, under a temporary
    name, and comes back if the new one cannot take its place; a process killed between the two
    renames leaves it there, whole.

    Args:
        folder: the folder; an existing one is replaced, with everything in it.
        write: writes the files into the (empty) folder it is given.

    Raises:
        OSError: the parent folder is missing or not writable, or the disk is full.
    """
    prefix = f"{TEMPORARY}{folder.name}."
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
    try:
        write(temporary)
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.chmod(0o644)
        temporary.chmod(0o755)
        if not folder.exists():
            temporary.rename(folder)
            return
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
        folder.rename(aside)  # onto an empty folder, which the system replaces
        try:
            temporary.rename(folder)
        except BaseException:
            aside.rename(folder)
            raise
        shutil.rmtree(aside)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
