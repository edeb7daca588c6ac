"""The tasks of a pool, prepared for a backbone: frozen work is done once per data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.backbones.base import Backbone, FrozenMap, Prefix
from nsr_gym.datasets.image_tasks import ImageTask
from nsr_gym.errors import InvalidValueError, StateError
from nsr_gym.learning.prefixes import PiecewisePrefixes, Prefixes, Source, StackedPrefixes, source

if TYPE_CHECKING:
    from nsr_gym.datasets.cache import FeatureCache
    from nsr_gym.tasks import TaskPool


@dataclass(frozen=True)
class Images:
    """Images of n episodes, ready for the backbone.

    Attributes:
        prefix: the backbone's prefix, every part (n, k, ...).
        labels: (n, k) int64.
        valid: (n, k) bool; False marks padding where tasks differ in size. None: all valid.
    """

    prefix: Prefix
    labels: Tensor
    valid: Tensor | None = None

    def __getitem__(self, rows: slice) -> Images:
        """Return the images of some episodes (a view)."""
        valid = None if self.valid is None else self.valid[rows]
        return Images(tuple(part[rows] for part in self.prefix), self.labels[rows], valid)

    def part(self, images: slice) -> Images:
        """Return some images of every episode (a view)."""
        valid = None if self.valid is None else self.valid[:, images]
        return Images(tuple(p[:, images] for p in self.prefix), self.labels[:, images], valid)

    def take(self, rows: Tensor) -> Images:
        """Return the images of some episodes (a copy)."""
        valid = None if self.valid is None else self.valid[rows]
        return Images(tuple(part[rows] for part in self.prefix), self.labels[rows], valid)


_PREFIX_BYTES = 1 << 27
"""Of the prefixes of images that are evaluated at once; what a network makes of them on the way
is a few times as large."""


def pieces(images: Images) -> Iterator[Images]:
    """Yield the images of every episode in pieces that are small enough to be evaluated at once.

    Small data is one piece; a thousand images of ViT-B/16's size would be gigabytes.
    """
    n, k = images.labels.shape
    numbers = sum(part[0, 0].numel() * part.element_size() for part in images.prefix)
    size = max(1, _PREFIX_BYTES // max(1, n * numbers))
    for first in range(0, k, size):
        yield images if size >= k else images.part(slice(first, first + size))


def frozen_features(backbone: Backbone, images: Images) -> Tensor:
    """Return the features (n, k, feature_dim) that images have without an adapter."""
    frozen = FrozenMap(backbone)
    return torch.cat([backbone.forward(some.prefix, frozen) for some in pieces(images)], dim=1)


class _Part:
    """One part of every task's images, filled on first use."""

    def __init__(self, sizes: list[int], prefixes: Prefixes, device: torch.device) -> None:
        self.sizes = np.array(sizes)
        self._prefixes = prefixes
        self._labels = torch.zeros(len(sizes), max(sizes), dtype=torch.int64, device=device)

    def fill(self, task: int, images: Source, labels: Tensor) -> None:
        self._prefixes.fill(task, images)
        self._labels[task, : len(labels)] = labels

    def some(self, tasks: Tensor, index: Tensor) -> Images:
        chosen = tasks if tasks.ndim == 2 else tasks[:, None]
        rows = chosen * self._labels.shape[1] + index
        labels = self._labels.flatten().index_select(0, rows.reshape(-1)).unflatten(0, rows.shape)
        return Images(self._prefixes.rows(chosen, index), labels)

    def all(self, tasks: Tensor) -> Images:
        sizes = self.sizes[tasks.cpu().numpy()]
        width, valid = int(sizes.max()), None
        if sizes.min() != width:
            order = torch.arange(width, device=tasks.device)
            valid = order < torch.from_numpy(sizes).to(tasks.device)[:, None]
        labels = self._labels[:, :width][tasks]
        return Images(self._prefixes.whole(tasks, width), labels, valid)


class TaskData:
    """A pool's tasks behind a backbone's frozen prefix.

    Attributes:
        pool: the tasks.
        train_sizes: training images of each task, (tasks,) int64 NumPy array.
    """

    def __init__(
        self,
        pool: TaskPool,
        backbone: Backbone,
        *,
        own_heads: bool = False,
        cache: FeatureCache | None = None,
        prefix_dtype: str = "float32",
    ) -> None:
        """Prepare for lazy filling; no task is computed before it is asked for.

        Tasks of arrays are kept in memory as they are. Images that are made when they are read
        (`ImageTask`), and whatever a cache is given for, are prepared and kept in pieces.

        Args:
            pool: the tasks.
            backbone: the frozen network.
            own_heads: whether tasks bring heads of their own, so that the backbone's classes do
                not matter.
            cache: where prefixes are kept on disk; None: in memory.
            prefix_dtype: how pieces are kept: `"float32"`, or `"float16"` for half the room,
                rounded to 11 bits.

        Raises:
            InvalidValueError: the pool's images or classes do not fit the backbone.
            UnknownNameError: no such type.
        """
        if pool.input_shape != backbone.input_shape:
            raise InvalidValueError(
                f"Expected images of shape {backbone.input_shape} for this backbone; the pool "
                f"{pool.name!r} has {pool.input_shape}. Reshape the images or take a backbone "
                "made for them."
            )
        if not own_heads and pool.num_classes > backbone.num_classes:
            raise InvalidValueError(
                f"Expected at most {backbone.num_classes} classes, the outputs of the backbone's "
                f"head; the pool {pool.name!r} has {pool.num_classes}."
            )
        self.pool, self._backbone = pool, backbone
        self.train_sizes = np.array([len(task.y_train) for task in pool.tasks])
        pieces = cache is not None or any(isinstance(task, ImageTask) for task in pool.tasks)

        def made(part: str) -> _Part:
            sizes = [len(getattr(task, f"y_{part}")) for task in pool.tasks]
            kept: Prefixes = StackedPrefixes(backbone, len(sizes), max(sizes))
            if pieces:
                kept = PiecewisePrefixes(backbone, len(sizes), cache=cache, dtype=prefix_dtype)
            return _Part(sizes, kept, backbone.device)

        self._parts = {part: made(part) for part in pool.tasks[0].parts}
        self._filled = np.zeros(len(pool.tasks), dtype=bool)

    def train(self, tasks: Tensor, index: Tensor) -> Images:
        """Return training images by image index (n, k) and task, (n,) or (n, k)."""
        self.fill(tasks)
        return self._parts["train"].some(tasks, index)

    def test(self, tasks: Tensor) -> Images:
        """Return all test images of tasks (n,)."""
        self.fill(tasks)
        return self._parts["test"].all(tasks)

    @property
    def validated(self) -> bool:
        """Whether the pool has validation images."""
        return self.pool.validated

    def validation(self, tasks: Tensor) -> Images:
        """Return all validation images of tasks (n,).

        Raises:
            StateError: the pool has none.
        """
        if not self.validated:
            raise StateError(
                f"The pool {self.pool.name!r} has no validation images; ask `validated` first, or "
                "give its tasks `x_val` and `y_val`."
            )
        self.fill(tasks)
        return self._parts["val"].all(tasks)

    def fill(self, tasks: Tensor) -> None:
        """Prepare tasks (n,) now, so that threads find them ready.

        Raises:
            DataError: the cache's folder cannot be written to.
        """
        wanted = np.unique(tasks.cpu().numpy())
        for task in wanted[~self._filled[wanted]]:
            self._fill_one(int(task))
            self._filled[task] = True

    @torch.no_grad()
    def _fill_one(self, task: int) -> None:
        whole, device = self.pool.tasks[task], self._backbone.device
        for name, part in self._parts.items():
            labels = torch.tensor(getattr(whole, f"y_{name}"), device=device)
            part.fill(task, source(whole, name), labels)

    @torch.no_grad()
    def embed(self, images: Images) -> np.ndarray:
        """Embed n sets of support images.

        The mean of the images' L2-normalised frozen features, L2-normalised again
        (DESIGN section 5; NSR, arXiv 2606.30067, recalls by embedding similarity).

        Args:
            images: k support images of each of n tasks.

        Returns:
            (n, feature_dim) float32 array of unit vectors.
        """
        features = frozen_features(self._backbone, images)
        mean = functional.normalize(features, dim=-1).mean(dim=1)
        return np.asarray(functional.normalize(mean, dim=-1).cpu().numpy())
