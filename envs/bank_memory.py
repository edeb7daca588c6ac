"""Access to the bank: what is seen of it, and what an action does with it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nsr_gym.bank import TaskKnowledgeBank
from nsr_gym.bank.bank import NO_LIMIT
from nsr_gym.envs.cache import EntryCache
from nsr_gym.envs.config import VisitConfig
from nsr_gym.envs.dynamics import Arrival, Dynamics, Floats, Ints, Visits
from nsr_gym.envs.layout import GLOBAL_FIELDS, TASK_FIELDS, VIEW_FIELDS, ObservationLayout
from nsr_gym.envs.memory import ADD, DISCARD, UPDATE, Bools, Limits, Progress


class BankMemory:
    """A TaskKnowledgeBank per episode; nothing else survives a switch.

    Attributes:
        bank: the E banks.
        layout: of the observations.
    """

    def __init__(self, dynamics: Dynamics, config: VisitConfig, num_episodes: int) -> None:
        self._dynamics, self._config = dynamics, config
        store = dynamics.store()
        self.bank = TaskKnowledgeBank(
            embedding_dim=dynamics.embedding_dim,
            retention=config.retention,
            num_banks=num_episodes,
            store=store,
            tags=("task", "refined", *dynamics.tags),
        )
        sizes = dict.fromkeys(VIEW_FIELDS, config.view_size) | dict.fromkeys(GLOBAL_FIELDS, 1)
        if config.observe_task_id:
            sizes |= dict(zip(TASK_FIELDS, (config.view_size, 1), strict=True))
        self.layout = ObservationLayout(sizes, dynamics.pool.num_classes, config.ranks)
        least = store.entry_bytes(np.array([config.ranks[0]]))
        self._least_bytes = int(sum(part[0] for part in least.values()))
        self._least_bytes += self.bank.embedding.itemsize * dynamics.embedding_dim
        self._losses = EntryCache(num_episodes, len(dynamics.pool))
        self._accuracies = EntryCache(num_episodes, len(dynamics.pool))
        self._view = np.full((num_episodes, config.view_size), -1, dtype=np.int64)
        self._embedding = np.zeros((num_episodes, dynamics.embedding_dim), dtype=np.float32)
        self._horizon = np.ones(num_episodes, dtype=np.int64)
        self._ranks = np.array(config.ranks, dtype=np.int64)

    def begin(self, rows: Ints, limits: Limits) -> None:
        """Forget everything about episodes that start anew."""
        self._horizon[rows] = limits.visits
        self.bank.clear(rows=rows)
        self.bank.limit(rows=rows, capacity=limits.capacity, capacity_bytes=limits.capacity_bytes)

    def observe(self, arrival: Arrival, progress: Progress) -> NDArray[np.float32]:
        """Return what a policy sees of tasks that arrive, (n, size); changes nothing."""
        return self._observe(arrival, progress, *self._viewed(arrival))

    def _observe(
        self, arrival: Arrival, progress: Progress, slots: Ints, similarity: Floats
    ) -> NDArray[np.float32]:
        config, bank, layout = self._config, self.bank, self.layout
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
            "similarity": similarity,
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
        if config.observe_task_id:
            values["same_task"] = held & self._same_task(arrival, slots)
            values["task"] = progress.task_share
        return layout.encode(len(rows), values)

    def admit(self, arrival: Arrival, progress: Progress) -> NDArray[np.float32]:
        """Make the arrived tasks the visited ones; return what `observe` does."""
        rows = arrival.visits.rows
        slots, similarity = self._viewed(arrival)
        self._view[rows] = slots
        self._embedding[rows] = arrival.embedding
        return self._observe(arrival, progress, slots, similarity)

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
        return self._masks(arrival.visits.rows, self._viewed(arrival)[0])

    def _masks(self, rows: Ints, view: Ints) -> Bools:
        config, bank = self._config, self.bank
        recall = np.ones((len(rows), config.view_size + 1), dtype=bool)
        recall[:, 1:] = view >= 0
        rank = np.ones((len(rows), len(config.ranks)), dtype=bool)
        reserve = np.ones((len(rows), 3), dtype=bool)
        capacity, budget, held = bank.capacities[rows], bank.budgets[rows], bank.count(rows)
        keeps_first = config.retention == "pin"
        closed = (held >= capacity) & (keeps_first | (capacity == 0))
        closed |= self._least_bytes > budget - bank.nbytes(rows=rows) * keeps_first
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
        curve = self._dynamics.learn(visits, bank, slots, ranks)

        executed[~self._dynamics.sound(rows), 2] = DISCARD
        update = recalled & (executed[:, 2] == UPDATE)
        add = (executed[:, 2] != DISCARD) & ~update
        for chosen, fresh in ((update, False), (add, True)):
            if not chosen.any():
                continue
            result = self._dynamics.result(rows[chosen])
            own = {"task": visits.tasks[chosen], "refined": refined[chosen]}
            entry = {
                **result,
                "embedding": self._embedding[rows[chosen]],
                "accuracy": curve[chosen, -1],
                "tags": own | result.get("tags", {}),
            }
            if fresh:
                kept = bank.reserve(rows=rows[chosen], **entry).slot >= 0
            else:
                kept = bank.replace(slots[chosen], rows=rows[chosen], **entry).slot >= 0
            executed[np.flatnonzero(chosen)[~kept], 2] = DISCARD
        return executed, curve

    def entries(self, rows: Ints) -> Ints:
        """Return how many entries are held, (n,)."""
        return self.bank.count(rows)

    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes that survive the switch, (n,)."""
        return np.asarray(self.bank.nbytes(rows=rows))

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
        """Return the test accuracy (n,) of the entries that actions would recall."""
        slots, _ = self._viewed(arrival)
        if actions is None:
            chosen = slots[:, 0]
        else:
            recall = np.minimum(actions[:, 0], (slots >= 0).sum(axis=1))
            chosen = np.where(recall > 0, slots[np.arange(len(slots)), recall - 1], -1)
        visits, held = arrival.visits, np.flatnonzero(chosen >= 0)
        accuracies = self._dynamics.bare_accuracy(visits.tasks)
        rows, tasks, entries = visits.rows[held], visits.tasks[held], chosen[held]

        def measure(stale: Ints) -> Floats:
            asked = Visits(rows[stale], tasks[stale], visits.numbers[held[stale]])
            return self._dynamics.accuracy(asked, self.bank, entries[stale])

        accuracies[held] = self._accuracies.look_up(self.bank, rows, entries, tasks, measure)
        return accuracies

    def _trial_loss(self, arrival: Arrival, index: Ints, slots: Ints) -> Floats:
        """Return the losses (k,) of occupied slots for arrivals index, each pair once."""

        def measure(stale: Ints) -> Floats:
            return self._dynamics.trial_loss(arrival, self.bank, index[stale], slots[stale])

        if not arrival.probe:
            return measure(np.arange(len(index)))
        rows, tasks = arrival.visits.rows[index], arrival.visits.tasks[index]
        return self._losses.look_up(self.bank, rows, slots, tasks, measure)

    def _viewed(self, arrival: Arrival) -> tuple[Ints, Floats]:
        """Return slots and similarities in view, (n, S) each; -1 and 0 where there is none."""
        size, rows = self._config.view_size, arrival.visits.rows
        n = size if not self._config.observe_task_id else max(size, self.bank.slots)
        hits = self.bank.recall(arrival.embedding, top_n=n, rows=rows)
        slots = np.where(hits.valid, hits.slot, -1)
        similarity = np.where(hits.valid, hits.similarity, 0.0)
        if self._config.observe_task_id:
            # The oracle's entries come first, or a full view could hide them.
            own = (slots >= 0) & self._same_task(arrival, slots)
            order = np.argsort(~own, axis=1, kind="stable")
            slots = np.take_along_axis(slots, order, axis=1)
            similarity = np.take_along_axis(similarity, order, axis=1)
        return slots[:, :size], similarity[:, :size]

    def _same_task(self, arrival: Arrival, slots: Ints) -> Bools:
        tags = self.bank.tags["task"][arrival.visits.rows[:, None], np.maximum(slots, 0)]
        return np.asarray(tags == arrival.visits.tasks[:, None])

    def _budget_left(self, rows: Ints) -> Floats:
        budget = self.bank.budgets[rows]
        used = self.bank.nbytes(rows=rows) / np.maximum(1, budget)
        return np.where(budget == NO_LIMIT, 1.0, 1.0 - np.where(budget == 0, 1.0, used))
