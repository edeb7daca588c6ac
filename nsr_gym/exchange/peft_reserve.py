"""An adapter folder of Hugging Face PEFT as an entry of a bank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from nsr_gym.bank.arrays import Reserved
from nsr_gym.bank.bank import TaskKnowledgeBank
from nsr_gym.bank.per_entry import PerEntryFactors
from nsr_gym.errors import InvalidValueError, StateError
from nsr_gym.exchange.entry_file import ENTRY_FILE, HEAD_FILE, read_entry
from nsr_gym.exchange.peft_import import import_adapter
from nsr_gym.exchange.peft_layers import adapter_layers

if TYPE_CHECKING:
    from nsr_gym.backbones.base import Backbone


def import_entry(
    bank: TaskKnowledgeBank,
    folder: str | Path,
    *,
    row: int = 0,
    modules: Mapping[str, str] | None = None,
    backbone: Backbone | None = None,
    fan_in_fan_out: bool = False,
    embedding: ArrayLike | None = None,
    accuracy: float | None = None,
    importance: float | None = None,
    tags: Mapping[str, int] | None = None,
    truncate: bool = False,
) -> Reserved:
    """Reserve an adapter folder of PEFT's in a bank.

    What the record of an export says (embedding, accuracy, importance, tags that the bank keeps,
    head) is taken over where no argument says otherwise; counters start anew. A store with a basis
    that entries share keeps what that basis can hold, every other store the adapter as it is.

    Args:
        bank: the banks; their store says which sites there are.
        folder: as for `import_adapter`.
        row: which of the banks.
        modules: as for `import_adapter`.
        backbone: as for `import_adapter`.
        fan_in_fan_out: as for `import_adapter`.
        embedding: (d,) the task's signature; needed for a foreign adapter.
        accuracy: to keep with the entry.
        importance: to keep with the entry.
        tags: integers by name; unknown ones are refused.
        truncate: cut an adapter to the highest rank the bank takes instead of refusing it.

    Returns:
        Where the entry lies, `slot` (1,), and how many had to go for it, `evicted` (1,).

    Raises:
        StateError: the bank keeps no factors or refuses the entry.
        InvalidValueError: no embedding, one of another size, or a rank above the bank's.
        FileFormatError, FileNotFoundError, UnknownNameError: as for `import_adapter`.
    """
    sites, store = getattr(bank.store, "sites", None), bank.store
    if sites is None or store is None:
        raise StateError("This bank keeps no factors; build it with a store of them.")
    adapter = import_adapter(
        folder,
        sites=sites,
        backbone=backbone,
        modules=modules,
        fan_in_fan_out=fan_in_fan_out,
        max_rank=store.max_rank if truncate else None,
    )
    if adapter.rank > store.max_rank:
        raise InvalidValueError(
            f"The adapter in {folder} has rank {adapter.rank}, the bank takes ranks up to "
            f"{store.max_rank}; cut it with truncate=True, or build the bank with a higher "
            "max_rank."
        )
    record = adapter.record
    if embedding is None:
        if record is None:
            raise InvalidValueError(
                f"{folder} has no {ENTRY_FILE}, so the task's embedding is not known; pass "
                "embedding=..., the mean feature of some of the task's images."
            )
        embedding = record.embedding
    if record is not None:
        kept = {name: value for name, value in record.tags.items() if name in bank.tags}
        tags = kept | dict(tags or {})
        accuracy = record.accuracy if accuracy is None else accuracy
        importance = record.importance if importance is None else importance
    keeps_head = getattr(store, "head_shape", None) is not None
    if keeps_head and adapter.head is None:
        raise InvalidValueError(
            f"This bank keeps a head with every entry, {folder} has no {HEAD_FILE}; use a bank "
            "without heads."
        )
    made = bank.reserve(
        embedding=np.asarray(embedding)[None],
        rank=[adapter.rank],
        accuracy=[0.0 if accuracy is None else accuracy],
        importance=None if importance is None else [importance],
        tags={name: [value] for name, value in (tags or {}).items()},
        factors={name: (up[None], down[None]) for name, (up, down) in adapter.padded().items()},
        head=adapter.head if keeps_head else None,
        rows=[row],
    )
    if int(made.slot[0]) < 0:
        raise StateError(
            f"Bank {row} refuses the entry: its capacity is 0, its byte budget is too small, or "
            f"its retention rule {bank.retention!r} lets nothing go. Raise its limits."
        )
    return made


def bank_for(
    folder: str | Path,
    *,
    embedding: ArrayLike | None = None,
    modules: Mapping[str, str] | None = None,
    max_rank: int | None = None,
) -> TaskKnowledgeBank:
    """Make an empty bank for the layers of an adapter folder, to import it and others like it.

    Its sites, tags and head are those in the record of an export; of a foreign adapter, the layers
    that it has, under the names in `modules` or their paths.

    Args:
        folder: as for `import_adapter`.
        embedding: (d,) of the task, whose size the bank takes; needed for a foreign adapter.
        modules: site -> full path of its module.
        max_rank: highest rank of an entry; None takes the adapter's, at least 8.

    Raises:
        InvalidValueError: no embedding, or a rank that the layers cannot have.
        FileFormatError, FileNotFoundError: as for `import_adapter`.
    """
    folder = Path(folder)
    record = read_entry(folder)
    layers = adapter_layers(folder)
    names = {path: name for name, path in (modules or {}).items()}
    sites = {names.get(path, path): layer[:2] for path, layer in layers.items()}
    if record is not None:
        sites = {name: (site.d_out, site.d_in) for name, site in record.sites.items()}
    if embedding is None and record is not None:
        embedding = record.embedding
    if embedding is None:
        raise InvalidValueError(
            f"{folder} has no {ENTRY_FILE}, so the task's embedding is not known; pass "
            "embedding=... (--embedding on the command line)."
        )
    # Room is made for the highest rank of every entry, so it is not simply the largest possible.
    narrowest = min(min(size) for size in sites.values())
    highest = max(8, *(layer[2] for layer in layers.values()))
    store = PerEntryFactors(
        sites=sites,
        max_rank=min(narrowest, highest) if max_rank is None else max_rank,
        head=None if record is None else record.head,
        dtype="float64" if record is not None and record.dtype == "float64" else "float32",
    )
    tags = () if record is None else tuple(record.tags)
    return TaskKnowledgeBank(embedding_dim=np.size(embedding), store=store, tags=tags)
