"""The augmented triplet loss of LoRA-DRS, for n episodes side by side."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.learning.prototypes import Known


def augmented_triplet(
    features: Tensor, labels: Tensor, margin: float, known: Known | None = None
) -> Tensor:
    """Return the mean over images of max(0, d_ap - d_an + margin), (n,).

    LoRA-DRS (arXiv 2503.18985): on unit vectors, d_ap is the largest distance of an image to one of
    its class in the batch (itself included, so 0 where it is alone), and d_an the smallest to
    one of another class in the batch or to a prototype of an earlier task. Where there is
    neither, the image adds nothing (the released code puts d_ap + margin in place of d_an).

    A prototype of the image's own class does not count: in the paper's streams every class
    belongs to one task, so there is none; in ours tasks may share classes, and images would be
    pushed away from their own class.

    Distances are at most 2, so that a margin of 2 keeps every image active.

    Args:
        features: (n, k, d), of any length above 0.
        labels: (n, k) int64.
        margin: above 0.
        known: prototypes of earlier tasks; None: there are none.
    """
    unit = functional.normalize(features, dim=-1)
    apart = _distances(unit, unit)
    same = labels[:, :, None] == labels[:, None, :]
    positive = apart.masked_fill(~same, -torch.inf).amax(dim=2)
    negative = apart.masked_fill(same, torch.inf).amin(dim=2)
    if known is not None and known.values.shape[1] > 0:
        to_known = _distances(unit, functional.normalize(known.values.to(unit), dim=-1))
        usable = known.valid[:, None, :] & (known.classes[:, None, :] != labels[:, :, None])
        nearest = to_known.masked_fill(~usable, torch.inf).amin(dim=2)
        negative = torch.minimum(negative, nearest)
    # An infinite distance, where there is nothing to keep away from, adds 0 and no gradient.
    return functional.relu(positive - negative + margin).mean(dim=1)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # From differences: the expansion through inner products loses small distances to rounding,
    # and differently for different numbers of episodes. The gradient at distance 0 is 0.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
