"""What a visit gets from the bank: its start, and what the learner is told of the other entries."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nsr_gym.bank.bank import TaskKnowledgeBank
from nsr_gym.bank.shared_basis import SharedBasisFactors
from nsr_gym.bank.tensors import TensorFactors
from nsr_gym.envs.config import VisitConfig
from nsr_gym.envs.dynamics import Floats, Ints
from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.adapters import Adapters, Heads
from nsr_gym.learning.learner import LoRALearner
from nsr_gym.lowrank import truncate_sites


def check_fit(learner: type[LoRALearner], config: VisitConfig) -> None:
    """Refuse parts that do not fit each other.

    Raises:
        InvalidValueError: the message names what the learner takes.
    """
    if learner.name == "joint" and config.head != "frozen":
        raise InvalidValueError(
            "Expected head='frozen' for the learner 'joint', whose updates mix tasks; got "
            f"head={config.head!r}."
        )
    if learner.name == "lora_sub_drs" and config.head != "frozen":
        raise InvalidValueError(
            "Expected head='frozen' for the learner 'lora_sub_drs', whose prototypes are those of "
            f"classes that all tasks share; got head={config.head!r}."
        )
    if config.head != "frozen" and config.observe_signals:
        raise InvalidValueError(
            "Expected observe_signals=False with head='trained': through an empty head there is no "
            "first gradient; got True."
        )
    if config.warm_start == "mixture" and (config.bank == "additive" or learner.keeps_own):
        raise InvalidValueError(
            "Expected warm_start='entry' where one model is in use for everything (an additive "
            f"bank, or the learner {learner.name!r} if it keeps its own): the mixture would count "
            "entries twice, or not at all; got 'mixture'."
        )
    needed = None
    if learner.sums and config.bank != "additive":
        needed = "additive"
    elif learner.needs_basis and config.bank != "shared_basis":
        needed = "shared_basis"
    if needed is not None:
        raise InvalidValueError(
            f"Expected bank={needed!r}, which the learner {learner.name!r} trains on; got "
            f"bank={config.bank!r}."
        )


def start_of(
    bank: TaskKnowledgeBank, rows: Ints, slots: Ints, weights: Floats | None
) -> tuple[Adapters, Ints]:
    """Return what recalls of occupied slots (n,) of banks rows (n,) start from.

    Args:
        bank: the banks.
        rows: (n,) banks.
        slots: (n,) the recalled entries.
        weights: (n, K) of a mixture of entries, cut to the largest rank; None: the entry itself.

    Returns:
        The adapters, and how many leading directions of each hold knowledge, (n,).
    """
    if weights is None:
        entry, ranks = adapters_of(bank, rows, slots), bank.rank[rows, slots]
        if bank.store is not None and bank.store.coupled:
            # Later writes may have taken directions away, which training could not bring back.
            there = entry.directions().any(dim=2).cpu().numpy()
            ranks = np.where(there, np.arange(1, entry.rank + 1), 0).max(axis=1)
        return entry, ranks
    stacked = {}
    for site, (up, down) in entries_of(bank, rows).items():
        share = up.new_tensor(weights)[:, :, None, None]
        stacked[site] = (up * share).transpose(1, 2).flatten(2), down.flatten(1, 2)
        largest = up.shape[-1]
    cut = truncate_sites(stacked, rank=largest, width=largest)
    blended = (bank.rank[rows] * (weights != 0.0)).sum(axis=1)
    return Adapters(cut.factors, blended_heads(bank, rows, weights)), np.minimum(largest, blended)


def blended_heads(bank: TaskKnowledgeBank, rows: Ints, weights: Floats) -> Heads | None:
    """Return the heads of banks rows (n,) added up with weights (n, K); None: entries have none."""
    heads = heads_of(bank, rows)
    if heads is None:
        return None
    share = heads[0].new_tensor(weights)
    return (
        torch.einsum("ns,nscd->ncd", share, heads[0]),
        torch.einsum("ns,nsc->nc", share, heads[1]),
    )


def heads_of(bank: TaskKnowledgeBank, rows: Ints) -> Heads | None:
    """Return all heads of banks rows (n,): (n, K, C, d) and (n, K, C); None: entries have none.

    Those of empty slots are zero.
    """
    store, n, k = bank.store, len(rows), bank.slots
    if not isinstance(store, TensorFactors) or not store.head_shape:
        return None
    weight, bias = store.read_head(np.repeat(rows, k), np.tile(np.arange(k), n))
    empty = torch.from_numpy(~bank.occupied[rows]).to(weight.device)
    return (
        weight.unflatten(0, (n, k)).masked_fill(empty[:, :, None, None], 0.0),
        bias.unflatten(0, (n, k)).masked_fill(empty[:, :, None], 0.0),
    )


def adapters_of(bank: TaskKnowledgeBank, rows: Ints, slots: Ints) -> Adapters:
    """Return occupied slots (n,) of banks rows (n,) as adapters, with heads if they have any."""
    assert isinstance(bank.store, TensorFactors)
    head = bank.store.read_head(rows, slots) if bank.store.head_shape else None
    return Adapters(bank.factors(slots, rows=rows), head)


def parts_of(bank: TaskKnowledgeBank, rows: Ints, slots: Ints, *, additive: bool) -> dict[str, Any]:
    """Return what a learner is told of banks rows (n,), as fields of `Visit`.

    Args:
        bank: the banks.
        rows: (n,) banks.
        slots: (n,) the recalled entries, -1 for none.
        additive: whether the model is the sum of all entries.
    """
    if isinstance(bank.store, SharedBasisFactors):
        return {"basis": bank.store.basis(rows)}
    if not additive:
        return {}
    recalled = np.flatnonzero(slots >= 0)
    others = entries_of(bank, rows)
    for up, down in others.values():
        up[recalled, slots[recalled]] = 0.0
        down[recalled, slots[recalled]] = 0.0
    return {"others": others}


def entries_of(bank: TaskKnowledgeBank, rows: Ints) -> dict[str, tuple[Tensor, Tensor]]:
    """Return all entries of banks rows (n,): site -> (up (n, K, d_out, R), down (n, K, R, d_in)).

    Empty slots are zero.
    """
    assert bank.store is not None
    n, k = len(rows), bank.slots
    where = np.repeat(rows, k), np.tile(np.arange(k), n)
    found = {}
    for site, (up, down) in bank.store.read(*where).items():
        up, down = up.unflatten(0, (n, k)), down.unflatten(0, (n, k))
        empty = torch.from_numpy(~bank.occupied[rows]).to(up.device)[:, :, None, None]
        found[site] = up.masked_fill(empty, 0.0), down.masked_fill(empty, 0.0)
    return found
