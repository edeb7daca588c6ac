"""A Gaussian for every weight: what is certain moves little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nsr_gym.learning.checks import check_count, check_positive
from nsr_gym.learning.data import Images
from nsr_gym.learning.modifier import Modifier
from nsr_gym.learning.run import Gradient
from nsr_gym.learning.visit import random_of

_PURPOSE = 0xBADA
"""Names the stream of random numbers among all that follow from an episode's key."""


class BAdam(Modifier):
    """BAdam (arXiv 2309.08546): Adam's steps on the means, scaled by the variances.

    Weights are mu + sigma e. With g = E[dL] and q = E[dL e] over `samples` draws of e:
    mu <- mu - eta sigma^2 m / (sqrt(v) + tiny), m and v Adam's corrected moments of g
    (0.9, 0.999), and, as in Bayesian Gradient Descent (arXiv 1803.10123),
    sigma <- sigma sqrt(1 + (sigma q / 2)^2) - sigma^2 q / 2. The paper's own text could not be
    read; the rule is that on which a third-party implementation and a summary agree. Not the
    block-coordinate optimiser of the same name.

    eta is the learning rate over `deviation` squared, so that a weight about which nothing is
    known moves as under Adam at the environment's learning rate. Every update costs `samples`
    passes. The means are what is measured and stored.

    A bank's entries are stored in canonical form, in which coordinates are not those of the
    training; deviations therefore start afresh at every visit, except where a learner keeps one
    adapter of its own and carries them from visit to visit (`visit.extra["deviations"]`, site ->
    (n, R, d_out) and (n, R, d_in), zero before the first visit).

    Options:
        deviation: sigma at the start.
        samples: draws for each update; 10 in the third-party implementation.
    """

    name: ClassVar[str] = "badam"
    defaults: ClassVar[Mapping[str, Any]] = {"deviation": 0.02, "samples": 10}

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Refuse options that are out of range.

        Raises:
            InvalidValueError: one is.
        """
        check_positive("the deviation of badam", options["deviation"])
        check_count("the samples of badam", options["samples"])

    def begin(self) -> None:
        """Make the leaves and the streams of the episodes' noise."""
        super().begin()
        self._streams = random_of(self.visit, _PURPOSE)

    def optimiser(self) -> _MeanSteps:
        """Return the optimiser of the means, and start their deviations."""
        initial = self.options["badam"]["deviation"]
        self.deviations = [torch.full_like(part, initial).detach() for part in self.leaves]
        carried = [part for pair in self._carried().values() for part in pair]
        for deviation, known in zip(self.deviations, carried, strict=False):
            deviation.copy_(torch.where(known > 0.0, known, deviation))
        rate = self.learner.config.learning_rate / initial**2
        return _MeanSteps(self.leaves, self.deviations, rate)

    def _carried(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        carried: Mapping[str, tuple[Tensor, Tensor]] = self.visit.extra.get("deviations", {})
        return carried

    def update(self, images: Images, gradient: Gradient) -> None:
        """Make one update of means and deviations on k images of each episode."""
        means = [part.detach().clone() for part in self.leaves]
        free, samples = self.free(), self.options["badam"]["samples"]
        slope = [torch.zeros_like(mean) for mean in means]
        bend = [torch.zeros_like(mean) for mean in means]
        for _ in range(samples):
            noise = [part * mask for part, mask in zip(self._noise(), free, strict=True)]
            self._set([m + s * e for m, s, e in zip(means, self.deviations, noise, strict=True)])
            found = self.gradients(images, gradient)
            for i, part in enumerate(found):
                slope[i].add_(part, alpha=1.0 / samples)
                bend[i].addcmul_(part, noise[i], value=1.0 / samples)
        self._set(means)
        self.step(slope)  # with the deviations that the noise had
        for deviation, q in zip(self.deviations, bend, strict=True):
            half = 0.5 * deviation * q
            deviation.mul_((1.0 + half.square()).sqrt() - half)

    def finish(self) -> None:
        """Hand the deviations on, where somebody keeps them."""
        super().finish()
        carried = [part for pair in self._carried().values() for part in pair]
        for deviation, kept in zip(self.deviations, carried, strict=False):
            kept.copy_(deviation)

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for part, value in zip(self.leaves, values, strict=True):
            part.copy_(value)

    def _noise(self) -> list[Tensor]:
        """Draw standard normal numbers of the leaves' shapes, each episode its own."""
        sizes = [part[0].numel() for part in self.leaves]
        drawn = np.empty((len(self._streams), sum(sizes)), dtype=np.float32)
        for row, stream in zip(drawn, self._streams, strict=True):
            stream.standard_normal(out=row, dtype=np.float32)
        parts = torch.from_numpy(drawn).to(self.leaves[0].device).split(sizes, dim=1)
        return [part.view_as(like) for part, like in zip(parts, self.leaves, strict=True)]


class _MeanSteps:
    """Adam's ratio scaled by the variances."""

    def __init__(self, leaves: Sequence[Tensor], deviations: Sequence[Tensor], rate: float) -> None:
        self._leaves, self._deviations, self._rate = list(leaves), deviations, rate
        self._first = [torch.zeros_like(part) for part in leaves]
        self._second = [torch.zeros_like(part) for part in leaves]
        self._steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Update the means by their gradients, in the same order."""
        self._steps += 1
        one, two = 1.0 - 0.9**self._steps, 1.0 - 0.999**self._steps
        for i, gradient in enumerate(gradients):
            self._first[i].lerp_(gradient, 0.1)
            self._second[i].lerp_(gradient.square(), 0.001)
            ratio = self._first[i] / one / ((self._second[i] / two).sqrt() + 1e-8)
            self._leaves[i].addcmul_(self._deviations[i].square(), ratio, value=-self._rate)
