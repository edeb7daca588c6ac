"""Adam for leaves of many episodes, without what an optimiser object costs at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam


class Optimiser(Protocol):
    """Changes leaves by their gradients, in place."""

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Update the leaves by their gradients, in the same order."""
        ...


class Adam:
    """Adam (Kingma and Ba, 2015) on leaves with a leading episode dimension.

    For a few episodes `torch.optim.Adam` spends more time on bookkeeping than on the update.
    """

    def __init__(self, leaves: Sequence[Tensor], learning_rate: float) -> None:
        """Start afresh, with moments of zero.

        Args:
            leaves: the tensors to update in place.
            learning_rate: of all of them.
        """
        self._leaves, self._learning_rate = list(leaves), learning_rate
        self._first = [torch.zeros_like(leaf) for leaf in leaves]
        self._second = [torch.zeros_like(leaf) for leaf in leaves]
        self._steps = [torch.zeros((), device=leaf.device) for leaf in leaves]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Update the leaves by their gradients, in the same order."""
        adam(
            self._leaves, list(gradients), self._first, self._second, [], self._steps,
            fused=True, amsgrad=False, beta1=0.9, beta2=0.999, lr=self._learning_rate,
            weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip
