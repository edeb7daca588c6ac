"""The kernel of DualLoRA: one branch away from old tasks' inputs, one among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from nsr_gym.learning.checks import check_fraction
from nsr_gym.learning.inflora import InfLoRALearner, first_rows
from nsr_gym.learning.learner import LearnerConfig

if TYPE_CHECKING:
    from nsr_gym.backbones.base import Backbone


class DualLearner(InfLoRALearner):
    """Kernel of DualLoRA (arXiv 2411.00623): a stable and a plastic branch in one adapter.

    Of the r directions that a visit designs at a site, r - t are InfLoRA's, outside the
    protected space, and t form the task basis R_t: the leading left singular vectors of P C,
    what the new task uses of the protected space. With p = dim P and f = d - p, t is
    `task_share` of r rounded down, at most p, and more where r - t would be above f. So where
    InfLoRA has to deny directions, here they go to the plastic branch.

    The outputs for protected inputs that are orthogonal to R_t stay as they are.

    Departures: the paper scales the plastic branch for every input by its similarity to the
    stored bases. Here an entry is one adapter and its model a plain sum; the router `energy`,
    which weighs whole entries by the same projection energies, is the part of the suite that
    does this, on a bank of separate entries. There is no released code to compare with; the
    description followed is that of the abstract and of secondary notes.
    """

    name: ClassVar[str] = "dual"
    defaults: ClassVar[Mapping[str, Any]] = {**InfLoRALearner.defaults, "task_share": 0.5}

    def __init__(self, backbone: Backbone, config: LearnerConfig, **options: Any) -> None:
        """Prepare for episodes.

        Args:
            backbone: the frozen network.
            config: how a visit trains.
            **options: those of `InfLoRALearner`; `task_share`, from 0 to 1, of a visit's
                directions for the plastic branch.

        Raises:
            UnknownNameError: an unknown option or convention.
            InvalidValueError: an option out of range.
        """
        super().__init__(backbone, config, **options)
        self._share = check_fraction("task_share", self.options["task_share"])

    def design(
        self, site: str, covariance: Tensor, rows: Tensor, wanted: Tensor, width: int
    ) -> Tensor:
        """Return first the stable and then the plastic directions; as in `InfLoRALearner`."""
        memory = self.memories[site]
        free = memory.free_dimension(rows)
        protected = memory.dimension - free
        plastic = torch.minimum((wanted * self._share).floor().long(), protected)
        stable = torch.minimum(wanted - plastic, free)
        plastic = torch.minimum(wanted - stable, protected)
        outside = first_rows(memory.design(covariance, rows, width), stable)
        inside = memory.design(covariance, rows, width, inside=True)
        # Row j is the plastic direction j - stable, from there on.
        order = torch.arange(width, device=inside.device) - stable[:, None]
        shifted = inside.gather(1, order.clamp(min=0)[:, :, None].expand_as(inside))
        shifted = first_rows(shifted, stable + plastic)
        return torch.where((order >= 0)[:, :, None], shifted, outside)
