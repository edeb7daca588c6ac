"""O-LoRA: a new adapter is kept orthogonal to those before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from nsr_gym.learning.checks import check_amount
from nsr_gym.learning.data import Images
from nsr_gym.learning.learner import LoRALearner
from nsr_gym.learning.modifier import both
from nsr_gym.learning.run import Run


class OLoRARun(Run):
    """Training with a penalty on the overlap with other entries' down factors."""

    def extra_loss(self, features: Tensor, images: Images) -> Tensor | None:
        """Return lambda1 times the overlap, summed over episodes."""
        others, weight = self.visit.others, self.learner.options["lambda1"]
        found = super().extra_loss(features, images)
        if others is None or not weight:
            return found
        rank = self.visit.start.rank
        own = {site: down[:, -rank:] for site, (_, down) in self.factors().items()}
        kept = {site: down for site, (_, down) in others.items()}
        return both(weight * overlap(kept, own).sum(), found)


class OLoRALearner(LoRALearner):
    """O-LoRA (Wang et al., 2023, arXiv 2310.14152).

    The model is W0 + sum_j B_j A_j over all entries of an additive bank. The entry of the visit is
    trained with the others frozen below it, and lambda1 sum_{j<t} sum |A_j A_t^T| added to the
    loss, sum over the elements of the R x R matrix and over sites, so that it learns in other
    directions of the input.

    Entries are stored in canonical form: A_j = sqrt(S) V^T. It spans what the trained factor
    spanned, and weighs its directions by how much the entry uses them, where the released code
    takes the factor as it was trained. The released code's second penalty, on the factors' norms,
    is off by default there and is not here.

    Options:
        lambda1: weight of the overlap; 0 trains plain LoRA on the sum of the others.
    """

    name: ClassVar[str] = "olora"
    sums: ClassVar[bool] = True
    run_class: ClassVar[type[Run]] = OLoRARun
    defaults: ClassVar[Mapping[str, Any]] = {"lambda1": 0.5}

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take what `LoRALearner` takes.

        Raises:
            InvalidValueError: `lambda1` is not a finite number of at least 0.
        """
        super().__init__(*args, **options)
        check_amount("lambda1 of olora", self.options["lambda1"])


def overlap(kept: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Tensor:
    """Return sum |A_j A_t^T| of every episode, over entries, directions and sites, (n,).

    Args:
        kept: site -> (n, K, R, d_in), down factors of other entries, zero where there is none.
        own: site -> (n, r, d_in), those of the entry that is trained.
    """
    products = [torch.bmm(kept[site].flatten(1, 2), down.mT) for site, down in own.items()]
    return torch.stack([product.abs().sum((1, 2)) for product in products]).sum(0)
