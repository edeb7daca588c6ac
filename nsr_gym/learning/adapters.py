"""Adapters of many episodes side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nsr_gym.backbones.base import Site
from nsr_gym.errors import InvalidValueError

Factors = dict[str, tuple[Tensor, Tensor]]
"""Site name -> (up, down) of shapes (n, d_out, R) and (n, R, d_in)."""

Heads = tuple[Tensor, Tensor]
"""(weight (n, C, feature_dim), bias (n, C)): heads of n episodes on the backbone's features."""

Deltas = Mapping[str, Tensor]
"""Site name -> (n, d_out, d_in), updates of the weights as dense matrices."""


@dataclass(frozen=True)
class Adapters:
    """Low-rank updates of all sites for n episodes, padded to one rank R.

    Attributes:
        factors: site name -> (up, down) of shapes (n, d_out, R) and (n, R, d_in). A direction
            that is not in use has up = 0 and down = 0.
        head: heads of their own, where they do not share the backbone's.
    """

    factors: Factors
    head: Heads | None = None

    def __len__(self) -> int:
        """Return the number of episodes."""
        return int(next(iter(self.factors.values()))[0].shape[0])

    def __getitem__(self, rows: Tensor | slice) -> Adapters:
        """Return the adapters of some episodes (a view for a slice, else a copy)."""
        return Adapters(
            {site: (up[rows], down[rows]) for site, (up, down) in self.factors.items()},
            None if self.head is None else (self.head[0][rows], self.head[1][rows]),
        )

    @classmethod
    def zeros(
        cls,
        sites: Sequence[Site],
        n: int,
        rank: int,
        device: torch.device | str = "cpu",
        head: tuple[int, int] | None = None,
    ) -> Adapters:
        """Return empty adapters, with heads of zeros where `head` says (classes, features).

        Raises:
            InvalidValueError: the rank is above a site's width, or not positive.
        """
        check_rank(sites, rank)
        return cls(
            {
                site.name: (
                    torch.zeros(n, site.d_out, rank, device=device),
                    torch.zeros(n, rank, site.d_in, device=device),
                )
                for site in sites
            },
            None
            if head is None
            else (torch.zeros(n, *head, device=device), torch.zeros(n, head[0], device=device)),
        )

    @classmethod
    def cat(cls, parts: Sequence[Adapters]) -> Adapters:
        """Put adapters of several groups of episodes into one."""
        factors = {
            site: (
                torch.cat([part.factors[site][0] for part in parts]),
                torch.cat([part.factors[site][1] for part in parts]),
            )
            for site in parts[0].factors
        }
        heads = [part.head for part in parts if part.head is not None]
        if not heads:
            return cls(factors)
        return cls(factors, (torch.cat([w for w, _ in heads]), torch.cat([b for _, b in heads])))

    def put(self, rows: Tensor, other: Adapters) -> None:
        """Overwrite the adapters of some episodes."""
        for site, (up, down) in self.factors.items():
            up[rows], down[rows] = other.factors[site]
        if self.head is not None and other.head is not None:
            self.head[0][rows], self.head[1][rows] = other.head

    def keep(self, ranks: Tensor) -> None:
        """Clear every direction from ranks (n,) on."""
        beyond = torch.arange(self.rank, device=ranks.device) >= ranks[:, None]
        for up, down in self.factors.values():
            up.masked_fill_(beyond[:, None, :], 0.0)
            down.masked_fill_(beyond[:, :, None], 0.0)

    def finite(self) -> Tensor:
        """Return which episodes' factors are all finite, (n,) bool."""
        parts = [
            part.flatten(1).isfinite().all(dim=1)
            for pair in (*self.factors.values(), self.head or ())
            for part in pair
        ]
        return torch.stack(parts).all(dim=0)

    def reorder(self, order: Tensor) -> Adapters:
        """Return the same updates with direction j taken from order[:, j]; order is (n, R)."""
        return Adapters(
            {
                site: (
                    up.gather(2, order[:, None, :].expand_as(up)),
                    down.gather(1, order[:, :, None].expand_as(down)),
                )
                for site, (up, down) in self.factors.items()
            },
            self.head,
        )

    def directions(self) -> Tensor:
        """Return which directions of each site are in use, (n, R, sites) bool."""
        pairs = self.factors.values()
        return torch.stack([(up != 0).any(1) | (down != 0).any(2) for up, down in pairs], dim=2)

    def used(self) -> Tensor:
        """Return how many directions are in use on the site that uses most, (n,) int64."""
        return self.directions().sum(dim=1).amax(dim=1)

    @property
    def rank(self) -> int:
        """R, the number of directions of each adapter."""
        return int(next(iter(self.factors.values()))[0].shape[-1])


def check_rank(sites: Sequence[Site], rank: int) -> None:
    """Refuse a rank that an adapter on these sites cannot have.

    Raises:
        InvalidValueError: the rank is below 1 or above the narrowest site's width.
    """
    narrowest = min(sites, key=lambda site: min(site.d_out, site.d_in))
    width = min(narrowest.d_out, narrowest.d_in)
    if not 1 <= rank <= width:
        raise InvalidValueError(
            f"Expected a rank between 1 and {width}, the width of the narrowest adapted site "
            f"({narrowest.name!r}, {narrowest.d_out} x {narrowest.d_in}); got {rank}."
        )


def summed(others: Mapping[str, tuple[Tensor, Tensor]], signs: Tensor | None = None) -> Deltas:
    """Add up entries, site -> (up (n, K, d_out, R), down (n, K, R, d_in)), as dense updates.

    Signs (n, K) in {-1, 0, 1} compose them (LoRA-DRS subtracts); None: all are added.
    """
    total = {}
    for site, (up, down) in others.items():
        signed = up if signs is None else up * signs.to(up)[:, :, None, None]
        total[site] = torch.bmm(signed.transpose(1, 2).flatten(2), down.flatten(1, 2))
    return total
