"""Access at a visit alone, on dynamics that look outcomes up: nothing survives a switch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nsr_gym.envs.config import VisitConfig
from nsr_gym.envs.dynamics import Arrival, Dynamics, Floats, Ints, Visits
from nsr_gym.envs.layout import ObservationLayout
from nsr_gym.envs.memory import UPDATE, Bools, Limits, Progress, masks_without_bank


class VisitMemory:
    """Every visit starts from fresh directions; the counterpart of a reset `ActiveMemory`.

    Attributes:
        layout: of the observations.
    """

    def __init__(self, dynamics: Dynamics, config: VisitConfig) -> None:
        self._dynamics, self._config = dynamics, config
        sizes = {"bare_loss": 1} | ({"task": 1} if config.observe_task_id else {})
        self.layout = ObservationLayout(sizes, dynamics.pool.num_classes, config.ranks)

    def begin(self, rows: Ints, limits: Limits) -> None:
        """Do nothing: there is nothing to forget."""

    def observe(self, arrival: Arrival, progress: Progress) -> NDArray[np.float32]:
        """Return what a policy sees of tasks that arrive, (n, size)."""
        loss = self.layout.scale_loss(arrival.bare_loss)
        return self.layout.encode(len(loss), {"bare_loss": loss, "task": progress.task_share})

    def admit(self, arrival: Arrival, progress: Progress) -> NDArray[np.float32]:
        """Return what `observe` does."""
        return self.observe(arrival, progress)

    def masks(self, rows: Ints) -> Bools:
        """Return which values each action component may take; there is nothing to recall."""
        config = self._config
        return masks_without_bank(len(rows), config.view_size, len(config.ranks))

    def masks_for(self, arrival: Arrival) -> Bools:
        """Return the same as `masks` for tasks that would arrive."""
        return self.masks(arrival.visits.rows)

    def visit(self, visits: Visits, actions: Ints) -> tuple[Ints, Floats]:
        """Carry out actions (n, 3); return the executed ones and the accuracies (n, L + 1)."""
        executed = actions.copy()
        executed[:, 0] = 0
        executed[:, 2] = np.minimum(actions[:, 2], UPDATE)
        ranks = np.array(self._config.ranks, dtype=np.int64)[executed[:, 1]]
        return executed, self._dynamics.learn(visits, None, np.full(len(ranks), -1), ranks)

    def entries(self, rows: Ints) -> Ints:
        """Return 0, there is no bank."""
        return np.zeros(len(rows), dtype=np.int64)

    def nbytes(self, rows: Ints) -> Ints:
        """Return 0, nothing survives."""
        return np.zeros(len(rows), dtype=np.int64)

    def describe(self, row: int) -> list[str]:
        """Say that nothing survives."""
        return ["nothing survives a switch"]

    def used_accuracy(self, arrival: Arrival, actions: Ints | None) -> Floats:
        """Return the test accuracy (n,) of the bare backbone."""
        return self._dynamics.bare_accuracy(arrival.visits.tasks)
