"""Bank files: one safetensors file, written whole or not at all, nothing ever unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as dump_arrays

from nsr_gym.bank.bank import TaskKnowledgeBank
from nsr_gym.bank.kinds import restore_store
from nsr_gym.bank.state import ENTRY_ARRAYS
from nsr_gym.errors import FileFormatError, NsrGymError
from nsr_gym.files import write_whole

FORMAT = "nsr-gym-bank"
VERSION = 1
_PER_BANK = ("clock", "_events")
_LIMITS = ("capacities", "budgets")
"""Missing in files from before banks had limits of their own."""


def save_bank(bank: TaskKnowledgeBank, path: str | Path) -> None:
    """Write banks to one file.

    The file gets a temporary name in the same folder and is renamed when it is complete: whoever
    reads, or kills the process, at any time finds the previous file or the new one, whole.

    Args:
        bank: the banks.
        path: where to; an existing file is replaced.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    names = (*ENTRY_ARRAYS, *_PER_BANK, *_LIMITS)
    arrays: dict[str, NDArray[Any]] = {name: getattr(bank, name) for name in names}
    arrays |= {f"tag.{name}": column for name, column in bank.tags.items()}
    if bank.store is not None:
        arrays |= {f"store.{n}": array for n, array in bank.store.state(bank.slots).items()}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    arrays = {n: a.view(np.uint8) if a.dtype == bool else a for n, a in arrays.items()}
    header = {
        "embedding_dim": bank.embedding_dim,
        "capacity": bank.capacity,
        "capacity_bytes": bank.capacity_bytes,
        "retention": bank.retention,
        "num_banks": bank.num_banks,
        "tags": list(bank.tags),
        "store": None if bank.store is None else bank.store.config(),
    }
    text = json.dumps(header, sort_keys=True)
    payload = dump_arrays(
        arrays,
        metadata={
            "format": FORMAT,
            "version": str(VERSION),
            "bank": text,
            "sha256": _digest(arrays, text),
        },
    )
    write_whole(path, lambda file: file.write_bytes(payload))


def load_bank(path: str | Path, *, device: str = "cpu") -> TaskKnowledgeBank:
    """Read what `save_bank` wrote.

    Args:
        path: the file.
        device: where stored factors go.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is damaged, of another kind, or of a later version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no bank file {path}.")
    try:
        with safe_open(path, framework="numpy") as file:
            meta = file.metadata() or {}
            # Tensors of a foreign file may have types that NumPy lacks, and are of no use here.
            names = list(file.keys()) if meta.get("format") == FORMAT else []
            arrays = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, ValueError, OSError) as error:
        raise FileFormatError(
            f"{path} is damaged or no bank file ({error}); restore it from a copy."
        ) from error
    if meta.get("format") != FORMAT:
        raise FileFormatError(
            f"{path} is a safetensors file, but none that `save_bank` wrote; to take over factors "
            "from elsewhere, reserve them in a new bank."
        )
    if meta.get("version") != str(VERSION):
        raise FileFormatError(
            f"{path} has version {meta.get('version')!r} of the format, this package reads version "
            f"{VERSION}; if the file is not damaged, install a later nsr-gym."
        )
    if meta.get("sha256") != _digest(arrays, meta.get("bank", "")):
        raise FileFormatError(
            f"{path} is damaged: its content does not match its hash; restore it from a copy."
        )
    try:
        return _build(json.loads(meta["bank"]), arrays, device)
    except (KeyError, TypeError, ValueError, IndexError, NsrGymError) as error:
        raise FileFormatError(f"{path} does not describe a bank ({error!r}).") from error


def _build(
    header: dict[str, Any], arrays: Mapping[str, NDArray[Any]], device: str
) -> TaskKnowledgeBank:
    store = None
    if header["store"] is not None:
        store = restore_store(header["store"], device=device)
    bank = TaskKnowledgeBank(**(header | {"store": store}))
    bank._widen(arrays["occupied"].shape[1])
    limits = [name for name in _LIMITS if name in arrays]
    for name in (*ENTRY_ARRAYS, *_PER_BANK, *limits):
        target = getattr(bank, name)
        if target.shape != arrays[name].shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, expected {target.shape}")
        target[...] = arrays[name]
    for name, column in bank.tags.items():
        column[...] = arrays[f"tag.{name}"]
    if store is not None:
        store.restore(
            {n.removeprefix("store."): a for n, a in arrays.items() if n.startswith("store.")}
        )
    return bank


def _digest(arrays: Mapping[str, NDArray[Any]], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
