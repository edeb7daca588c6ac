"""Adapters of Hugging Face PEFT taken into a bank, or refused with the reason.

PEFT itself only warns where a file and a model do not fit: tensors it has no layer for are dropped,
layers without tensors stay as they were. Here every tensor must be used, every layer that the
configuration names must be there, and every shape must fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from nsr_gym.errors import FileFormatError, InvalidValueError
from nsr_gym.exchange.canonical import canonical, singular_values
from nsr_gym.exchange.entry_file import (
    CONFIG_FILE,
    ENTRY_FILE,
    HEAD_FILE,
    TENSOR_FILE,
    EntryRecord,
    digest,
    read_entry,
    read_json,
    read_tensors,
)
from nsr_gym.exchange.peft_layers import check_layers, pair_up
from nsr_gym.exchange.peft_rules import check_config, module_paths, scale_of
from nsr_gym.lowrank_core import Factors

if TYPE_CHECKING:
    from nsr_gym.backbones.base import Backbone


@dataclass(frozen=True)
class ImportedAdapter:
    """An adapter as its files give it.

    Attributes:
        factors: site -> (up (d_out, r), down (r, d_in)) in canonical form, float32 (float64 where
            the file has it); each site has its own rank r, 0 where it is not adapted.
        scales: site -> what PEFT multiplies its update by; contained in the factors.
        rank: rank of the entry: the one it had in its bank, else the highest of any site, at
            least 1.
        discarded_share: of the update's energy, where it was cut to a lower rank.
        exact: whether the factors are bit by bit those of the file, which one of our exports wrote.
        record: what `nsr_entry.json` says, None for a foreign adapter.
        head: (weight (classes, features), bias (classes,)), where one was exported.
        config: the parsed `adapter_config.json`.
    """

    factors: dict[str, Factors]
    scales: dict[str, float]
    rank: int
    discarded_share: float
    exact: bool
    record: EntryRecord | None
    head: Factors | None
    config: dict[str, Any]

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each site's update."""
        return {name: int(up.shape[1]) for name, (up, _) in self.factors.items()}

    def padded(self, width: int | None = None) -> dict[str, Factors]:
        """Return the factors with as many directions at every site, zero beyond its rank.

        Args:
            width: how many; None takes `rank`.

        Raises:
            InvalidValueError: a site has more directions.
        """
        width = self.rank if width is None else width
        if max(self.ranks.values()) > width:
            raise InvalidValueError(f"A width of {width} has no room for ranks {self.ranks}.")
        return {
            name: (pad(up, (0, width - up.shape[1])), pad(down, (0, 0, 0, width - down.shape[0])))
            for name, (up, down) in self.factors.items()
        }


def import_adapter(
    folder: str | Path,
    *,
    sites: Mapping[str, tuple[int, int]] | None = None,
    backbone: Backbone | None = None,
    modules: Mapping[str, str] | None = None,
    fan_in_fan_out: bool = False,
    max_rank: int | None = None,
) -> ImportedAdapter:
    """Read an adapter folder of PEFT's, strictly.

    The update of a layer is s B A with the scale s computed as PEFT computes it; it is brought
    into canonical form in double precision, so that equal adapters come out equal however they
    were factored. A folder that `export_entry` wrote and nobody changed has that form: its factors
    come back bit by bit. One that PEFT saved again has the same tensors, and the same holds if its
    `nsr_entry.json` was kept.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        sites: site -> (d_out, d_in); None takes the backbone's.
        backbone: the frozen network; an export for another one is refused.
        modules: site -> full path of its module in the base model, as for `export_entry`; None
            takes the paths in `nsr_entry.json` if it names these sites, else the sites' names.
        fan_in_fan_out: whether the base model keeps weights as (d_in, d_out).
        max_rank: cut a higher-ranked site to this rank; None keeps all.

    Returns:
        The adapter.

    Raises:
        FileNotFoundError: a file is missing.
        FileFormatError: a file is damaged or a pickle; the adapter is no plain LoRA (see
            `check_config`); tensors, ranks and shapes do not fit each other or the sites.
        UnknownNameError: a tensor's module is no site's; the closest are named.
        InvalidValueError: neither sites nor backbone, or the export is for another backbone.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no adapter folder {folder}.")
    sites = _sites(sites, backbone)
    if not (folder / CONFIG_FILE).is_file():
        named = sorted(str(path.parent) for path in folder.glob(f"*/{CONFIG_FILE}"))
        where = f"; PEFT keeps named adapters in folders: {', '.join(named)}" if named else ""
        raise FileNotFoundError(f"There is no {CONFIG_FILE} in {folder}{where}.")
    config = read_json(folder / CONFIG_FILE)
    check_config(config, folder / CONFIG_FILE, fan_in_fan_out=fan_in_fan_out)
    tensors = read_tensors(folder / TENSOR_FILE)
    record = read_entry(folder)
    if record is not None:
        _check_record(folder, record, tensors, backbone)
        if modules is None and set(record.sites) <= set(sites):
            modules = record.modules()
    paths = module_paths(sites, modules)
    pairs = pair_up(tensors, paths, folder / TENSOR_FILE)
    scales = {name: scale_of(config, path) for name, path in paths.items()}
    check_layers(config, pairs, sites, paths, record, folder)
    exact = record is not None and all(scales[name] == 1.0 for name in pairs)
    true = {site.module: site.rank for site in record.sites.values()} if record else {}
    factors: dict[str, Factors] = {}
    lost = total = 0.0
    for name, (d_out, d_in) in sites.items():
        if name not in pairs:
            factors[name] = torch.zeros(d_out, 0), torch.zeros(0, d_in)
            continue
        up, down = pairs[name]
        dtype = torch.float64 if up.dtype == torch.float64 else torch.float32
        if exact:
            rank = true[paths[name]]
            up, down = up[:, :rank], down[:rank]
        else:
            up, down = canonical(up.double() * scales[name], down)
        # In canonical form the leading directions are the best approximation.
        energy = singular_values(up, down).square()
        total += float(energy.sum())
        if max_rank is not None:
            lost += float(energy[max_rank:].sum())
        factors[name] = up[:, :max_rank].to(dtype), down[:max_rank].to(dtype)
    highest = max(1, *(int(up.shape[1]) for up, _ in factors.values()))
    if record is not None and exact:
        highest = max(highest, record.rank)
    return ImportedAdapter(
        factors=factors,
        scales={name: scales[name] for name in pairs},
        rank=highest if max_rank is None else min(highest, max_rank),
        discarded_share=lost / total if total else 0.0,
        exact=exact and not lost,
        record=record,
        head=_head(folder, record),
        config=config,
    )


def _sites(
    sites: Mapping[str, tuple[int, int]] | None, backbone: Backbone | None
) -> dict[str, tuple[int, int]]:
    if sites is not None:
        chosen = {name: (int(size[0]), int(size[1])) for name, size in sites.items()}
    elif backbone is not None:
        chosen = {site.name: (site.d_out, site.d_in) for site in backbone.sites}
    else:
        raise InvalidValueError("Expected sites=... or backbone=...: which layers may be adapted.")
    if not chosen:
        raise InvalidValueError("Expected at least one site; got none.")
    return chosen


def _check_record(
    folder: Path, record: EntryRecord, tensors: Mapping[str, Tensor], backbone: Backbone | None
) -> None:
    if digest(tensors) != record.tensors_sha256:
        raise FileFormatError(
            f"{folder / TENSOR_FILE} is damaged or was written anew: its tensors do not match the "
            f"hash in {ENTRY_FILE}. Restore it, or remove {ENTRY_FILE} to take the folder over as "
            "a foreign adapter."
        )
    known = record.fingerprint
    if backbone is not None and known is not None and known != backbone.fingerprint:
        raise InvalidValueError(
            f"The adapter in {folder} was learned on another backbone "
            f"({record.backbone or 'unnamed'}, {known[:12]}) than the one given "
            f"({backbone.fingerprint[:12]}); on this one it means nothing."
        )


def _head(folder: Path, record: EntryRecord | None) -> Factors | None:
    if record is None or record.head is None or not (folder / HEAD_FILE).is_file():
        return None
    parts = read_tensors(folder / HEAD_FILE)
    if digest(parts) != record.head_sha256:
        raise FileFormatError(
            f"{folder / HEAD_FILE} is damaged: it does not match the hash in {ENTRY_FILE}; restore "
            "it, or remove it to import the adapter without a head."
        )
    return parts["weight"], parts["bias"]
