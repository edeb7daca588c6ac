"""Low-rank updates in factored form: canonical SVD, truncation, sums, products, norms.

An update of a `d_out x d_in` weight is kept as two factors, `up` (..., d_out, r) and `down`
(..., r, d_in), with `update = up @ down`. Any number of leading dimensions is a batch (episodes,
entries). Nothing here forms the dense `d_out x d_in` product: the singular value decomposition
goes through an orthonormal basis of both factors and the SVD of the small core between them, so it
costs `O((d_out + d_in) r^2 + r^3)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from nsr_gym.errors import InvalidValueError
from nsr_gym.lowrank_core import (
    Factors,
    Method,
    check,
    check_pair,
    check_rank,
    check_shapes,
    check_sites,
    fit_width,
    svd_sites,
)

SiteFactors = dict[str, Factors]


@dataclass(frozen=True)
class Canonical:
    """An update as `(U sqrt(S), sqrt(S) Vh)`, the same for every factorisation of it.

    Attributes:
        up: (..., d_out, r), `U sqrt(S)`; the entry of largest magnitude in a column is positive.
        down: (..., r, d_in), `sqrt(S) Vh`.
        singular_values: (..., r), descending.
    """

    up: Tensor
    down: Tensor
    singular_values: Tensor


@dataclass(frozen=True)
class Truncation:
    """The best approximation of an update at a rank, in canonical form.

    Attributes:
        up: (..., d_out, width), zero from direction `rank` on.
        down: (..., width, d_in), zero from direction `rank` on.
        singular_values: (..., width), descending, zero from `rank` on.
        rank: (...) int64, the number of directions kept in each batch element.
        discarded_energy: (...), sum of the dropped squared singular values, which is the squared
            Frobenius error.
        discarded_share: (...), the same as a share of the update's energy; 0 for a zero update.
    """

    up: Tensor
    down: Tensor
    singular_values: Tensor
    rank: Tensor
    discarded_energy: Tensor
    discarded_share: Tensor


@dataclass(frozen=True)
class SiteTruncation:
    """The truncation of an adapter on several sites, at one rank for all its sites.

    Attributes:
        factors: per site `(up, down)` as in `Truncation`.
        singular_values: per site (..., width).
        rank: (...) int64, shared by the sites.
        discarded_energy: (...), summed over the sites.
        discarded_share: (...), of the energy summed over the sites.
    """

    factors: SiteFactors
    singular_values: dict[str, Tensor]
    rank: Tensor
    discarded_energy: Tensor
    discarded_share: Tensor


def svd(up: Tensor, down: Tensor, *, method: Method | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Thin singular value decomposition of `up @ down`.

    Args:
        up: (..., d_out, r), float32 or float64.
        down: (..., r, d_in).
        method: "qr", "gram", or None for the one that fits the device (see
            `nsr_gym.lowrank_core`).

    Returns:
        U (..., d_out, k), S (..., k) descending and Vh (..., k, d_in) with `k = min(r, d_out,
        d_in)`. Columns of U and rows of Vh are orthonormal with "qr"; with "gram" those that
        belong to a zero singular value may be zero instead.

    Raises:
        InvalidValueError: shapes or types do not fit, or a factor is not finite.
    """
    check(up, down)
    return svd_sites({"": (up, down)}, method)[""]


def canonicalise(up: Tensor, down: Tensor, *, method: Method | None = None) -> Canonical:
    """Bring an update into the form that does not depend on how it was factored.

    Args:
        up: (..., d_out, r), float32 or float64.
        down: (..., r, d_in).
        method: as in `svd`.

    Returns:
        The canonical form, of the same width r (zero directions where r exceeds the rank).

    Raises:
        InvalidValueError: shapes or types do not fit, or a factor is not finite.
    """
    return canonicalise_sites({"": (up, down)}, method=method)[""]


@torch.no_grad()
def canonicalise_sites(
    sites: Mapping[str, Factors], *, method: Method | None = None
) -> dict[str, Canonical]:
    """`canonicalise` for an adapter on several sites, with one SVD call for all of them.

    Args:
        sites: per site `(up, down)`; the sites may differ in d_out and d_in, and share the width,
            the leading dimensions and the type.
        method: as in `svd`.

    Returns:
        The canonical form per site.

    Raises:
        InvalidValueError: no site, sites that do not fit together, or as in `canonicalise`.
    """
    width = check_sites(sites)
    return {
        name: Canonical(*fit_width(*_balanced(u, s, vh), width))
        for name, (u, s, vh) in svd_sites(sites, method).items()
    }


def truncate(
    up: Tensor,
    down: Tensor,
    *,
    rank: int | Tensor | None = None,
    energy: float | None = None,
    width: int | None = None,
    method: Method | None = None,
) -> Truncation:
    """Best approximation at a rank, or at the lowest rank that keeps a share of the energy.

    Eckart and Young (1936): dropping the smallest singular values is optimal in every unitarily
    invariant norm.

    Args:
        up: (..., d_out, r), float32 or float64.
        down: (..., r, d_in).
        rank: number of directions to keep, at most min(d_out, d_in): one for all, or an integer
            tensor that broadcasts to the leading dimensions.
        energy: share of the summed squared singular values to keep, in (0, 1]; at least one
            direction is kept.
        width: number of directions the result has room for; None = as many as came in.
        method: as in `svd`.

    Returns:
        The truncation; a rank beyond r keeps everything there is and is reported as r.

    Raises:
        InvalidValueError: not exactly one of rank and energy, one out of range, a width below the
            rank, or as in `svd`.
    """
    result = truncate_sites({"": (up, down)}, rank=rank, energy=energy, width=width, method=method)
    return Truncation(
        *result.factors[""],
        result.singular_values[""],
        result.rank,
        result.discarded_energy,
        result.discarded_share,
    )


@torch.no_grad()
def truncate_sites(
    sites: Mapping[str, Factors],
    *,
    rank: int | Tensor | None = None,
    energy: float | None = None,
    width: int | None = None,
    method: Method | None = None,
) -> SiteTruncation:
    """`truncate` for an adapter on several sites, at one rank for all its sites.

    Args:
        sites: per site `(up, down)`, as in `canonicalise_sites`.
        rank: as in `truncate`; at most the smallest site's min(d_out, d_in).
        energy: as in `truncate`, of the energy summed over the sites.
        width: as in `truncate`.
        method: as in `svd`.

    Returns:
        The truncated factors per site, and what was discarded.

    Raises:
        InvalidValueError: as in `truncate` and `canonicalise_sites`.
    """
    came = check_sites(sites)
    width = came if width is None else width
    first = next(iter(sites.values()))[0]
    limit = min(min(up.shape[-2], down.shape[-1]) for up, down in sites.values())
    if (rank is None) == (energy is None):
        raise InvalidValueError("Give exactly one of rank and energy to truncate by.")
    if rank is not None:
        asked = check_rank(rank, limit, first).clamp(max=came)
    elif energy is not None and not 0.0 < energy <= 1.0:
        raise InvalidValueError(f"energy is a share in (0, 1], not {energy!r}.")

    parts = svd_sites(sites, method)
    # Energies are summed in double precision: a share close to 1 is a difference of large sums.
    energies = [pad(s.double().square(), (0, came - s.shape[-1])) for _, s, _ in parts.values()]
    squares = torch.stack(energies).sum(0) if len(energies) > 1 else energies[0]
    total = squares.sum(-1)
    if energy is None:
        kept = asked
    else:
        left = squares.cumsum(-1)
        kept = (left >= left[..., -1:] * energy).int().argmax(-1) + 1
    if width < came and bool((kept > width).any()):
        raise InvalidValueError(
            f"A width of {width} has no room for rank {int(kept.max())}; raise the width."
        )
    dropped = torch.arange(came, device=first.device) >= kept.unsqueeze(-1)
    discarded = (squares * dropped).sum(-1)
    share = discarded / total.clamp(min=torch.finfo(total.dtype).tiny)  # 0 for a zero update
    factors, values = {}, {}
    for name, (u, s, vh) in parts.items():
        s_kept = s.masked_fill(dropped[..., : s.shape[-1]], 0.0)
        up, down, values[name] = fit_width(*_balanced(u, s_kept, vh), width)
        factors[name] = up, down
    return SiteTruncation(
        factors, values, kept.long(), discarded.to(first.dtype), share.to(first.dtype)
    )


def compose(
    adapters: Sequence[Factors], weights: Sequence[float] | Tensor | None = None
) -> Factors:
    """Weighted sum of updates, exactly, by laying the factors side by side.

    Args:
        adapters: `(up, down)` pairs of the same d_out, d_in and leading dimensions.
        weights: one per adapter, or a tensor (number of adapters, ...) whose further dimensions
            are the leading ones; None = all 1.

    Returns:
        `(up, down)` whose width is the sum of the widths; `truncate` brings it back down.

    Raises:
        InvalidValueError: no adapter, or shapes or the number of weights do not fit.
    """
    if not adapters:
        raise InvalidValueError("compose needs at least one adapter.")
    for pair in adapters:
        check_shapes(*pair)
    ends = {(up.shape[:-1], down.shape[-1]) for up, down in adapters}
    if len(ends) > 1:
        raise InvalidValueError(f"Adapters to compose differ in shape: {sorted(map(str, ends))}.")
    ups = [up for up, _ in adapters]
    if weights is not None:
        w = torch.as_tensor(weights, dtype=ups[0].dtype, device=ups[0].device)
        if len(w) != len(adapters):
            raise InvalidValueError(f"{len(w)} weights came for {len(adapters)} adapters.")
        ups = [up * w[i][..., None, None] for i, up in enumerate(ups)]
    return torch.cat(ups, -1), torch.cat([down for _, down in adapters], -2)


def matmul(left: Factors, right: Factors) -> Factors:
    """Product of two updates, `(up1 down1)(up2 down2)`, as an update of the smaller width.

    Args:
        left: `(up, down)` with shapes (..., d_out, r1) and (..., r1, d_mid).
        right: `(up, down)` with shapes (..., d_mid, r2) and (..., r2, d_in).

    Returns:
        `(up, down)` of width min(r1, r2).

    Raises:
        InvalidValueError: shapes do not fit.
    """
    check_shapes(*left)
    check_shapes(*right)
    if left[1].shape[-1] != right[0].shape[-2]:
        raise InvalidValueError(
            f"The left update takes {left[1].shape[-1]} inputs, the right one gives "
            f"{right[0].shape[-2]} outputs; they must agree."
        )
    core = left[1] @ right[0]
    if core.shape[-2] <= core.shape[-1]:
        return left[0], core @ right[1]
    return left[0] @ core, right[1]


def inner(left: Factors, right: Factors) -> Tensor:
    """Frobenius inner product of two updates of the same shape, (...).

    Raises:
        InvalidValueError: shapes do not fit.
    """
    check_pair(left, right)
    return ((left[0].mT @ right[0]) * (left[1] @ right[1].mT)).sum((-2, -1))


def norm(up: Tensor, down: Tensor) -> Tensor:
    """Frobenius norm of an update, (...); that of the core, so small differences keep their digits.

    Raises:
        InvalidValueError: shapes do not fit.
    """
    check_shapes(up, down)
    _, left = torch.linalg.qr(up, mode="r")
    _, right = torch.linalg.qr(down.mT, mode="r")
    core: Tensor = left @ right.mT
    return core.square().sum((-2, -1)).sqrt()


def distance(left: Factors, right: Factors) -> Tensor:
    """Frobenius distance of two updates of the same shape, (...).

    Raises:
        InvalidValueError: shapes do not fit.
    """
    check_pair(left, right)
    return norm(*compose([left, right], [1.0, -1.0]))


def apply(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Outputs of an update: `x @ (up @ down)^T`, inputs (..., n, d_in) to outputs (..., n, d_out).

    Raises:
        InvalidValueError: shapes do not fit.
    """
    check_shapes(up, down)
    if x.shape[-1] != down.shape[-1]:
        raise InvalidValueError(
            f"Inputs have {x.shape[-1]} features, the update takes {down.shape[-1]}."
        )
    return (x @ down.mT) @ up.mT


def _balanced(u: Tensor, s: Tensor, vh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`U sqrt(S)`, `sqrt(S) Vh` and S, with the signs that an SVD leaves free fixed."""
    root = s.sqrt()
    # amax and amin find the sign of the largest entry at a fraction of what argmax costs.
    root = torch.where(u.amax(-2) + u.amin(-2) < 0, -root, root)
    return u * root.unsqueeze(-2), vh * root.unsqueeze(-1), s
