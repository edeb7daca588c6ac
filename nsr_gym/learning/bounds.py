"""The bounds that go with every comparison: one adapter trained on, and joint training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsr_gym.learning.adapters import Adapters
from nsr_gym.learning.checks import check_positive
from nsr_gym.learning.data import TaskData
from nsr_gym.learning.learner import Ints, LoRALearner
from nsr_gym.learning.pending import episodes, positions
from nsr_gym.learning.visit import Visit, check_keys, random_of
from nsr_gym.noise import uniform

if TYPE_CHECKING:
    from nsr_gym.bank.bank import TaskKnowledgeBank

_FIRST, _TASKS, _IMAGES = 0x5E90, 0x5E91, 0x5E92
"""What the learners' random numbers are for."""


class SequentialLearner(LoRALearner):
    """One adapter of the full rank R, trained on from visit to visit: the lower bound.

    Nothing is recalled, distilled or frozen, whatever the action and the bank say; all tasks
    write over the same weights. A visit whose result is not reserved leaves no trace. The first
    visit of an episode starts from a down factor of normal numbers, `init_gain` over sqrt(d_in)
    in size, and an up factor of zero. Heads, where adapters bring their own, are the bank's and
    not part of it. With the modifier `badam` the factors' deviations are kept as well.

    Options:
        init_gain: standard deviation of the first down factor's numbers times sqrt(d_in).
    """

    name: ClassVar[str] = "sequential"
    keeps_own: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {"init_gain": 2.0}

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take what `LoRALearner` takes.

        Raises:
            InvalidValueError: `init_gain` is not a finite number above 0.
        """
        super().__init__(*args, **options)
        check_positive(f"init_gain of {self.name}", self.options["init_gain"])
        self._own = self._nothing()
        self._deviations = self._nothing() if "badam" in self.modifiers else None
        self._known = np.zeros(self.num_episodes, dtype=bool)
        self._last: tuple[Visit, Adapters] | None = None

    def begin(self, rows: Ints) -> None:
        """Forget everything about episodes that start anew."""
        self._known[rows] = False
        index = self._index(rows)
        for kept in self._held():
            for pair in kept.factors.values():
                for part in pair:
                    part[index] = 0.0

    def prepare(self, data: TaskData, visit: Visit) -> Visit:
        """Start from the learner's own adapter, whatever was recalled."""
        rows = episodes(visit)
        index = self._index(rows)
        # Heads belong to tasks: they come from the bank, and go there.
        start = replace(self._own[index], head=visit.start.head)
        new = np.flatnonzero(~self._known[rows])
        if len(new):
            self._draw(start, new, visit)
        extra = dict(visit.extra)
        if self._deviations is not None:
            kept = self._deviations[index].factors
            extra["deviations"] = {s: (up.mT.contiguous(), down) for s, (up, down) in kept.items()}
        full = torch.full((len(visit),), self.max_rank, device=index.device)
        occupied = full * self._index(self._known[rows])
        return replace(
            visit, start=start, recalled=None, trainable=None, base=None, ranks=full,
            occupied=occupied, extra=extra,
        )  # fmt: skip

    def _draw(self, start: Adapters, new: Ints, visit: Visit) -> None:
        """Fill the down factors of episodes that have none yet."""
        generators = random_of(visit, _FIRST)
        width = sum(down.shape[2] for _, down in start.factors.values())
        drawn = np.stack([generators[i].standard_normal((self.max_rank, width)) for i in new])
        parts = np.split(drawn, np.cumsum([d.shape[2] for _, d in start.factors.values()])[:-1], 2)
        for (_, down), part in zip(start.factors.values(), parts, strict=True):
            size = self.options["init_gain"] / down.shape[2] ** 0.5
            down[self._index(new)] = torch.as_tensor(part * size).to(down)

    def finish(self, data: TaskData, visit: Visit, trained: Adapters) -> None:
        """Remember what was trained until it is known to be reserved."""
        self._last = visit, trained

    def commit(self, rows: Ints, slots: Ints, bank: TaskKnowledgeBank | None) -> None:
        """Take over what was trained in episodes `rows` (n,)."""
        if self._last is None:
            return
        visit, trained = self._last
        index, place = self._index(rows), self._index(positions(rows, visit.rows))
        self._own.put(index, trained[place])
        self._known[rows] = True
        if self._deviations is not None:
            for site, (up_t, down) in visit.extra["deviations"].items():
                kept = self._deviations.factors[site]
                kept[0][index], kept[1][index] = up_t[place].mT, down[place]

    def own(self, rows: Ints) -> Adapters:
        """Return the adapters in use of episodes `rows` (n,); zero before the first visit."""
        return self._own[self._index(rows)]

    def free_capacity(self, rows: Ints) -> NDArray[np.float64] | None:
        """Return the mean deviation as a share of that at the start, (n,); None without `badam`.

        A small deviation marks a weight that is committed to what was learnt.
        """
        if self._deviations is None:
            return None
        initial = self.modifiers["badam"][1]["deviation"]
        kept = self._deviations[self._index(rows)].factors.values()
        found = torch.cat([part.flatten(1) for pair in kept for part in pair], dim=1)
        share = (found.double() / initial).clamp(max=1.0).mean(dim=1).cpu().numpy()
        return np.where(self._known[rows], share, 1.0)

    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes of what is kept of episodes, (n,): none before the first visit."""
        parts = [p for kept in self._held() for pair in kept.factors.values() for p in pair]
        return self._known[rows] * np.int64(sum(p[0].numel() * p.element_size() for p in parts))

    def _held(self) -> list[Adapters]:
        return [self._own] if self._deviations is None else [self._own, self._deviations]

    def _nothing(self) -> Adapters:
        return Adapters.zeros(
            self.backbone.sites, self.num_episodes, self.max_rank, self.backbone.device
        )

    def _index(self, numbers: Ints) -> Tensor:
        return torch.as_tensor(numbers, device=self.backbone.device)


class JointLearner(SequentialLearner):
    """One adapter trained on images of all tasks seen so far: the upper bound.

    Each image of an update comes from a task drawn uniformly among those that the episode has
    visited, this visit's included, and from that task's training images uniformly. It bounds what
    one adapter of that rank can hold, not what a visit can learn: a visit has no more updates than
    under any other learner, and all tasks share them. It keeps all data, and says so: `nbytes`
    counts the raw training images and labels of the tasks seen, beside the adapter.
    """

    name: ClassVar[str] = "joint"

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take what `SequentialLearner` takes."""
        super().__init__(*args, **options)
        self._seen = np.zeros((self.num_episodes, self.num_tasks), dtype=bool)
        self._image_bytes = np.zeros(self.num_tasks, dtype=np.int64)

    def begin(self, rows: Ints) -> None:
        """Forget everything about episodes that start anew."""
        super().begin(rows)
        self._seen[rows] = False

    def prepare(self, data: TaskData, visit: Visit) -> Visit:
        """Replace the batches by images of all tasks seen so far."""
        visit = super().prepare(data, visit)
        self._image_bytes = data.train_sizes * (4 * math.prod(data.pool.input_shape) + 8)
        seen = self._with(visit.rows, visit.tasks)
        size = int(np.prod(visit.batches.shape[1:]))
        tasks = self._uniform(visit, _TASKS, size) * seen.sum(axis=1, keepdims=True)
        # A stable sort puts the tasks seen first, in ascending order.
        order = np.argsort(~seen, axis=1, kind="stable")
        tasks = np.take_along_axis(order, tasks.astype(np.int64), axis=1)
        images = (self._uniform(visit, _IMAGES, size) * data.train_sizes[tasks]).astype(np.int64)
        return replace(
            visit,
            batches=self._index(images).view_as(visit.batches),
            batch_tasks=self._index(tasks).view_as(visit.batches),
        )

    def commit(self, rows: Ints, slots: Ints, bank: TaskKnowledgeBank | None) -> None:
        """Take over what was trained in episodes `rows` (n,), and keep their tasks' images."""
        super().commit(rows, slots, bank)
        if self._last is not None:
            visit = self._last[0]
            tasks = visit.tasks[self._index(positions(rows, visit.rows))]
            self._seen[rows] = self._with(rows, tasks)

    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes of the adapters and of the images kept, (n,)."""
        images: Ints = np.where(self._seen[rows], self._image_bytes, 0).sum(axis=1)
        return super().nbytes(rows) + images

    def _with(self, rows: Ints, tasks: Tensor) -> NDArray[np.bool_]:
        """Return the tasks seen, (n, tasks), these ones included."""
        seen = self._seen[rows]
        seen[np.arange(len(rows)), tasks.cpu().numpy()] = True
        return seen

    def _uniform(self, visit: Visit, purpose: int, size: int) -> NDArray[np.float64]:
        """Return (n, size) numbers in [0, 1), which depend on an episode's key and number alone."""
        check_keys(visit)
        first = (purpose << 48) + visit.numbers.astype(np.uint64) * np.uint64(size)
        return uniform(visit.keys[:, :1], first[:, None] + np.arange(size, dtype=np.uint64))
