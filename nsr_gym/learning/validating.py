"""Accuracy on validation images: of the model whose test accuracy ends a visit's curve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nsr_gym.learning.run import Run

if TYPE_CHECKING:
    from nsr_gym.learning.adapters import Adapters
    from nsr_gym.learning.data import TaskData

FRONT = "validating"
"""Name of the run's options, and of what a visit carries for it."""


class ValidatingRun(Run):
    """Measures a visit's last model on validation images; stands in front of all modifiers.

    Where the visit's `extra` brings what `validated` returns, it receives the accuracies.
    """

    def result(self) -> Adapters:
        """Return what is stored of the visit, once it is over and measured."""
        visit = self.visit
        if FRONT in visit.extra:
            images = self.options[FRONT]["data"].validation(visit.tasks)
            rows = visit.rows if len(visit.rows) else None
            found = self.learner.accuracy(images, self.model(), visit.base, rows)
            visit.extra[FRONT].copy_(found)
        return super().result()


def validating(data: TaskData) -> dict[str, tuple[type[Run], dict[str, Any]]]:
    """Return what `make_learner` takes to have visits to a pool's tasks measured as well.

    Args:
        data: the tasks; where they have no validation images nothing is measured.
    """
    return {FRONT: (ValidatingRun, {"data": data})} if data.validated else {}


def validated(data: TaskData, n: int, device: torch.device) -> dict[str, Tensor]:
    """Return the `extra` of a visit of n episodes that is to be measured; empty where none can be.

    Args:
        data: the tasks.
        n: episodes.
        device: where the visit is.

    Returns:
        `FRONT` -> (n,) float64, which receives the accuracies when the visit is trained.
    """
    if not data.validated:
        return {}
    return {FRONT: torch.full((n,), torch.nan, dtype=torch.float64, device=device)}
