"""Measures models of many episodes: logits, accuracies, losses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nsr_gym.backbones.base import Backbone, FrozenMap, SiteMap
from nsr_gym.learning.adapters import Adapters, Deltas
from nsr_gym.learning.data import Images, pieces
from nsr_gym.learning.site_maps import HeadedMap, MergedMap, OffsetMap, apply_heads

_CPU_BLOCK = 2048
"""Images that are evaluated at once on a CPU."""


class Measuring:
    """Measures a backbone under the adapters of n episodes, and under updates below them.

    A model is the backbone with `adapters` (None: with none) on top of weights to which `base`,
    site -> (n, d_out, d_in), is added (None: nothing is).
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def logits(self, images: Images, site_map: SiteMap) -> Tensor:
        """Return logits (n, k, C), by the map's own head where it has one."""
        features = self.backbone.forward(images.prefix, site_map)
        head = site_map.head if isinstance(site_map, HeadedMap) else self.backbone.head
        return head(features)

    def logits_in_pieces(self, images: Images, site_map: SiteMap) -> Tensor:
        """Return the same, of images that may be too many to be evaluated at once."""
        return torch.cat([self.logits(part, site_map) for part in pieces(images)], dim=1)

    def answers(
        self, images: Images, site_map: SiteMap, rows: NDArray[Any] | None = None
    ) -> Tensor:
        """Return the class that the model says, (n, k); `rows` are the episodes, where known."""
        return self.logits(images, site_map).argmax(dim=-1)

    @torch.no_grad()
    def accuracy(
        self,
        images: Images,
        adapters: Adapters | None,
        base: Deltas | None = None,
        rows: NDArray[Any] | None = None,
    ) -> Tensor:
        """Return the share of right answers (n,)."""
        found = []
        for part, site_map in self.maps(adapters, base, *images.labels.shape):
            whole, asked = images[part], None if rows is None else rows[part]
            said = torch.cat([self.answers(some, site_map, asked) for some in pieces(whole)], 1)
            found.append(mean(said == whole.labels, whole.valid))
        return torch.cat(found)

    @torch.no_grad()
    def loss(self, images: Images, adapters: Adapters | None, base: Deltas | None = None) -> Tensor:
        """Return the mean cross-entropy (n,) in nats."""
        found = []
        for part, site_map in self.maps(adapters, base, *images.labels.shape):
            whole = images[part]
            logits = self.logits_in_pieces(whole, site_map)
            losses = functional.cross_entropy(logits.movedim(-1, 1), whole.labels, reduction="none")
            found.append(mean(losses, whole.valid))
        return torch.cat(found)

    def maps(
        self, adapters: Adapters | None, base: Deltas | None, n: int, k: int
    ) -> Iterator[tuple[slice, SiteMap]]:
        """Yield blocks of n episodes with k images each, and the map to measure them with.

        On a CPU a block's activations stay in the cache; measured on the digits, that halves
        the time of an evaluation at 64 episodes.
        """
        size = max(1, _CPU_BLOCK // k) if self.backbone.device.type == "cpu" else n
        for first in range(0, n, size):
            rows = slice(first, first + size)
            part = None if base is None else {site: d[rows] for site, d in base.items()}
            yield rows, self.map(None if adapters is None else adapters[rows], part)

    def map(self, adapters: Adapters | None, base: Deltas | None) -> SiteMap:
        """Return the map to measure a model with."""
        site_map: SiteMap = FrozenMap(self.backbone)
        if adapters is not None:
            site_map = MergedMap(self.backbone, adapters.factors)
        if base is not None:
            site_map = OffsetMap(site_map, base)
        if adapters is not None and adapters.head is not None:
            site_map = HeadedMap(site_map, partial(apply_heads, heads=adapters.head))
        return site_map


def mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Average (n, k) over the valid images, in double precision."""
    if valid is None:
        return values.double().mean(dim=1)
    return (values.double() * valid).sum(dim=1) / valid.sum(dim=1)
