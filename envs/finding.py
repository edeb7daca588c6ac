"""Who is recalled: what the view of the bank is sorted by, and which entry answers an input."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nsr_gym.bank import TaskKnowledgeBank
from nsr_gym.envs.dynamics import Arrival, Floats, Ints, Visits
from nsr_gym.envs.parts import HUB, PartsConfig
from nsr_gym.errors import unknown
from nsr_gym.routing import make_router

if TYPE_CHECKING:
    from nsr_gym.envs.live import LiveDynamics
    from nsr_gym.learning.data import Images
    from nsr_gym.routing.base import Query, Router

_HUB_OPTIONS = ("bound", "penalty", "evaluations")


@dataclass(frozen=True)
class Found:
    """Entries for n arrivals, best first.

    Attributes:
        slots: (n, k), -1 where there are fewer.
        scores: (n, k) in [0, 1], 0 where there are fewer.
        backbone: (n,) the score of starting from the backbone alone; None: it has none.
        weights: (n, K) of a mixture of entries; None: none was asked for.
    """

    slots: Ints
    scores: NDArray[Any]
    backbone: Floats | None = None
    weights: Floats | None = None


class Finder(Protocol):
    """Finds entries for arriving tasks.

    Attributes:
        follows: whether it has to be told what is written into the bank and what is gone.
    """

    follows: bool

    def begin(self, rows: Ints) -> None:
        """Forget everything about episodes that start anew."""
        ...

    def find(self, arrival: Arrival, top_n: int) -> Found:
        """Return the best entries for arrivals; changes nothing."""
        ...

    def written(self, visits: Visits, slots: Ints) -> None:
        """Learn that entries slots (n,) were written in visits of n different episodes."""
        ...

    def dropped(self, rows: Ints, slots: Ints) -> None:
        """Forget entries that are gone; rows may repeat."""
        ...

    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes kept for this beside the bank, (n,)."""
        ...


class SimilarityFinder:
    """Cosine similarity of embeddings (NSR), answered by the bank itself."""

    follows = False

    def __init__(self, bank: TaskKnowledgeBank) -> None:
        self._bank = bank

    def begin(self, rows: Ints) -> None:
        """Do nothing: the bank is all there is."""

    def find(self, arrival: Arrival, top_n: int) -> Found:
        """Return the most similar entries."""
        hits = self._bank.recall(arrival.embedding, top_n=top_n, rows=arrival.visits.rows)
        slots = np.where(hits.valid, hits.slot, -1)
        return Found(slots, np.where(hits.valid, hits.similarity, 0.0))

    def written(self, visits: Visits, slots: Ints) -> None:
        """Do nothing."""

    def dropped(self, rows: Ints, slots: Ints) -> None:
        """Do nothing."""

    def nbytes(self, rows: Ints) -> Ints:
        """Return 0: embeddings are counted in the bank."""
        return np.zeros(len(rows), dtype=np.int64)


class _FollowingFinder(abc.ABC):
    """Answers an arrival once until the bank changes: it is observed, masked and measured."""

    follows = True
    _answer: tuple[Arrival, Found] | None = None

    def begin(self, rows: Ints) -> None:
        """Forget everything about episodes that start anew."""
        self._answer = None

    def find(self, arrival: Arrival, top_n: int) -> Found:
        """Return the best entries for arrivals; changes nothing."""
        if self._answer is None or self._answer[0] is not arrival:
            self._answer = arrival, self._find(arrival, top_n)
        return self._answer[1]

    @abc.abstractmethod
    def _find(self, arrival: Arrival, top_n: int) -> Found: ...

    def written(self, visits: Visits, slots: Ints) -> None:
        """Learn that entries slots (n,) were written in visits of n different episodes."""
        self._answer = None

    def dropped(self, rows: Ints, slots: Ints) -> None:
        """Forget entries that are gone; rows may repeat."""
        self._answer = None


class RouterFinder(_FollowingFinder):
    """A router of `nsr_gym.routing`, told of every entry that is written or gone.

    Attributes:
        router: which it is.
    """

    def __init__(
        self, dynamics: LiveDynamics, bank: TaskKnowledgeBank, config: PartsConfig, name: str
    ) -> None:
        """Build the router that the configuration names.

        Raises:
            UnknownNameError: an option that it does not have.
            InvalidValueError: an option out of range.
        """
        self._dynamics, self._bank = dynamics, bank
        self._features = dynamics.features(config.features_of(name))
        self._mixed = config.warm_start == "mixture"
        self.router: Router = make_router(
            name,
            num_banks=bank.num_banks,
            feature_dim=self._features.dim,
            device=str(dynamics.device),
            **(config.router_options if name == config.router else {}),
        )

    def begin(self, rows: Ints) -> None:
        """Forget everything about episodes that start anew."""
        super().begin(rows)
        self.router.begin(rows, self._dynamics.keys[rows])

    def _find(self, arrival: Arrival, top_n: int) -> Found:
        """Return the entries with the highest scores for the support images as a set."""
        query = self.query(arrival.visits, arrival.support)
        scores = self.router.set_scores(query).cpu().numpy()
        bank, rows = self._bank, arrival.visits.rows
        entries = np.where(bank.occupied[rows], scores[:, 1 : bank.slots + 1], -1.0)
        order = np.argsort(-entries, axis=1, kind="stable")[:, :top_n]
        best = np.take_along_axis(entries, order, axis=1)
        short = top_n - order.shape[1]
        slots = np.pad(np.where(best >= 0.0, order, -1), ((0, 0), (0, max(0, short))),
                       constant_values=-1)  # fmt: skip
        best = np.pad(np.maximum(best, 0.0), ((0, 0), (0, max(0, short))))
        weights = None
        if self._mixed:
            weights = self.router.weights(query).mean(dim=1).cpu().numpy()[:, 1:]
        return Found(slots, best, scores[:, 0], weights)

    def written(self, visits: Visits, slots: Ints) -> None:
        """Let the router learn from the visited tasks' training images."""
        from nsr_gym.routing.base import Written

        super().written(visits, slots)
        bank, dynamics, rows = self._bank, self._dynamics, visits.rows
        self._room()
        self.router.learn(
            Written(
                rows=rows,
                slots=slots,
                features=self._features.of_tasks(dynamics.tensor(visits.tasks)),
                embedding=dynamics.tensor(bank.embedding[rows, slots]),
                tasks=visits.tasks,
                factors=bank.factors(slots, rows=rows),
            )
        )

    def dropped(self, rows: Ints, slots: Ints) -> None:
        """Let the router forget entries that are gone."""
        super().dropped(rows, slots)
        self._room()
        self.router.drop(rows, slots)

    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes that the router keeps, (n,)."""
        return self.router.nbytes(rows)

    def query(self, visits: Visits, images: Images) -> Query:
        """Return the question which entries serve k images of each of n visits."""
        from nsr_gym.routing.base import Query

        self._room()
        inputs = self._features.inputs(images) if self.router.needs_inputs else {}
        return Query(visits.rows, self._features(images), visits.tasks, inputs)

    def read(self) -> None:
        """Learn what lies in the bank now, for a router that was not told as it was written."""
        bank = self._bank
        self._room()
        for slot in range(bank.slots):
            rows = np.flatnonzero(bank.occupied[:, slot])
            if len(rows):
                tasks = bank.tags["task"][rows, slot]
                visits = Visits(rows, tasks, np.zeros_like(tasks))
                self.written(visits, np.full(len(rows), slot))

    def _room(self) -> None:
        if self.router.slots < self._bank.slots:
            self.router.allocate(self._bank.slots)


class HubFinder(_FollowingFinder):
    """Weights over the bank, searched without gradients for every arrival (LoraHub).

    The view is sorted by the size of the weights; scores are their sizes over the bound.
    """

    def __init__(
        self, dynamics: LiveDynamics, bank: TaskKnowledgeBank, config: PartsConfig
    ) -> None:
        """Take the search's options from the configuration.

        Raises:
            UnknownNameError: an option that the search does not have.
        """
        for name in config.router_options:
            if name not in _HUB_OPTIONS:
                raise unknown(f"option of the router {HUB!r}", name, _HUB_OPTIONS)
        self._dynamics, self._bank = dynamics, bank
        self._options = {"bound": 1.5, **config.router_options}

    def _find(self, arrival: Arrival, top_n: int) -> Found:
        """Return the entries with the largest weights, and the weights."""
        from nsr_gym.routing.lorahub import search

        bank, dynamics, rows = self._bank, self._dynamics, arrival.visits.rows
        held = bank.occupied[rows]
        # Only entries that are held have weights; the search of a visit follows from its key.
        seed = dynamics.keys[rows, 0] ^ arrival.visits.numbers.astype(np.uint64)
        found = search(
            lambda weights: dynamics.mixture_loss(arrival, bank, weights),
            n=len(rows),
            entries=held,
            seed=seed,
            **self._options,
        )
        size = np.where(held, np.abs(found), -1.0)
        order = np.argsort(-size, axis=1, kind="stable")[:, :top_n]
        best = np.take_along_axis(size, order, axis=1)
        room = ((0, 0), (0, max(0, top_n - order.shape[1])))
        slots = np.pad(np.where(best >= 0.0, order, -1), room, constant_values=-1)
        scores = np.pad(np.maximum(best, 0.0), room) / self._options["bound"]
        return Found(slots, scores, None, found)

    def nbytes(self, rows: Ints) -> Ints:
        """Return 0: nothing is kept."""
        return np.zeros(len(rows), dtype=np.int64)


def live_finder(dynamics: LiveDynamics, bank: TaskKnowledgeBank, config: PartsConfig) -> Finder:
    """Return the finder that a configuration names."""
    if config.router == HUB:
        return HubFinder(dynamics, bank, config)
    plain = config.warm_start == "entry" and not config.router_options
    if config.router == "cosine" and plain:
        return SimilarityFinder(bank)
    return RouterFinder(dynamics, bank, config, config.router)
