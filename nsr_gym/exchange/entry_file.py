"""`nsr_entry.json`: what a bank knows of an entry, beside the adapter files that PEFT reads.

PEFT warns of keys that it does not know, so ours lie in a file of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, uint8

from nsr_gym.errors import FileFormatError

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
ENTRY_FILE = "nsr_entry.json"
HEAD_FILE = "nsr_head.safetensors"
PICKLED_FILE = "adapter_model.bin"
FILES = (CONFIG_FILE, TENSOR_FILE, ENTRY_FILE, HEAD_FILE)

FORMAT = "nsr-gym-entry"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SiteRecord:
    """One layer of an exported entry.

    Attributes:
        module: full path of the module in the base model.
        d_out: its outputs.
        d_in: its inputs.
        rank: directions of the update there, 0 where the file has no tensors for it or only zeros.
        singular_values: of the update, descending, `rank` of them.
    """

    module: str
    d_out: int
    d_in: int
    rank: int
    singular_values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class EntryRecord:
    """Everything about an exported entry that is not in its tensors.

    Attributes:
        profile: "peft" (a rank for each layer) or "serving" (one rank, zero-padded).
        dtype: type of the tensors, such as "float32".
        rank: rank of the entry in its bank, at least that of any site.
        sites: site name -> what is known of it.
        embedding: the task's signature, (d,) of unit length.
        accuracy: when the entry was written.
        importance: what the retention rule "importance" goes by.
        tags: integers by name, as the bank kept them.
        counters: times_recalled, reserved_at, used_at, created_order and version in that bank.
        backbone: name of the frozen network, where given.
        fingerprint: SHA-256 of the frozen network's weights, where given.
        energy_kept: share of the trained update's energy that compression left, where given.
        task: name of the task, where given.
        stream: hash or name of the stream it was learned in, where given.
        parents: names of the entries that it was started from.
        licence: of the adapter, where given.
        head: (classes, features) of the linear head in `nsr_head.safetensors`, if there is one.
        tensors_sha256: over names, types, shapes and bytes of the adapter's tensors.
        head_sha256: the same over the head's, "" without one.
    """

    profile: str
    dtype: str
    rank: int
    sites: dict[str, SiteRecord]
    embedding: tuple[float, ...]
    accuracy: float
    importance: float
    tags: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    backbone: str | None = None
    fingerprint: str | None = None
    energy_kept: float | None = None
    task: str | None = None
    stream: str | None = None
    parents: tuple[str, ...] = ()
    licence: str | None = None
    head: tuple[int, int] | None = None
    tensors_sha256: str = ""
    head_sha256: str = ""

    def dumps(self) -> str:
        """Return the file's text, with a hash over all of it."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        content["entry_sha256"] = _digest_of(content)
        return json.dumps(content, indent=2, sort_keys=True) + "\n"

    def modules(self) -> dict[str, str]:
        """Return site name -> full path of the module."""
        return {name: site.module for name, site in self.sites.items()}


def read_entry(folder: Path) -> EntryRecord | None:
    """Read an exported entry's record, None where the folder has none.

    Raises:
        FileFormatError: the file is damaged, was changed, or is of a later version.
    """
    path = folder / ENTRY_FILE
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise FileFormatError(
            f"{path} has format {content.get('format')!r}, version {content.get('version')!r}; "
            f"this package reads {FORMAT!r}, version {VERSION}. Install a later nsr-gym, or remove "
            "the file to take the folder over as a foreign adapter."
        )
    if content.pop("entry_sha256", None) != _digest_of(content):
        raise FileFormatError(
            f"{path} is damaged or was edited: its content does not match its hash. Export the "
            "entry again, or remove the file to take the folder over as a foreign adapter."
        )
    del content["format"], content["version"]
    try:
        sites = {
            name: SiteRecord(**(site | {"singular_values": tuple(site["singular_values"])}))
            for name, site in content.pop("sites").items()
        }
        for name in ("embedding", "parents"):
            content[name] = tuple(content[name])
        content["head"] = None if content["head"] is None else tuple(content["head"])
        return EntryRecord(sites=sites, **content)
    except (KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path} does not describe an entry ({error!r}).") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path.name} in {path.parent}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is no JSON ({error}); restore it from a copy.") from error
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} holds a {type(content).__name__}, expected an object.")
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file into memory.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is damaged, or holds numbers that are not finite or no floats.
    """
    if not path.is_file():
        pickled = path.with_name(PICKLED_FILE)
        if path.name == TENSOR_FILE and pickled.is_file():
            raise FileFormatError(
                f"{pickled} is a pickle, which may run any code and is never read here; save the "
                "adapter again with PEFT, which writes safetensors."
            )
        raise FileNotFoundError(f"There is no {path.name} in {path.parent}.")
    try:
        tensors: dict[str, Tensor] = load_safetensors(path.read_bytes())
    except (SafetensorError, ValueError, KeyError) as error:
        raise FileFormatError(
            f"{path} is damaged or no safetensors file ({error}); restore it from a copy."
        ) from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(tensor.double().isfinite().all()):
            raise FileFormatError(
                f"{path}: expected finite floating-point numbers in {name!r}; got {tensor.dtype}"
                f"{' with NaN or infinite values' if tensor.is_floating_point() else ''}."
            )
    return tensors


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of some tensors."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        total.update(tensor.flatten().view(uint8).numpy().tobytes())
    return total.hexdigest()


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
