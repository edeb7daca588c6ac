"""What happens inside a visit, behind one interface for live and recorded outcomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nsr_gym.bank.bank import TaskKnowledgeBank
from nsr_gym.bank.store import FactorStore
from nsr_gym.pools import Pool

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Visits:
    """Some episodes' current visits.

    Attributes:
        rows: (n,) the episodes.
        tasks: (n,) the visited tasks, as positions in the pool.
        numbers: (n,) how many visits each episode has had before.
    """

    rows: Ints
    tasks: Ints
    numbers: Ints

    def __len__(self) -> int:
        """Return n."""
        return len(self.rows)


@dataclass(frozen=True)
class Arrival:
    """What is known of a task when it arrives, before anything is learned.

    Attributes:
        visits: the visits it belongs to.
        embedding: (n, d) float32 unit vectors.
        bare_loss: (n,) loss in nats of the bare backbone on the support images.
        support: the support images, in the dynamics' own form.
        probe: whether the support images depend on episode and task alone, so that what is
            measured on them can be kept.
        signals: what the first gradient says, where that is asked for, in the dynamics' own form.
    """

    visits: Visits
    embedding: NDArray[np.float32]
    bare_loss: Floats
    support: Any = None
    probe: bool = False
    signals: Any = None


class Dynamics(Protocol):
    """Outcomes of visits for E episodes side by side.

    All randomness comes from each episode's key, drawn at its reset: the same key and the
    same actions give the same outcomes, whatever episodes run beside it.

    Attributes:
        pool: the tasks.
        embedding_dim: d.
        learning_steps: L.
        max_rank: R.
        tags: names of int64 columns that the bank keeps with every entry for the dynamics;
            `result` gives their values.
        whole: whether one model is in use for everything, so that slots do not matter.
        lasting: whether an entry's model stays what it is until the bank gives it a new version.
    """

    embedding_dim: int
    learning_steps: int
    max_rank: int
    tags: tuple[str, ...]
    whole: bool
    lasting: bool

    @property
    def pool(self) -> Pool: ...  # noqa: D102

    def store(self) -> FactorStore:
        """Return a new store for the bank's payload."""
        ...

    def begin(self, rows: Ints, keys: NDArray[np.uint64]) -> None:
        """Start episodes `rows` with keys (n, 2)."""
        ...

    def arrive(self, visits: Visits) -> Arrival:
        """Draw the support images of visits and embed them."""
        ...

    def probe(self, visits: Visits) -> Arrival:
        """As `arrive`, with support images that depend on episode and task alone."""
        ...

    def trial_loss(
        self, arrival: Arrival, bank: TaskKnowledgeBank, index: Ints, slots: Ints
    ) -> Floats:
        """Return the loss in nats (k,) of loading occupied slots (k,) for arrivals index (k,)."""
        ...

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

        Without a bank every visit starts afresh. With `weights` (n, K) a recall starts from the
        mixture of entries that they give.
        """
        ...

    def used(self, ranks: Ints) -> Ints:
        """Return the ranks that the last `learn` could use of those granted (n,), in its order."""
        ...

    def commit(self, rows: Ints, slots: Ints, bank: TaskKnowledgeBank) -> None:
        """Keep what belongs to the last results of episodes rows (n,), reserved at slots (n,)."""
        ...

    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes beside the bank that are kept from visit to visit, (n,)."""
        ...

    def result(self, rows: Ints) -> dict[str, Any]:
        """Return what the last `learn` left for `TaskKnowledgeBank.reserve`.

        Rank and payload, and under `"tags"` a column (n,) for each of `tags`. Where the tasks have
        validation images, under `"accuracy"` that on them at the end of the visit (n,), of the
        model that the last column of the curve measures; else the test accuracy stands for it.
        """
        ...

    def sound(self, rows: Ints) -> NDArray[np.bool_]:
        """Return which episodes' last training stayed finite, (n,)."""
        ...

    def accuracy(
        self,
        visits: Visits,
        bank: TaskKnowledgeBank,
        slots: Ints,
        *,
        weights: Floats | None = None,
    ) -> Floats:
        """Return the test accuracy (n,) of occupied bank slots (n,) on the visits' tasks.

        Where one model is in use for everything, slots are not looked at; with `weights` (n, K)
        it is that of mixtures of entries.
        """
        ...

    def bare_accuracy(self, tasks: Ints) -> Floats:
        """Return the test accuracy (n,) of the bare backbone on tasks (n,)."""
        ...
