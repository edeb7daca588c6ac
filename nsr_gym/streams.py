"""Streams: which task is visited when, in one episode.

A stream is its explicit lists (tasks, classes, visits) and their hash; the seed it was
drawn with is no part of it, since what a seed means changes with library versions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import DataError, FileFormatError, InvalidValueError
from nsr_gym.pools import Pool
from nsr_gym.schedules import SCHEDULES, Visits, check_count, check_generator, draw_visits
from nsr_gym.tasks import Split, check_split

__all__ = ["SCHEDULES", "TaskStream", "draw_visits", "make_stream"]


@dataclass(frozen=True, kw_only=True)
class TaskStream:
    """The tasks of one episode and the order in which they are visited.

    M is the number of tasks, V the number of visits. Tasks that take part but are never
    visited (possible in random schedules) still count into M.

    Attributes:
        tasks: (M,) names.
        fingerprints: (M,) sha256 of each task's data.
        classes: (M,) global class labels of each task.
        visits: (V,) index into `tasks` per visit.
        schedule: name of the schedule that drew the visits, `"explicit"` where none did.
        split: split of the pool that the tasks come from.

    Raises:
        InvalidValueError: lists of different lengths, no tasks or visits, repeated tasks,
            or visits outside 0..M-1.
    """

    tasks: tuple[str, ...]
    fingerprints: tuple[str, ...]
    classes: tuple[tuple[int, ...], ...]
    visits: tuple[int, ...]
    schedule: str
    split: Split

    def __post_init__(self) -> None:
        check_split(self.split)
        lengths = (len(self.tasks), len(self.fingerprints), len(self.classes))
        if len(set(lengths)) != 1 or len(set(self.tasks)) != len(self.tasks):
            raise InvalidValueError(
                "A stream needs one fingerprint and one class list for each of its distinct "
                f"tasks, got {lengths[0]} tasks ({len(set(self.tasks))} distinct), {lengths[1]} "
                f"fingerprints and {lengths[2]} class lists."
            )
        if not self.tasks or not self.visits:
            raise InvalidValueError("A stream needs at least one task and one visit, got none.")
        if min(self.visits) < 0 or max(self.visits) >= len(self.tasks):
            raise InvalidValueError(
                f"Visits must be task indices in 0..{len(self.tasks) - 1}, got "
                f"{min(self.visits)}..{max(self.visits)}."
            )

    @classmethod
    def from_pool(
        cls,
        pool: Pool,
        *,
        members: Sequence[int] | Visits,
        visits: Sequence[int] | Visits,
        schedule: str = "explicit",
    ) -> TaskStream:
        """Build a stream from an explicit choice of tasks and an explicit order.

        Args:
            pool: the tasks.
            members: (M,) positions in the pool, distinct: the tasks that take part.
            visits: (V,) index into `members` per visit.
            schedule: name to go with the stream.

        Raises:
            InvalidValueError: members outside the pool, or what `TaskStream` refuses.
        """
        positions, order = _integers("members", members), _integers("visits", visits)
        if not all(0 <= i < len(pool) for i in positions):
            raise InvalidValueError(
                f"Members must be positions in 0..{len(pool) - 1} of pool {pool.name!r}, "
                f"got {positions}."
            )
        chosen = [pool.tasks[i] for i in positions]
        return cls(
            tasks=tuple([task.name for task in chosen]),
            fingerprints=tuple([task.fingerprint for task in chosen]),
            classes=tuple([task.classes for task in chosen]),
            visits=tuple(order),
            schedule=schedule,
            split=pool.split,
        )

    @property
    def num_tasks(self) -> int:
        """Number of tasks M."""
        return len(self.tasks)

    @property
    def num_visits(self) -> int:
        """Number of visits V."""
        return len(self.visits)

    def cycle(self, visit: int) -> int:
        """Return the 0-based cycle of a visit: `visit // M`, whatever the schedule."""
        return visit // len(self.tasks)

    @cached_property
    def previous_visit(self) -> Visits:
        """(V,) int64: the last earlier visit to the same task, -1 at a first visit."""
        visits = np.asarray(self.visits)
        order = np.argsort(visits, kind="stable")
        same = visits[order[1:]] == visits[order[:-1]]
        previous = np.full(len(visits), -1, dtype=np.int64)
        previous[order[1:][same]] = order[:-1][same]
        previous.flags.writeable = False
        return previous

    @cached_property
    def is_return(self) -> NDArray[np.bool_]:
        """(V,) bool: the task was visited before in this stream."""
        returns = self.previous_visit >= 0
        returns.flags.writeable = False
        return returns

    @cached_property
    def hash(self) -> str:
        """Sha256 (hex) over the canonical JSON of all fields."""
        return hashlib.sha256(_canonical(self._content()).encode()).hexdigest()

    def pool_indices(self, pool: Pool) -> Visits:
        """Find the stream's tasks in a pool.

        Returns:
            (M,) int64 positions in `pool`.

        Raises:
            UnknownNameError: the pool has no task of that name.
            DataError: it has one, with other data than the stream was drawn on.
        """
        positions = [pool.index(name) for name in self.tasks]
        for i, fingerprint in zip(positions, self.fingerprints, strict=True):
            if pool[i].fingerprint != fingerprint:
                raise DataError(
                    f"Task {pool[i].name!r} of pool {pool.name!r} has other data than the stream "
                    f"was drawn on ({pool[i].fingerprint[:12]}, expected {fingerprint[:12]}); "
                    "load the data that belongs to the stream or draw a new stream."
                )
        return np.asarray(positions, dtype=np.int64)

    def to_json(self) -> str:
        """Return the stream as one line of JSON, its hash included."""
        return _canonical({**self._content(), "hash": self.hash})

    @classmethod
    def from_json(cls, text: str) -> TaskStream:
        """Read what `to_json` wrote.

        Raises:
            FileFormatError: no JSON, fields missing or of a wrong type, or content that does
                not match its hash.
        """
        try:
            content = json.loads(text)
            stored = content.pop("hash")
            stream = cls(
                tasks=tuple(content.pop("tasks")),
                fingerprints=tuple(content.pop("fingerprints")),
                classes=tuple(tuple(labels) for labels in content.pop("classes")),
                visits=tuple(content.pop("visits")),
                schedule=content.pop("schedule"),
                split=content.pop("split"),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(
                f"This is no stream as `TaskStream.to_json` writes it ({error!r}); write it again."
            ) from error
        if content or stream.hash != stored:
            raise FileFormatError(
                f"The stream is damaged: its content hashes to {stream.hash[:12]}, stored is "
                f"{str(stored)[:12]}"
                + (f", and it has unknown fields {sorted(content)}" if content else "")
                + "; take it from its source again."
            )
        return stream

    def _content(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _canonical(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def make_stream(
    pool: Pool,
    *,
    schedule: str,
    num_tasks: int,
    cycles: int,
    rng: np.random.Generator,
    options: Mapping[str, float] | None = None,
) -> TaskStream:
    """Draw the stream of one episode: which tasks take part, and when they are visited.

    Draws `permutation(len(pool))`, whose first M entries take part in that order, and then
    what `draw_visits` draws.

    Args:
        pool: the tasks of one split.
        schedule: one of `SCHEDULES`.
        num_tasks: M, from 1 to `len(pool)`; drawn without replacement.
        cycles: the stream has M * cycles visits.
        rng: the only source of randomness.
        options: of the schedule.

    Raises:
        UnknownNameError: no such schedule or option.
        InvalidValueError: a value out of range or of a wrong type.
    """
    num_tasks = check_count("num_tasks", num_tasks)
    if num_tasks > len(pool):
        raise InvalidValueError(
            f"num_tasks is {num_tasks}, and pool {pool.name!r} (split {pool.split!r}) has "
            f"{len(pool)} tasks; ask for fewer or make a larger pool."
        )
    check_generator(rng)
    members = rng.permutation(len(pool))[:num_tasks]
    visits = draw_visits(schedule, num_tasks, cycles, rng, **(options or {}))
    return TaskStream.from_pool(pool, members=members, visits=visits, schedule=schedule)


def _integers(what: str, values: Sequence[int] | Visits) -> list[int]:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise InvalidValueError(
            f"A stream's {what} must be a list of integers, at least one, got {values!r}."
        )
    numbers: list[int] = array.tolist()
    return numbers
