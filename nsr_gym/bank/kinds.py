"""The banks by name: how results are stored. Those that need torch are loaded when asked for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from nsr_gym.bank.store import CountedFactors, FactorStore
from nsr_gym.errors import unknown


@dataclass(frozen=True)
class Bank:
    """One way to store results.

    Attributes:
        kind: its name in bank files.
        module: where its store is defined.
        store: the name of the class.
        summary: what it keeps, in a line.
    """

    kind: str
    module: str
    store: str
    summary: str

    def load(self) -> type[CountedFactors]:
        """Import the class of its store."""
        found: type[CountedFactors] = getattr(
            import_module(f"nsr_gym.bank.{self.module}"), self.store
        )
        return found


BANKS: dict[str, Bank] = {
    "per_task": Bank(
        "per-entry", "per_entry", "PerEntryFactors", "factors of its own for every entry (NSR, ASR)"
    ),
    "shared_basis": Bank(
        "shared-basis", "shared_basis", "SharedBasisFactors",
        "one basis per site and side, coefficients per entry (Share)",
    ),
    "flattened_basis": Bank(
        "flattened-basis", "flattened_basis", "FlattenedBasisFactors",
        "one basis over whole adapters, k numbers per entry (vlora)",
    ),
    "meta": Bank(
        "meta", "meta", "MetaFactors",
        "factors of its own for every entry, and a summary adapter (LoRA Recycle)",
    ),
    "additive": Bank(
        "additive", "additive", "AdditiveFactors",
        "factors of its own for every entry; the model is the sum of all (InfLoRA)",
    ),
}  # fmt: skip
_COUNTED = Bank("counted", "store", "CountedFactors", "nothing but counted bytes")


def make_store(
    name: str,
    *,
    sites: Mapping[str, tuple[int, int]],
    max_rank: int,
    device: str = "cpu",
    **options: Any,
) -> FactorStore:
    """Make the store of a bank.

    Args:
        name: one of `BANKS`.
        sites: per site (d_out, d_in).
        max_rank: highest rank of an entry.
        device: a torch device.
        options: what else the store's constructor takes, as plain JSON.

    Returns:
        An empty store.

    Raises:
        UnknownNameError: no such bank, or an option that it does not have.
        InvalidValueError: an option out of range.
    """
    if name not in BANKS:
        raise unknown("bank", name, BANKS)
    store = BANKS[name].load()
    known = set(inspect.signature(store).parameters) - {"sites", "max_rank", "device"}
    for option in options:
        if option not in known:
            raise unknown(f"option of bank {name!r}:", option, known)
    return build(BANKS[name], sites=sites, max_rank=max_rank, device=device, **options)


def restore_store(config: Mapping[str, Any], *, device: str = "cpu") -> FactorStore:
    """Make an empty store from what `FactorStore.config` gave.

    Raises:
        UnknownNameError: no such kind of store.
        KeyError, TypeError, InvalidValueError: the arguments do not make one.
    """
    arguments = dict(config)
    kinds = {bank.kind: bank for bank in (_COUNTED, *BANKS.values())}
    kind = arguments.pop("kind")
    if kind not in kinds:
        raise unknown("kind of store", kind, kinds)
    arguments["sites"] = {name: tuple(size) for name, size in arguments["sites"].items()}
    if arguments["head"] is not None:
        arguments["head"] = tuple(arguments["head"])
    return build(kinds[kind], device=device, **arguments)


def build(bank: Bank, *, device: str, **arguments: Any) -> FactorStore:
    """Make a store, on a device where it lies on one."""
    store = bank.load()
    if store.takes_device:
        arguments["device"] = device
    return store(**arguments)
