"""Access to the bank: what is seen of it, and what an action does with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nsr_gym.bank import TaskKnowledgeBank
from nsr_gym.bank.bank import NO_LIMIT
from nsr_gym.envs.cache import EntryCache
from nsr_gym.envs.config import VisitConfig
from nsr_gym.envs.dynamics import Arrival, Dynamics, Floats, Ints, Visits
from nsr_gym.envs.finding import Finder, Found, SimilarityFinder
from nsr_gym.envs.layout import (
    GLOBAL_FIELDS,
    SIGNAL_FIELDS,
    TASK_FIELDS,
    VIEW_FIELDS,
    ObservationLayout,
)
from nsr_gym.envs.memory import ADD, DISCARD, UPDATE, Bools, Limits, Progress

Signals = Callable[[Arrival, TaskKnowledgeBank, Ints], dict[str, Floats]]


class BankMemory:
    """A TaskKnowledgeBank per episode; nothing else survives a switch.

    Attributes:
        bank: the E banks.
        layout: of the observations.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        config: VisitConfig,
        num_episodes: int,
        finder: Callable[[TaskKnowledgeBank], Finder] = SimilarityFinder,
        signals: Signals | None = None,
    ) -> None:
        """Make empty banks.

        Args:
            dynamics: what happens inside a visit.
            config: the arguments.
            num_episodes: E.
            finder: builds what finds entries in the bank.
            signals: gives the fields of `SIGNAL_FIELDS` for arrivals and slots in view (n, S).
        """
        self._dynamics, self._config, self._signals = dynamics, config, signals
        store = dynamics.store()
        self.bank = TaskKnowledgeBank(
            embedding_dim=dynamics.embedding_dim,
            retention=config.retention,
            num_banks=num_episodes,
            store=store,
            tags=("task", "refined", *dynamics.tags),
        )
        self.finder = finder(self.bank)
        self._summed = config.bank == "additive"
        sizes = dict.fromkeys(VIEW_FIELDS, config.view_size) | dict.fromkeys(GLOBAL_FIELDS, 1)
        if not isinstance(self.finder, SimilarityFinder):
            sizes |= {"route_backbone": 1}
        if signals is not None:
            sizes |= dict(zip(SIGNAL_FIELDS, (len(config.ranks), 1, 1), strict=True))
        if config.observe_task_id:
            sizes |= dict(zip(TASK_FIELDS, (config.view_size, 1), strict=True))
        self.layout = ObservationLayout(sizes, dynamics.pool.num_classes, config.ranks)
        least = store.entry_bytes(np.array([config.ranks[0]]))
        shared = store.shared_bytes(np.array([1]))
        self._shared_bytes = int(sum(part[0] for part in shared.values()))
        self._least_bytes = int(sum(part[0] for part in least.values()))
        self._least_bytes += self.bank.embedding.itemsize * dynamics.embedding_dim
        self._losses = EntryCache(num_episodes, len(dynamics.pool))
        self._accuracies = EntryCache(num_episodes, len(dynamics.pool))
        self._view = np.full((num_episodes, config.view_size), -1, dtype=np.int64)
        self._weights: Floats = np.zeros((num_episodes, 0))
        self._embedding = np.zeros((num_episodes, dynamics.embedding_dim), dtype=np.float32)
        self._horizon = np.ones(num_episodes, dtype=np.int64)
        self._ranks = np.array(config.ranks, dtype=np.int64)

    def begin(self, rows: Ints, limits: Limits) -> None:
        """Forget everything about episodes that start anew."""
        self._horizon[rows] = limits.visits
        self.bank.clear(rows=rows)
        self.finder.begin(rows)
        self.bank.limit(rows=rows, capacity=limits.capacity, capacity_bytes=limits.capacity_bytes)

    def observe(self, arrival: Arrival, progress: Progress) -> NDArray[np.float32]:
        """Return what a policy sees of tasks that arrive, (n, size); changes nothing."""
        return self._observe(arrival, progress, self._viewed(arrival))

    def _observe(self, arrival: Arrival, progress: Progress, found: Found) -> NDArray[np.float32]:
        config, bank, layout, slots = self._config, self.bank, self.layout, found.slots
        rows, held = arrival.visits.rows, slots >= 0
        place = rows[:, None], np.maximum(slots, 0)
        scaled = np.ones(slots.shape)
        scaled[held] = layout.scale_loss(
            self._trial_loss(arrival, np.nonzero(held)[0], slots[held])
        )
        horizon = self._horizon[rows]
        capacity = bank.capacities[rows]
        room = np.where((capacity > 0) & (capacity < NO_LIMIT), capacity, horizon)
        values = {
            "similarity": found.scores,
            "stored_rank": held * bank.rank[place] / config.max_rank,
            "accuracy": held * bank.accuracy[place],
            "age": held * (bank.clock[rows, None] - bank.reserved_at[place]) / horizon[:, None],
            "recalls": held * bank.times_recalled[place] / horizon[:, None],
            "trial_loss": scaled,
            "occupancy": bank.count(rows) / room,
            "budget_left": self._budget_left(rows),
            "visits_left": progress.visits_left,
            "bare_loss": layout.scale_loss(arrival.bare_loss),
        }
        if found.backbone is not None:
            values["route_backbone"] = found.backbone
        elif "route_backbone" in layout.sizes:
            values["route_backbone"] = np.zeros(len(rows))
        if self._signals is not None:
            values |= self._signals(arrival, bank, slots)
        if config.observe_task_id:
            values["same_task"] = held & self._same_task(arrival, slots)
            values["task"] = progress.task_share
        return layout.encode(len(rows), values)

    def admit(self, arrival: Arrival, progress: Progress) -> NDArray[np.float32]:
        """Make the arrived tasks the visited ones; return what `observe` does."""
        rows = arrival.visits.rows
        found = self._viewed(arrival)
        self._view[rows] = found.slots
        self._embedding[rows] = arrival.embedding
        if found.weights is not None:
            more = found.weights.shape[1] - self._weights.shape[1]
            self._weights = np.pad(self._weights, ((0, 0), (0, max(0, more))))
            self._weights[rows, : found.weights.shape[1]] = found.weights
        return self._observe(arrival, progress, found)

    def masks(self, rows: Ints) -> Bools:
        """Return which values each action component may take, (n, S + 1 + Q + 3).

        Nothing can be recalled beyond the entries in view, nothing added to a bank that is
        full and keeps the first, or that can hold nothing at all. Masks factorise over the
        components: in a closed bank, update stays open for recalls and is projected after a
        fresh start; the same goes for a rank whose entry exceeds the byte budget.
        """
        return self._masks(rows, self._view[rows])

    def masks_for(self, arrival: Arrival) -> Bools:
        """Return the same for tasks that would arrive."""
        return self._masks(arrival.visits.rows, self._viewed(arrival).slots)

    def _masks(self, rows: Ints, view: Ints) -> Bools:
        config, bank = self._config, self.bank
        recall = np.ones((len(rows), config.view_size + 1), dtype=bool)
        recall[:, 1:] = view >= 0
        rank = np.ones((len(rows), len(config.ranks)), dtype=bool)
        reserve = np.ones((len(rows), 3), dtype=bool)
        capacity, budget, held = bank.capacities[rows], bank.budgets[rows], bank.count(rows)
        keeps_first = config.retention == "pin"
        closed = (held >= capacity) & (keeps_first | (capacity == 0))
        # Where entries stay, what they share has been paid by the first.
        shared = np.where(keeps_first & (held > 0), 0, self._shared_bytes)
        closed |= self._least_bytes + shared > budget - bank.nbytes(rows=rows) * keeps_first
        reserve[:, ADD] = ~closed
        # An update adds after a fresh start, so it stays open only while something is held.
        reserve[:, UPDATE] = ~closed | (held > 0)
        return np.concatenate([recall, rank, reserve], axis=1)

    def visit(self, visits: Visits, actions: Ints) -> tuple[Ints, Floats]:
        """Carry out actions (n, 3); return the executed ones and the accuracies (n, L + 1)."""
        bank, rows, executed = self.bank, visits.rows, actions.copy()
        executed[:, 0] = np.minimum(actions[:, 0], (self._view[rows] >= 0).sum(axis=1))
        recalled = executed[:, 0] > 0
        slots = np.where(recalled, self._view[rows, executed[:, 0] - 1], -1)
        ranks = self._ranks[executed[:, 1]]
        bank.tick(rows=rows)
        if recalled.any():
            bank.mark_recalled(slots[recalled], rows=rows[recalled])
        refined = np.where(recalled, bank.tags["refined"][rows, np.maximum(slots, 0)] + 1, 0)
        weights = None
        if self._weights.shape[1]:
            # The bank may have grown since these tasks arrived, by visits of other episodes.
            more = max(0, bank.slots - self._weights.shape[1])
            weights = np.pad(self._weights[rows], ((0, 0), (0, more)))
        curve = self._dynamics.learn(visits, bank, slots, ranks, weights=weights)

        # A learner may have less room than was granted; what covers it is reported.
        used = self._dynamics.used(ranks)
        if (used < ranks).any():
            covering = np.searchsorted(self._ranks, np.maximum(used, 1))
            executed[:, 1] = np.minimum(executed[:, 1], covering)
        executed[~self._dynamics.sound(rows), 2] = DISCARD
        if self._summed:
            # The recalled entry stays in the sum: a result added beside it would count it twice.
            executed[recalled & (executed[:, 2] == ADD), 2] = UPDATE
        update = recalled & (executed[:, 2] == UPDATE)
        add = (executed[:, 2] != DISCARD) & ~update
        held = self._held(rows) if self.finder.follows else None
        for chosen, fresh in ((update, False), (add, True)):
            if not chosen.any():
                continue
            result = self._dynamics.result(rows[chosen])
            own = {"task": visits.tasks[chosen], "refined": refined[chosen]}
            entry = {
                **result,
                "embedding": self._embedding[rows[chosen]],
                # What is decided by entries' accuracies is decided on validation images.
                "accuracy": result.get("accuracy", curve[chosen, -1]),
                "tags": own | result.get("tags", {}),
            }
            if fresh:
                slots[chosen] = bank.reserve(rows=rows[chosen], **entry).slot
            else:
                slots[chosen] = bank.replace(slots[chosen], rows=rows[chosen], **entry).slot
        kept = (update | add) & (slots >= 0)
        executed[(update | add) & ~kept, 2] = DISCARD
        if kept.any():
            self._dynamics.commit(rows[kept], slots[kept], bank)
        if held is not None:
            self._tell(visits, slots, kept, held)
        return executed, curve

    def _held(self, rows: Ints) -> Ints:
        """Return the order of creation of what is held, (n, K), -1 for nothing."""
        return np.where(self.bank.occupied[rows], self.bank.created_order[rows], -1)

    def _tell(self, visits: Visits, slots: Ints, kept: Bools, held: Ints) -> None:
        """Tell the finder what became of the bank in a visit.

        Args:
            visits: n visits.
            slots: (n,) where results lie.
            kept: (n,) whether they were kept.
            held: (n, K) what `_held` gave before.
        """
        rows = visits.rows
        now = self._held(rows)[:, : held.shape[1]]
        index, gone = np.nonzero((held >= 0) & (now != held))
        if len(index):
            self.finder.dropped(rows[index], gone)
        if kept.any():
            done = Visits(rows[kept], visits.tasks[kept], visits.numbers[kept])
            self.finder.written(done, slots[kept])

    def entries(self, rows: Ints) -> Ints:
        """Return how many entries are held, (n,)."""
        return self.bank.count(rows)

    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes that survive the switch, (n,)."""
        beside = self.finder.nbytes(rows) + self._dynamics.nbytes(rows)
        return np.asarray(self.bank.nbytes(rows=rows) + beside)

    def describe(self, row: int) -> list[str]:
        """Return the bank as a table, most lately used entries first."""
        bank, pool = self.bank, self._dynamics.pool
        held = np.flatnonzero(bank.occupied[row])
        view = self._view[row].tolist()
        kinds = {kind: int(value[0]) for kind, value in bank.bytes_by_kind(rows=[row]).items()}
        most = int(bank.capacities[row])
        capacity = "no limit" if most == NO_LIMIT else f"capacity {most}"
        lines = [
            f"bank: {len(held)} entries ({capacity}, {bank.retention}), "
            + ", ".join(f"{kind} {value:,} B" for kind, value in kinds.items() if value),
            "slot  view  rank  accuracy  age  recalls  refined  learned from",
        ]
        for slot in held[np.argsort(-bank.used_order[row, held])]:
            seen = str(view.index(slot) + 1) if slot in view else "-"
            lines.append(
                f"{slot:4d}  {seen:>4}  {bank.rank[row, slot]:4d}  {bank.accuracy[row, slot]:8.3f}"
                f"  {bank.clock[row] - bank.reserved_at[row, slot]:3d}"
                f"  {bank.times_recalled[row, slot]:7d}  {bank.tags['refined'][row, slot]:7d}"
                f"  {pool[int(bank.tags['task'][row, slot])].name}"
            )
        return lines

    def used_accuracy(self, arrival: Arrival, actions: Ints | None) -> Floats:
        """Return the test accuracy (n,) of the model in use if actions (n, 3) were taken.

        That of the entries that they would recall, or of the one model for everything.
        """
        dynamics, visits = self._dynamics, arrival.visits
        if dynamics.whole:
            return dynamics.accuracy(visits, self.bank, np.full(len(visits), -1))
        found = self._viewed(arrival)
        slots = found.slots
        if actions is None:
            chosen = slots[:, 0]
        else:
            recall = np.minimum(actions[:, 0], (slots >= 0).sum(axis=1))
            chosen = np.where(recall > 0, slots[np.arange(len(slots)), recall - 1], -1)
        held = np.flatnonzero(chosen >= 0)
        accuracies = dynamics.bare_accuracy(visits.tasks)
        rows, tasks, entries = visits.rows[held], visits.tasks[held], chosen[held]
        asked = Visits(rows, tasks, visits.numbers[held])
        if found.weights is not None:
            accuracies[held] = dynamics.accuracy(
                asked, self.bank, entries, weights=found.weights[held]
            )
            return accuracies

        def measure(stale: Ints) -> Floats:
            part = Visits(rows[stale], tasks[stale], asked.numbers[stale])
            return dynamics.accuracy(part, self.bank, entries[stale])

        if not dynamics.lasting:
            accuracies[held] = measure(np.arange(len(held)))
            return accuracies
        accuracies[held] = self._accuracies.look_up(self.bank, rows, entries, tasks, measure)
        return accuracies

    def _trial_loss(self, arrival: Arrival, index: Ints, slots: Ints) -> Floats:
        """Return the losses (k,) of occupied slots for arrivals index, each pair once."""

        def measure(stale: Ints) -> Floats:
            return self._dynamics.trial_loss(arrival, self.bank, index[stale], slots[stale])

        if not arrival.probe or not self._dynamics.lasting:
            return measure(np.arange(len(index)))
        rows, tasks = arrival.visits.rows[index], arrival.visits.tasks[index]
        return self._losses.look_up(self.bank, rows, slots, tasks, measure)

    def _viewed(self, arrival: Arrival) -> Found:
        """Return what is in view, (n, S) slots and scores; -1 and 0 where there is none."""
        size = self._config.view_size
        if not self._config.observe_task_id:
            return self.finder.find(arrival, size)
        found = self.finder.find(arrival, max(size, self.bank.slots))
        # The oracle's entries come first, or a full view could hide them.
        own = (found.slots >= 0) & self._same_task(arrival, found.slots)
        order = np.argsort(~own, axis=1, kind="stable")[:, :size]
        slots, scores = (
            np.take_along_axis(part, order, axis=1) for part in (found.slots, found.scores)
        )
        return replace(found, slots=slots, scores=scores)

    def _same_task(self, arrival: Arrival, slots: Ints) -> Bools:
        tags = self.bank.tags["task"][arrival.visits.rows[:, None], np.maximum(slots, 0)]
        return np.asarray(tags == arrival.visits.tasks[:, None])

    def _budget_left(self, rows: Ints) -> Floats:
        budget = self.bank.budgets[rows]
        used = self.bank.nbytes(rows=rows) / np.maximum(1, budget)
        return np.where(budget == NO_LIMIT, 1.0, 1.0 - np.where(budget == 0, 1.0, used))
