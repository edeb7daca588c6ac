"""The form in which adapters go out and come in, without their empty directions."""

from __future__ import annotations

import torch
from torch import Tensor

from nsr_gym.lowrank import canonicalise
from nsr_gym.lowrank_core import Factors

_ZERO = 1e-12
"""Singular values below this share of the largest one are rounding."""


def canonical(up: Tensor, down: Tensor) -> Factors:
    """Return the canonical form of an update, computed in double precision.

    Args:
        up: (d_out, r), any floating type.
        down: (r, d_in).

    Returns:
        (up (d_out, q), down (q, d_in)) in float64, q the rank that the update has, 0 for zero.
    """
    form = canonicalise(up.double(), down.double())
    values = form.singular_values
    rank = int((values > values[0] * _ZERO).sum())
    return form.up[:, :rank], form.down[:rank]


def trimmed(up: Tensor, down: Tensor) -> Factors:
    """Return the canonical form of an update without its zero directions, in the type that came.

    Factors that are canonical up to the rounding of their type come back bit by bit.

    Args:
        up: (d_out, r).
        down: (r, d_in).
    """
    used = ((up != 0).any(dim=0) & (down != 0).any(dim=1)).nonzero()
    rank = int(used.max()) + 1 if len(used) else 0
    up, down = up[:, :rank], down[:rank]
    if rank == 0 or _is_canonical(up.double(), down.double(), torch.finfo(up.dtype).eps):
        return up, down
    left, right = canonical(up, down)
    return left.to(up.dtype), right.to(down.dtype)


def singular_values(up: Tensor, down: Tensor) -> Tensor:
    """Return the singular values (r,) of an update in canonical form, as float64."""
    values: Tensor = up.double().norm(dim=0) * down.double().norm(dim=1)
    return values


def _is_canonical(up: Tensor, down: Tensor, eps: float) -> bool:
    """Whether both factors' directions are orthogonal, of equal length, sorted and signed."""
    left, right = up.mT @ up, down @ down.mT
    values = left.diagonal()
    slack = 64 * eps * float(values.max())
    straight = all(bool(((gram - values.diag()).abs() <= slack).all()) for gram in (left, right))
    signed = bool((up.amax(dim=0) + up.amin(dim=0) >= 0).all())
    return straight and signed and bool((values.diff() <= slack).all())
