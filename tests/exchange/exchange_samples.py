"""Adapters that the exchange tests send out and take in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.lowrank import canonicalise

WIDTHS = (12, 10, 9, 8)
RANKS = {"fc1": 4, "fc2": 2, "fc3": 1}
MAX_RANK = 5


def canonical_factors(
    backbone: MLPBackbone, ranks: Mapping[str, int], seed: int = 0, dtype: Any = torch.float32
) -> dict[str, tuple[Tensor, Tensor]]:
    """Random updates in canonical form, padded to the highest rank."""
    g, width = torch.Generator().manual_seed(seed), max(ranks.values())
    factors = {}
    for site in backbone.sites:
        r = ranks[site.name]
        up = torch.zeros(site.d_out, width, dtype=torch.float64)
        down = torch.zeros(width, site.d_in, dtype=torch.float64)
        if r:
            form = canonicalise(
                0.3 * torch.randn(site.d_out, r, generator=g, dtype=torch.float64),
                0.3 * torch.randn(r, site.d_in, generator=g, dtype=torch.float64),
            )
            up[:, :r], down[:r] = form.up, form.down
        factors[site.name] = (up.to(dtype), down.to(dtype))
    return factors
