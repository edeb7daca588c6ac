"""Weights of frozen networks: what they hash to, and the files they are read from."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nsr_gym.errors import FileFormatError, InvalidValueError

_BLOCK = 1 << 20


def fingerprint(weights: Mapping[str, Tensor], **also: Any) -> str:
    """Return the SHA-256 (hex) over names, shapes and values of all tensors.

    Args:
        weights: the tensors, in any order.
        **also: plain values that the network's function depends on as well.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = weights[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.tobytes())
    if also:
        digest.update(json.dumps(also, sort_keys=True).encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def read_weights(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a file of tensors: `.safetensors`, or what `torch.save` wrote of a state dict.

    The latter is read with `weights_only`, which builds tensors and refuses everything else.

    Args:
        path: the file.
        sha256: its SHA-256 (hex), or the first digits of it (at least 8, as torchvision writes
            them into its files' names); None: any file.

    Returns:
        Name -> tensor, on the CPU.

    Raises:
        InvalidValueError: `sha256` is none.
        FileFormatError: the file is missing, has another hash, or holds something else.
    """
    if sha256 is not None and (len(sha256) < 8 or set(sha256) - set("0123456789abcdef")):
        raise InvalidValueError(
            f"Expected sha256 as 8 to 64 lower-case hexadecimal digits; got {sha256!r}."
        )
    if not path.is_file():
        raise FileFormatError(f"Expected a file of weights at {path}; there is none.")
    if sha256 is not None and not (found := file_sha256(path)).startswith(sha256):
        raise FileFormatError(
            f"Expected weights with SHA-256 {sha256} in {path}; it has {found}. Fetch the file "
            "again, or give the hash of the one that is meant."
        )
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise FileFormatError(
            f"Expected a state dict of tensors in {path} (.safetensors, or .pth that needs no "
            f"code to be read); it cannot be read ({_first_line(error)})."
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise FileFormatError(
            f"Expected a state dict, name -> tensor, in {path}; got {type(content).__name__}."
        )
    return dict(content)


def check_names(kind: str, found: Mapping[str, Tensor], expected: Sequence[str]) -> None:
    """Refuse weights whose names are not those of the network.

    Raises:
        InvalidValueError: names are missing or too many.
    """
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        raise InvalidValueError(
            f"The tensors do not make a {kind}: missing {_some(missing)}; unknown {_some(extra)}."
        )


def check_shape(name: str, tensor: Tensor, expected: Sequence[int]) -> None:
    """Refuse a tensor of another shape.

    Raises:
        InvalidValueError: the shape is another.
    """
    if tuple(tensor.shape) != tuple(expected):
        raise InvalidValueError(
            f"Expected {name} of shape {tuple(expected)}; got {tuple(tensor.shape)}."
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4]) or "none"
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
