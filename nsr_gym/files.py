"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"
"""How the names of unfinished files begin."""


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
