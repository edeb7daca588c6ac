"""Images to pretrain on: their statistics, and batches of them with flips and crops."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

_EDGE = 4
"""Zero pixels around an image, of which a crop takes the size of the image."""


def channels(x: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel in [0, 1], to three digits."""
    # Integers of at most 255 squared: sums in 64 bits are exact.
    flat = x.reshape(-1, x.shape[-1])
    mean = flat.mean(axis=0, dtype=np.float64) / 255.0
    square = np.zeros(flat.shape[1])
    for part in np.array_split(flat, 1 + len(flat) // 1_000_000):
        square += (part.astype(np.float64) ** 2).sum(axis=0)
    std = np.sqrt(square / len(flat) / 255.0**2 - mean**2)
    return tuple(np.round(mean, 3).tolist()), tuple(np.round(std, 3).tolist())


def batches(
    x: Tensor, y: Tensor, size: int, rng: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch in random order: images flipped and moved by up to four pixels, labels.

    What is left over is not seen in this epoch.

    Args:
        x: (n, 3, H, W) uint8 on any device.
        y: (n,) int64 there.
        size: images of a batch.
        rng: a generator of the CPU, so that every device sees the same batches.

    Yields:
        ((size, 3, H, W) float32 in [0, 1], (size,) int64).
    """
    side, device = x.shape[-1], x.device
    order = torch.randperm(len(x), generator=rng)
    for chosen in order.split(size):
        if len(chosen) < size:
            return
        flip = torch.rand(size, generator=rng) < 0.5
        top, left = torch.randint(2 * _EDGE + 1, (2, size), generator=rng)
        along = torch.arange(side)
        columns = torch.where(flip[:, None], side - 1 - along, along) + left[:, None]
        rows = along + top[:, None]
        index = chosen.to(device)
        padded = functional.pad(x[index], (_EDGE,) * 4)
        image = torch.arange(size, device=device)[:, None, None, None]
        channel = torch.arange(x.shape[1], device=device)[None, :, None, None]
        crop = padded[
            image, channel, rows.to(device)[:, None, :, None], columns.to(device)[:, None, None, :]
        ]
        yield crop.float() / 255.0, y[index]
