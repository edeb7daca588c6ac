"""Episodes of several kinds: each draws its family, length, order, room and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nsr_gym.datasets.digits import default_size, mixed_positions
from nsr_gym.envs.arguments import check_number, check_whole
from nsr_gym.envs.config import VisitConfig
from nsr_gym.envs.plans import EpisodePlan
from nsr_gym.errors import InvalidValueError, unknown
from nsr_gym.pools import Pool
from nsr_gym.streams import SCHEDULES, TaskStream, draw_visits


@dataclass(frozen=True, kw_only=True)
class DigitsFamily:
    """A kind of episode on digits.

    Attributes:
        tasks: family of tasks.
        capped: whether the bank holds fewer entries than there are tasks.
        bytes_per_task: of the bank's budget; None for no budget.
    """

    tasks: str
    capped: bool = False
    bytes_per_task: int | None = None


BUDGET_BYTES_PER_TASK = 8_500

DIGITS_FAMILIES: dict[str, DigitsFamily] = {
    "cyclic": DigitsFamily(tasks="permutation"),
    "capped": DigitsFamily(tasks="permutation", capped=True),
    "aliased": DigitsFamily(tasks="labels"),
    "budget": DigitsFamily(tasks="partial", bytes_per_task=BUDGET_BYTES_PER_TASK),
    "related": DigitsFamily(tasks="rotation"),
}


def roomy(num_tasks: int) -> int:
    """Return a capacity with room for all tasks and some mistakes: 16 for 10 tasks."""
    return -(-8 * num_tasks // 5)


@dataclass(frozen=True, kw_only=True)
class MixedConfig(VisitConfig):
    """Episodes that differ, in plain JSON values.

    Attributes:
        families: names of `DIGITS_FAMILIES`; each episode draws one.
        num_tasks: M, a number or [lowest, highest]; each episode draws one.
        cycles: C; an episode has M C visits.
        schedules: names of `nsr_gym.streams.SCHEDULES`; each episode draws one.
        markov_noise: in episodes of the schedule `"markov"`, the probability of leaving the cycle.
        embedding_noise: sigma of `EpisodeConfig`, a number or [lowest, highest]; each episode draws
            one.
    """

    view_size: int = 12
    families: tuple[str, ...] = tuple(DIGITS_FAMILIES)
    num_tasks: tuple[int, int] = (4, 12)
    cycles: int = 6
    schedules: tuple[str, ...] = ("cyclic", "reshuffled", "markov")
    markov_noise: float | None = None
    embedding_noise: tuple[float, float] = (0.0, 0.2)

    def __post_init__(self) -> None:
        """Check every value; see `VisitConfig`."""
        super().__post_init__()
        for name, one, known in (
            ("families", "family of episodes", DIGITS_FAMILIES),
            ("schedules", "schedule", SCHEDULES),
        ):
            object.__setattr__(self, name, _names(name, one, getattr(self, name), known))
        for name in ("num_tasks", "embedding_noise"):
            object.__setattr__(self, name, _range(name, getattr(self, name)))
        for number in self.num_tasks:
            check_whole("num_tasks", number, least=1)
        for sigma in self.embedding_noise:
            check_number("embedding_noise", sigma, low=0.0)
        check_whole("cycles", self.cycles, least=1)
        if self.markov_noise is not None:
            check_number("markov_noise", self.markov_noise, low=0.0, high=1.0)
            if "markov" not in self.schedules:
                raise InvalidValueError(
                    "markov_noise belongs to the schedule 'markov', which is not among schedules "
                    f"{list(self.schedules)}; leave it out."
                )
        for family in self.families:
            most = default_size(DIGITS_FAMILIES[family].tasks)
            if self.max_tasks > most:
                raise InvalidValueError(
                    f"Expected num_tasks to be at most {most}, the tasks there are for the family "
                    f"{family!r}; got {self.max_tasks}. Ask for fewer, or for other families."
                )
        # Schedules check how their options fit together when they draw.
        for schedule in self.schedules:
            self._draw_visits(schedule, self.max_tasks, np.random.default_rng(0))

    @property
    def max_tasks(self) -> int:
        """The largest M."""
        return self.num_tasks[1]

    @property
    def max_visits(self) -> int:
        """The largest V."""
        return self.max_tasks * self.cycles

    def draw_plan(self, pool: Pool, rng: np.random.Generator) -> EpisodePlan:
        """Draw an episode.

        In order: family, M and schedule (where there is a choice), noise and capacity (one number
        each, whatever their ranges); the tasks by `permutation` of the family's part of the pool;
        what the schedule draws.
        """
        family = self.families[int(rng.integers(len(self.families)))]
        kind = DIGITS_FAMILIES[family]
        num_tasks = int(rng.integers(self.num_tasks[0], self.num_tasks[1] + 1))
        schedule = self.schedules[int(rng.integers(len(self.schedules)))]
        low, high = self.embedding_noise
        noise = low + (high - low) * float(rng.random())
        share = float(rng.random())
        capacity = roomy(num_tasks)
        if kind.capped:
            # From a third of the tasks to all but one.
            least, most = -(-num_tasks // 3), max(1, num_tasks - 1)
            capacity = least + int(share * (most - least + 1))
        part = mixed_positions()[kind.tasks]
        members = part.start + rng.permutation(len(part))[:num_tasks]
        visits = self._draw_visits(schedule, num_tasks, rng)
        budget = kind.bytes_per_task
        return EpisodePlan(
            stream=TaskStream.from_pool(pool, members=members, visits=visits, schedule=schedule),
            capacity=capacity,
            capacity_bytes=None if budget is None else budget * num_tasks,
            embedding_noise=noise,
            family=family,
        )

    def check_pool(self, pool: Pool) -> None:
        """Refuse a pool that is not the mixed one, in which families lie by position."""
        expected = sum(map(len, mixed_positions().values()))
        if len(pool) != expected:
            raise InvalidValueError(
                f"Expected the mixed pool of {expected} tasks; got {pool.name!r} of {len(pool)}."
            )

    def _draw_visits(self, schedule: str, num_tasks: int, rng: np.random.Generator) -> Any:
        own = schedule == "markov" and self.markov_noise is not None
        options: dict[str, Any] = {"markov_noise": self.markov_noise} if own else {}
        return draw_visits(schedule, num_tasks, self.cycles, rng, **options)


def _names(what: str, one: str, values: Any, known: Any) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise InvalidValueError(f"Expected {what} as a list of names; got {values!r}.")
    for value in values:
        if not isinstance(value, str) or value not in known:
            raise unknown(one, value, known)
    if len(set(values)) < len(values):
        raise InvalidValueError(f"Expected {what} each once; got {list(values)}.")
    return tuple(values)


def _range(what: str, value: Any) -> tuple[Any, Any]:
    """Return a number, or a list of the lowest and the highest, as a pair."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value, value
    pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    numbers = pair and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    if not numbers or not value[0] <= value[1]:
        raise InvalidValueError(
            f"Expected {what} as a number or as [lowest, highest]; got {value!r}."
        )
    return value[0], value[1]
