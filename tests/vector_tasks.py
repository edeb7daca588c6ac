"""Tasks on vectors, and a network for them, as a user brings them."""

from __future__ import annotations

import numpy as np

from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.backbones.pretrain import Recipe, pretrain_mlp


def arrays(seed: int) -> tuple[np.ndarray, ...]:
    """Make one task: a linear labelling of vectors of 12 numbers by 4 classes."""
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(150, 12)).astype(np.float32), rng.normal(size=(12, 4))
    y = (x @ w).argmax(axis=1)
    return x[:100], y[:100], x[100:], y[100:]


def small_backbone() -> MLPBackbone:
    """Pretrain a network on a task of its own."""
    x, y, *_ = arrays(99)
    return pretrain_mlp(x, y, num_classes=4, recipe=Recipe(widths=(16, 8), epochs=2))
