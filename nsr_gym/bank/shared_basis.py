"""The bank of Share: one basis per site and side, small coefficients per entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from nsr_gym.bank import share
from nsr_gym.bank.basis import BasisFactors, check_whole
from nsr_gym.bank.store import Ints, SiteFactors, Weights

_COLUMNS_PER_RANK = 4
"""Share's own choice for GLUE: k = 32 for adapters of rank 8."""


class SharedBasisFactors(BasisFactors):
    """A store of coefficients on one basis per site and side (Share).

    Per site, `beta` (d_out, k) and `alpha` (d_in, k) are the leading left singular vectors of all
    up factors, and of all transposed down factors, laid side by side; an entry is

        dW = (beta e_beta)(alpha e_alpha)^T        with e_beta (k, p) and e_alpha (k, p).

    Source: Share as in `ankit-vaidya19/Share`, equations in seed-systems.md 3.2. Where ours
    departs from the released code: decompositions are un-centred, since the mean column is
    subtracted there and never added back; entries are canonicalised before they are stacked, and
    again after they were projected; a merge re-projects every entry held, not the latest alone;
    columns beyond the numerical rank are zero instead of arbitrary; the pseudo-rank p cuts the SVD
    of the k x k core instead of keeping the first p columns; `update` and the residual decide
    when to merge, which the paper leaves open.

    Bytes of a bank: `k (d_in + d_out)` numbers per site for the bases and `2 k p` per site and
    entry (seed-systems.md 3.7), of the size of `dtype`; a side narrower than k has as many columns
    as it is wide.

    Args:
        sites: per site (d_out, d_in).
        max_rank: highest rank of an entry.
        head: (classes, features) where an entry has a linear head of its own.
        dtype: "float32" or "float64".
        device: a torch device, such as "cpu" or "cuda".
        basis_rank: k; None takes four times `max_rank`.
        pseudo_rank: p, the rank at which entries are kept at most; None keeps their own.
        update: "merge", "project" or "residual", see `BasisFactors`.
        warm: merged entries after which "project" stops merging; None: when the bases are full.
        tolerance: share of an adapter's energy outside the bases up to which "residual" projects.

    Raises:
        InvalidValueError: an option out of range.
        UnknownNameError: no such update.
    """

    kind: ClassVar[str] = "shared-basis"

    def __init__(
        self,
        *,
        sites: Mapping[str, tuple[int, int]],
        max_rank: int,
        head: tuple[int, int] | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        basis_rank: int | None = None,
        pseudo_rank: int | None = None,
        update: str = "merge",
        warm: int | None = None,
        tolerance: float = 0.05,
    ) -> None:
        super().__init__(
            sites=sites, max_rank=max_rank, head=head, dtype=dtype, device=device,
            basis_rank=_COLUMNS_PER_RANK * max_rank if basis_rank is None else basis_rank,
            update=update, warm=warm, tolerance=tolerance,
        )  # fmt: skip
        if pseudo_rank is not None:
            check_whole("pseudo_rank", pseudo_rank, most=max_rank)
        self.pseudo_rank = pseudo_rank
        self._width = min(max_rank, self.basis_rank, pseudo_rank or max_rank)
        for name, (d_out, d_in) in self.sites.items():
            self._block(f"{name}.up", d_out, self._width)
            self._block(f"{name}.down", d_in, self._width)

    def kept_rank(self, rank: Ints) -> Ints:
        """Ranks at which entries of these ranks (any shape) are kept: at most p and k."""
        return np.minimum(rank, self._width)

    def entry_bytes(self, rank: Ints) -> dict[str, Ints]:
        """Bytes by kind of entries of these ranks (any shape), without the bases they share."""
        directions = sum(k for _, k, _ in self._blocks.values())
        return {
            "factors": self.kept_rank(rank) * (directions * self._item),
            "head": self._head_bytes(rank),
        }

    def read(self, rows: Ints, slots: Ints) -> dict[str, tuple[Tensor, Tensor]]:
        """Factors per site: up (n, d_out, max_rank) and down (n, max_rank, d_in), canonical."""
        bases, room, result = self.basis(rows), self.max_rank - self._width, {}
        for name, (e_beta, e_alpha) in self.coefficients(rows, slots).items():
            beta, alpha = bases[name]
            up, down = share.fix_signs(beta @ e_beta, (alpha @ e_alpha).mT)
            result[name] = pad(up, (0, room)), pad(down, (0, 0, 0, room))
        return result

    def read_singular_values(self, rows: Ints, slots: Ints) -> Tensor:
        """Singular values (n, sites, max_rank), zero from each entry's rank on."""
        parts = self.coefficients(rows, slots).values()
        values = torch.stack([up.norm(dim=1) * down.norm(dim=1) for up, down in parts], 1)
        return pad(values, (0, self.max_rank - self._width))

    def basis(self, rows: Ints) -> dict[str, tuple[Tensor, Tensor]]:
        """The bases of banks (n,), which may repeat.

        Returns:
            Site -> beta (n, d_out, k) and alpha (n, d_in, k), copies; their columns are
            orthonormal, and zero beyond the numerical rank of what was merged.
        """
        at = self._index(rows)
        return {
            name: (self._basis(f"{name}.up", at), self._basis(f"{name}.down", at))
            for name in self.sites
        }

    def coefficients(self, rows: Ints, slots: Ints) -> dict[str, tuple[Tensor, Tensor]]:
        """The coefficients of entries at these places, (n,) each.

        Returns:
            Site -> e_beta (n, k, p) and e_alpha (n, k, p), copies, with p the highest rank that
            is kept; zero from each entry's rank on.
        """
        at, there = self._index(rows), self._index(slots)
        return {
            name: (
                self._coefficients(f"{name}.up", at, there),
                self._coefficients(f"{name}.down", at, there),
            )
            for name in self.sites
        }

    def delta(self, rows: Ints, weights: Weights) -> dict[str, Tensor]:
        """Weighted sums of entries' updates, summed on the bases before they are expanded.

        Args:
            rows: (n,) banks.
            weights: (n, K) of any sign, zero where a bank holds no entry; a tensor's gradient is
                kept.

        Returns:
            Per site (n, d_out, d_in), dense.
        """
        w = self._weights(weights)
        n, slots = w.shape
        at = self._index(rows).repeat_interleave(slots)
        there = torch.arange(slots, device=self.device).repeat(n)
        result = {}
        for name, (beta, alpha) in self.basis(rows).items():
            up = self._coefficients(f"{name}.up", at, there).unflatten(0, (n, slots))
            down = self._coefficients(f"{name}.down", at, there).unflatten(0, (n, slots))
            core = torch.einsum("nj,njap,njbp->nab", w, up, down)
            result[name] = beta @ core @ alpha.mT
        return result

    def config(self) -> dict[str, Any]:
        """The arguments that build this store anew, as plain JSON."""
        return super().config() | {"pseudo_rank": self.pseudo_rank}

    def _columns(self, pairs: SiteFactors) -> dict[str, Tensor]:
        return {
            block: columns
            for name, (up, down) in pairs.items()
            for block, columns in ((f"{name}.up", up), (f"{name}.down", down.mT))
        }

    def _outside(self, rows: Tensor, pairs: SiteFactors) -> Tensor:
        outside, total = (
            torch.zeros(len(rows), dtype=torch.float64, device=self.device) for _ in "ab"
        )
        for name, (up, down) in pairs.items():
            beta = self._basis(f"{name}.up", rows).double()
            alpha = self._basis(f"{name}.down", rows).double()
            outside += share.residual_energy(beta, alpha, up, down)
            total += share.update_energy(up, down)
        return (outside / total.clamp(min=torch.finfo(total.dtype).tiny)).clamp(max=1.0)

    def _settle(self, coefficients: dict[str, Tensor], rank: Tensor) -> dict[str, Tensor]:
        settled = {}
        for name in self.sites:
            up, down = coefficients[f"{name}.up"], coefficients[f"{name}.down"]
            settled[f"{name}.up"], settled[f"{name}.down"] = share.truncate_core(
                up, down, rank, self._width
            )
        return settled
