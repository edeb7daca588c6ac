"""Routing through a tree over the entries, after TreeLoRA."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from nsr_gym.errors import InvalidValueError
from nsr_gym.routing.arrays import check_count
from nsr_gym.routing.arrow import DirectionRouter
from nsr_gym.routing.base import Ints, Query
from nsr_gym.routing.controls import hashes

_TINY = 1e-12


class TreeRouter(DirectionRouter):
    """A binary tree over the entries' directions, one site a level.

    TreeLoRA (arXiv 2506.10355) keeps a k-d tree over the tasks' directions at every layer (its code
    takes them from the down-factors) and finds a similar old task by sampling with lower confidence
    bounds on the distance. Here:

    - *Tree.* The root holds all entries of a bank. At level l, site `l mod L`, every node sorts its
      entries by how similar their directions are to those of the node on average, `|v.v'|`, and
      gives the more similar half to its left child, until each has one. What a node knows is the
      second moment of its entries' directions at the site.
    - *One input* goes from the root to the child whose directions take up more of its energy,
      `mean (v.x)^2 / |x|^2` (left on ties). An entry's score is the number of levels at which it
      lies on the input's path, plus its similarity `|v.x| / |x|` averaged over the sites, divided
      by the depth plus 1: in [0, 1], and the entry at the end of the path is first.
    - *A set* is searched by `pulls` single looks: an input of the set (in an order that follows
      from the inputs' bits) goes down by upper confidence bounds on the similarity of a node's
      looks so far, `mean + exploration sqrt(log(t) / looks)`, unseen nodes first; the entry
      at the end is compared with it. An entry's score is the mean of its looks, or that of the
      lowest node above it that has any. With distance = 1 - similarity this is TreeLoRA's bound.

    Departures: the tree is built when it is asked, from the directions, rather than kept; inputs
    take the place of a new task's gradients; and the similarity is not fed back into training.
    All banks and inputs go down at once, so this is TreeLoRA's decision, not its saving in time.
    """

    name: ClassVar[str] = "tree"

    def __init__(
        self,
        *,
        num_banks: int,
        feature_dim: int,
        device: str = "cpu",
        threshold: float | None = None,
        pulls: int = 32,
        exploration: float = 0.2,
    ) -> None:
        """Prepare for `num_banks` empty banks.

        Args:
            num_banks: E.
            feature_dim: d.
            device: a torch device.
            threshold: score up to which the backbone serves an input; None = never while an
                entry is held.
            pulls: looks at a set.
            exploration: width of the confidence bounds.

        Raises:
            InvalidValueError: a number out of range.
        """
        super().__init__(
            num_banks=num_banks, feature_dim=feature_dim, device=device, threshold=threshold
        )
        check_count("pulls", pulls)
        if not np.isfinite(exploration) or exploration < 0:
            raise InvalidValueError(
                f"Expected exploration as a number of at least 0; got {exploration!r}."
            )
        self._pulls, self._exploration = pulls, float(exploration)

    def branches(self, rows: Ints) -> tuple[Tensor, Tensor]:
        """Return the trees of banks `rows` (n,).

        Returns:
            Which child an entry goes to at each level, (n, levels, K) bool, True = right; and the
            depth of each tree, (n,) int64, with which its entries are all told apart.
        """
        return self._tree(self._index(rows))

    def _tree(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        held = self._held[rows]
        count = held.sum(1)
        # Halves differ by one entry at most, so that depth ceil(log2(count)) tells them apart.
        depth = torch.ceil(torch.log2(count.clamp(min=1).double())).long()
        levels = int(depth.max()) if len(rows) else 0
        sites = list(self._sites().values())
        node = torch.zeros(held.shape, dtype=torch.int64, device=self.device)
        order = torch.arange(self.slots, device=self.device)
        bits = []
        for level in range(levels):
            v = sites[level % len(sites)][rows]
            together = held.unsqueeze(1) & held.unsqueeze(2)
            together = together & (node.unsqueeze(1) == node.unsqueeze(2))
            size = together.sum(-1)
            central = ((v @ v.mT).abs() * together).sum(-1) / size.clamp(min=1)
            # Rounded, so that ties are ties on any machine and in any company.
            central = (central / _TINY).round()
            more = central.unsqueeze(1) > central.unsqueeze(2)
            tied = (central.unsqueeze(1) == central.unsqueeze(2)) & (order < order[:, None])
            rank = (together & (more | tied)).sum(-1)
            right = held & (rank >= (size + 1) // 2)
            bits.append(right)
            node = 2 * node + right
        shape = (len(rows), 0, self.slots)
        return (torch.stack(bits, 1) if bits else held.new_zeros(shape)), depth

    def _entry_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        similarity = self._similarity(rows, features, query)
        right, depth = self._tree(rows)
        alive = self._held[rows].unsqueeze(1).expand(-1, features.shape[1], -1)
        shared = torch.zeros_like(alive, dtype=torch.float64)
        for level in range(right.shape[1]):
            energy = similarity[:, :, level % similarity.shape[2]].square()
            bit = right[:, level].unsqueeze(1)
            goes = _mean(energy, alive & bit) > _mean(energy, alive & ~bit)
            alive = alive & (bit == goes.unsqueeze(-1))
            shared = shared + (alive & (level < depth)[:, None, None])
        return (shared + similarity.mean(2)) / (depth[:, None, None] + 1)

    def _entry_set_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        n, k = features.shape[:2]
        similarity = self._similarity(rows, features, query).mean(2)
        right, _ = self._tree(rows)
        held = self._held[rows]
        order = torch.from_numpy(np.argsort(hashes(features), axis=1, kind="stable"))
        order = order.to(self.device)
        line = torch.arange(n, device=self.device)
        gained = features.new_zeros(n, self.slots)
        looks = torch.zeros_like(gained)
        if not self.slots:
            return gained
        for pull in range(self._pulls):
            alive = held
            for level in range(right.shape[1]):
                bit = right[:, level]
                bounds = [self._bound(gained, looks, alive & side, pull) for side in (bit, ~bit)]
                goes = bounds[0] > bounds[1]
                alive = alive & (bit == goes.unsqueeze(-1))
            entry = alive.int().argmax(-1)
            gained[line, entry] += similarity[line, order[:, pull % k], entry]
            looks[line, entry] += 1
        # From the root down: an entry takes the mean of the lowest node with looks above it.
        below = held.unsqueeze(1) & held.unsqueeze(2)
        result = _mean_looks(gained, looks, below, torch.zeros_like(gained))
        for level in range(right.shape[1]):
            below = below & (right[:, level].unsqueeze(1) == right[:, level].unsqueeze(2))
            result = _mean_looks(gained, looks, below, result)
        return result

    def _bound(self, gained: Tensor, looks: Tensor, members: Tensor, pull: int) -> Tensor:
        """Upper confidence bound of nodes with members (n, K), (n,); -inf of empty ones."""
        total = (looks * members).sum(-1)
        mean = (gained * members).sum(-1) / total.clamp(min=1.0)
        width = self._exploration * (math.log(pull + 1.0) / total.clamp(min=1.0)).sqrt()
        bound = torch.where(total > 0, mean + width, torch.inf)
        return bound.masked_fill(~members.any(-1), -torch.inf)


def _mean(values: Tensor, members: Tensor) -> Tensor:
    """Mean over the members in the last dimension; minus infinity where there is none."""
    count = members.sum(-1)
    mean = (values * members).sum(-1) / count.clamp(min=1)
    return mean.masked_fill(count == 0, -torch.inf)


def _mean_looks(gained: Tensor, looks: Tensor, below: Tensor, otherwise: Tensor) -> Tensor:
    """Mean of the looks in each entry's node, (n, K); `otherwise` where there were none."""
    total = (below * looks.unsqueeze(1)).sum(-1)
    mean = (below * gained.unsqueeze(1)).sum(-1) / total.clamp(min=1.0)
    return torch.where(total > 0, mean, otherwise)
