"""What a visit's training images look like at the sites: covariances of their inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nsr_gym.learning.adapters import Adapters, Deltas
from nsr_gym.learning.data import Images, TaskData
from nsr_gym.learning.measuring import Measuring
from nsr_gym.learning.site_maps import CapturingMap
from nsr_gym.learning.visit import Visit


@dataclass(frozen=True)
class Seen:
    """The distinct training images of a visit.

    Attributes:
        images: k images of each of n episodes, in the order in which training meets them.
        weights: (n, k) float64, 1 for an image and 0 for padding where an episode has fewer.
    """

    images: Images
    weights: Tensor


def seen(data: TaskData, visit: Visit, samples: int) -> Seen:
    """Gather the images that stand for the new task's training set.

    The papers pass over the whole training set; a visit owns no more of it than the images of
    its own updates, so those are taken.

    Args:
        data: the prepared tasks.
        visit: the visit.
        samples: how many of its distinct images to take at most, the first ones that it meets.
    """
    index = visit.batches.flatten(1)
    tasks = visit.tasks[:, None].expand_as(index)
    if visit.batch_tasks is not None:
        tasks = visit.batch_tasks.flatten(1)
    # One number for an image of a task, so that equal numbers are the same image.
    number = tasks * int(data.train_sizes.max()) + index
    values, order = number.sort(dim=1, stable=True)
    repeated = torch.zeros_like(values, dtype=torch.bool)
    repeated[:, 1:] = values[:, 1:] == values[:, :-1]
    # Back in the order of training; the stable sort marked all but the first of equal numbers.
    repeated = torch.zeros_like(repeated).scatter_(1, order, repeated)
    first = repeated.int().sort(dim=1, stable=True).indices[:, :samples]
    images = data.train(tasks.gather(1, first), index.gather(1, first))
    return Seen(images, (~repeated.gather(1, first)).double())


@torch.no_grad()
def covariances(
    learner: Measuring, known: Seen, adapters: Adapters | None, base: Deltas | None
) -> dict[str, Tensor]:
    """Return C = (1/m) sum x x^T of what enters every site, site -> (n, d_in, d_in) float64.

    Not centred, as in InfLoRA (arXiv 2404.00228) and LoRA-DRS: a gradient of the weights is a
    sum of products with the inputs themselves. The network runs in its own precision, the sum
    in double precision. Of an episode that is not finite, C is zero.

    Args:
        learner: whose backbone is used.
        known: the images; m is the number of tokens of those that are no padding.
        adapters: as in `Measuring`.
        base: as in `Measuring`.
    """
    parts: dict[str, list[Tensor]] = {site.name: [] for site in learner.backbone.sites}
    for rows, site_map in learner.maps(adapters, base, *known.images.labels.shape):
        capture = CapturingMap(site_map)
        learner.backbone.forward(known.images[rows].prefix, capture)
        weights = known.weights[rows]
        for site, inputs in capture.inputs.items():
            x = inputs.double()
            tokens = x.shape[1] // weights.shape[1]
            weight = weights.repeat_interleave(tokens, dim=1)
            total = torch.bmm((x * weight[:, :, None]).mT, x)
            mean = total / weight.sum(dim=1)[:, None, None]
            finite = mean.isfinite().all(dim=2).all(dim=1)
            parts[site].append(mean.masked_fill(~finite[:, None, None], 0.0))
    return {site: torch.cat(found) for site, found in parts.items()}
