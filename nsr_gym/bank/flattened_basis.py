"""The cheaper shared basis: whole adapters as vectors, a basis over entries, k numbers each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from nsr_gym.bank import share
from nsr_gym.bank.basis import BasisFactors
from nsr_gym.bank.store import Ints, SiteFactors, Weights


class FlattenedBasisFactors(BasisFactors):
    """A store that keeps every entry as k numbers on a basis over entries.

    The canonical factors of an entry, on all its sites, are one vector of length
    `D = max_rank * sum(d_out + d_in)`; the basis (D, k) holds the leading left singular vectors of
    these vectors side by side, kept up by incremental SVD. An entry costs k numbers, the basis
    `D k`: as much as k adapters, so it pays where a bank holds many more entries than k.

    What this mixes are factors, not updates: an entry outside the span comes back with factors of
    others mixed in, whose product has cross terms. A direction of one entry is mixed with the
    direction of the same place in another, which canonical form orders by singular value.

    Source: the bank of `vlora-dev/vlora` (seed-systems.md 3.8), which chooses k by explained
    variance, 0.6 by default; here k is fixed, so that a bank's bytes are known beforehand, and the
    decomposition is un-centred and of canonical factors, as in `SharedBasisFactors`.

    Args:
        sites: per site (d_out, d_in).
        max_rank: highest rank of an entry.
        head: (classes, features) where an entry has a linear head of its own.
        dtype: "float32" or "float64".
        device: a torch device, such as "cpu" or "cuda".
        basis_rank: k.
        update: "merge", "project" or "residual", see `BasisFactors`.
        warm: merged entries after which "project" stops merging; None: when the basis is full.
        tolerance: share of a vector's energy outside the basis up to which "residual" projects.

    Raises:
        InvalidValueError: an option out of range.
        UnknownNameError: no such update.
    """

    kind: ClassVar[str] = "flattened-basis"

    def __init__(
        self,
        *,
        sites: Mapping[str, tuple[int, int]],
        max_rank: int,
        head: tuple[int, int] | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        basis_rank: int = 8,
        update: str = "merge",
        warm: int | None = None,
        tolerance: float = 0.05,
    ) -> None:
        super().__init__(
            sites=sites, max_rank=max_rank, head=head, dtype=dtype, device=device,
            basis_rank=basis_rank, update=update, warm=warm, tolerance=tolerance,
        )  # fmt: skip
        self._block("adapter", max_rank * sum(a + b for a, b in self.sites.values()), 1)

    def entry_bytes(self, rank: Ints) -> dict[str, Ints]:
        """Bytes by kind of entries of these ranks (any shape), without the basis they share."""
        k = self._blocks["adapter"][1]
        return {
            "factors": (rank > 0) * np.int64(k * self._item),
            "head": self._head_bytes(rank),
        }

    def read(self, rows: Ints, slots: Ints) -> dict[str, tuple[Tensor, Tensor]]:
        """Factors per site: up (n, d_out, max_rank) and down (n, max_rank, d_in), canonical."""
        at, there = self._index(rows), self._index(slots)
        vectors = self._basis("adapter", at) @ self._coefficients("adapter", at, there)
        return self._restored(vectors[..., 0], self._rows["rank"][at, there, 0])

    def read_singular_values(self, rows: Ints, slots: Ints) -> Tensor:
        """Singular values (n, sites, max_rank), zero from each entry's rank on."""
        parts = self.read(rows, slots).values()
        return torch.stack([up.norm(dim=1) * down.norm(dim=2) for up, down in parts], 1)

    def basis(self, rows: Ints) -> Tensor:
        """The basis (n, D, k) of banks (n,), which may repeat; a copy."""
        return self._basis("adapter", self._index(rows))

    def coefficients(self, rows: Ints, slots: Ints) -> Tensor:
        """The coefficients (n, k) of entries at these places, (n,) each; a copy."""
        return self._coefficients("adapter", self._index(rows), self._index(slots))[..., 0]

    def delta(self, rows: Ints, weights: Weights) -> dict[str, Tensor]:
        """Weighted sums of entries' updates, each read back first.

        Args:
            rows: (n,) banks.
            weights: (n, K) of any sign, zero where a bank holds no entry; a tensor's gradient is
                kept.

        Returns:
            Per site (n, d_out, d_in), dense.
        """
        w = self._weights(weights)
        at = self._index(rows)
        vectors = self._rows["coefficients.adapter"][at] @ self._basis("adapter", at).mT
        result = {}
        for name, (up, down) in self._restored(vectors, self._rows["rank"][at, :, 0]).items():
            result[name] = (up * w[:, :, None, None]).transpose(1, 2).flatten(2) @ down.flatten(
                1, 2
            )
        return result

    def _restored(self, vectors: Tensor, rank: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Vectors (..., D) of entries of these ranks (...) as canonical factors per site."""
        # Directions beyond an entry's own rank come from others: the best of its rank is taken.
        return {
            name: share.canonical(up, down, rank.clamp(min=1), self.max_rank)
            for name, (up, down) in self._split(vectors).items()
        }

    def _columns(self, pairs: SiteFactors) -> dict[str, Tensor]:
        flat = torch.cat([part.flatten(1) for pair in pairs.values() for part in pair], 1)
        return {"adapter": flat[..., None]}

    def _outside(self, rows: Tensor, pairs: SiteFactors) -> Tensor:
        basis, vector = self._basis("adapter", rows).double(), self._columns(pairs)["adapter"]
        rest = vector - basis @ share.project(basis, vector)
        outside, total = (v.square().sum((1, 2)) for v in (rest, vector))
        return (outside / total.clamp(min=torch.finfo(total.dtype).tiny)).clamp(max=1.0)

    def _settle(self, coefficients: dict[str, Tensor], rank: Tensor) -> dict[str, Tensor]:
        return coefficients
