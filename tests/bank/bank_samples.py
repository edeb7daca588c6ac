"""Small adapters and banks for the tests of stores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nsr_gym.bank import TaskKnowledgeBank, make_store

SITES = {"fc1": (20, 14), "fc2": (9, 20)}
RANK = 3
Pairs = dict[str, tuple[Tensor, Tensor]]


def adapter(
    seed: int, n: int = 1, rank: int = RANK, *, offset: float = 0.0, sites: Any = None
) -> Pairs:
    """Random factors in float64, with a column in common on request."""
    g = torch.Generator().manual_seed(seed)
    common = torch.Generator().manual_seed(999)

    def part(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    made = {}
    for name, (a, b) in (sites or SITES).items():
        shared = torch.randn(a, 1, generator=common, dtype=torch.float64)
        made[name] = part(n, a, rank) + offset * shared, part(n, rank, b)
    return made


def dense(pairs: Pairs) -> dict[str, Tensor]:
    """The updates themselves."""
    return {name: up @ down for name, (up, down) in pairs.items()}


def gap(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Largest relative distance of updates, over sites and batch."""
    return max(
        float(((left[n] - right[n]).norm(dim=(-2, -1)) / right[n].norm(dim=(-2, -1))).max())
        for n in right
    )


def bank_of(name: str, num_banks: int = 1, **arguments: Any) -> TaskKnowledgeBank:
    """A float64 bank of this kind; limits go to the bank, the other arguments to its store."""
    limits = {
        k: arguments.pop(k) for k in ("capacity", "capacity_bytes", "retention") if k in arguments
    }
    options = {"sites": SITES, "max_rank": RANK, "dtype": "float64"} | arguments
    store = make_store(name, **options)
    return TaskKnowledgeBank(embedding_dim=4, num_banks=num_banks, store=store, **limits)


def fill(bank: TaskKnowledgeBank, count: int, **arguments: Any) -> list[Pairs]:
    """Reserve random adapters in all banks and return them."""
    rng = np.random.default_rng(0)
    made = [adapter(seed, bank.num_banks, **arguments) for seed in range(count)]
    for factors in made:
        rank = next(iter(factors.values()))[0].shape[-1]
        bank.reserve(embedding=rng.normal(size=(bank.num_banks, 4)), rank=rank, factors=factors)
    return made
