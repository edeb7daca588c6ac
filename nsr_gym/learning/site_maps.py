"""Site maps: how adapters are applied in the middle of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from nsr_gym.backbones.base import Backbone, FrozenMap, SiteMap
from nsr_gym.backbones.patches import Patches
from nsr_gym.learning.adapters import Deltas, Factors, Heads


class FactoredMap:
    """Applies W x + b + up (down x), leaving the factors apart: the form to train in."""

    def __init__(self, backbone: Backbone, leaves: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Take the factors in training layout.

        Args:
            backbone: the frozen network.
            leaves: site name -> (up transposed (n, R, d_out), down (n, R, d_in)), contiguous.
        """
        self._backbone = backbone
        self._leaves = leaves

    def __call__(self, site: str, x: Tensor | Patches, frozen: Tensor | None = None) -> Tensor:
        """Return the adapted output for x (n, ..., d_in), episode by episode."""
        weight, bias = self._backbone.weight(site)
        known = frozen, weight, bias, *self._leaves[site]
        if isinstance(x, Patches):
            rows = _AdaptedConvolution.apply(  # type: ignore[no-untyped-call]
                x.maps, x.size, x.stride, *known
            )
            return cast(Tensor, rows.view(*x.shape[:-1], -1))
        return cast(Tensor, _AdaptedLinear.apply(x, *known))  # type: ignore[no-untyped-call]


class _AdaptedLinear(torch.autograd.Function):
    """y = W x + b + up (down x) for n episodes that share W.

    Written out because of the thin products: batched matrix products of width R are several
    times faster when the long side of every operand and result is contiguous, which
    automatic differentiation does not arrange for (measured: 110 us against 317 us at
    n = 64, 32 x 128 x 8). Nothing is computed for the frozen W.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        frozen: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        up_t: Tensor,
        down: Tensor,
    ) -> Tensor:
        low = torch.bmm(_rows(x), down.mT.contiguous())
        ctx.save_for_backward(x, weight, up_t, down, low)
        known = frozen if frozen is not None else bias
        if known is None:
            known = weight.new_zeros(weight.shape[0])
        # A new tensor, neither an input nor a view: the caller may overwrite it.
        y = known.expand(*x.shape[:-1], -1).clone(memory_format=torch.contiguous_format)
        if frozen is None:
            y.view(-1, y.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), weight.mT)
        y.view(*low.shape[:2], -1).baddbmm_(low, up_t)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight, up_t, down, low = ctx.saved_tensors
        grad = grad.contiguous()
        grad_low = torch.bmm(_rows(grad), up_t.mT.contiguous())
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.matmul(grad, weight)
            grad_x.view(*grad_low.shape[:2], -1).baddbmm_(grad_low, down)
        grad_up = torch.bmm(low.mT, _rows(grad))
        return grad_x, None, None, None, grad_up, torch.bmm(grad_low.mT, _rows(x))


class _AdaptedConvolution(torch.autograd.Function):
    """The same for convolutions, whose patches are never laid out (see `Patches.project`).

    The result is (n, k positions, d_out): views of it are the caller's, who may overwrite it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        size: int,
        stride: int,
        frozen: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        up_t: Tensor,
        down: Tensor,
    ) -> Tensor:
        patches = Patches(maps, size, stride)
        low = patches.project(down)
        ctx.save_for_backward(maps, weight, up_t, down, low)
        ctx.size, ctx.stride = size, stride
        y = patches.convolved(weight, bias) if frozen is None else frozen
        return torch.baddbmm(_rows(y), low, up_t)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | int | None, ...]:
        (grad,) = grads
        maps, weight, up_t, down, low = ctx.saved_tensors
        patches, rows = Patches(maps, ctx.size, ctx.stride), grad.contiguous()
        on_down, on_maps = patches.gradients(
            torch.bmm(rows, up_t.mT.contiguous()), down, of_maps=ctx.needs_input_grad[0]
        )
        if on_maps is not None:
            on_maps += patches.backward(rows, weight)
        return on_maps, None, None, None, None, None, torch.bmm(low.mT, rows), on_down


class OffsetMap:
    """Adds fixed dense updates, one for each episode, to what another map applies."""

    def __init__(self, inner: SiteMap, deltas: Deltas) -> None:
        """Take the map and the updates, site name -> (n, d_out, d_in)."""
        self._inner, self._deltas = inner, deltas

    def __call__(self, site: str, x: Tensor | Patches, frozen: Tensor | None = None) -> Tensor:
        """Return the adapted output for x (n, ..., d_in), episode by episode."""
        y = self._inner(site, x, frozen)
        return y + torch.bmm(_rows(x), self._deltas[site].mT).view_as(y)


class HeadedMap:
    """Another map, with a head that is not the backbone's."""

    def __init__(self, inner: SiteMap, head: Callable[[Tensor], Tensor]) -> None:
        """Take the map, and what gives logits (n, k, C) for features (n, k, feature_dim)."""
        self._inner, self.head = inner, head

    def __call__(self, site: str, x: Tensor | Patches, frozen: Tensor | None = None) -> Tensor:
        """Return the inner map's output for x."""
        return self._inner(site, x, frozen)


def apply_heads(features: Tensor, heads: Heads) -> Tensor:
    """Return logits (n, k, C) for features (n, k, feature_dim), episode by episode."""
    weight, bias = heads
    return torch.baddbmm(bias[:, None, :], features, weight.mT)


class CapturingMap:
    """Keeps what enters every site while another map is applied."""

    def __init__(self, inner: SiteMap) -> None:
        """Take the map to apply."""
        self._inner = inner
        self.inputs: dict[str, Tensor] = {}

    def __call__(self, site: str, x: Tensor | Patches, frozen: Tensor | None = None) -> Tensor:
        """Return the inner map's output for x (n, ..., d_in), and keep x as (n, k, d_in)."""
        rows = _rows(x)
        # The network may overwrite what is not a copy already.
        self.inputs[site] = rows if isinstance(x, Patches) else rows.clone()
        return self._inner(site, x, frozen)


class MixedMap:
    """Applies W x + b + sum over entries of w up (down x), with weights of its own for each image.

    One pass answers every image from the entry that a router names for it: weights of 0 and 1
    pick, others blend outputs, which for a linear map is blending the products ("product mix").
    """

    def __init__(self, backbone: Backbone, entries: Factors, weights: Tensor) -> None:
        """Take the entries and the weights.

        Args:
            backbone: the frozen network.
            entries: site -> (up (n, K, d_out, R), down (n, K, R, d_in)).
            weights: (n, k, K) of every image's entries.
        """
        self._frozen, self._entries = FrozenMap(backbone), entries
        self._weights = weights

    def __call__(self, site: str, x: Tensor | Patches, frozen: Tensor | None = None) -> Tensor:
        """Return the adapted output for x (n, k, ..., d_in), image by image."""
        up, down = self._entries[site]
        n, k, entries, rank = *x.shape[:2], *up.shape[1:4:2]
        every = down.flatten(1, 2)
        low = x.project(every) if isinstance(x, Patches) else torch.bmm(_rows(x), every.mT)
        low = low.view(n, k, -1, entries, rank) * self._weights.to(low.dtype)[:, :, None, :, None]
        y = self._frozen(site, x, frozen)
        blend = torch.bmm(low.view(n, -1, entries * rank), up.transpose(2, 3).flatten(1, 2))
        return y + blend.view_as(y)


def _rows(x: Tensor | Patches) -> Tensor:
    """View (n, ..., d) as (n, k, d); patches are laid out."""
    if isinstance(x, Patches):
        x = x.tensor()
    return x if x.ndim == 3 else x.reshape(x.shape[0], -1, x.shape[-1])


class MergedMap:
    """Applies (W + up down) x + b from merged weights: the form to measure accuracy in.

    Merging costs d_out d_in R once; each image then costs one dense product instead of one
    dense and two thin ones. Where the frozen output is known, thin products alone are
    cheaper still.
    """

    def __init__(self, backbone: Backbone, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Merge the factors of every site (lazily)."""
        self._backbone = backbone
        self._factors = factors
        self._merged: dict[str, Tensor] = {}

    def __call__(self, site: str, x: Tensor | Patches, frozen: Tensor | None = None) -> Tensor:
        """Return the adapted output for x (n, ..., d_in), episode by episode."""
        up, down = self._factors[site]
        if isinstance(x, Patches):
            y = x.convolved(*self._backbone.weight(site)) if frozen is None else frozen
            return torch.baddbmm(_rows(y), x.project(down), up.mT.contiguous()).view_as(y)
        if frozen is not None:
            low = torch.bmm(_rows(x), down.mT.contiguous())
            return torch.baddbmm(_rows(frozen), low, up.mT.contiguous()).view_as(frozen)
        if site not in self._merged:
            weight, _ = self._backbone.weight(site)
            # Merged as its transpose, the layout in which the batched product is fastest.
            merged = torch.bmm(down.mT, up.mT.contiguous())
            self._merged[site] = merged.add_(weight.mT.contiguous())
        _, bias = self._backbone.weight(site)
        y = torch.bmm(_rows(x), self._merged[site])
        return (y if bias is None else y.add_(bias)).view(*x.shape[:-1], -1)
