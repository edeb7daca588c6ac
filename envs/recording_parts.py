"""Finished parts of a recording, kept in a folder so that a killed one goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from nsr_gym.errors import FileFormatError, StateError
from nsr_gym.files import TEMPORARY, write_whole
from nsr_gym.learning.adapters import Adapters

Part = dict[str, NDArray[Any]]

_NOTE = "recording.json"
_STEP = "visits-"


class RecordingParts:
    """Arrays by name, each part a file that is written whole.

    Parts whose name begins with `visits-` are steps on the way to another; they go once that one
    is there.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        """Open or begin a recording.

        Args:
            folder: of the parts, made if missing.
            asked: what is recorded, plain JSON.

        Raises:
            StateError: the folder holds parts of another recording, or says nothing of them.
        """
        self.folder = folder
        self._names: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / _NOTE
        if not note.exists():
            write_whole(note, lambda file: file.write_text(json.dumps(asked)))
        elif _read(note) != json.loads(json.dumps(asked)):
            raise StateError(
                f"{folder} holds parts of another recording, or of one by another installation; "
                "remove it or choose another output."
            )

    def get(self, name: str, make: Callable[[], Part]) -> Part:
        """Return a part, made and written if it is not there yet.

        Raises:
            FileFormatError: it is there, and damaged.
        """
        self._names.add(name)
        path = self._path(name)
        if not path.exists():
            part = make()
            write_whole(path, lambda file: save_file(part, file))
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise FileFormatError(
                f"The part {path} of a recording is damaged ({error}); remove it, and the same "
                "command makes it anew."
            ) from error

    def remove_steps(self) -> None:
        """Remove the steps on the way to a part that is there now."""
        for step in self.folder.glob(f"{_STEP}*.safetensors"):
            step.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all parts and the folder."""
        self.remove_steps()
        for name in self._names:
            self._path(name).unlink(missing_ok=True)
        (self.folder / _NOTE).unlink(missing_ok=True)
        for leftover in self.folder.glob(f"{TEMPORARY}*"):  # of a recording that was killed
            leftover.unlink(missing_ok=True)
        self.folder.rmdir()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def _read(note: Path) -> Any:
    try:
        return json.loads(note.read_text())
    except ValueError:
        return None


def step_name(stage: tuple[int, ...]) -> str:
    """Return the name of a step on the way to a part."""
    return _STEP + "-".join(map(str, stage))


def pack(adapters: Adapters) -> Part:
    """Return adapters, heads included, as arrays by name."""
    packed = {}
    for site, (up, down) in adapters.factors.items():
        packed[f"up.{site}"], packed[f"down.{site}"] = up.cpu().numpy(), down.cpu().numpy()
    if adapters.head is not None:
        weight, bias = adapters.head
        packed["head.weight"], packed["head.bias"] = weight.cpu().numpy(), bias.cpu().numpy()
    return {name: np.ascontiguousarray(array) for name, array in packed.items()}


def unpack(part: Part, tensor: Callable[[NDArray[Any]], torch.Tensor]) -> Adapters:
    """Return the adapters of a part.

    Args:
        part: what `pack` gave, other arrays beside it.
        tensor: puts an array where adapters are.
    """
    head = None
    if "head.weight" in part:
        head = tensor(part["head.weight"]), tensor(part["head.bias"])
    return Adapters(
        {
            name[3:]: (tensor(part[name]), tensor(part[f"down.{name[3:]}"]))
            for name in part
            if name.startswith("up.")
        },
        head,
    )
