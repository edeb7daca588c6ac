"""Values of bank entries on tasks, kept until the entry changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nsr_gym.bank import TaskKnowledgeBank
from nsr_gym.envs.dynamics import Floats, Ints


class EntryCache:
    """One number for each (episode, slot, task), valid for one version of the slot's entry.

    Versions never come twice within a bank, so nothing has to be dropped when one is emptied.
    """

    def __init__(self, num_episodes: int, num_tasks: int) -> None:
        self._version = np.zeros((num_episodes, 0, num_tasks), dtype=np.int64)
        self._value: NDArray[np.float64] = np.zeros((num_episodes, 0, num_tasks))

    def look_up(
        self,
        bank: TaskKnowledgeBank,
        rows: Ints,
        slots: Ints,
        tasks: Ints,
        compute: Callable[[Ints], Floats],
    ) -> Floats:
        """Return the values (n,) of occupied slots on tasks, all given as (n,) distinct triples.

        Args:
            bank: whose entries.
            rows: episodes.
            slots: of their entries.
            tasks: positions in the pool.
            compute: called with the positions (k,) in 0..n-1 whose value is not known.
        """
        more = bank.slots - self._version.shape[1]
        if more > 0:
            room = ((0, 0), (0, more), (0, 0))
            self._version, self._value = np.pad(self._version, room), np.pad(self._value, room)
        versions = bank.version[rows, slots]
        stale = np.flatnonzero(self._version[rows, slots, tasks] != versions)
        if len(stale):
            where = rows[stale], slots[stale], tasks[stale]
            self._value[where] = compute(stale)
            self._version[where] = versions[stale]
        return np.asarray(self._value[rows, slots, tasks])
