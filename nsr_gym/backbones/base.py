"""What a frozen network must offer so that adapters can be trained on it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.backbones.patches import Patches
from nsr_gym.errors import InvalidValueError


@dataclass(frozen=True)
class Site:
    """A linear map of the backbone that an adapter may modify.

    Attributes:
        name: unique within the backbone, such as `"fc1"` or `"blocks.3.attn.q"`.
        d_out: number of outputs.
        d_in: number of inputs.
    """

    name: str
    d_out: int
    d_in: int


class SiteMap(Protocol):
    """Applies one site's linear map, adapted or not, in the middle of a forward pass."""

    def __call__(self, site: str, x: Tensor | Patches, frozen: Tensor | None = None) -> Tensor:
        """Return the site's output for `x` (..., d_in), in memory the caller may overwrite.

        Args:
            site: name of the site.
            x: its input; of convolutions the patches, which need not be laid out.
            frozen: the frozen map's output for `x`, where it is known already, and maybe what
                else the network adds to it.
        """
        ...


Prefix = tuple[Tensor, ...]
"""What the backbone knows about inputs once all frozen work before the first adapted site is
done. The backbone alone knows what the parts mean; every part has the images as leading
dimension, so that prefixes can be indexed and gathered like the images themselves."""


class Backbone(Protocol):
    """A frozen network with named sites and a frozen head.

    Every method takes any number of leading dimensions. `forward` calls the given map for
    every adapted site in the order of `sites`, and applies all else itself.
    """

    sites: tuple[Site, ...]
    input_shape: tuple[int, ...]
    feature_dim: int
    num_classes: int
    fingerprint: str
    device: torch.device

    def to(self, device: torch.device | str) -> Backbone:
        """Return this backbone on `device`."""
        ...

    def weight(self, site: str) -> tuple[Tensor, Tensor | None]:
        """Return the frozen weight (d_out, d_in) and bias (d_out,) of a site."""
        ...

    def prefix(self, x: Tensor) -> Prefix:
        """Do the frozen work on images (N, *input_shape) that no adapter can change."""
        ...

    def forward(self, prefix: Prefix, site_map: SiteMap) -> Tensor:
        """Return features (..., feature_dim) from a prefix."""
        ...

    def head(self, features: Tensor) -> Tensor:
        """Return logits (..., num_classes) from features."""
        ...


class FrozenMap:
    """Applies W x + b: the backbone without any adapter."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def __call__(self, site: str, x: Tensor | Patches, frozen: Tensor | None = None) -> Tensor:
        """Return the frozen output for x (..., d_in)."""
        if frozen is not None:
            return frozen.clone()
        if isinstance(x, Patches):
            return x.convolved(*self._backbone.weight(site))
        return functional.linear(x, *self._backbone.weight(site))


def select_sites(available: Mapping[str, Site], wanted: Sequence[str] | None) -> tuple[Site, ...]:
    """Choose the sites to adapt, in the order of the network.

    Args:
        available: every site of the network, in the order of its forward pass.
        wanted: names or regular expressions (matched whole); None takes all.

    Returns:
        The chosen sites.

    Raises:
        InvalidValueError: an expression is malformed or matches no site, or nothing is wanted.
    """
    if wanted is None:
        return tuple(available.values())
    chosen: set[str] = set()
    for pattern in wanted:
        try:
            hits = {name for name in available if re.fullmatch(pattern, name)}
        except re.error as error:
            raise InvalidValueError(
                f"{pattern!r} is no regular expression ({error}); the sites are "
                f"{', '.join(available)}."
            ) from error
        if not hits:
            raise InvalidValueError(
                f"No site matches {pattern!r}; the sites are {', '.join(available)}."
            )
        chosen |= hits
    if not chosen:
        raise InvalidValueError(f"Expected at least one site of {', '.join(available)}; got none.")
    return tuple(site for name, site in available.items() if name in chosen)
