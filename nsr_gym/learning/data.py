"""The tasks of a pool, prepared for a backbone: frozen work is done once per data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.backbones.base import Backbone, FrozenMap, Prefix
from nsr_gym.errors import InvalidValueError

if TYPE_CHECKING:
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


class _Part:
    """The training or the test images of every task, stacked and filled on first use."""

    def __init__(self, sizes: list[int], device: torch.device) -> None:
        self.sizes = torch.tensor(sizes, device=device)
        self.width = max(sizes)
        self.ragged = min(sizes) != self.width
        self.prefix: Prefix | None = None
        self.labels = torch.zeros(len(sizes), self.width, dtype=torch.int64, device=device)

    def fill(self, task: int, prefix: Prefix, labels: Tensor) -> None:
        if self.prefix is None:
            self.prefix = tuple(
                part.new_zeros(len(self.labels), self.width, *part.shape[1:]) for part in prefix
            )
        for stack, part in zip(self.prefix, prefix, strict=True):
            stack[task, : len(part)] = part
        self.labels[task, : len(labels)] = labels

    def gather(self, tasks: Tensor, index: Tensor | None) -> Images:
        assert self.prefix is not None
        if index is None:
            valid = None
            if self.ragged:
                valid = torch.arange(self.width, device=tasks.device) < self.sizes[tasks][:, None]
            return Images(tuple(part[tasks] for part in self.prefix), self.labels[tasks], valid)
        rows = (tasks if tasks.ndim == 2 else tasks[:, None]) * self.width + index
        flat, shape = rows.reshape(-1), rows.shape
        return Images(
            tuple(
                part.flatten(0, 1).index_select(0, flat).unflatten(0, shape) for part in self.prefix
            ),
            self.labels.flatten().index_select(0, flat).unflatten(0, shape),
        )


class TaskData:
    """A pool's tasks behind a backbone's frozen prefix.

    Attributes:
        pool: the tasks.
        train_sizes: training images of each task, (tasks,) int64 NumPy array.
    """

    def __init__(self, pool: TaskPool, backbone: Backbone, *, own_heads: bool = False) -> None:
        """Prepare for lazy filling; no task is computed before it is asked for.

        Args:
            pool: the tasks.
            backbone: the frozen network.
            own_heads: whether tasks bring heads of their own, so that the backbone's classes do
                not matter.

        Raises:
            InvalidValueError: the pool's images or classes do not fit the backbone.
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
        self._train = _Part([len(task.y_train) for task in pool.tasks], backbone.device)
        self._test = _Part([len(task.y_test) for task in pool.tasks], backbone.device)
        self._filled = np.zeros(len(pool.tasks), dtype=bool)

    def train(self, tasks: Tensor, index: Tensor) -> Images:
        """Return training images by image index (n, k) and task, (n,) or (n, k)."""
        self.fill(tasks)
        return self._train.gather(tasks, index)

    def test(self, tasks: Tensor) -> Images:
        """Return all test images of tasks (n,)."""
        self.fill(tasks)
        return self._test.gather(tasks, None)

    def fill(self, tasks: Tensor) -> None:
        """Prepare tasks (n,) now, so that threads find them ready."""
        wanted = np.unique(tasks.cpu().numpy())
        for task in wanted[~self._filled[wanted]]:
            self._fill_one(int(task))
            self._filled[task] = True

    @torch.no_grad()
    def _fill_one(self, task: int) -> None:
        source, device = self.pool.tasks[task], self._backbone.device
        for part, x, y in (
            (self._train, source.x_train, source.y_train),
            (self._test, source.x_test, source.y_test),
        ):
            images = torch.tensor(x, device=device)
            part.fill(task, self._backbone.prefix(images), torch.tensor(y, device=device))

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
        features = self._backbone.forward(images.prefix, FrozenMap(self._backbone))
        mean = functional.normalize(features, dim=-1).mean(dim=1)
        return np.asarray(functional.normalize(mean, dim=-1).cpu().numpy())
