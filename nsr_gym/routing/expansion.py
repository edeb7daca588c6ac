"""A fixed random expansion of features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nsr_gym.routing.arrays import check_count, unit


class RandomExpansion:
    """A fixed random map of features, `ReLU(z Phi)` with Gaussian `Phi` (d, width).

    Departs from the released code of ASR, which leaves the nonlinearity out: a linear expansion
    has rank at most d however wide it is, so it is only another regulariser of a ridge on z.
    `relu=False` keeps it as an ablation. Features are brought to length 1 first (`normalise`), so
    that a regulariser means the same for every backbone; the released code does not.

    Args:
        feature_dim: d.
        width: number of outputs.
        relu: whether to cut off at zero.
        normalise: whether to bring every feature vector to length 1 first.
        seed: of Phi.
        device: a torch device.

    Raises:
        InvalidValueError: a size below 1.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        width: int,
        relu: bool = True,
        normalise: bool = True,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        check_count("feature_dim", feature_dim)
        check_count("width", width)
        drawn = np.random.default_rng(seed).standard_normal((feature_dim, width))
        self._phi = torch.from_numpy(drawn).to(device)
        self._relu, self._normalise = relu, normalise

    def __call__(self, features: Tensor) -> Tensor:
        """Return (..., width) float64 of features (..., d)."""
        z = features.to(self._phi.device, torch.float64)
        x = (unit(z) if self._normalise else z) @ self._phi
        return x.relu() if self._relu else x
