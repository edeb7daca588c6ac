"""Pools without images: what a stream has to know of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nsr_gym.errors import FileFormatError, unknown
from nsr_gym.tasks import Split, TaskPool, check_split


@dataclass(frozen=True)
class TaskRecord:
    """A task by name.

    Attributes:
        name: unique within a pool.
        fingerprint: sha256 of the task's data, as `Task.fingerprint`.
        classes: the global label behind each output of the head.
    """

    name: str
    fingerprint: str
    classes: tuple[int, ...]


@dataclass(frozen=True)
class PoolRecord:
    """A pool of tasks without their images; draws the same streams as the pool itself.

    Attributes:
        name: of the pool.
        split: `"train"` or `"test"`.
        tasks: in the order of the pool.
    """

    name: str
    split: Split
    tasks: tuple[TaskRecord, ...]

    @classmethod
    def of(cls, pool: TaskPool) -> PoolRecord:
        """Note what streams need of a pool."""
        tasks = (TaskRecord(t.name, t.fingerprint, tuple(t.classes)) for t in pool)
        return cls(pool.name, pool.split, tuple(tasks))

    @classmethod
    def join(cls, name: str, pools: Sequence[PoolRecord]) -> PoolRecord:
        """Put pools of one split one after another."""
        return cls(name, pools[0].split, tuple(task for pool in pools for task in pool.tasks))

    @property
    def num_classes(self) -> int:
        """Number of classes of every task."""
        return len(self.tasks[0].classes)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {task.name: i for i, task in enumerate(self.tasks)}

    def index(self, name: str) -> int:
        """Return the position of the task called `name`.

        Raises:
            UnknownNameError: no task of the pool has that name.
        """
        if name not in self._index:
            raise unknown(f"task in pool {self.name!r}", name, self._index)
        return self._index[name]

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self.tasks)

    def __getitem__(self, index: int) -> TaskRecord:
        """Return the task at a position."""
        return self.tasks[index]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        tasks = [[t.name, t.fingerprint, list(t.classes)] for t in self.tasks]
        return {"name": self.name, "split": self.split, "tasks": tasks}

    @classmethod
    def from_json(cls, content: Any) -> PoolRecord:
        """Read what `to_json` gave.

        Raises:
            FileFormatError: it is something else.
        """
        try:
            tasks = tuple(TaskRecord(str(n), str(f), tuple(c)) for n, f, c in content["tasks"])
            return cls(str(content["name"]), check_split(content["split"]), tasks)
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"This describes no pool of tasks ({error!r}).") from error


Pool = TaskPool | PoolRecord
"""What streams are drawn from."""
