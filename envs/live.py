"""Live dynamics: real adapters trained on real data, all episodes in one batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nsr_gym.backbones.base import Backbone
from nsr_gym.bank import PerEntryFactors
from nsr_gym.bank.bank import TaskKnowledgeBank
from nsr_gym.envs.config import VisitConfig
from nsr_gym.envs.dynamics import Arrival, Floats, Ints, Visits
from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.adapters import Adapters, check_rank
from nsr_gym.learning.data import Images, TaskData
from nsr_gym.learning.learner import LearnerConfig, LoRALearner
from nsr_gym.lowrank import SiteTruncation, truncate_sites

_SUPPORT, _TRAINING, _PROBE = range(3)
"""What a visit's random numbers are for; each purpose has a stream of its own."""


_PAIRS = 256
"""Loads of entries that are tried at once; bounds the memory that a large view takes."""


class LiveDynamics:
    """Trains low-rank adapters on a frozen backbone.

    Attributes:
        pool: the tasks.
        learner: trains and measures.
        data: the tasks' images, prepared for the backbone.
        tags: none: entries carry their factors, and nothing else is needed of them.
    """

    tags: tuple[str, ...] = ()

    def __init__(
        self, data: TaskData, backbone: Backbone, config: VisitConfig, num_episodes: int
    ) -> None:
        """Prepare for `num_episodes` episodes.

        Raises:
            InvalidValueError: a rank above a site's width, more support images than a task
                has, or learner values out of range.
        """
        self.pool = data.pool
        self.embedding_dim = backbone.feature_dim
        self.learning_steps = config.learning_steps
        self.max_rank = config.max_rank
        check_rank(backbone.sites, config.max_rank)
        fewest = int(data.train_sizes.min())
        if config.support_size > fewest:
            raise InvalidValueError(
                f"Expected support_size to be at most {fewest}, the training images of the "
                f"smallest task; got {config.support_size}."
            )
        self.learner = LoRALearner(
            backbone,
            LearnerConfig(
                learning_steps=config.learning_steps,
                updates=config.updates,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                distillation=config.distillation,
                temperature=config.temperature,
            ),
        )
        self.data, self._backbone, self._config = data, backbone, config
        self._device = backbone.device
        self._keys = np.zeros((num_episodes, 2), dtype=np.uint64)
        self._sound = np.ones(num_episodes, dtype=bool)
        self._bare = np.full(len(data.pool), np.nan)
        self._result: dict[str, Any] = {}
        self._result_rows: Ints = np.zeros(0, dtype=np.int64)

    def store(self) -> PerEntryFactors:
        """Return a new store for the bank's payload."""
        return PerEntryFactors(
            sites={site.name: (site.d_out, site.d_in) for site in self._backbone.sites},
            max_rank=self.max_rank,
            device=str(self._device),
        )

    def begin(self, rows: Ints, keys: NDArray[np.uint64]) -> None:
        """Start episodes `rows` with keys (n, 2)."""
        self._keys[rows] = keys

    def arrive(self, visits: Visits) -> Arrival:
        """Draw the support images of visits and embed them."""
        return self._arrival(visits, _SUPPORT, visits.numbers)

    def probe(self, visits: Visits) -> Arrival:
        """As `arrive`, with support images that depend on episode and task alone."""
        return replace(self._arrival(visits, _PROBE, visits.tasks), probe=True)

    def _arrival(self, visits: Visits, purpose: int, counters: Ints) -> Arrival:
        k = self._config.support_size
        sizes = self.data.train_sizes[visits.tasks]
        index = np.stack(
            [
                self._generator(row, purpose, counter).permutation(size)[:k]
                for row, counter, size in zip(visits.rows, counters, sizes, strict=True)
            ]
        )
        images = self.data.train(self.tensor(visits.tasks), self.tensor(index))
        loss = self.learner.loss(images, None).cpu().numpy().astype(np.float64)
        return Arrival(visits, self.data.embed(images), loss, images)

    def trial_loss(
        self, arrival: Arrival, bank: TaskKnowledgeBank, index: Ints, slots: Ints
    ) -> Floats:
        """Return the loss in nats (k,) of loading occupied slots (k,) for arrivals index (k,)."""
        assert isinstance(arrival.support, Images)
        losses = np.empty(len(index))
        for first in range(0, len(index), _PAIRS):
            block = slice(first, first + _PAIRS)
            rows = arrival.visits.rows[index[block]]
            adapters = Adapters(bank.factors(slots[block], rows=rows))
            images = arrival.support.take(self.tensor(index[block]))
            losses[block] = self.learner.loss(images, adapters).cpu().numpy()
        return losses

    def active_loss(self, arrival: Arrival, adapters: Adapters) -> Floats:
        """Return the loss in nats (n,) of adapters on the support images."""
        assert isinstance(arrival.support, Images)
        return self.learner.loss(arrival.support, adapters).cpu().numpy().astype(np.float64)

    def learn(
        self, visits: Visits, bank: TaskKnowledgeBank | None, slots: Ints, ranks: Ints
    ) -> Floats:
        """Train from bank entries (slot -1: afresh) at granted ranks; (n, L + 1) accuracies.

        Recalled factors occupy the leading directions, fresh ones the rest of the granted rank
        with a zero up factor, so that a recall of rank r into a rank of at least r is exact.
        Into a smaller rank it is the best approximation, since entries are canonical.
        """
        recalled = slots >= 0
        stored = np.zeros(len(visits), dtype=np.int64)
        start = self.empty(len(visits))
        held = np.flatnonzero(recalled)
        if bank is not None and len(held):
            rows, entries = visits.rows[held], slots[held]
            stored[held] = bank.rank[rows, entries]
            start.put(self.tensor(held), Adapters(bank.factors(entries, rows=rows)))
        start.keep(self.tensor(ranks))
        trained, curve = self.train(visits, start, stored, ranks, recalled=recalled)
        cut = self.compress(trained, ranks, energy=self._config.energy)
        self._result_rows = visits.rows
        self._result = {
            "rank": cut.rank.cpu().numpy(),
            "factors": cut.factors,
            "singular_values": torch.stack(list(cut.singular_values.values()), dim=1),
        }
        return curve

    def train(
        self,
        visits: Visits,
        start: Adapters,
        occupied: Ints,
        ranks: Ints,
        *,
        recalled: NDArray[np.bool_] | None = None,
        frozen_from: Ints | None = None,
    ) -> tuple[Adapters, Floats]:
        """Fill directions occupied..ranks-1 of `start` afresh and train.

        Args:
            visits: the n visits.
            start: adapters to start from; fresh directions are written into them.
            occupied: (n,) leading directions that hold knowledge already.
            ranks: (n,) granted ranks.
            recalled: (n,) which episodes distil towards their start.
            frozen_from: (n,) directions from here on stay as they are; None: none.

        Returns:
            The trained adapters and the accuracies (n, L + 1).
        """
        config, n = self._config, len(visits)
        shape = (config.learning_steps, config.updates, config.batch_size)
        sites, rank = self._backbone.sites, self.max_rank
        width = sum(site.d_in for site in sites)
        batches = np.empty((n, *shape), dtype=np.int64)
        fresh = np.empty((n, rank, width), dtype=np.float32)
        sizes = self.data.train_sizes[visits.tasks]
        for i, (row, number) in enumerate(zip(visits.rows, visits.numbers, strict=True)):
            rng = self._generator(row, _TRAINING, number)
            batches[i] = rng.integers(sizes[i], size=shape)
            rng.standard_normal(out=fresh[i], dtype=np.float32)
        order = torch.arange(rank, device=self._device)
        new = (order >= self.tensor(occupied)[:, None]) & (order < self.tensor(ranks)[:, None])
        parts = torch.tensor(fresh, device=self._device).split([s.d_in for s in sites], dim=2)
        for site, part in zip(sites, parts, strict=True):
            up, down = start.factors[site.name]
            up.masked_fill_(new[:, None, :], 0.0)
            scale = config.init_gain / site.d_in**0.5
            down.copy_(torch.where(new[:, :, None], part * scale, down))
        trained, curve = self.learner.learn(
            self.data,
            self.tensor(visits.tasks),
            start,
            self.tensor(batches),
            recalled=None if recalled is None else self.tensor(recalled),
            trainable=None if frozen_from is None else order < self.tensor(frozen_from)[:, None],
        )
        # A diverged adapter must not spoil what is computed for all episodes together.
        sound = trained.finite()
        trained.put(torch.nonzero(~sound)[:, 0], self.empty(int((~sound).sum())))
        self._sound[visits.rows] = sound.cpu().numpy()
        return trained, curve.cpu().numpy().astype(np.float64)

    def sound(self, rows: Ints) -> NDArray[np.bool_]:
        """Return which episodes' last training stayed finite, (n,)."""
        return np.asarray(self._sound[rows])

    def compress(self, adapters: Adapters, ranks: Ints, *, energy: float | None) -> SiteTruncation:
        """Bring adapters into canonical form and truncate them to ranks (n,) or by energy."""
        if energy is None:
            return truncate_sites(adapters.factors, rank=self.tensor(ranks))
        return truncate_sites(adapters.factors, energy=energy)

    def empty(self, n: int) -> Adapters:
        """Return n adapters that change nothing."""
        return Adapters.zeros(self._backbone.sites, n, self.max_rank, self._device)

    def factor_bytes(self, directions: Ints) -> Ints:
        """Return the bytes of adapters with so many directions on every site, (n,)."""
        width = sum(site.d_out + site.d_in for site in self._backbone.sites)
        return np.asarray(directions * width * np.dtype(np.float32).itemsize)

    def result(self, rows: Ints) -> dict[str, Any]:
        """Return what the last `learn` left for `TaskKnowledgeBank.reserve`: rank and payload."""
        place = np.searchsorted(self._result_rows, rows)
        index = self.tensor(place)
        factors = {s: (up[index], down[index]) for s, (up, down) in self._result["factors"].items()}
        return {
            "rank": self._result["rank"][place],
            "factors": factors,
            "singular_values": self._result["singular_values"][index],
        }

    def accuracy(self, visits: Visits, bank: TaskKnowledgeBank, slots: Ints) -> Floats:
        """Return the test accuracy (n,) of occupied bank slots (n,) on the visits' tasks."""
        return self.test_accuracy(visits.tasks, Adapters(bank.factors(slots, rows=visits.rows)))

    def bare_accuracy(self, tasks: Ints) -> Floats:
        """Return the test accuracy (n,) of the bare backbone on tasks (n,)."""
        new = np.unique(tasks[np.isnan(self._bare[tasks])])
        if len(new):
            self._bare[new] = self.test_accuracy(new, None)
        return np.asarray(self._bare[tasks])

    def test_accuracy(self, tasks: Ints, adapters: Adapters | None) -> Floats:
        """Return the test accuracy (n,) of adapters, of the bare backbone for None."""
        images = self.data.test(self.tensor(tasks))
        return self.learner.accuracy(images, adapters).cpu().numpy().astype(np.float64)

    def _generator(self, row: int, purpose: int, counter: int) -> np.random.Generator:
        # Philox is counter based: key and counter name the stream, nothing is advanced.
        position = np.array([0, 0, purpose, counter], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=self._keys[row], counter=position))

    def tensor(self, array: NDArray[Any]) -> torch.Tensor:
        """Put an array where the adapters are."""
        return torch.as_tensor(array, device=self._device)
