"""An average over the course of a visit takes the place of its last weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from nsr_gym.learning.checks import check_share
from nsr_gym.learning.modifier import Modifier


class EMAMerge(Modifier):
    """The moving average of Large Continual Instruction Assistant (arXiv 2410.10868, ICML 2025).

    After each step, theta* <- (1 - a) theta* + a theta, with a weight that follows from a
    second-order Taylor argument, in the released code for every tensor
    a = 2 (1 + |g_t|_1) / (|theta_t - theta*|_1 |g_t - g_{t-1}|_1), replaced by 0.01 where it is
    not inside (0, 1). The average replaces the weights when the visit is over.

    A tensor is one leaf of one episode here, and theta_t the weights after the step of g_t. The
    average starts at the visit's own start, which after a recall is the recalled entry; theirs
    starts at the adapter of the task before. At the first step there is no earlier gradient, and
    a is the replacement. It averages factors, as theirs does, not their products.

    Options:
        weight: a for all steps, in (0, 1]; None: the rule.
        fallback: what a is where the rule gives none in (0, 1).
    """

    name: ClassVar[str] = "ema_merge"
    defaults: ClassVar[Mapping[str, Any]] = {"weight": None, "fallback": 0.01}

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Refuse options that are out of range.

        Raises:
            InvalidValueError: one is.
        """
        if options["weight"] is not None:
            check_share("the weight of ema_merge", options["weight"])
        check_share("the fallback of ema_merge", options["fallback"])

    def begin(self) -> None:
        """Make the leaves; the average starts at the first step, when all of them are there."""
        super().begin()
        self._average: list[Tensor] = []
        self._before: list[Tensor] = []

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Change the leaves, and move the average towards them."""
        if not self._average:
            self._average = [part.detach().clone() for part in self.leaves]
        super().step(gradients)
        for i, (part, average) in enumerate(zip(self.leaves, self._average, strict=True)):
            weight = self._weight(part, average, gradients[i], self._before[i : i + 1])
            # Linear interpolation keeps what does not change to the last bit.
            average.lerp_(part, weight.view(-1, *(1,) * (part.ndim - 1)))
        self._before = list(gradients)

    def _weight(
        self, part: Tensor, average: Tensor, gradient: Tensor, before: Sequence[Tensor]
    ) -> Tensor:
        """Return a of every episode, (n,)."""
        chosen, fallback = (self.options["ema_merge"][name] for name in ("weight", "fallback"))
        if chosen is not None or not before:
            return part.new_full((len(part),), fallback if chosen is None else chosen)
        moved, turned = _size(part - average), _size(gradient - before[0])
        weight = 2.0 * (1.0 + _size(gradient)) / (moved * turned)
        return torch.where((weight > 0.0) & (weight < 1.0), weight, fallback)

    @torch.no_grad()
    def finish(self) -> None:
        """Put the average in the place of the weights."""
        for part, average in zip(self.leaves, self._average, strict=True):
            part.copy_(average)
        super().finish()


def _size(part: Tensor) -> Tensor:
    """Return the sum of magnitudes of every episode, (n,)."""
    return part.flatten(1).abs().sum(1)
