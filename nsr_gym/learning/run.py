"""The training of one group of episodes through one visit: what a learner may do differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nsr_gym.backbones.base import SiteMap
from nsr_gym.learning.adapters import Adapters, Heads
from nsr_gym.learning.data import Images
from nsr_gym.learning.optimiser import Adam, Optimiser
from nsr_gym.learning.site_maps import FactoredMap, OffsetMap, apply_heads
from nsr_gym.learning.visit import Visit

if TYPE_CHECKING:
    from nsr_gym.learning.learner import LoRALearner

Gradient = Callable[[Tensor], Tensor]
"""Maps logits (n, k, C) to the gradient of every episode's loss with respect to them."""


class Run:
    """Plain low-rank training: both factors of all sites by Adam.

    Learners and modifiers override single methods. A modifier is a class that stands in front
    of a learner's run in the order of inheritance, so every override calls `super()`.

    Attributes:
        learner: whose run it is.
        visit: what is trained, for this group of episodes.
        options: modifier's name -> its options.
        leaves: what the optimiser updates, each with leading n; set by `begin`. Those of the
            adapter's factors come first, (n, R, ...).
    """

    leaves: list[Tensor]

    def __init__(
        self, learner: LoRALearner, visit: Visit, options: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.learner, self.visit, self.options = learner, visit, options
        self._added: dict[int, Tensor] = {}
        self._head: Heads | None = None
        self.begin()

    def begin(self) -> None:
        """Make the leaves and their optimiser."""
        self._pairs = {
            site: (leaf(up.mT), leaf(down)) for site, (up, down) in self.visit.start.factors.items()
        }
        self.leaves = [part for pair in self._pairs.values() for part in pair]
        self._optimiser = self.optimiser()
        self.add_head()

    def add_head(self) -> None:
        """Have the optimiser update heads, where the episodes have heads of their own."""
        if self.visit.start.head is not None:
            whole = torch.ones(1, dtype=torch.bool, device=self.visit.tasks.device)
            weight, bias = (self.add_leaf(part, whole) for part in self.visit.start.head)
            self._head = weight, bias

    def optimiser(self) -> Optimiser:
        """Return a new optimiser of the leaves."""
        return Adam(self.leaves, self.learner.config.learning_rate)

    def add_leaf(self, values: Tensor, free: Tensor) -> Tensor:
        """Have the optimiser, which starts afresh, update something beside the factors.

        Args:
            values: where it starts, with leading n; copied.
            free: which of its numbers may change, broadcastable to it.

        Returns:
            The leaf.
        """
        self._added[len(self.leaves)] = free
        self.leaves.append(leaf(values))
        self._optimiser = self.optimiser()
        return self.leaves[-1]

    @cached_property
    def live(self) -> Tensor:
        """Which directions may change, (n, R): trainable ones that are not zero on every site.

        A direction whose factors are both zero has not been granted. Its gradient is zero, but
        noise could bring it to life.
        """
        some = self.visit.start.directions().any(dim=2)
        return some if self.visit.trainable is None else some & self.visit.trainable

    def free(self) -> list[Tensor]:
        """Return which numbers of every leaf may change, broadcastable to the leaf."""
        live = self.live[:, :, None]
        return [self._added.get(i, live) for i in range(len(self.leaves))]

    def factors(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return site -> (up transposed (n, R, d_out), down (n, R, d_in)), differentiable.

        A learner whose model has other parts beside the adapter puts them before its R
        directions, which are the last.
        """
        return self._pairs

    def site_map(self) -> SiteMap:
        """Return the map to train with."""
        inner = FactoredMap(self.learner.backbone, self.factors())
        return inner if self.visit.base is None else OffsetMap(inner, self.visit.base)

    def extra_loss(self, features: Tensor, images: Images) -> Tensor | None:
        """Return a loss beside that on the logits, summed over episodes; None: there is none.

        Args:
            features: (n, k, feature_dim) of the update's images, differentiable.
            images: the update's images.
        """
        return None

    def gradients(self, images: Images, gradient: Gradient) -> list[Tensor]:
        """Return the gradients of the leaves for k images of each episode."""
        backbone = self.learner.backbone
        features = backbone.forward(images.prefix, self.site_map())
        head = self._head
        logits = backbone.head(features) if head is None else apply_heads(features, head)
        extra = self.extra_loss(features, images)
        if extra is None:
            logits.backward(gradient(logits))
        else:
            torch.autograd.backward([logits, extra], [gradient(logits), torch.ones_like(extra)])
        found = []
        for part in self.leaves:
            # A leaf that the loss does not reach, such as that of a site without an entry.
            found.append(torch.zeros_like(part) if part.grad is None else part.grad)
            part.grad = None  # so that the next backward pass has nothing to add to
        return found

    def update(self, images: Images, gradient: Gradient) -> None:
        """Make one optimiser update on k images of each episode."""
        self.step(self.gradients(images, gradient))

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Change the leaves by their gradients, where directions are trainable."""
        if self.visit.trainable is not None:
            for part, free in zip(gradients, self.free(), strict=True):
                part.masked_fill_(~free, 0.0)
        self._optimiser.step(gradients)

    @torch.no_grad()
    def model(self) -> Adapters:
        """Return what to measure now, on top of the visit's base."""
        head = None if self._head is None else (self._head[0].detach(), self._head[1].detach())
        return Adapters({s: (up_t.mT, down) for s, (up_t, down) in self._detached().items()}, head)

    def result(self) -> Adapters:
        """Return what is stored of the visit, once it is over."""
        return self.model()

    def finish(self) -> None:
        """Do what is to be done after the last update, before the last measurement."""

    def _detached(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {s: (up_t.detach(), down.detach()) for s, (up_t, down) in self.factors().items()}


def leaf(values: Tensor) -> Tensor:
    """Copy values into a contiguous leaf of the gradient."""
    return values.clone(memory_format=torch.contiguous_format).requires_grad_()
