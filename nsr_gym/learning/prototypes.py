"""Class means of features, kept with the entries of a bank, and the nearest of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Known:
    """Prototypes of n episodes.

    Attributes:
        values: (n, P, d) mean features, not normalised; anything where not valid.
        classes: (n, P) int64, the class of each.
        valid: (n, P) bool.
    """

    values: Tensor
    classes: Tensor
    valid: Tensor

    def joined(self, other: Known) -> Known:
        """Return the prototypes of both, for the same episodes."""
        return Known(
            torch.cat([self.values, other.values], dim=1),
            torch.cat([self.classes, other.classes], dim=1),
            torch.cat([self.valid, other.valid], dim=1),
        )

    def take(self, rows: Tensor) -> Known:
        """Return the prototypes of some episodes (a copy)."""
        return Known(self.values[rows], self.classes[rows], self.valid[rows])


class Prototypes:
    """One mean feature for each entry and class of E banks, as they were when it was reserved.

    They are never refreshed while the entry stays as it is (LoRA-DRS, arXiv 2503.18985); an
    entry that is updated, or a new one in its slot, brings its own.
    """

    def __init__(
        self, *, num_episodes: int, num_classes: int, dimension: int, device: torch.device | str
    ) -> None:
        """Start with none.

        Args:
            num_episodes: E.
            num_classes: C.
            dimension: d, length of a feature.
            device: where they are kept.
        """
        self._values = torch.zeros(num_episodes, 0, num_classes, dimension, device=device)
        self._valid = torch.zeros(num_episodes, 0, num_classes, dtype=torch.bool, device=device)

    def begin(self, rows: Tensor) -> None:
        """Forget those of episodes `rows` (n,)."""
        self._valid[rows] = False

    def put(self, rows: Tensor, slots: Tensor, means: Known) -> None:
        """Replace what slots (n,) hold by the prototypes of all C classes, in their order."""
        missing = int(slots.max()) + 1 - self._valid.shape[1] if len(slots) else 0
        if missing > 0:
            self._values = functional.pad(self._values, (0, 0, 0, 0, 0, missing))
            self._valid = functional.pad(self._valid, (0, 0, 0, missing))
        self._values[rows, slots] = means.values.to(self._values)
        self._valid[rows, slots] = means.valid

    def keep(self, rows: Tensor, held: Tensor) -> None:
        """Forget those of slots of episodes `rows` (n,) that hold no entry; held is (n, K) bool."""
        slots = min(held.shape[1], self._valid.shape[1])
        self._valid[rows, :slots] &= held[:, :slots, None]

    def of(self, rows: Tensor) -> Known:
        """Return those of episodes `rows` (n,), over all slots and classes."""
        slots, classes = self._valid.shape[1:]
        order = torch.arange(classes, device=rows.device).repeat(slots)
        return Known(
            self._values[rows].flatten(1, 2),
            order.expand(len(rows), -1),
            self._valid[rows].flatten(1),
        )

    def nbytes(self, rows: Tensor) -> Tensor:
        """Return the bytes of the prototypes of episodes `rows`, (n,) int64."""
        size = self._values.shape[-1] * self._values.element_size()
        return self._valid[rows].sum(dim=(1, 2)) * size


def class_means(features: Tensor, labels: Tensor, weights: Tensor, num_classes: int) -> Known:
    """Return the mean feature of every class, (n, C, d); a class without images has none.

    Args:
        features: (n, k, d).
        labels: (n, k) int64.
        weights: (n, k), 0 for images that do not count.
        num_classes: C.
    """
    member = functional.one_hot(labels, num_classes).to(features) * weights.to(features)[:, :, None]
    sizes = member.sum(dim=1)
    means = torch.bmm(member.mT, features) / sizes.clamp(min=1.0)[:, :, None]
    classes = torch.arange(num_classes, device=labels.device).expand(len(labels), -1)
    return Known(means, classes, sizes > 0)


def nearest_class(features: Tensor, known: Known) -> Tensor:
    """Return the class of each image's nearest prototype, (n, k).

    Both are normalised, so that the nearest is the one of largest cosine. Where an episode has
    no prototype, the answer means nothing.

    Args:
        features: (n, k, d).
        known: at least one prototype, valid or not.
    """
    unit = functional.normalize(features, dim=-1)
    cosine = torch.bmm(unit, functional.normalize(known.values.to(unit), dim=-1).mT)
    best = cosine.masked_fill(~known.valid[:, None, :], -torch.inf).argmax(dim=2)
    return known.classes.gather(1, best)
