"""What the first gradient of an arriving task says of ranks, novelty and room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.backbones.base import Backbone, FrozenMap
from nsr_gym.bank.bank import NO_LIMIT, TaskKnowledgeBank
from nsr_gym.bank.shared_basis import SharedBasisFactors
from nsr_gym.envs.dynamics import Arrival, Floats, Ints
from nsr_gym.learning.data import Images
from nsr_gym.learning.site_maps import OffsetMap

if TYPE_CHECKING:
    from nsr_gym.envs.live import LiveDynamics

Span = Mapping[str, tuple[Tensor, Tensor]]
"""Site -> orthonormal columns (left (n, d_out, k), right (n, d_in, k)), zero where fewer."""


@dataclass(frozen=True)
class Signals:
    """The first gradients of n arriving tasks.

    Attributes:
        gradients: site -> (n, d_out, d_in), of the loss on the support images with respect to
            the frozen weights, scaled to length 1 over all sites.
        energy: (n, R) share of the squared length that the leading r directions keep, r = 1..R,
            averaged over sites by their share of it.
    """

    gradients: Mapping[str, Tensor]
    energy: Floats

    def novelty(self, spans: Sequence[Span]) -> Floats:
        """Return the share of the squared gradient outside the best of some spans, (n,)."""
        n = len(next(iter(self.gradients.values())))
        inside = [torch.zeros(n, dtype=torch.float64)]
        for span in spans:
            kept = [
                (span[site][0].mT @ gradient @ span[site][1]).double().square().sum((-2, -1))
                for site, gradient in self.gradients.items()
            ]
            inside.append(torch.stack(kept).sum(0).cpu())
        return np.clip(1.0 - torch.stack(inside).amax(0).numpy(), 0.0, 1.0)


def first_gradients(backbone: Backbone, images: Images, max_rank: int) -> Signals:
    """Work out the signals of k support images of each of n arriving tasks."""
    n = len(images.labels)
    device = backbone.device
    leaves = {
        site.name: torch.zeros(n, site.d_out, site.d_in, device=device, requires_grad=True)
        for site in backbone.sites
    }
    features = backbone.forward(images.prefix, OffsetMap(FrozenMap(backbone), leaves))
    logits = backbone.head(features)
    loss = functional.cross_entropy(logits.flatten(0, 1), images.labels.flatten(), reduction="sum")
    (loss / images.labels.shape[1]).backward()
    found = {}
    for site, part in leaves.items():
        assert part.grad is not None
        found[site] = part.grad
    length = torch.stack([g.square().sum((-2, -1)) for g in found.values()]).sum(0).sqrt()
    length = length.clamp(min=torch.finfo(torch.float32).tiny)[:, None, None]
    found = {site: g / length for site, g in found.items()}
    energy = torch.zeros(n, max_rank, dtype=torch.float64, device=device)
    for gradient in found.values():
        values = torch.linalg.svdvals(gradient).double().square()
        energy += values.cumsum(-1)[:, :max_rank]
    return Signals(found, np.clip(energy.cpu().numpy(), 0.0, 1.0))


class SignalFields:
    """The observed fields of `nsr_gym.envs.layout.SIGNAL_FIELDS`.

    Novelty is held against the bases of a bank that shares them (the residual of Share, in
    seed terms the natural novelty signal), in other banks against each viewed entry on its own.
    Free capacity is what the learner says of its protected space where it has one (InfLoRA), else
    the share of directions that a shared basis has left, else that of the bank's places.
    """

    def __init__(self, dynamics: LiveDynamics, ranks: Sequence[int]) -> None:
        self._dynamics, self._index = dynamics, np.array(ranks) - 1

    def __call__(self, arrival: Arrival, bank: TaskKnowledgeBank, slots: Ints) -> dict[str, Floats]:
        """Return field -> values for n arrivals with slots (n, S) in view, -1 for none."""
        assert isinstance(arrival.signals, Signals)
        rows = arrival.visits.rows
        shared = bank.store if isinstance(bank.store, SharedBasisFactors) else None
        if shared is not None:
            spans: list[Span] = [shared.basis(rows)]
        else:
            spans = [_span(bank, rows, column) for column in slots.T]
        room = self._dynamics.learner.free_capacity(rows)
        if room is None and shared is not None:
            used = [(left.abs().amax(1) > 0).double().mean(1) for left, _ in spans[0].values()]
            room = 1.0 - torch.stack(used).mean(0).cpu().numpy()
        elif room is None:
            capacity = bank.capacities[rows]
            left = 1.0 - np.where(capacity > 0, bank.count(rows) / np.maximum(1, capacity), 1.0)
            room = np.where(capacity < NO_LIMIT, left, 1.0)
        return {
            "energy": arrival.signals.energy[:, self._index],
            "novelty": arrival.signals.novelty(spans),
            "free_capacity": room,
        }


def _span(bank: TaskKnowledgeBank, rows: Ints, slots: Ints) -> Span:
    """Return the directions of canonical entries, none where there is no entry."""
    assert bank.store is not None
    held = slots >= 0
    factors = bank.store.read(rows, np.maximum(slots, 0))
    found = {}
    for site, (up, down) in factors.items():
        there = torch.from_numpy(held).to(up)[:, None, None]
        left, right = (functional.normalize(part, dim=1) * there for part in (up, down.mT))
        found[site] = left, right
    return found
