"""What happens inside a visit: batched low-rank training with distillation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.adam import adam

from nsr_gym.backbones.base import Backbone, FrozenMap, SiteMap
from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.adapters import (
    Adapters,
    FactoredMap,
    MergedMap,
)
from nsr_gym.learning.data import Images, TaskData


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


_CPU_BLOCK = 2048
"""Images that are evaluated at once on a CPU."""


_LEAST_PART = 4
"""Episodes that are worth a thread of their own."""


class LoRALearner:
    """Trains the adapters of n episodes at once on a frozen backbone.

    Cross-entropy on the task's images plus, after a recall only, KL divergence at a
    temperature towards the recalled model on the same images (NSR, arXiv 2606.30067: the
    abstract names distillation; the form is ours, DESIGN section 5). Adam starts afresh at
    every visit, so that its moments carry nothing across a switch.
    """

    def __init__(self, backbone: Backbone, config: LearnerConfig) -> None:
        self.backbone = backbone
        self.config = config

    def learn(
        self,
        data: TaskData,
        tasks: Tensor,
        start: Adapters,
        batches: Tensor,
        *,
        recalled: Tensor | None = None,
        trainable: Tensor | None = None,
    ) -> tuple[Adapters, Tensor]:
        """Train one visit of n episodes.

        Args:
            data: the prepared tasks.
            tasks: (n,) int64, the visited task of each episode.
            start: the adapters to start from; they are not modified.
            batches: (n, L, u, batch size) int64, which training images each update sees.
            recalled: (n,) bool, which episodes distil towards their start; None: none does.
            trainable: (n, R) bool, which directions may change; None: all. Directions whose
                factors are both zero never change, so a smaller granted rank needs no mask.

        Returns:
            The trained adapters and the test accuracy (n, L + 1), before the first and after
            every learning step.
        """
        threads = torch.get_num_threads() if tasks.device.type == "cpu" else 1
        parts = min(threads, len(tasks) // _LEAST_PART)
        if parts <= 1:
            return self._learn(data, tasks, start, batches, recalled, trainable)
        # Episodes do not touch each other: with a part of them, each core has products of its
        # own, where one product split over cores would wait at every one of its many ends.
        data.fill(tasks)

        def one(rows: slice) -> tuple[Adapters, Tensor]:
            torch.set_num_threads(1)  # of this thread
            recall = None if recalled is None else recalled[rows]
            train = None if trainable is None else trainable[rows]
            return self._learn(data, tasks[rows], start[rows], batches[rows], recall, train)

        size = -(-len(tasks) // parts)
        rows = [slice(first, first + size) for first in range(0, len(tasks), size)]
        try:
            with ThreadPoolExecutor(len(rows)) as pool:
                done = list(pool.map(one, rows))
        finally:
            torch.set_num_threads(threads)
        return Adapters.cat([adapters for adapters, _ in done]), torch.cat([c for _, c in done])

    def _learn(
        self,
        data: TaskData,
        tasks: Tensor,
        start: Adapters,
        batches: Tensor,
        recalled: Tensor | None,
        trainable: Tensor | None,
    ) -> tuple[Adapters, Tensor]:
        config = self.config
        test = data.test(tasks)
        teacher, pull = None, None
        if recalled is not None and config.distillation > 0 and bool(recalled.any()):
            teacher = self._maps(start, len(tasks), config.updates * config.batch_size)
            pull = config.distillation * config.temperature * recalled[:, None]
        leaves = {site: (_leaf(up.mT), _leaf(down)) for site, (up, down) in start.factors.items()}
        student = Adapters(
            {s: (up_t.detach().mT, down.detach()) for s, (up_t, down) in leaves.items()}
        )
        student_map = FactoredMap(self.backbone, leaves)
        optimiser = _Adam([leaf for pair in leaves.values() for leaf in pair], config.learning_rate)
        curve = [self.accuracy(test, start)]
        for step in range(config.learning_steps):
            images = data.train(tasks, batches[:, step].flatten(1))
            target = self._target(images, teacher, pull)
            for update in range(config.updates):
                seen = slice(update * config.batch_size, (update + 1) * config.batch_size)
                logits = self.logits(images.part(seen), student_map)
                logits.backward(self._gradient(logits, target[:, :, seen], pull))
                optimiser.step(trainable)
            curve.append(self.accuracy(test, student))
        return student, torch.stack(curve, dim=1)

    def logits(self, images: Images, site_map: SiteMap) -> Tensor:
        """Return logits (n, k, num_classes)."""
        return self.backbone.head(self.backbone.forward(images.prefix, site_map))

    @torch.no_grad()
    def accuracy(self, images: Images, adapters: Adapters | None) -> Tensor:
        """Return the share of right answers (n,), with adapters or with none (None)."""
        return torch.cat(
            [
                _mean(logits.argmax(dim=-1) == block.labels, block.valid)
                for block, logits in self._measure(images, adapters)
            ]
        )

    @torch.no_grad()
    def loss(self, images: Images, adapters: Adapters | None) -> Tensor:
        """Return the mean cross-entropy (n,) in nats, with adapters or with none (None)."""
        return torch.cat(
            [
                _mean(
                    functional.cross_entropy(logits.movedim(-1, 1), block.labels, reduction="none"),
                    block.valid,
                )
                for block, logits in self._measure(images, adapters)
            ]
        )

    def _measure(
        self, images: Images, adapters: Adapters | None
    ) -> Iterator[tuple[Images, Tensor]]:
        """Yield blocks of episodes with their logits."""
        for rows, site_map in self._maps(adapters, *images.labels.shape):
            yield images[rows], self.logits(images[rows], site_map)

    def _maps(self, adapters: Adapters | None, n: int, k: int) -> list[tuple[slice, SiteMap]]:
        """Return blocks of n episodes with k images each, and the map to measure them with.

        On a CPU a block's activations stay in the cache; measured on the digits, that halves
        the time of an evaluation at 64 episodes.
        """
        size = max(1, _CPU_BLOCK // k) if self.backbone.device.type == "cpu" else n
        blocks = [slice(first, first + size) for first in range(0, n, size)]
        if adapters is None:
            return [(rows, FrozenMap(self.backbone)) for rows in blocks]
        return [(rows, MergedMap(self.backbone, adapters[rows].factors)) for rows in blocks]

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
        shape = (self.backbone.num_classes, *images.labels.shape)
        target = torch.zeros(shape, device=images.labels.device)
        target.scatter_(0, images.labels[None], 1.0)
        if teacher is not None and pull is not None:
            logits = torch.cat([self.logits(images[rows], site_map) for rows, site_map in teacher])
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


def _leaf(values: Tensor) -> Tensor:
    """Copy values (n, R, d) into a contiguous leaf of the gradient."""
    return values.clone(memory_format=torch.contiguous_format).requires_grad_()


class _Adam:
    """Adam (Kingma and Ba, 2015), without what an optimiser object costs at every step.

    For a few episodes `torch.optim.Adam` spends more time on bookkeeping than on the update.
    """

    def __init__(self, leaves: list[Tensor], learning_rate: float) -> None:
        self._leaves, self._learning_rate = leaves, learning_rate
        self._first = [torch.zeros_like(leaf) for leaf in leaves]
        self._second = [torch.zeros_like(leaf) for leaf in leaves]
        self._steps = [torch.zeros((), device=leaf.device) for leaf in leaves]

    @torch.no_grad()
    def step(self, trainable: Tensor | None) -> None:
        """Update leaves (n, R, d) by their gradients, where directions (n, R) are trainable."""
        gradients = []
        for leaf in self._leaves:
            assert leaf.grad is not None
            if trainable is not None:
                leaf.grad.masked_fill_(~trainable[:, :, None], 0.0)
            gradients.append(leaf.grad)
            leaf.grad = None  # so that the next backward pass has nothing to add to
        adam(
            self._leaves, gradients, self._first, self._second, [], self._steps,
            fused=True, amsgrad=False, beta1=0.9, beta2=0.999, lr=self._learning_rate,
            weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip


def _lead(logits: Tensor) -> Tensor:
    """Move the classes of (n, k, C) to the front, contiguously."""
    return logits.movedim(-1, 0).contiguous()


def _softmax(lead: Tensor, temperature: float = 1.0) -> Tensor:
    """Return softmax outputs of logits (C, n, k) at a temperature."""
    return torch.softmax(lead if temperature == 1.0 else lead / temperature, dim=0)


def _mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Average (n, k) over the valid images, in double precision."""
    if valid is None:
        return values.double().mean(dim=1)
    return (values.double() * valid).sum(dim=1) / valid.sum(dim=1)
