"""Which task is visited when, for E episodes side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nsr_gym.envs.protocol import Ints
from nsr_gym.envs.tabular.config import TabularConfig
from nsr_gym.metrics.visits import is_return
from nsr_gym.regret.instances import INSTANCES
from nsr_gym.schedules import draw_visits


class Streams:
    """Orders of visits, instances and keys of random numbers, drawn when an episode begins.

    Attributes:
        instance: (E,) number of each episode's instance.
        key: (E,) uint64, see `nsr_gym.noise`.
    """

    def __init__(self, config: TabularConfig, num_episodes: int) -> None:
        """Prepare E episodes; nothing is drawn yet."""
        self._config = config
        self.instance = np.full(num_episodes, config.instance or 0)
        self.key = np.zeros(num_episodes, dtype=np.uint64)
        # A fixed order is the same for all and is computed, not stored.
        self._fixed = config.order == "fixed"
        shape = (0, 0) if self._fixed else (num_episodes, config.num_visits)
        self._order = np.zeros(shape, dtype=np.int64)
        self._is_return = np.zeros(shape, dtype=bool)

    def draw(self, rows: Ints, generators: Sequence[np.random.Generator]) -> None:
        """Draw all that is random in some episodes.

        From each generator come, in this order: the number of the instance where any may come,
        the order of the visits where it is not fixed, and the key.
        """
        config = self._config
        for row, rng in zip(rows.tolist(), generators, strict=True):
            if config.instance is None:
                self.instance[row] = rng.integers(INSTANCES)
            if not self._fixed:
                order = draw_visits(config.schedule, config.num_tasks, config.cycles, rng)
                self._order[row], self._is_return[row] = order, is_return(order)
            self.key[row] = rng.integers(2**63)

    def tasks(self, rows: Ints, visits: Ints) -> Ints:
        """Return the tasks of the (n,) visits of (n,) episodes."""
        if self._fixed:
            return visits % self._config.num_tasks
        return np.asarray(self._order[rows, visits])

    def returns(self, rows: Ints, visits: Ints) -> NDArray[np.bool_]:
        """Return whether the task of each visit was visited before."""
        if self._fixed:
            return visits >= self._config.num_tasks
        return np.asarray(self._is_return[rows, visits])

    def order(self, row: int) -> Ints:
        """Return the tasks of all visits of an episode, (V,)."""
        visits = np.arange(self._config.num_visits)
        return self.tasks(np.full(len(visits), row), visits)

    def hash(self, row: int) -> str:
        """Return the hash of an episode's explicit stream: its instance and its visits."""
        head = f"{self._config.split} {self.instance[row]} {self._config.num_tasks} "
        return hashlib.sha256(head.encode() + self.order(row).tobytes()).hexdigest()[:16]
