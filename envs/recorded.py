"""Recorded dynamics: what a visit does is looked up in a table of live visits (NumPy only)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.bank.bank import TaskKnowledgeBank
from nsr_gym.bank.store import CountedFactors
from nsr_gym.envs.config import VisitConfig
from nsr_gym.envs.dynamics import Arrival, Floats, Ints, Visits
from nsr_gym.errors import AccessError, InvalidValueError
from nsr_gym.noise import uniform
from nsr_gym.outcomes import OutcomeTable

_SUPPORT, _CHAIN = (np.uint64(i << 32) for i in range(2))
"""What random numbers are for; each purpose has counters of its own."""


class RecordedDynamics:
    """Looks outcomes up by visited task, start, rank of the start, its history, granted rank.

    An entry of the bank carries the task it was last trained on, its rank, its level and its chain
    (see `OutcomeTable`). A visit from fresh directions draws a recorded chain, and the entry it
    leaves goes on along that chain, so that it starts a return where it ended the last visit.
    Support images are the recorded samples of the task in turn, from a drawn one on: a sample that
    came twice within a few visits would give away the task, as live samples never do. All
    that is drawn follows from the episode's key.

    Attributes:
        pool: the tasks, without images.
        tags: what entries carry beside their task.
        table: the outcomes.
    """

    tags: tuple[str, ...] = ("level", "chain")
    whole = False
    lasting = True

    def __init__(self, table: OutcomeTable, config: VisitConfig, num_episodes: int) -> None:
        """Prepare for `num_episodes` episodes.

        Raises:
            AccessError: memoryless access, whose active adapter holds parts of several tasks.
            InvalidValueError: a rank or a setting that was not recorded.
        """
        config.require_plain('since no others were recorded (take dynamics="live" for them)')
        if config.access == "memoryless":
            raise AccessError(
                "Recorded outcomes know no adapter that holds parts of several tasks, as "
                'access="memoryless" needs; take dynamics="live" for it.'
            )
        missing = sorted(set(config.ranks) - set(table.ranks))
        if missing:
            raise InvalidValueError(
                f"Expected ranks among the recorded ones {list(table.ranks)}; got {missing} too. "
                'Take dynamics="live", or record a table with these ranks.'
            )
        table.check_settings({name: getattr(config, name) for name in (*table.settings, "head")})
        if config.energy is not None:
            raise InvalidValueError(
                f"Expected energy=None: outcomes were recorded for fixed ranks; got "
                f'{config.energy!r}. Take dynamics="live" for it.'
            )
        self.pool, self.table = table.pool, table
        self.embedding_dim = int(table.embedding.shape[2])
        self.learning_steps = table.learning_steps
        self.max_rank = config.max_rank
        self._keys = np.zeros(num_episodes, dtype=np.uint64)
        self._arrivals = np.zeros((num_episodes, len(table.pool)), dtype=np.int64)
        self._place = np.full(table.ranks[-1] + 1, -1, dtype=np.int64)
        self._place[list(table.ranks)] = np.arange(len(table.ranks))
        self._result: dict[str, Ints] = {}
        self._seen: Floats | None = None
        self._where = np.zeros(num_episodes, dtype=np.int64)

    def store(self) -> CountedFactors:
        """Return a store that counts the bytes that live adapters would have."""
        return CountedFactors(sites=self.table.sites, max_rank=self.max_rank, head=self.table.head)

    def begin(self, rows: Ints, keys: NDArray[np.uint64]) -> None:
        """Start episodes `rows` with keys (n, 2)."""
        self._keys[rows] = keys[:, 0]
        self._arrivals[rows] = 0

    def arrive(self, visits: Visits) -> Arrival:
        """Take the next of the recorded samples of support images for each visit's task."""
        where = visits.rows, visits.tasks
        arrival = self._arrival(visits, self._arrivals[where], probe=False)
        self._arrivals[where] += 1
        return arrival

    def probe(self, visits: Visits) -> Arrival:
        """As `arrive`, with a sample that depends on episode and task alone: the last in turn."""
        return self._arrival(visits, -1, probe=True)

    def _arrival(self, visits: Visits, turn: Ints | int, *, probe: bool) -> Arrival:
        table, tasks = self.table, visits.tasks
        first = self._draw(visits.rows, _SUPPORT, tasks, table.supports)
        sample = (first + turn) % table.supports
        loss = table.bare_loss[tasks, sample].astype(np.float64)
        return Arrival(visits, table.embedding[tasks, sample], loss, sample, probe)

    def trial_loss(
        self, arrival: Arrival, bank: TaskKnowledgeBank, index: Ints, slots: Ints
    ) -> Floats:
        """Return the loss in nats (k,) of loading occupied slots (k,) for arrivals index (k,)."""
        table, visits = self.table, arrival.visits
        tasks, sample = visits.tasks[index], arrival.support[index]
        rows = visits.rows[index]
        source, rank, level, chain = self._entries(bank, rows, slots)
        own = source == tasks
        loss = np.empty(len(index))
        loss[own] = table.own_loss[tasks[own], sample[own], rank[own], level[own], chain[own]]
        other = ~own
        g = table.source_index[tasks[other], source[other]]
        loss[other] = table.foreign_loss[tasks[other], sample[other], g, rank[other]]
        return loss

    def learn(
        self,
        visits: Visits,
        bank: TaskKnowledgeBank | None,
        slots: Ints,
        ranks: Ints,
        *,
        weights: Floats | None = None,
    ) -> Floats:
        """Look visits up: from bank entries (slot -1: afresh) at granted ranks; (n, L + 1).

        No mixtures were recorded, so there are no weights.
        """
        table, rows, tasks = self.table, visits.rows, visits.tasks
        granted = self._place[ranks]
        fresh, source = slots < 0, np.full(len(rows), -1)
        if bank is not None:
            source, rank, level, chain = self._entries(bank, rows, np.maximum(slots, 0))
        own = ~fresh & (source == tasks)
        foreign = ~fresh & ~own
        curve = np.empty((len(rows), table.learning_steps + 1))
        seen = np.empty(len(rows))
        new_level = np.zeros(len(rows), dtype=np.int64)
        new_chain = self.fresh_chain(rows, visits.numbers)
        key: tuple[Ints, ...]
        if fresh.any():
            key = tasks[fresh], granted[fresh], new_chain[fresh]
            curve[fresh] = table.fresh[key]
            if table.fresh_validation is not None:
                seen[fresh] = table.fresh_validation[key]
        if own.any():
            key = tasks[own], rank[own], level[own], chain[own], granted[own]
            curve[own] = table.own[key]
            new_level[own], new_chain[own] = table.next_level[key], chain[own]
            if table.own_validation is not None:
                seen[own] = table.own_validation[key]
        if foreign.any():
            t = tasks[foreign]
            g = table.source_index[t, source[foreign]]
            key = t, g, rank[foreign], granted[foreign]
            curve[foreign] = table.foreign[key]
            new_chain[foreign] = table.foreign_chain[key]
            if table.foreign_validation is not None:
                seen[foreign] = table.foreign_validation[key]
        self._where[rows] = np.arange(len(rows))
        self._result = {"rank": ranks, "level": new_level, "chain": new_chain}
        self._seen = seen if table.validated else None
        return curve

    def fresh_chain(self, rows: Ints, numbers: Ints) -> Ints:
        """Return the chain (n,) that a visit begins if it starts afresh."""
        return self._draw(rows, _CHAIN, numbers, self.table.fresh_chains)

    def result(self, rows: Ints) -> dict[str, Any]:
        """Return what the last `learn` left for `TaskKnowledgeBank.reserve`.

        Rank and tags, and the accuracy on validation images where that was recorded.
        """
        place = self._where[rows]
        found = {
            "rank": self._result["rank"][place],
            "tags": {name: self._result[name][place] for name in self.tags},
        }
        return found if self._seen is None else found | {"accuracy": self._seen[place]}

    def used(self, ranks: Ints) -> Ints:
        """Return the granted ranks: what was recorded used them."""
        return ranks

    def commit(self, rows: Ints, slots: Ints, bank: TaskKnowledgeBank) -> None:
        """Keep nothing: all that is kept lies in the bank."""

    def nbytes(self, rows: Ints) -> Ints:
        """Return 0: all that is kept lies in the bank."""
        return np.zeros(len(rows), dtype=np.int64)

    def sound(self, rows: Ints) -> NDArray[np.bool_]:
        """Return that no recorded training diverged, (n,)."""
        return np.ones(len(rows), dtype=bool)

    def accuracy(
        self,
        visits: Visits,
        bank: TaskKnowledgeBank,
        slots: Ints,
        *,
        weights: Floats | None = None,
    ) -> Floats:
        """Return the test accuracy (n,) of occupied bank slots (n,) on the visits' tasks."""
        table, tasks = self.table, visits.tasks
        source, rank, level, chain = self._entries(bank, visits.rows, slots)
        own = source == tasks
        found = np.empty(len(tasks))
        found[own] = table.end[tasks[own], rank[own], level[own], chain[own]]
        t, r = tasks[~own], rank[~own]
        g = table.source_index[t, source[~own]]
        found[~own] = table.foreign[t, g, r, r, 0]
        return found

    def bare_accuracy(self, tasks: Ints) -> Floats:
        """Return the test accuracy (n,) of the bare backbone on tasks (n,)."""
        return self.table.bare_accuracy[tasks].astype(np.float64)

    def _entries(
        self, bank: TaskKnowledgeBank, rows: Ints, slots: Ints
    ) -> tuple[Ints, Ints, Ints, Ints]:
        """Return task, index of the rank, level and chain of bank slots, (n,) each."""
        where = rows, slots
        tags = bank.tags
        return (
            tags["task"][where],
            self._place[bank.rank[where]],
            *(tags[name][where] for name in self.tags),
        )  # type: ignore[return-value]

    def _draw(self, rows: Ints, purpose: np.uint64, counters: Ints, choices: int) -> Ints:
        position = purpose + counters.astype(np.uint64)
        return (uniform(self._keys[rows], position) * choices).astype(np.int64)
