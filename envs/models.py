"""Which model is in use in live episodes, and what it comes to on images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nsr_gym.backbones.base import Backbone
from nsr_gym.bank.bank import TaskKnowledgeBank
from nsr_gym.envs.config import VisitConfig
from nsr_gym.envs.dynamics import Arrival, Floats, Ints, Visits
from nsr_gym.envs.starts import adapters_of, blended_heads
from nsr_gym.learning.adapters import Adapters, Deltas
from nsr_gym.learning.data import Images, TaskData
from nsr_gym.learning.features import RouterFeatures
from nsr_gym.learning.learner import LoRALearner

_PAIRS, _PAIRS_BYTES = 256, 1 << 28
"""Loads of entries that are tried at once, and bytes of their images: bounds the memory that a
large view or a large network takes."""


class LiveModels:
    """Measures entries, mixtures of them, and models that do not depend on the entry.

    Attributes:
        learner: trains and measures.
        data: the tasks' images, prepared for the backbone.
        max_rank: R.
        device: where the adapters are.
        whole: whether one model is in use for everything: the learner's own, or the sum of all
            entries, with the backbone's head.
        lasting: whether entries stay what they are; not where only heads are theirs, and the
            learner trains the adapter below them on.
    """

    def __init__(
        self, data: TaskData, backbone: Backbone, config: VisitConfig, learner: LoRALearner
    ) -> None:
        self.learner, self.data, self.max_rank = learner, data, config.max_rank
        self.device = backbone.device
        self._backbone, self._config = backbone, config
        self._head: tuple[int, int] | None = None
        if config.head == "trained":
            self._head = data.pool.num_classes, backbone.feature_dim
        self._additive = config.bank == "additive"
        self.whole = (learner.keeps_own or self._additive) and self._head is None
        self.lasting = not learner.keeps_own
        self._features: dict[str, RouterFeatures] = {}
        self._bare = np.full(len(data.pool), np.nan)

    def features(self, kind: str) -> RouterFeatures:
        """Return what routers see of images, see `RouterFeatures`."""
        if kind not in self._features:
            self._features[kind] = RouterFeatures(self.data, self._backbone, kind)
        return self._features[kind]

    def tensor(self, array: NDArray[Any]) -> torch.Tensor:
        """Put an array where the adapters are."""
        return torch.as_tensor(array, device=self.device)

    def empty(self, n: int) -> Adapters:
        """Return n adapters that change nothing."""
        return Adapters.zeros(self._backbone.sites, n, self.max_rank, self.device, self._head)

    def bare(self, n: int) -> Adapters | None:
        """Return the model of n visits before anything is learned: an empty head knows nothing."""
        return None if self._head is None else self.empty(n)

    def trial_loss(
        self, arrival: Arrival, bank: TaskKnowledgeBank, index: Ints, slots: Ints
    ) -> Floats:
        """Return the loss in nats (k,) of loading occupied slots (k,) for arrivals index (k,)."""
        assert isinstance(arrival.support, Images)
        if self.whole and len(index):
            asked, place = np.unique(index, return_inverse=True)
            rows = arrival.visits.rows[asked]
            images = arrival.support.take(self.tensor(asked))
            model = self._in_use(bank, rows, np.full(len(asked), -1))
            return self.learner.loss(images, *model).cpu().numpy()[place].astype(np.float64)
        losses = np.empty(len(index))
        one = sum(part[0].nbytes for part in arrival.support.prefix)
        pairs = max(1, min(_PAIRS, _PAIRS_BYTES // one))
        for first in range(0, len(index), pairs):
            block = slice(first, first + pairs)
            rows = arrival.visits.rows[index[block]]
            images = arrival.support.take(self.tensor(index[block]))
            model = self._in_use(bank, rows, slots[block])
            losses[block] = self.learner.loss(images, *model).cpu().numpy()
        return losses

    def mixture_loss(self, arrival: Arrival, bank: TaskKnowledgeBank, weights: Floats) -> Floats:
        """Return the loss in nats (n,) of mixtures of entries, weights (n, K), on the support."""
        assert isinstance(arrival.support, Images)
        model = self._mixture(bank, arrival.visits.rows, weights)
        return self.learner.loss(arrival.support, *model).cpu().numpy().astype(np.float64)

    def active_loss(self, arrival: Arrival, adapters: Adapters) -> Floats:
        """Return the loss in nats (n,) of adapters on the support images."""
        assert isinstance(arrival.support, Images)
        return self.learner.loss(arrival.support, adapters).cpu().numpy().astype(np.float64)

    def accuracy(
        self,
        visits: Visits,
        bank: TaskKnowledgeBank,
        slots: Ints,
        *,
        weights: Floats | None = None,
    ) -> Floats:
        """Return the test accuracy (n,) of bank slots (n,) on the visits' tasks.

        Where one model is in use for everything, slots are not looked at; with `weights` (n, K)
        it is that of mixtures of entries.
        """
        if weights is not None:
            return self.test_accuracy(visits.tasks, *self._mixture(bank, visits.rows, weights))
        model = self._in_use(bank, visits.rows, slots)
        return self.test_accuracy(visits.tasks, *model, rows=visits.rows)

    def bare_accuracy(self, tasks: Ints) -> Floats:
        """Return the test accuracy (n,) of the bare backbone on tasks (n,)."""
        new = np.unique(tasks[np.isnan(self._bare[tasks])])
        if len(new):
            self._bare[new] = self.test_accuracy(new, self.bare(len(new)))
        return np.asarray(self._bare[tasks])

    def test_accuracy(
        self,
        tasks: Ints,
        adapters: Adapters | None,
        base: Deltas | None = None,
        rows: Ints | None = None,
    ) -> Floats:
        """Return the test accuracy (n,) of a model, of the bare backbone for None.

        Args:
            tasks: (n,).
            adapters: on top of the weights.
            base: added to the weights.
            rows: (n,) the episodes, for learners that answer by what they keep of each.
        """
        images = self.data.test(self.tensor(tasks))
        found = self.learner.accuracy(images, adapters, base, rows)
        return found.cpu().numpy().astype(np.float64)

    def shared_model(
        self, bank: TaskKnowledgeBank, rows: Ints
    ) -> tuple[Adapters | None, Deltas | None] | None:
        """Return the model of n episodes that does not depend on the slot, as adapters and base.

        The learner's own, or the sum of all entries; None where each entry is a model. Heads of
        their own belong to entries in any case.
        """
        if self.learner.keeps_own:
            return self.learner.own(rows), None
        if self._additive:
            return None, bank.delta(bank.occupied[rows].astype(np.float64), rows=rows)
        return None

    def _in_use(
        self, bank: TaskKnowledgeBank, rows: Ints, slots: Ints
    ) -> tuple[Adapters | None, Deltas | None]:
        """Return the model in use where slots (n,) are loaded, as adapters and base."""
        shared = self.shared_model(bank, rows)
        if shared is None:
            return adapters_of(bank, rows, slots), None
        adapters, base = shared
        if self._head is None:
            return adapters, base
        adapters = self.empty(len(rows)) if adapters is None else adapters
        return replace(adapters, head=adapters_of(bank, rows, slots).head), base

    def _mixture(
        self, bank: TaskKnowledgeBank, rows: Ints, weights: Floats
    ) -> tuple[Adapters | None, Deltas]:
        """Return mixtures of entries with weights (n, K), heads included, as adapters and base."""
        heads = blended_heads(bank, rows, weights)
        adapters = None if heads is None else replace(self.empty(len(rows)), head=heads)
        return adapters, bank.delta(weights, rows=rows)
