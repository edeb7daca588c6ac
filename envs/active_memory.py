"""Access without a bank: one active adapter of fixed total rank, or nothing at all."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from nsr_gym.envs.config import VisitConfig
from nsr_gym.envs.dynamics import Arrival, Floats, Ints, Visits
from nsr_gym.envs.layout import ObservationLayout
from nsr_gym.envs.live import LiveDynamics
from nsr_gym.envs.memory import (
    DISCARD,
    UPDATE,
    Bools,
    Limits,
    Progress,
    masks_without_bank,
)
from nsr_gym.learning.adapters import Adapters

_EMPTY = -1


class ActiveMemory:
    """The active adapter of total rank R is all that survives a switch.

    The granted rank is re-initialised for the newcomer, empty directions first, then the
    oldest, and of equally old ones those of least weight; the other directions stay, frozen.
    With `persistent=False` (visit access) the adapter is reset at every switch as well.

    Attributes:
        layout: of the observations.
    """

    def __init__(
        self,
        dynamics: LiveDynamics,
        config: VisitConfig,
        num_episodes: int,
        *,
        persistent: bool,
    ) -> None:
        self._dynamics, self._config, self._persistent = dynamics, config, persistent
        sizes = {"bare_loss": 1}
        if persistent:
            sizes = {"adapter_empty": 1, "active_loss": 1} | sizes
        if config.observe_task_id:
            sizes |= {"task": 1}
        self.layout = ObservationLayout(sizes, dynamics.pool.num_classes, config.ranks)
        self._active = dynamics.empty(num_episodes)
        # When each direction was trained; directions are kept in the order of their ages.
        self._born = np.full((num_episodes, config.max_rank), _EMPTY, dtype=np.int64)
        self._scratch = np.zeros(num_episodes, dtype=np.int64)

    def begin(self, rows: Ints, limits: Limits) -> None:
        """Forget everything about episodes that start anew; the adapter's size is fixed."""
        self._reset(rows)

    def _reset(self, rows: Ints) -> None:
        self._born[rows] = _EMPTY
        self._scratch[rows] = 0
        self._active.put(self._dynamics.tensor(rows), self._dynamics.empty(len(rows)))

    def observe(self, arrival: Arrival, progress: Progress) -> NDArray[np.float32]:
        """Return what a policy sees of tasks that arrive, (n, size); changes nothing."""
        rows, scale = arrival.visits.rows, self.layout.scale_loss
        values: dict[str, NDArray[np.float64]] = {
            "bare_loss": scale(arrival.bare_loss),
            "task": progress.task_share,
        }
        if self._persistent:
            active = self._active[self._dynamics.tensor(rows)]
            values["adapter_empty"] = (self._born[rows] == _EMPTY).all(axis=1).astype(np.float64)
            values["active_loss"] = scale(self._dynamics.active_loss(arrival, active))
        return self.layout.encode(len(rows), values)

    def admit(self, arrival: Arrival, progress: Progress) -> NDArray[np.float32]:
        """Return what `observe` does: what to do with the adapter is decided later."""
        return self.observe(arrival, progress)

    def masks_for(self, arrival: Arrival) -> Bools:
        """Return the same as `masks` for tasks that would arrive."""
        return self.masks(arrival.visits.rows)

    def masks(self, rows: Ints) -> Bools:
        """Return which values each action component may take; there is nothing to recall."""
        config = self._config
        return masks_without_bank(len(rows), config.view_size, len(config.ranks))

    def visit(self, visits: Visits, actions: Ints) -> tuple[Ints, Floats]:
        """Carry out actions (n, 3); return the executed ones and the accuracies (n, L + 1)."""
        rows, executed = visits.rows, actions.copy()
        executed[:, 0] = 0
        executed[:, 2] = np.minimum(actions[:, 2], UPDATE)
        ranks = np.array(self._config.ranks, dtype=np.int64)[executed[:, 1]]
        if not self._persistent:
            self._reset(rows)

        # Bring the directions to be overwritten to the front; the rest keeps its order, in
        # which equally old ones stand from the heaviest to the lightest.
        born = self._born[rows]
        index = np.broadcast_to(np.arange(born.shape[1]), born.shape)
        eviction = np.lexsort((-index, born), axis=1)
        granted = index < ranks[:, None]
        goes = np.zeros_like(granted)
        np.put_along_axis(goes, eviction, granted, axis=1)
        order = np.argsort(~goes, axis=1, kind="stable")
        start = self._active[self._dynamics.tensor(rows)].reorder(self._dynamics.tensor(order))
        born = np.take_along_axis(born, order, axis=1)
        trained, curve = self._dynamics.train(
            visits, start, np.zeros_like(ranks), ranks, frozen_from=ranks
        )
        self._sort_new(trained, ranks)

        executed[~self._dynamics.sound(rows), 2] = DISCARD
        kept = executed[:, 2] != DISCARD
        born = np.where(granted, visits.numbers[:, None], born)
        where = self._dynamics.tensor(np.flatnonzero(kept))
        self._active.put(self._dynamics.tensor(rows[kept]), trained[where])
        self._born[rows[kept]] = born[kept]
        self._scratch[rows] = np.where(kept | (not self._persistent), 0, ranks)
        return executed, curve

    def entries(self, rows: Ints) -> Ints:
        """Return 0, there is no bank."""
        return np.zeros(len(rows), dtype=np.int64)

    def nbytes(self, rows: Ints) -> Ints:
        """Return the adapter's bytes, (n,), and those of the scratch copy of a reverted visit."""
        held = (self._born[rows] != _EMPTY).sum(axis=1) * self._persistent
        return self._dynamics.adapter_bytes(held + self._scratch[rows])

    def describe(self, row: int) -> list[str]:
        """Return which visit each direction of the adapter was learned in."""
        born = ["-" if b == _EMPTY else str(b + 1) for b in self._born[row]]
        return [
            f"active adapter: rank {len(born)}, {int(self.nbytes(np.array([row]))[0]):,} B",
            "direction learned in visit: " + " ".join(born),
        ]

    def used_accuracy(self, arrival: Arrival, actions: Ints | None) -> Floats:
        """Return the test accuracy (n,) of what is left after the switch, whatever the action."""
        if not self._persistent:
            return self._dynamics.bare_accuracy(arrival.visits.tasks)
        rows = self._dynamics.tensor(arrival.visits.rows)
        return self._dynamics.test_accuracy(arrival.visits.tasks, self._active[rows])

    def _sort_new(self, trained: Adapters, ranks: Ints) -> None:
        """Sort the new directions by weight, so that the lightest can go first later."""
        new = Adapters({s: (up.clone(), down.clone()) for s, (up, down) in trained.factors.items()})
        limits = self._dynamics.tensor(ranks)
        new.keep(limits)
        cut = self._dynamics.compress(new, ranks, energy=None)
        inside = torch.arange(trained.rank, device=limits.device) < limits[:, None]
        for site, (up, down) in trained.factors.items():
            new_up, new_down = cut.factors[site]
            up.copy_(torch.where(inside[:, None, :], new_up, up))
            down.copy_(torch.where(inside[:, :, None], new_down, down))
