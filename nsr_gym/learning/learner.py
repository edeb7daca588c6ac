"""What happens inside a visit: batched low-rank training with distillation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsr_gym.backbones.base import Backbone, SiteMap
from nsr_gym.errors import InvalidValueError, unknown
from nsr_gym.learning.adapters import Adapters, summed
from nsr_gym.learning.data import Images, TaskData
from nsr_gym.learning.measuring import Measuring
from nsr_gym.learning.run import Run
from nsr_gym.learning.visit import Visit

if TYPE_CHECKING:
    from nsr_gym.bank.bank import TaskKnowledgeBank


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """How a visit trains.

    Attributes:
        learning_steps: learning steps of a visit, L; accuracy is measured before the first
            and after each.
        updates: optimiser updates of one learning step, u.
        batch_size: images of one update.
        learning_rate: of Adam.
        distillation: weight of the KL divergence towards the recalled model, kd.
        temperature: of the distillation.
    """

    learning_steps: int = 15
    updates: int = 3
    batch_size: int = 32
    learning_rate: float = 1e-2
    distillation: float = 0.1
    temperature: float = 2.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            finite = number and math.isfinite(value)
            if field.type == "int":
                bound = "a whole number of at least 1"
                fits = finite and isinstance(value, int) and value >= 1
            elif field.name == "distillation":
                bound, fits = "a finite number of at least 0", finite and value >= 0
            else:
                bound, fits = "a positive finite number", finite and value > 0
            if not fits:
                raise InvalidValueError(f"Expected {field.name} to be {bound}; got {value!r}.")


_LEAST_PART = 4
"""Episodes that are worth a thread of their own."""

Ints = NDArray[np.int64]


class LoRALearner(Measuring):
    """Trains the adapters of n episodes at once on a frozen backbone.

    Cross-entropy on the task's images plus, after a recall only, KL divergence at a
    temperature towards the recalled model on the same images (NSR, arXiv 2606.30067: the
    abstract names distillation; the form is ours, DESIGN section 5). Adam starts afresh at
    every visit, so that its moments carry nothing across a switch.

    Other learners derive from it. `prepare` changes what a visit starts from, `run_class` how it
    trains, `finish` and `commit` what is kept of it for later visits.

    Attributes:
        name: what the argument `learner` of an environment takes.
        sums: whether the model is the sum of all entries, so that it takes an additive bank.
        keeps_own: whether the model in use is the learner's own, whatever the bank holds.
        needs_basis: whether it takes a bank whose entries share bases.
        defaults: option -> its default, of those that the constructor takes.
    """

    name: ClassVar[str] = "lora"
    sums: ClassVar[bool] = False
    keeps_own: ClassVar[bool] = False
    needs_basis: ClassVar[bool] = False
    run_class: ClassVar[type[Run]] = Run
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        backbone: Backbone,
        config: LearnerConfig,
        *,
        num_episodes: int = 1,
        num_tasks: int = 1,
        max_rank: int = 8,
        num_classes: int | None = None,
        modifiers: Mapping[str, tuple[type[Run], Mapping[str, Any]]] | None = None,
        **options: Any,
    ) -> None:
        """Prepare for episodes.

        Args:
            backbone: the frozen network.
            config: how a visit trains.
            num_episodes: E, for what is kept of each from visit to visit.
            num_tasks: tasks of the pool.
            max_rank: R.
            num_classes: C, where adapters bring heads of their own; None: the backbone's.
            modifiers: name -> (class, options); see `nsr_gym.learning.kinds`.
            **options: those of `defaults`.

        Raises:
            UnknownNameError: an option that the learner does not have.
        """
        super().__init__(backbone)
        self.config = config
        self.num_episodes, self.num_tasks, self.max_rank = num_episodes, num_tasks, max_rank
        self.num_classes = backbone.num_classes if num_classes is None else num_classes
        for name in options:
            if name not in self.defaults:
                raise unknown(f"option of the learner {self.name!r}", name, self.defaults)
        self.options = {**self.defaults, **options}
        self.modifiers = dict(modifiers or {})
        kinds = tuple(kind for kind, _ in self.modifiers.values())
        self._run: type[Run] = self.run_class
        if kinds:
            self._run = type("ModifiedRun", (*kinds, self.run_class), {})
        self._run_options = {name: chosen for name, (_, chosen) in self.modifiers.items()}

    def begin(self, rows: Ints) -> None:
        """Forget everything about episodes that start anew."""

    def prepare(self, data: TaskData, visit: Visit) -> Visit:
        """Return the visit as it is to be trained; called for all its episodes together.

        In an additive bank the other entries lie under the adapter.
        """
        return visit if visit.others is None else replace(visit, base=summed(visit.others))

    def finish(self, data: TaskData, visit: Visit, trained: Adapters) -> None:
        """Work out what is to be kept of a visit, once it is trained; nothing is kept yet."""

    def commit(self, rows: Ints, slots: Ints, bank: TaskKnowledgeBank | None) -> None:
        """Keep what the last `finish` left of episodes `rows` (n,), whose results were reserved.

        Args:
            rows: episodes of the last visit, some or all of them.
            slots: (n,) where their results lie.
            bank: which the results lie in.
        """

    def own(self, rows: Ints) -> Adapters:
        """Return the learner's own model of episodes `rows`, where it `keeps_own`."""
        raise NotImplementedError

    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes that the learner keeps of episodes from visit to visit, (n,)."""
        return np.zeros(len(rows), dtype=np.int64)

    def denied(self, n: int) -> Ints:
        """Return how many granted directions the last visit could not use, (n,)."""
        return np.zeros(n, dtype=np.int64)

    def free_capacity(self, rows: Ints) -> NDArray[np.float64] | None:
        """Return the share of input directions left for new tasks, (n,); None: no such notion."""
        return None

    def learn(self, data: TaskData, visit: Visit) -> tuple[Adapters, Tensor]:
        """Train one visit of n episodes.

        Args:
            data: the prepared tasks.
            visit: what to train.

        Returns:
            The trained adapters and the test accuracy (n, L + 1), before the first and after
            every learning step.
        """
        visit = self.prepare(data, visit)
        threads = torch.get_num_threads() if visit.tasks.device.type == "cpu" else 1
        parts = min(threads, len(visit) // _LEAST_PART)
        if parts <= 1:
            trained, curve = self._learn(data, visit)
            self.finish(data, visit, trained)
            return trained, curve
        # Episodes do not touch each other: with a part of them, each core has products of its
        # own, where one product split over cores would wait at every one of its many ends.
        data.fill(visit.tasks if visit.batch_tasks is None else visit.batch_tasks)

        def one(rows: slice) -> tuple[Adapters, Tensor]:
            torch.set_num_threads(1)  # of this thread
            return self._learn(data, visit[rows])

        size = -(-len(visit) // parts)
        rows = [slice(first, first + size) for first in range(0, len(visit), size)]
        try:
            with ThreadPoolExecutor(len(rows)) as pool:
                done = list(pool.map(one, rows))
        finally:
            torch.set_num_threads(threads)
        trained = Adapters.cat([adapters for adapters, _ in done])
        self.finish(data, visit, trained)
        return trained, torch.cat([curve for _, curve in done])

    def _learn(self, data: TaskData, visit: Visit) -> tuple[Adapters, Tensor]:
        config, recalled = self.config, visit.recalled
        test = data.test(visit.tasks)
        rows = visit.rows if len(visit.rows) else None
        teacher, pull = None, None
        if recalled is not None and config.distillation > 0 and bool(recalled.any()):
            size = config.updates * config.batch_size
            teacher = list(self.maps(visit.start, visit.base, len(visit), size))
            pull = config.distillation * config.temperature * recalled[:, None]
        run = self._run(self, visit, self._run_options)
        curve = [self.accuracy(test, run.model(), visit.base, rows)]
        for step in range(config.learning_steps):
            index = visit.batches[:, step].flatten(1)
            tasks = visit.tasks
            if visit.batch_tasks is not None:
                tasks = visit.batch_tasks[:, step].flatten(1)
            images = data.train(tasks, index)
            target = self._target(images, teacher, pull)
            for update in range(config.updates):
                seen = slice(update * config.batch_size, (update + 1) * config.batch_size)
                aim = partial(self._gradient, target=target[:, :, seen], pull=pull)
                run.update(images.part(seen), aim)
            if step == config.learning_steps - 1:
                run.finish()
            curve.append(self.accuracy(test, run.model(), visit.base, rows))
        return run.result(), torch.stack(curve, dim=1)

    @torch.no_grad()
    def _target(
        self, images: Images, teacher: Sequence[tuple[slice, SiteMap]] | None, pull: Tensor | None
    ) -> Tensor:
        """Return y + pull q, the part of `_gradient` that does not depend on the student.

        Classes lead, here and in `_gradient`: they are few and images many, so that every pass
        is contiguous over images (measured: many times faster than over ten trailing values).

        Args:
            images: k images of each of n episodes.
            teacher: the recalled models, in blocks of episodes.
            pull: (n, 1), kd T after a recall and 0 else; None: nothing was recalled.

        Returns:
            (C, n, k), y one-hot labels and q the teacher's softmax outputs at temperature T.
        """
        shape = (self.num_classes, *images.labels.shape)
        target = torch.zeros(shape, device=images.labels.device)
        target.scatter_(0, images.labels[None], 1.0)
        if teacher is not None and pull is not None:
            logits = torch.cat(
                [self.logits_in_pieces(images[rows], each) for rows, each in teacher]
            )
            target.addcmul_(_softmax(_lead(logits), self.config.temperature), pull)
        return target

    @torch.no_grad()
    def _gradient(self, logits: Tensor, target: Tensor, pull: Tensor | None) -> Tensor:
        """Return the gradient of every episode's loss with respect to its logits (n, k, C).

        The loss of an episode is the mean over its k images of
        CE(y, p) + kd T^2 KL(q || p_T), the second term after a recall only; p is the student's
        softmax output and p_T that at temperature T. The factor T^2 keeps the gradient's size
        independent of the temperature: it is (p - y + kd T (p_T - q)) / k. Episodes are summed,
        so each adapter sees the gradient of its own loss alone.
        """
        lead = _lead(logits)
        gradient = _softmax(lead).sub_(target)
        if pull is not None:
            gradient.addcmul_(_softmax(lead, self.config.temperature), pull)
        return gradient.div_(logits.shape[1]).movedim(0, -1).contiguous()


def _lead(logits: Tensor) -> Tensor:
    """Move the classes of (n, k, C) to the front, contiguously."""
    return logits.movedim(-1, 0).contiguous()


def _softmax(lead: Tensor, temperature: float = 1.0) -> Tensor:
    """Return softmax outputs of logits (C, n, k) at a temperature."""
    return torch.softmax(lead if temperature == 1.0 else lead / temperature, dim=0)
