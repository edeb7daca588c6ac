"""Is a bank file, or an adapter folder, whole and what it claims to be?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nsr_gym.bank.files import load_bank
from nsr_gym.errors import FileFormatError
from nsr_gym.exchange.entry_file import CONFIG_FILE, read_entry, read_json
from nsr_gym.exchange.peft_import import import_adapter
from nsr_gym.exchange.peft_layers import adapter_layers

_UNIT = 1e-5
"""How far the length of a stored float32 embedding may be from 1."""


@dataclass(frozen=True)
class Verified:
    """What was found to be in order.

    Attributes:
        kind: "bank", "export" (an adapter folder of ours) or "foreign" (one of someone else).
        entries: number of entries or, of a folder, 1.
        facts: what was checked, a line each.
    """

    kind: str
    entries: int
    facts: tuple[str, ...]


def verify_bank(path: str | Path) -> Verified:
    """Check a bank file: its hash, its structure, and every entry's content.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is damaged or of another kind (see `load_bank`), or an entry's embedding
            is no unit vector, its rank out of range, or its factors are not finite or reach
            beyond its rank.
    """
    bank = load_bank(path)
    rows, slots = np.nonzero(bank.occupied)
    facts = ["hash and structure"]
    lengths = np.linalg.norm(bank.embedding[rows, slots].astype(np.float64), axis=1)
    ranks = bank.rank[rows, slots]
    most = np.iinfo(np.int64).max if bank.store is None else bank.store.max_rank
    for name, bad in (
        ("an embedding that is no unit vector", ~(np.abs(lengths - 1.0) < _UNIT)),
        (f"a rank that is not between 1 and {most}", (ranks < 1) | (ranks > most)),
        ("an accuracy that is not finite", ~np.isfinite(bank.accuracy[rows, slots])),
    ):
        _refuse(path, name, bad, rows, slots)
    facts.append("embeddings, ranks and accuracies")
    if bank.store is not None and bank.store.kind != "counted" and len(rows):
        factors = bank.factors(slots, rows=rows)
        limit = torch.from_numpy(ranks)[:, None, None]
        for site, (up, down) in factors.items():
            wild = ~(up.flatten(1).isfinite().all(1) & down.flatten(1).isfinite().all(1))
            beyond = torch.arange(up.shape[-1]) >= limit
            over = (up.masked_fill(~beyond, 0.0) != 0).flatten(1).any(1)
            _refuse(path, f"factors at {site!r} that are not finite", wild.numpy(), rows, slots)
            _refuse(path, f"factors at {site!r} beyond its rank", over.numpy(), rows, slots)
        facts.append(f"factors at {len(factors)} sites")
    return Verified("bank", len(rows), tuple(facts))


def verify_folder(folder: str | Path) -> Verified:
    """Check an adapter folder: everything `import_adapter` does, for the layers that it has.

    Raises:
        FileNotFoundError: a file is missing.
        FileFormatError: a file is damaged, or the adapter is none that could be taken over.
    """
    folder = Path(folder)
    record = read_entry(folder)
    sites = {path: layer[:2] for path, layer in adapter_layers(folder).items()}
    if record is not None:
        sites |= {site.module: (site.d_out, site.d_in) for site in record.sites.values()}
    turned = read_json(folder / CONFIG_FILE).get("fan_in_fan_out") is True
    modules = {name: name for name in sites}
    adapter = import_adapter(folder, sites=sites, modules=modules, fan_in_fan_out=turned)
    facts = [f"configuration and tensors of {len(adapter.scales)} layers"]
    if record is not None:
        facts.append("hashes of tensors and record")
        if adapter.head is not None:
            facts.append("hash of the head")
        elif record.head is not None:
            raise FileFormatError(f"{folder} lacks the head that its record names; restore it.")
    scales = ", ".join(f"{scale:g}" for scale in sorted(set(adapter.scales.values())))
    if record is not None and not adapter.exact:
        raise FileFormatError(
            f"{folder / CONFIG_FILE} was changed: it scales layers by {scales}, an export by 1; "
            "restore it, or export the entry again."
        )
    facts.append(f"scales {scales}")
    return Verified("foreign" if record is None else "export", 1, tuple(facts))


def _refuse(
    path: str | Path,
    what: str,
    bad: np.ndarray,
    rows: np.ndarray,
    slots: np.ndarray,
) -> None:
    if bad.any():
        i = int(bad.argmax())
        raise FileFormatError(
            f"{path}: slot {slots[i]} of bank {rows[i]} has {what}; remove the entry, or restore "
            "the file from a copy."
        )
