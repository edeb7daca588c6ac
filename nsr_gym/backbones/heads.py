"""The frozen linear head of an image backbone, which may be missing or replaced."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.backbones.weight_files import fingerprint
from nsr_gym.errors import InvalidValueError, StateError


class Head:
    """What backbones with tensors `head.weight` and `head.bias` share."""

    feature_dim: int
    num_classes: int
    fingerprint: str
    device: torch.device
    _weights: dict[str, Tensor]

    def head(self, features: Tensor) -> Tensor:
        """Return logits (..., num_classes) from features.

        Raises:
            StateError: the backbone has no head.
        """
        if not self.num_classes:
            raise StateError(
                "This backbone has no head; put one on with `with_head(weight, bias)`, or use "
                "the features."
            )
        return functional.linear(features, self._weights["head.weight"], self._weights["head.bias"])

    def with_head(self, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Return the same backbone (sharing its tensors) with another head.

        Its fingerprint is another as well: results on one head mean nothing to the other.

        Args:
            weight: (num_classes, feature_dim).
            bias: (num_classes,); None: zero.

        Raises:
            InvalidValueError: the shapes do not fit.
        """
        bias = torch.zeros(len(weight)) if bias is None else bias
        if (
            weight.ndim != 2
            or weight.shape[1] != self.feature_dim
            or bias.shape != weight.shape[:1]
        ):
            raise InvalidValueError(
                f"Expected a head's weight of shape (classes, {self.feature_dim}) and a bias of as "
                f"many classes; got {tuple(weight.shape)} and {tuple(bias.shape)}."
            )
        head = {
            name: part.detach().to(self.device, torch.float32)
            for name, part in (("head.weight", weight), ("head.bias", bias))
        }
        other = copy.copy(self)
        other._weights = self._weights | head
        other.num_classes = len(weight)
        other.fingerprint = fingerprint(head, body=self.fingerprint)
        return other
