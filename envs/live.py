"""Live dynamics: real adapters trained on real data, all episodes in one batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nsr_gym.backbones.base import Backbone
from nsr_gym.bank.bank import TaskKnowledgeBank
from nsr_gym.bank.kinds import make_store
from nsr_gym.bank.meta import MetaFactors
from nsr_gym.bank.store import FactorStore
from nsr_gym.envs.config import VisitConfig
from nsr_gym.envs.dynamics import Arrival, Floats, Ints, Visits
from nsr_gym.envs.signals import first_gradients
from nsr_gym.envs.starts import adapters_of, check_fit, parts_of, start_of
from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.adapters import Adapters, Deltas, check_rank
from nsr_gym.learning.data import Images, TaskData
from nsr_gym.learning.features import RouterFeatures
from nsr_gym.learning.kinds import make_learner
from nsr_gym.learning.learner import LearnerConfig
from nsr_gym.learning.visit import Visit
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
        whole: whether one model is in use for everything: the learner's own, or the sum of all
            entries, with the backbone's head.
        keys: (E, 2) each episode's key.
        device: where the adapters are.
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
        self.learner = make_learner(
            config.learner,
            backbone,
            LearnerConfig(
                learning_steps=config.learning_steps,
                updates=config.updates,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                distillation=config.distillation,
                temperature=config.temperature,
            ),
            modifiers=config.modifiers,
            options=config.learner_options,
            num_episodes=num_episodes,
            num_tasks=len(data.pool),
            max_rank=config.max_rank,
            num_classes=data.pool.num_classes if config.head == "trained" else None,
        )
        self._head = None
        if config.head == "trained":
            self._head = data.pool.num_classes, backbone.feature_dim
        check_fit(type(self.learner), config)
        self._additive = config.bank == "additive"
        self.whole = (self.learner.keeps_own or self._additive) and self._head is None
        self.data, self._backbone, self._config = data, backbone, config
        self.device = backbone.device
        self.keys = np.zeros((num_episodes, 2), dtype=np.uint64)
        self._sound = np.ones(num_episodes, dtype=bool)
        self._features: dict[str, RouterFeatures] = {}
        self._bare = np.full(len(data.pool), np.nan)
        self._result: dict[str, Any] = {}
        self._result_rows: Ints = np.zeros(0, dtype=np.int64)

    def store(self) -> FactorStore:
        """Return a new store for the bank's payload."""
        return make_store(
            self._config.bank,
            sites={site.name: (site.d_out, site.d_in) for site in self._backbone.sites},
            max_rank=self.max_rank,
            head=self._head,
            device=str(self.device),
            **self._config.bank_options,
        )

    def features(self, kind: str) -> RouterFeatures:
        """Return what routers see of images, see `RouterFeatures`."""
        if kind not in self._features:
            self._features[kind] = RouterFeatures(self.data, self._backbone, kind)
        return self._features[kind]

    def begin(self, rows: Ints, keys: NDArray[np.uint64]) -> None:
        """Start episodes `rows` with keys (n, 2)."""
        self.keys[rows] = keys
        self.learner.begin(rows)

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
        loss = self.learner.loss(images, self.bare(len(visits))).cpu().numpy().astype(np.float64)
        signals = None
        if self._config.observe_signals:
            signals = first_gradients(self._backbone, images, self.max_rank)
        return Arrival(visits, self.data.embed(images), loss, images, signals=signals)

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
        for first in range(0, len(index), _PAIRS):
            block = slice(first, first + _PAIRS)
            rows = arrival.visits.rows[index[block]]
            images = arrival.support.take(self.tensor(index[block]))
            model = self._in_use(bank, rows, slots[block])
            losses[block] = self.learner.loss(images, *model).cpu().numpy()
        return losses

    def mixture_loss(self, arrival: Arrival, bank: TaskKnowledgeBank, weights: Floats) -> Floats:
        """Return the loss in nats (n,) of mixtures of entries, weights (n, K), on the support."""
        assert isinstance(arrival.support, Images)
        base = bank.delta(weights, rows=arrival.visits.rows)
        return self.learner.loss(arrival.support, None, base).cpu().numpy().astype(np.float64)

    def active_loss(self, arrival: Arrival, adapters: Adapters) -> Floats:
        """Return the loss in nats (n,) of adapters on the support images."""
        assert isinstance(arrival.support, Images)
        return self.learner.loss(arrival.support, adapters).cpu().numpy().astype(np.float64)

    def learn(
        self,
        visits: Visits,
        bank: TaskKnowledgeBank | None,
        slots: Ints,
        ranks: Ints,
        *,
        weights: Floats | None = None,
    ) -> Floats:
        """Train from bank entries (slot -1: afresh) at granted ranks; (n, L + 1) accuracies.

        Recalled factors occupy the leading directions, fresh ones the rest of the granted rank
        with a zero up factor, so that a recall of rank r into a rank of at least r is exact.
        Into a smaller rank it is the best approximation, since entries are canonical. A bank
        that keeps a summary of its entries starts fresh visits from it.
        """
        recalled = slots >= 0
        stored = np.zeros(len(visits), dtype=np.int64)
        start = self.empty(len(visits))
        held = np.flatnonzero(recalled)
        parts: dict[str, Any] = {}
        if bank is not None:
            if len(held):
                mixed = None if weights is None else weights[held]
                found, stored[held] = start_of(bank, visits.rows[held], slots[held], mixed)
                start.put(self.tensor(held), found)
            if isinstance(bank.store, MetaFactors):
                fresh = np.flatnonzero(~recalled & (bank.count(visits.rows) > 0))
                stored[fresh] = bank.store.summary_rank
                summary = bank.store.summary(visits.rows[fresh])
                start.put(self.tensor(fresh), Adapters(summary))
            parts = parts_of(bank, visits.rows, slots, additive=self._additive)
        start.keep(self.tensor(ranks))
        trained, curve = self.train(visits, start, stored, ranks, recalled=recalled, **parts)
        # Directions that training itself has closed are not stored.
        kept = np.minimum(ranks, trained.used().clamp(min=1).cpu().numpy())
        cut = self.compress(trained, kept, energy=self._config.energy)
        self._result_rows = visits.rows
        self._result = {
            "rank": cut.rank.cpu().numpy(),
            "factors": cut.factors,
            "singular_values": torch.stack(list(cut.singular_values.values()), dim=1),
            "head": trained.head,
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
        **told: Any,
    ) -> tuple[Adapters, Floats]:
        """Fill directions occupied..ranks-1 of `start` afresh and train.

        Args:
            visits: the n visits.
            start: adapters to start from; fresh directions are written into them.
            occupied: (n,) leading directions that hold knowledge already.
            ranks: (n,) granted ranks.
            recalled: (n,) which episodes distil towards their start.
            frozen_from: (n,) directions from here on stay as they are; None: none.
            **told: what the bank tells the learner: fields of `Visit`.

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
        order = torch.arange(rank, device=self.device)
        new = (order >= self.tensor(occupied)[:, None]) & (order < self.tensor(ranks)[:, None])
        parts = torch.tensor(fresh, device=self.device).split([s.d_in for s in sites], dim=2)
        for site, part in zip(sites, parts, strict=True):
            up, down = start.factors[site.name]
            up.masked_fill_(new[:, None, :], 0.0)
            scale = config.init_gain / site.d_in**0.5
            down.copy_(torch.where(new[:, :, None], part * scale, down))
        trained, curve = self.learner.learn(
            self.data,
            Visit(
                tasks=self.tensor(visits.tasks),
                start=start,
                batches=self.tensor(batches),
                recalled=None if recalled is None else self.tensor(recalled),
                trainable=None
                if frozen_from is None
                else order < self.tensor(frozen_from)[:, None],
                ranks=self.tensor(ranks),
                occupied=self.tensor(np.minimum(occupied, ranks)),
                rows=visits.rows,
                numbers=visits.numbers,
                keys=self.keys[visits.rows],
                **told,
            ),
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
        return Adapters.zeros(self._backbone.sites, n, self.max_rank, self.device, self._head)

    def bare(self, n: int) -> Adapters | None:
        """Return the model of n visits before anything is learned: an empty head knows nothing."""
        return None if self._head is None else self.empty(n)

    def adapter_bytes(self, directions: Ints) -> Ints:
        """Return the bytes of adapters with so many directions on every site, (n,)."""
        width = sum(site.d_out + site.d_in for site in self._backbone.sites)
        head = 0 if self._head is None else self._head[0] * (self._head[1] + 1)
        numbers = directions * width + (directions > 0) * head
        return np.asarray(numbers * np.dtype(np.float32).itemsize)

    def result(self, rows: Ints) -> dict[str, Any]:
        """Return what the last `learn` left for `TaskKnowledgeBank.reserve`: rank and payload."""
        place = np.searchsorted(self._result_rows, rows)
        index = self.tensor(place)
        factors = {s: (up[index], down[index]) for s, (up, down) in self._result["factors"].items()}
        head = self._result["head"]
        return {
            "rank": self._result["rank"][place],
            "factors": factors,
            "singular_values": self._result["singular_values"][index],
            "head": None if head is None else (head[0][index], head[1][index]),
        }

    def commit(self, rows: Ints, slots: Ints, bank: TaskKnowledgeBank) -> None:
        """Let the learner keep what belongs to the last results, reserved at slots (n,)."""
        self.learner.commit(rows, slots, bank)

    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes that the learner keeps from visit to visit, (n,)."""
        return self.learner.nbytes(rows)

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
            return self.test_accuracy(visits.tasks, None, bank.delta(weights, rows=visits.rows))
        model = self._in_use(bank, visits.rows, slots)
        return self.test_accuracy(visits.tasks, *model, rows=visits.rows)

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

    def _generator(self, row: int, purpose: int, counter: int) -> np.random.Generator:
        # Philox is counter based: key and counter name the stream, nothing is advanced.
        position = np.array([0, 0, purpose, counter], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=self.keys[row], counter=position))

    def tensor(self, array: NDArray[Any]) -> torch.Tensor:
        """Put an array where the adapters are."""
        return torch.as_tensor(array, device=self.device)
