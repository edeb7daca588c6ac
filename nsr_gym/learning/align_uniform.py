"""Features of one class close together, all features spread over the sphere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.learning.checks import check_amount
from nsr_gym.learning.data import Images
from nsr_gym.learning.modifier import Modifier, both


class AlignUniform(Modifier):
    """Adds an alignment and a uniformity loss on the features (RCL, arXiv 2405.17054).

    On features scaled to unit length, with d the distance of two of them: alignment is the mean
    of d^2 over pairs that belong together, uniformity the logarithm of the mean of exp(-2 d^2)
    over all pairs (Wang and Isola, 2020). In RCL two augmented views of an image belong together.
    A backbone's prefix lies inside the network and cannot be augmented, so here two images of one
    class in the batch do.

    Options:
        align: weight of the alignment.
        uniform: weight of the uniformity.
    """

    name: ClassVar[str] = "align_uniform"
    defaults: ClassVar[Mapping[str, Any]] = {"align": 0.1, "uniform": 0.1}

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Refuse options that are out of range.

        Raises:
            InvalidValueError: one is.
        """
        for name in cls.defaults:
            check_amount(f"the option {name} of align_uniform", options[name])

    def extra_loss(self, features: Tensor, images: Images) -> Tensor | None:
        """Return both losses, weighted and summed over episodes, beside what others add."""
        align, uniform = align_uniform(features, images.labels)
        weights = self.options["align_uniform"]
        mine = weights["align"] * align + weights["uniform"] * uniform
        return both(mine.sum(), super().extra_loss(features, images))


def align_uniform(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return alignment and uniformity of every episode.

    Args:
        features: (n, k, d), of any length.
        labels: (n, k), the class of each.

    Returns:
        (n,) each; an alignment of 0 where no two images share a class, and a uniformity of 0
        where there is only one image.
    """
    unit = functional.normalize(features, dim=-1)
    k = unit.shape[1]
    distances = (2.0 - 2.0 * torch.bmm(unit, unit.mT)).clamp(min=0.0)
    pairs = torch.ones(k, k, dtype=torch.bool, device=unit.device).triu(1)
    same = (labels[:, :, None] == labels[:, None, :]) & pairs
    align = (distances * same).sum((1, 2)) / same.sum((1, 2)).clamp(min=1)
    if k == 1:
        return align, torch.zeros_like(align)
    spread = torch.logsumexp(-2.0 * distances[:, pairs], dim=1)
    return align, spread - math.log(k * (k - 1) // 2)
