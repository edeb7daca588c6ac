"""Adapters of one fused map (`attn.qkv` of timm) against those of its parts (`query`, `key`, ...).

A fused map stacks the outputs of its parts, W = [W_1; W_2; ...]. Its update `up @ down` restricted
to one part is the same `down` under that part's rows of `up`: splitting is exact and keeps the
rank. The other way, each part brings directions of its own: the `down` factors are stacked, the
`up` factors lie on the diagonal of blocks, the rank adds up, and cutting it back has an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from nsr_gym.errors import InvalidValueError, unknown
from nsr_gym.lowrank import truncate
from nsr_gym.lowrank_core import Factors, check_shapes


@dataclass(frozen=True)
class Fused:
    """The update of a fused map.

    Attributes:
        up: (..., d_out, r) with d_out summed over the parts, canonical where it was cut.
        down: (..., r, d_in).
        discarded_share: (...) of the update's energy that the cut dropped, 0 without one.
    """

    up: Tensor
    down: Tensor
    discarded_share: Tensor


def split_fused(up: Tensor, down: Tensor, sizes: Mapping[str, int]) -> dict[str, Factors]:
    """Give each part of a fused map its own factors, exactly.

    Args:
        up: (..., d_out, r) of the fused map.
        down: (..., r, d_in).
        sizes: part -> its outputs, in the order in which the map stacks them, such as
            `{"query": 768, "key": 768, "value": 768}`.

    Returns:
        Part -> (up (..., size, r), down (..., r, d_in)); canonicalise them before they go into a
        bank, because only the whole was canonical.

    Raises:
        InvalidValueError: the sizes do not add up to d_out, or the factors do not fit each other.
    """
    check_shapes(up, down)
    if any(size < 1 for size in sizes.values()) or sum(sizes.values()) != up.shape[-2]:
        raise InvalidValueError(
            f"Expected sizes of at least 1 that add up to {up.shape[-2]} outputs; got "
            f"{dict(sizes)}."
        )
    parts = up.split(list(sizes.values()), dim=-2)
    return {name: (part, down) for name, part in zip(sizes, parts, strict=True)}


def fuse(
    parts: Mapping[str, Factors],
    sizes: Mapping[str, int],
    *,
    rank: int | None = None,
    energy: float | None = None,
) -> Fused:
    """Make one update of a fused map from those of its parts.

    Args:
        parts: part -> (up (..., size, r_part), down (..., r_part, d_in)); a part that is left out
            has no update.
        sizes: every part -> its outputs, in the order in which the map stacks them.
        rank: cut the sum of the ranks to this one; None keeps all.
        energy: cut to the lowest rank that keeps this share of the energy; None keeps all.

    Returns:
        The update, and what the cut dropped.

    Raises:
        InvalidValueError: no part, parts whose shapes do not fit, both rank and energy, or one of
            them out of range.
        UnknownNameError: a part that has no size.
    """
    if not parts:
        raise InvalidValueError("Expected the factors of at least one part; got none.")
    for name, pair in parts.items():
        if name not in sizes:
            raise unknown("part of the fused map", name, sizes)
        check_shapes(*pair)
        if pair[0].shape[-2] != sizes[name]:
            raise InvalidValueError(
                f"Part {name!r} has {sizes[name]} outputs; got up of shape {tuple(pair[0].shape)}."
            )
    ends = {(down.shape[:-2], down.shape[-1]) for _, down in parts.values()}
    if len(ends) > 1:
        raise InvalidValueError(
            f"Parts of one map share their inputs; got {sorted(map(str, ends))}."
        )
    blocks, above = [], 0
    below = sum(sizes.values())
    for name, size in sizes.items():
        below -= size
        if name in parts:
            blocks.append(pad(parts[name][0], (0, 0, above, below)))
        above += size
    up = torch.cat(blocks, -1)
    down = torch.cat([parts[name][1] for name in sizes if name in parts], -2)
    if rank is None and energy is None:
        return Fused(up, down, up.new_zeros(up.shape[:-2]))
    cut = truncate(up, down, rank=rank, energy=energy)
    kept = int(cut.rank.max())
    return Fused(cut.up[..., :kept], cut.down[..., :kept, :], cut.discarded_share)
