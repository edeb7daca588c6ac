"""What a router sees of an input: features of the frozen backbone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.backbones.base import Backbone, FrozenMap
from nsr_gym.learning.data import Images, TaskData, frozen_features, pieces
from nsr_gym.learning.site_maps import CapturingMap

_LARGEST = 512
"""Training images of a task that a router learns an entry from, at most."""


class RouterFeatures:
    """Computes features for routers, and keeps those of the tasks' training images.

    `"lower"`: what enters the first adapted site, averaged over tokens, as Any-SSR (arXiv
    2503.13575) takes the states after the frozen lower layers. `"final"`: the frozen features.
    `"layers"`: what enters every site and the final features, side by side, each L2-normalised and
    weighted by one minus its redundancy with the layer before (the kernel of SHERL, arXiv
    2407.07523, which fuses layers with less weight on those that resemble others). SHERL takes
    cosines of layers of one width; ours differ in width, so that redundancy is their linear
    centred kernel alignment on images of the pool's first task.

    Attributes:
        dim: d, length of a feature.
        size: k, training images of a task that stand for it.
    """

    def __init__(self, data: TaskData, backbone: Backbone, kind: str) -> None:
        """Prepare for a pool.

        Args:
            data: the tasks.
            backbone: the frozen network.
            kind: `"lower"`, `"final"` or `"layers"`.
        """
        self._data, self._backbone, self._kind = data, backbone, kind
        self.size = min(_LARGEST, int(data.train_sizes.min()))
        self._known: dict[int, Tensor] = {}
        self._weights: list[float] = []
        first = self._images(0)
        if kind == "layers":
            layers = [part[0] for part in self._layers(first)]
            self._weights = [1.0] + [1.0 - _alignment(a, b) for a, b in pairwise(layers)]
        self.dim = int(self(first).shape[-1])

    @torch.no_grad()
    def __call__(self, images: Images) -> Tensor:
        """Return features (n, k, d) of k images of each of n episodes."""
        if self._kind == "lower":
            return _pooled(images.prefix[0])
        if self._kind == "final":
            return frozen_features(self._backbone, images)
        parts = zip(self._weights, self._layers(images), strict=True)
        return torch.cat(
            [weight * functional.normalize(part, dim=-1) for weight, part in parts], -1
        )

    def of_tasks(self, tasks: Tensor) -> Tensor:
        """Return features (n, k, d) of the first k training images of tasks (n,)."""
        for task in torch.unique(tasks).tolist():
            if task not in self._known:
                self._known[task] = self(self._images(task))[0]
        return torch.stack([self._known[task] for task in tasks.tolist()])

    @torch.no_grad()
    def inputs(self, images: Images) -> Mapping[str, Tensor]:
        """Return what enters every site of the frozen backbone, site -> (n, k, d_in)."""
        n, found = len(images.labels), []
        for some in pieces(images):
            capture = CapturingMap(FrozenMap(self._backbone))
            self._backbone.forward(some.prefix, capture)
            k = some.labels.shape[1]
            found.append(
                {site: _pooled(x.view(n, k, -1, x.shape[-1])) for site, x in capture.inputs.items()}
            )
        return {site: torch.cat([part[site] for part in found], dim=1) for site in found[0]}

    def _images(self, task: int) -> Images:
        device = self._backbone.device
        return self._data.train(
            torch.tensor([task], device=device), torch.arange(self.size, device=device)[None]
        )

    def _layers(self, images: Images) -> list[Tensor]:
        final = frozen_features(self._backbone, images)
        return [*self.inputs(images).values(), final]


def _pooled(x: Tensor) -> Tensor:
    """Average (n, k, ..., d) over everything between images and channels."""
    return x if x.ndim == 3 else x.flatten(2, -2).mean(dim=2)


def _alignment(a: Tensor, b: Tensor) -> float:
    """Return the linear centred kernel alignment of features (k, d) and (k, e), in [0, 1]."""
    a, b = a.double() - a.double().mean(0), b.double() - b.double().mean(0)
    cross = (a.mT @ b).square().sum()
    size = (a.mT @ a).norm() * (b.mT @ b).norm()
    return float((cross / size.clamp(min=torch.finfo(torch.float64).tiny)).clamp(0.0, 1.0))
