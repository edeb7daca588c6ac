from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
import torch
from exchange_samples import MAX_RANK, RANKS, WIDTHS, canonical_factors
from torch import Tensor

from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.bank import PerEntryFactors, TaskKnowledgeBank
from nsr_gym.datasets.vision import load_torchvision


@pytest.fixture(scope="session")
def backbone() -> MLPBackbone:
    """A perceptron of three layers of different widths with random weights."""
    g = torch.Generator().manual_seed(0)
    weights = {}
    names = [*(f"fc{i}" for i in range(1, len(WIDTHS))), "head"]
    for name, (d_in, d_out) in zip(names, pairwise((*WIDTHS, 5)), strict=True):
        weights[f"{name}.weight"] = torch.randn(d_out, d_in, generator=g) / d_in**0.5
        weights[f"{name}.bias"] = 0.1 * torch.randn(d_out, generator=g)
    return MLPBackbone(weights)


@pytest.fixture
def bank_of(backbone: MLPBackbone) -> Callable[..., TaskKnowledgeBank]:
    """Make two banks side by side; the entry in question is slot 1 of bank 1, of rank 4."""

    def make(
        ranks: Mapping[str, int] | None = None,
        *,
        dtype: str = "float32",
        factors: dict[str, tuple[Tensor, Tensor]] | None = None,
        max_rank: int = MAX_RANK,
        head: tuple[int, int] | None = None,
    ) -> TaskKnowledgeBank:
        store = PerEntryFactors(
            sites={site.name: (site.d_out, site.d_in) for site in backbone.sites},
            max_rank=max_rank, dtype=dtype, head=head,
        )  # fmt: skip
        bank = TaskKnowledgeBank(embedding_dim=6, num_banks=2, store=store, tags=("task", "origin"))
        rng, kind = np.random.default_rng(3), getattr(torch, dtype)
        for seed, row in ((5, 0), (6, 1), (0, 1)):
            chosen = dict(RANKS if ranks is None else ranks)
            made = canonical_factors(backbone, chosen, seed, kind)
            if factors is not None:
                made = factors
            g = torch.Generator().manual_seed(seed)
            bank.reserve(
                embedding=rng.normal(size=(1, 6)), rank=[max(4, *chosen.values())], rows=[row],
                factors={
                    name: (
                        torch.nn.functional.pad(up, (0, max(0, 4 - up.shape[1])))[None],
                        torch.nn.functional.pad(down, (0, 0, 0, max(0, 4 - len(down))))[None],
                    )
                    for name, (up, down) in made.items()
                },
                accuracy=[0.75], tags={"task": [seed], "origin": [-1]},
                head=None if head is None else (
                    torch.randn(1, *head, generator=g), torch.randn(1, head[0], generator=g)
                ),
            )  # fmt: skip
            bank.tick(rows=[row])
        bank.mark_recalled([1], rows=[1])
        return bank

    return make


@pytest.fixture(scope="session")
def peft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """Hugging Face PEFT, kept off the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        load_torchvision()  # PEFT imports it, by way of transformers
        yield pytest.importorskip("peft")
