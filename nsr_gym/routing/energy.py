"""Soft routing by projection energy, after DualLoRA."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from nsr_gym.errors import InvalidValueError
from nsr_gym.routing.arrays import check_count, check_positive, softmax_over_held
from nsr_gym.routing.base import Ints, Query, Written
from nsr_gym.routing.entry_router import EntryRouter


class EnergyRouter(EntryRouter):
    """Share of an input's energy that lies in the subspace of an entry's features.

    DualLoRA (arXiv 2411.00623) scales its residual branch by the similarity of stored bases and
    the current input's features. Its usable kernel: with R (d, q) the leading eigenvectors of the
    entry's `(1/k) sum z z^T`, the score of z is `|R^T z|^2 / |z|^2` in [0, 1], 0 for z = 0. Weights
    are a softmax of the scores over all entries. Departures: bases are of the routing features
    rather than of what DualLoRA leaves over beside its orthogonal branch, there is one for an
    entry rather than for a layer, and logits are not calibrated by the confidence.

    A basis takes the fewest directions that hold `energy` of the features' energy, and at most
    `max_directions`. An update replaces the basis by that of the new features: the energies of
    the old ones are gone. A set's score is the mean over its inputs.

    Bytes: the float64 directions of each entry that are in use, d numbers each.
    """

    name: ClassVar[str] = "energy"
    soft: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_banks: int,
        feature_dim: int,
        device: str = "cpu",
        threshold: float | None = None,
        energy: float = 0.95,
        max_directions: int = 16,
        temperature: float = 0.05,
    ) -> None:
        """Prepare for `num_banks` empty banks.

        Args:
            num_banks: E.
            feature_dim: d.
            device: a torch device.
            threshold: the backbone's part in the mixture is that of an entry with this score;
                None = no part while an entry is held.
            energy: share of the features' energy that a basis holds, in (0, 1].
            max_directions: most directions of a basis; cut to d.
            temperature: by which scores are divided.

        Raises:
            InvalidValueError: a number out of range.
        """
        super().__init__(
            num_banks=num_banks, feature_dim=feature_dim, device=device, threshold=threshold
        )
        check_count("max_directions", max_directions)
        check_positive("temperature", temperature)
        if not 0.0 < energy <= 1.0:
            raise InvalidValueError(f"Expected energy as a share in (0, 1]; got {energy!r}.")
        self._energy, self._temperature = float(energy), float(temperature)
        self._most = min(max_directions, feature_dim)
        self._add_part("basis", feature_dim, self._most)
        self._add_part("directions", dtype=torch.int64)

    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes of the directions in use, (n,)."""
        used = self._parts["directions"][self._index(rows)].sum(1).cpu().numpy()
        return np.asarray(used * (8 * self.feature_dim), dtype=np.int64)

    def _learn(self, rows: Tensor, slots: Tensor, features: Tensor, written: Written) -> None:
        # Right singular vectors of the features are the eigenvectors, without squaring them.
        _, s, vh = torch.linalg.svd(features, full_matrices=False)
        left = s.square().cumsum(-1)
        total = left[:, -1:]
        enough = left >= total * self._energy
        kept = (enough.int().argmax(-1) + 1).clamp(max=self._most)
        rank = (s > s[:, :1] * torch.finfo(s.dtype).eps * max(features.shape[1:])).sum(-1)
        kept = torch.minimum(kept, rank)  # directions of a null space would be arbitrary
        q = min(self._most, vh.shape[1])
        basis = features.new_zeros(len(rows), self.feature_dim, self._most)
        basis[:, :, :q] = vh[:, :q].mT
        unused = torch.arange(self._most, device=self.device) >= kept.unsqueeze(-1)
        self._parts["basis"][rows, slots] = basis.masked_fill(unused.unsqueeze(1), 0.0)
        self._parts["directions"][rows, slots] = kept

    def _entry_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        inside = torch.einsum("nkd,nsdq->nksq", features, self._parts["basis"][rows])
        total = features.square().sum(-1, keepdim=True)
        return inside.square().sum(-1) / total.clamp(min=torch.finfo(total.dtype).tiny)

    def _entry_set_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        return self._entry_scores(rows, features, query).mean(1)

    def _mixed(self, scores: Tensor) -> Tensor:
        return softmax_over_held(scores, self._temperature)
