"""The algebra of shared bases (Share): fit, project, merge, truncate, and what lies outside.

A *basis* is a matrix (..., d, k) with orthonormal columns, followed by zero columns where what was
seen has fewer than k directions. *Columns* (..., d, m) are the factors of entries laid side by
side: up factors on the output side of a site, transposed down factors on its input side. Any
number of leading dimensions is a batch of banks; nothing here loops over them.

Decompositions are un-centred. Share's released code subtracts the mean column before the SVD and
never adds it back, which loses adapters with a common offset (seed-systems.md 3.4). It also takes
eigenvectors of a d x d covariance, which fills a basis of more columns than there are directions
with arbitrary ones; here those columns are zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from nsr_gym.lowrank import truncate


@dataclass(frozen=True)
class Fit:
    """The best basis of some columns.

    Attributes:
        basis: (..., d, k).
        tail: (...), squared singular values beyond k summed: the squared error of projecting the
            columns on the basis (Eckart and Young, 1936).
        energy: (...), all squared singular values summed.
    """

    basis: Tensor
    tail: Tensor
    energy: Tensor


@dataclass(frozen=True)
class Merge:
    """A basis that took in new columns beside the old ones.

    Attributes:
        basis: (..., d, k), the best one of the reconstructed old columns and the new ones.
        old: (..., k, m), coefficients of the old columns on it.
        new: (..., k, r), coefficients of the new columns on it.
        tail: (...), as in `Fit`.
        energy: (...), as in `Fit`.
    """

    basis: Tensor
    old: Tensor
    new: Tensor
    tail: Tensor
    energy: Tensor


def fit(columns: Tensor, k: int, *, precision: torch.dtype | None = None) -> Fit:
    """Return the k leading left singular vectors of columns, and the energy they leave out.

    Args:
        columns: (..., d, m), float64 where `precision` is given.
        k: number of directions, at most d; those beyond the numerical rank are zero.
        precision: the type whose rounding the columns carry, where they were computed from
            values of fewer digits than their own type has; None = their own. In float32 the
            decomposition goes through the columns' Gram matrix, which takes half the time.

    Returns:
        The fit.
    """
    if precision == torch.float32 and columns.shape[-2] <= columns.shape[-1]:
        # Squaring costs half of double precision's digits and leaves what single precision holds.
        values, u = torch.linalg.eigh(columns @ columns.mT)
        squares, u = values.flip(-1).clamp(min=0.0), u.flip(-1)
        s = squares.sqrt()
    else:
        u, s, _ = torch.linalg.svd(columns, full_matrices=False)
        squares = s.square()
    # Rows alone: how many columns of zeros stand beside the others must not matter.
    floor = s[..., :1] * (torch.finfo(precision or columns.dtype).eps * columns.shape[-2])
    count = min(k, s.shape[-1])
    kept = s[..., :count] > floor
    basis = pad(u[..., :count] * kept.unsqueeze(-2), (0, k - count))
    return Fit(basis, squares[..., count:].sum(-1), squares.sum(-1))


def project(basis: Tensor, columns: Tensor) -> Tensor:
    """Coefficients (..., k, m) of columns (..., d, m) on a basis (..., d, k); no training."""
    return basis.mT @ columns


def merge(
    basis: Tensor, old: Tensor, new: Tensor, k: int, *, precision: torch.dtype | None = None
) -> Merge:
    """Fit a basis to reconstructed old columns and new ones, and re-project all of them.

    What Share's continual step does analytically: `[basis @ old, new]` is decomposed anew. Both
    lie in the span of `[basis, new]`, so the decomposition is that of a core with at most
    `k + r` rows, and the old columns are never rebuilt in full. Unlike in the released GLUE
    pipeline every old entry is re-projected, not the latest alone.

    Args:
        basis: (..., d, k).
        old: (..., k, m) coefficients on it; zero columns count for nothing.
        new: (..., d, r).
        k: directions of the result, at most d.
        precision: as in `fit`.

    Returns:
        The merged basis and the coefficients of old and new columns on it.
    """
    width = basis.shape[-1]
    # One decomposition of both: an orthonormal complement of the basis alone would be arbitrary,
    # and not even orthogonal to the basis, where new columns lie within its span.
    q, r = torch.linalg.qr(torch.cat([basis, new], -1))
    stacked_old, stacked_new = r[..., :width] @ old, r[..., width:]
    core = fit(torch.cat([stacked_old, stacked_new], -1), k, precision=precision)
    turn = core.basis
    return Merge(q @ turn, turn.mT @ stacked_old, turn.mT @ stacked_new, core.tail, core.energy)


def truncate_core(e_up: Tensor, e_down: Tensor, rank: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Best pseudo-rank p of updates, and their canonical form, through the k x k core.

    `dW = (beta e_up)(alpha e_down)^T` with orthonormal beta and alpha has the singular values of
    `e_up e_down^T`, so truncating that core is optimal for dW itself. Keeping the first p columns
    of the coefficients, as a public walkthrough does, is far from it (relative error 0.87 against
    0.45 at p = 2 of 4, seed-systems.md 3.4).

    Args:
        e_up: (..., k_out, r) coefficients on the output side.
        e_down: (..., k_in, r) coefficients on the input side.
        rank: (...) int64, p of each update, at least 1 and at most min(k_out, k_in).
        width: columns of the result, at least every p.

    Returns:
        Coefficients (..., k_out, width) and (..., k_in, width), `U sqrt(S)` and `V sqrt(S)` of
        the core, zero from column p on.
    """
    up, down = canonical(e_up, e_down.mT, rank, width)
    return up, down.mT


def canonical(up: Tensor, down: Tensor, rank: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Canonical form of updates cut at a rank, with zeros where there is nothing but rounding.

    A singular value of rounding size, 1e-17, would leave a column of its square root, 3e-9, which
    a basis of stacked factors takes for a direction of its own.

    Args:
        up: (..., d_out, r).
        down: (..., r, d_in).
        rank: (...) int64, at least 1 and at most min(d_out, d_in).
        width: directions of the result, at least every rank.

    Returns:
        up (..., d_out, width) and down (..., width, d_in).
    """
    cut = truncate(up, down, rank=rank, width=width)
    s = cut.singular_values
    noise = s <= s[..., :1] * (torch.finfo(s.dtype).eps * up.shape[-1])
    return cut.up.masked_fill(noise.unsqueeze(-2), 0.0), cut.down.masked_fill(
        noise.unsqueeze(-1), 0.0
    )


def fix_signs(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Turn directions so that the largest entry of a column of up is positive, as canonical form.

    Coefficients are signed by the basis they refer to, which changes with every merge.
    """
    sign = torch.where(up.amax(-2) + up.amin(-2) < 0, -1.0, 1.0).to(up.dtype)
    return up * sign.unsqueeze(-2), down * sign.unsqueeze(-1)


def update_energy(up: Tensor, down: Tensor) -> Tensor:
    """Squared Frobenius norm (...) of updates up (..., d_out, r) @ down (..., r, d_in)."""
    return ((up.mT @ up) * (down @ down.mT)).sum((-2, -1)).clamp(min=0.0)


def residual_energy(beta: Tensor, alpha: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Squared Frobenius norm (...) of the part of updates that two bases cannot express.

    `dW - P_beta dW P_alpha` falls into two orthogonal parts, what lies outside beta's span and
    what lies inside it and outside alpha's. Both are computed from residuals of the factors, so
    that a tiny share keeps its digits instead of being the difference of two large energies.

    Args:
        beta: (..., d_out, k) basis of the output side.
        alpha: (..., d_in, k) basis of the input side.
        up: (..., d_out, r).
        down: (..., r, d_in).

    Returns:
        The energy; it does not depend on how the updates are factored.
    """
    inside = project(beta, up)
    outside = down - project(alpha, down.mT).mT @ alpha.mT
    return update_energy(up - beta @ inside, down) + update_energy(inside, outside)
