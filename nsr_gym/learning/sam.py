"""Gradients at the worst point nearby."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from nsr_gym.learning.checks import check_amount
from nsr_gym.learning.data import Images
from nsr_gym.learning.modifier import Modifier
from nsr_gym.learning.run import Gradient


class SharpnessAware(Modifier):
    """Sharpness-aware minimisation: steps by the gradient at w + radius g / |g|_2.

    Foret et al. (2021, arXiv 2010.01412); RCL (arXiv 2405.17054) makes gradient-projection
    continual learning robust with it, at a radius of 0.05. The norm is that of all of an
    episode's trained numbers together, so that the perturbation has length `radius` for each
    episode. It costs a second pass. RCL also perturbs the ratios of mixup and, once, the initial
    weights; neither is here: a backbone's prefix cannot be mixed in general, and the initial
    weights are frozen.

    Options:
        radius: length of the perturbation; 0 trains as without it.
    """

    name: ClassVar[str] = "sam"
    defaults: ClassVar[Mapping[str, Any]] = {"radius": 0.05}

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Refuse options that are out of range.

        Raises:
            InvalidValueError: one is.
        """
        check_amount("the radius of sam", options["radius"])

    def gradients(self, images: Images, gradient: Gradient) -> list[Tensor]:
        """Return the gradients of the leaves where the loss is worst nearby."""
        found = super().gradients(images, gradient)
        kept = [part.detach().clone() for part in self.leaves]
        with torch.no_grad():
            found = [part * free for part, free in zip(found, self.free(), strict=True)]
            squares = torch.stack([part.flatten(1).square().sum(1) for part in found])
            size = squares.sum(0).sqrt()
            scale = self.options["sam"]["radius"] / size.clamp(min=torch.finfo(size.dtype).tiny)
            for part, ascent in zip(self.leaves, found, strict=True):
                part.add_(ascent * scale.view(-1, *(1,) * (part.ndim - 1)))
        worst = super().gradients(images, gradient)
        with torch.no_grad():
            for part, value in zip(self.leaves, kept, strict=True):
                part.copy_(value)
        return worst
