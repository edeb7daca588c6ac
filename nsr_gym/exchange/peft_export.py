"""A bank's entry as a folder that Hugging Face PEFT, LoRAX and vLLM read as it was meant."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor
from torch.nn.functional import pad

from nsr_gym.bank.bank import TaskKnowledgeBank
from nsr_gym.errors import InvalidValueError, StateError, unknown
from nsr_gym.exchange.canonical import singular_values, trimmed
from nsr_gym.exchange.entry_file import (
    CONFIG_FILE,
    ENTRY_FILE,
    FILES,
    HEAD_FILE,
    TENSOR_FILE,
    EntryRecord,
    SiteRecord,
    digest,
)
from nsr_gym.exchange.peft_rules import PREFIX, lora_config, module_paths
from nsr_gym.files import write_whole_folder
from nsr_gym.lowrank_core import Factors

if TYPE_CHECKING:
    from nsr_gym.backbones.base import Backbone
    from nsr_gym.bank.per_entry import PerEntryFactors

PROFILES = ("peft", "serving")
DTYPES = ("float16", "float32", "float64")
_COUNTERS = ("times_recalled", "reserved_at", "used_at", "created_order", "version")


def export_entry(
    bank: TaskKnowledgeBank,
    slot: int,
    folder: str | Path,
    *,
    row: int = 0,
    profile: str = "peft",
    modules: Mapping[str, str] | None = None,
    dtype: str | None = None,
    serving_rank: int | None = None,
    backbone: Backbone | None = None,
    backbone_name: str | None = None,
    base_model: str | None = None,
    fan_in_fan_out: bool = False,
    energy_kept: float | None = None,
    task: str | None = None,
    stream: str | None = None,
    parents: Sequence[str] = (),
    licence: str | None = None,
    overwrite: bool = False,
) -> EntryRecord:
    """Write one entry as adapter_config.json, adapter_model.safetensors and nsr_entry.json.

    The update of a site is `up @ down`; PEFT's is `s B A`. B is `up` (d_out, r), A is `down`
    (r, d_in), whose scale is in them already, and the configuration makes s = 1 for every reader.
    The factors are written in canonical form; those that have it already, as those of a learner's
    entries do, are written bit by bit as the bank holds them, less the directions that are zero.
    A head is written to `nsr_head.safetensors`, which PEFT does not look at. What is written is
    this entry's own update, also where the model in use is a sum of entries.

    The profile "peft" gives every layer its own rank and leaves out layers whose update is zero.
    "serving" pads every layer with zero directions to one rank, because LoRAX stacks the layers of
    one type and vLLM wants one rank: same update, larger file.

    Args:
        bank: the banks.
        slot: the entry's place.
        folder: where to; written whole or not at all.
        row: which of the banks.
        profile: "peft" or "serving".
        modules: site -> full path of its module in the base model, such as
            `{"fc1": "encoder.layers.0.fc1"}`; None takes the sites' names, and so does a site that
            is left out.
        dtype: "float16", "float32" or "float64"; None keeps the bank's.
        serving_rank: the one rank of "serving"; None takes the highest of any site.
        backbone: the frozen network; its fingerprint is recorded and its shapes are compared.
        backbone_name: its name, for whoever reads the record.
        base_model: what PEFT calls `base_model_name_or_path`, where the base model has such a name.
        fan_in_fan_out: whether the base model keeps weights as (d_in, d_out), as GPT-2 does.
        energy_kept: share of the trained update's energy that compression left.
        task: name of the task.
        stream: hash or name of the stream.
        parents: names of the entries that this one was started from.
        licence: of the adapter.
        overwrite: replace a folder of an earlier export.

    Returns:
        The record as it was written to nsr_entry.json.

    Raises:
        InvalidValueError: the slot is empty, the update is zero everywhere or too large for the
            type, sites and modules or backbone do not fit together, or a bad rank.
        StateError: the bank keeps no factors; the folder exists, or holds files of others.
        UnknownNameError: no such profile, type or site.
        OSError: the folder's parent is missing or not writable, or the disk is full.
    """
    folder = Path(folder)
    if profile not in PROFILES:
        raise unknown("export profile", profile, PROFILES)
    if dtype is not None and dtype not in DTYPES:
        raise unknown("tensor type", dtype, DTYPES)
    if serving_rank is not None and profile != "serving":
        raise InvalidValueError("serving_rank is for profile='serving'; leave it out for 'peft'.")
    if energy_kept is not None and not 0.0 <= energy_kept <= 1.0:
        raise InvalidValueError(f"Expected energy_kept as a share in [0, 1]; got {energy_kept!r}.")
    _check_free(folder, overwrite)
    stored = bank.factors([slot], rows=[row])
    factors = {name: trimmed(up[0].cpu(), down[0].cpu()) for name, (up, down) in stored.items()}
    paths = module_paths(factors, modules)
    if backbone is not None:
        _check_backbone(factors, backbone)
    ranks = {name: int(up.shape[1]) for name, (up, _) in factors.items()}
    rank = max(ranks.values())
    if rank == 0:
        raise InvalidValueError(
            f"The update of slot {slot} in bank {row} is zero at every site; there is nothing to "
            "export."
        )
    wanted = {name: pair for name, pair in factors.items() if ranks[name]}
    if profile == "serving":
        rank = _serving_rank(serving_rank, rank, factors)
        wanted = {name: _padded(*pair, rank) for name, pair in factors.items()}
    tensors = {
        f"{PREFIX}{paths[name]}.lora_{letter}.weight": _typed(part, dtype)
        for name, (up, down) in wanted.items()
        for letter, part in (("A", down), ("B", up))
    }
    head = _head(bank, slot, row)
    record = EntryRecord(
        profile=profile,
        dtype=str(next(iter(tensors.values())).dtype).removeprefix("torch."),
        rank=int(bank.rank[row, slot]),
        sites={name: _site_record(paths[name], *pair) for name, pair in factors.items()},
        embedding=tuple(bank.embedding[row, slot].tolist()),
        accuracy=float(bank.accuracy[row, slot]),
        importance=float(bank.importance[row, slot]),
        tags={name: int(column[row, slot]) for name, column in bank.tags.items()},
        counters={name: int(getattr(bank, name)[row, slot]) for name in _COUNTERS},
        backbone=backbone_name,
        fingerprint=None if backbone is None else backbone.fingerprint,
        energy_kept=energy_kept,
        task=task,
        stream=stream,
        parents=tuple(parents),
        licence=licence,
        head=None if head is None else (head["weight"].shape[0], head["weight"].shape[1]),
        tensors_sha256=digest(tensors),
        head_sha256="" if head is None else digest(head),
    )
    config = lora_config(
        {paths[name]: int(up.shape[1]) for name, (up, _) in wanted.items()},
        rank=rank,
        base_model=base_model,
        fan_in_fan_out=fan_in_fan_out,
    )

    def write(into: Path) -> None:
        (into / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (into / TENSOR_FILE).write_bytes(dump_tensors(tensors, metadata={"format": "pt"}))
        (into / ENTRY_FILE).write_text(record.dumps(), encoding="utf-8")
        if head is not None:
            (into / HEAD_FILE).write_bytes(dump_tensors(head, metadata={"format": "pt"}))

    write_whole_folder(folder, write)
    return record


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not overwrite:
        raise StateError(f"{folder} exists already; choose another folder, or pass overwrite=True.")
    strangers = (
        sorted(path.name for path in folder.iterdir() if path.name not in FILES)
        if folder.is_dir()
        else [folder.name]
    )
    if strangers:
        raise StateError(
            f"{folder} holds {', '.join(strangers)}, which no export writes and overwriting would "
            "delete; choose another folder."
        )


def _check_backbone(factors: Mapping[str, Factors], backbone: Backbone) -> None:
    there = {site.name: (site.d_out, site.d_in) for site in backbone.sites}
    mine = {name: (up.shape[0], down.shape[1]) for name, (up, down) in factors.items()}
    if any(there.get(name) != size for name, size in mine.items()):
        raise InvalidValueError(
            f"Expected a backbone with the entry's sites {mine}; got one with {there}."
        )


def _serving_rank(asked: int | None, least: int, factors: Mapping[str, Factors]) -> int:
    if asked is None:
        return least
    most = min(min(up.shape[0], down.shape[1]) for up, down in factors.values())
    if isinstance(asked, bool) or not isinstance(asked, int) or not least <= asked <= most:
        raise InvalidValueError(
            f"Expected serving_rank between {least}, the highest rank of a site, and {most}, the "
            f"narrowest side of the sites; got {asked!r}."
        )
    return asked


def _padded(up: Tensor, down: Tensor, rank: int) -> Factors:
    room = rank - up.shape[1]
    return pad(up, (0, room)), pad(down, (0, 0, 0, room))


def _typed(part: Tensor, dtype: str | None) -> Tensor:
    typed = part if dtype is None else part.to(getattr(torch, dtype))
    if not bool(typed.isfinite().all()):
        raise InvalidValueError(
            f"The entry's factors reach {float(part.abs().max()):g}, which is more than {dtype} "
            "can hold; choose another dtype."
        )
    return typed.contiguous()


def _site_record(module: str, up: Tensor, down: Tensor) -> SiteRecord:
    return SiteRecord(
        module=module,
        d_out=int(up.shape[0]),
        d_in=int(down.shape[1]),
        rank=int(up.shape[1]),
        singular_values=tuple(singular_values(up, down).tolist()),
    )


def _head(bank: TaskKnowledgeBank, slot: int, row: int) -> dict[str, Tensor] | None:
    if getattr(bank.store, "head_shape", None) is None:
        return None
    store = cast("PerEntryFactors", bank.store)
    weight, bias = store.read_head(np.array([row]), np.array([slot]))
    return {"weight": weight[0].cpu().contiguous(), "bias": bias[0].cpu().contiguous()}
