"""The patches that a convolution sees, without laying them out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input

_Index = tuple[slice, slice, slice, slice]


@dataclass(frozen=True)
class Patches:
    """Inputs (..., positions, C k k) of a convolution as a linear map on patches.

    Laid out, they take k k times the room of the maps; linear maps to few numbers can do
    without (see `project`).

    Attributes:
        maps: (..., side, side, C), channels last.
        size: k, height and width of the kernel, odd.
        stride: of the convolution.
    """

    maps: Tensor
    size: int
    stride: int = 1

    @property
    def shape(self) -> torch.Size:
        """Shape of the patches, laid out."""
        *lead, _, side, channels = self.maps.shape
        return torch.Size((*lead, self._side(side) ** 2, channels * self.size**2))

    def tensor(self) -> Tensor:
        """Return the patches laid out, a patch's channels slowest."""
        *lead, side, _, channels = self.maps.shape
        maps, edge = self.maps.reshape(-1, side, side, channels), self.size // 2
        maps = functional.pad(maps, (0, 0, edge, edge, edge, edge))
        for axis in (1, 2):
            maps = maps.unfold(axis, self.size, self.stride)
        return maps.reshape(*lead, -1, channels * self.size**2)

    def convolved(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return (..., positions, d_out) for a weight (d_out, C k k) and bias (d_out,)."""
        *lead, side, _, channels = self.maps.shape
        kernel = weight.view(-1, channels, self.size, self.size)
        maps = self.maps.reshape(-1, side, side, channels).permute(0, 3, 1, 2)
        out = functional.conv2d(maps, kernel, bias, self.stride, self.size // 2)
        return out.permute(0, 2, 3, 1).reshape(*lead, -1, len(weight))

    def backward(self, grad: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient on the maps for one on `convolved`, of as many numbers."""
        *_, side, channels = self.maps.shape
        new, kernel = self._side(side), weight.view(-1, channels, self.size, self.size)
        grad = grad.reshape(-1, new, new, len(weight)).permute(0, 3, 1, 2)
        shape = (len(grad), channels, side, side)
        found = conv2d_input(shape, kernel, grad, self.stride, self.size // 2)
        return cast(Tensor, found).permute(0, 2, 3, 1).reshape(self.maps.shape)

    def project(self, down: Tensor) -> Tensor:
        """Map the patches of n episodes to R numbers each.

        Every pixel is mapped once for all places of the kernel, and what belongs together is
        added up: no pixel is read k k times.

        Args:
            down: (n, R, C k k).

        Returns:
            (n, N positions, R) for maps (n, ..., side, side, C) with N images each.
        """
        n, rank, side = *down.shape[:2], self.maps.shape[-2]
        taps = torch.bmm(self._pixels(), self._by_tap(down))
        taps = taps.view(n, -1, side, side, self.size**2, rank)
        new = self._side(side)
        low = taps.new_zeros(n, taps.shape[1], new, new, rank)
        for tap, to, of in self._overlaps(side):
            low[to] += taps[(*of, tap)]
        return low.view(n, -1, rank)

    def gradients(
        self, grad: Tensor, down: Tensor, *, of_maps: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return what a gradient on `project`'s result comes to on `down` and on the maps.

        Args:
            grad: (n, N positions, R).
            down: (n, R, C k k).
            of_maps: whether the second is asked for.
        """
        n, rank, (side, channels) = *down.shape[:2], self.maps.shape[-2:]
        new, places = self._side(side), self.size**2
        grad = grad.view(n, -1, new, new, rank)
        taps = grad.new_zeros(n, grad.shape[1], side, side, places, rank)
        for tap, to, of in self._overlaps(side):
            taps[(*of, tap)] = grad[to]
        taps = taps.view(n, -1, places * rank)
        by_tap = torch.bmm(taps.mT, self._pixels())
        on_down = by_tap.view(n, places, rank, channels).permute(0, 2, 3, 1).reshape(down.shape)
        if not of_maps:
            return on_down, None
        return on_down, torch.bmm(taps, self._by_tap(down).mT).view_as(self.maps)

    def _pixels(self) -> Tensor:
        return self.maps.reshape(len(self.maps), -1, self.maps.shape[-1])

    def _by_tap(self, down: Tensor) -> Tensor:
        """Return factors as (n, C, k k R)."""
        n, rank, channels = *down.shape[:2], self.maps.shape[-1]
        return down.view(n, rank, channels, -1).permute(0, 2, 3, 1).reshape(n, channels, -1)

    def _side(self, side: int) -> int:
        return -(-side // self.stride)

    def _overlaps(self, side: int) -> Iterator[tuple[int, _Index, _Index]]:
        """Yield each place of the kernel, the results that it reaches, and their pixels.

        Both index maps (n, N, side, side, ...).
        """
        every, edge, step = slice(None), self.size // 2, self.stride
        spans = []
        for shift in range(-edge, edge + 1):
            # Result i sees pixel i step + shift.
            first = max(0, -(shift // step))
            last = max(first, min(self._side(side), (side - 1 - shift) // step + 1))
            start = first * step + shift
            spans.append((slice(first, last), slice(start, start + (last - first) * step, step)))
        for y, (to_y, of_y) in enumerate(spans):
            for x, (to_x, of_x) in enumerate(spans):
                place = y * self.size + x
                yield place, (every, every, to_y, to_x), (every, every, of_y, of_x)
