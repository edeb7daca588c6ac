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
from nsr_gym.envs.models import LiveModels
from nsr_gym.envs.signals import first_gradients
from nsr_gym.envs.starts import check_fit, parts_of, start_of
from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.adapters import Adapters, check_rank
from nsr_gym.learning.data import TaskData
from nsr_gym.learning.kinds import make_learner
from nsr_gym.learning.learner import LearnerConfig
from nsr_gym.learning.pending import positions
from nsr_gym.learning.validating import FRONT, validated, validating
from nsr_gym.learning.visit import Visit
from nsr_gym.lowrank import SiteTruncation, truncate_sites

_SUPPORT, _TRAINING, _PROBE = range(3)
"""What a visit's random numbers are for; each purpose has a stream of its own."""


class LiveDynamics(LiveModels):
    """Trains low-rank adapters on a frozen backbone.

    Attributes:
        pool: the tasks.
        tags: none: entries carry their factors, and nothing else is needed of them.
        keys: (E, 2) each episode's key.
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
        check_rank(backbone.sites, config.max_rank)
        fewest = int(data.train_sizes.min())
        if config.support_size > fewest:
            raise InvalidValueError(
                f"Expected support_size to be at most {fewest}, the training images of the "
                f"smallest task; got {config.support_size}."
            )
        learner = make_learner(
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
            front=validating(data),
            options=config.learner_options,
            num_episodes=num_episodes,
            num_tasks=len(data.pool),
            max_rank=config.max_rank,
            num_classes=data.pool.num_classes if config.head == "trained" else None,
        )
        check_fit(type(learner), config)
        super().__init__(data, backbone, config, learner)
        self.keys = np.zeros((num_episodes, 2), dtype=np.uint64)
        self._sound = np.ones(num_episodes, dtype=bool)
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
        measured = validated(self.data, len(visits), self.device)
        trained, curve = self.train(
            visits, start, stored, ranks, recalled=recalled, extra=measured, **parts
        )
        # Directions that training itself has closed are not stored.
        kept = np.minimum(ranks, trained.used().clamp(min=1).cpu().numpy())
        cut = self.compress(trained, kept, energy=self._config.energy)
        self._result_rows = visits.rows
        self._result = {
            "rank": cut.rank.cpu().numpy(),
            "factors": cut.factors,
            "singular_values": torch.stack(list(cut.singular_values.values()), dim=1),
            "head": trained.head,
            "accuracy": measured[FRONT].cpu().numpy() if measured else None,
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

    def adapter_bytes(self, directions: Ints) -> Ints:
        """Return the bytes of adapters with so many directions on every site, (n,)."""
        width = sum(site.d_out + site.d_in for site in self._backbone.sites)
        head = 0 if self._head is None else self._head[0] * (self._head[1] + 1)
        numbers = directions * width + (directions > 0) * head
        return np.asarray(numbers * np.dtype(np.float32).itemsize)

    def result(self, rows: Ints) -> dict[str, Any]:
        """Return what the last `learn` left for `TaskKnowledgeBank.reserve`; see `Dynamics`."""
        place = positions(rows, self._result_rows)
        index = self.tensor(place)
        factors = {s: (up[index], down[index]) for s, (up, down) in self._result["factors"].items()}
        head, accuracy = self._result["head"], self._result["accuracy"]
        measured = {} if accuracy is None else {"accuracy": accuracy[place]}
        return {
            **measured,
            "rank": self._result["rank"][place],
            "factors": factors,
            "singular_values": self._result["singular_values"][index],
            "head": None if head is None else (head[0][index], head[1][index]),
        }

    def used(self, ranks: Ints) -> Ints:
        """Return the ranks that the last `learn` could use of those granted (n,), in its order."""
        return ranks - self.learner.denied(len(ranks))

    def commit(self, rows: Ints, slots: Ints, bank: TaskKnowledgeBank) -> None:
        """Let the learner keep what belongs to the last results, reserved at slots (n,)."""
        self.learner.commit(rows, slots, bank)

    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes that the learner keeps from visit to visit, (n,)."""
        return self.learner.nbytes(rows)

    def _generator(self, row: int, purpose: int, counter: int) -> np.random.Generator:
        # Philox is counter based: key and counter name the stream, nothing is advanced.
        position = np.array([0, 0, purpose, counter], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=self.keys[row], counter=position))
