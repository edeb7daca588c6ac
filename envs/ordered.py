"""Episodes that visit the tasks of a pool in an order that is given, not drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from nsr_gym.datasets.streams_in import checked_positions
from nsr_gym.envs.arguments import FACE_ARGUMENTS, check_number, check_whole
from nsr_gym.envs.config import EpisodeConfig, VisitConfig
from nsr_gym.envs.plans import EpisodePlan
from nsr_gym.errors import InvalidValueError
from nsr_gym.pools import Pool
from nsr_gym.streams import TaskStream

_DRAWN = ("num_tasks", "cycles", "schedule", "markov_noise")
"""Arguments of `EpisodeConfig` that say how an order is drawn."""


@dataclass(frozen=True, kw_only=True)
class OrderedConfig(VisitConfig):
    """Episodes that all have the same tasks in the same order, in plain JSON values.

    What else an episode draws (support images, batches, fresh directions) follows from its seed.

    Attributes:
        visits: (V,) positions in the pool, one per visit.
        num_tasks: M, the tasks of the pool. All take part, visited or not.
        capacity: as in `EpisodeConfig`.
        capacity_bytes: as in `EpisodeConfig`.
        embedding_noise: as in `EpisodeConfig`.
    """

    visits: tuple[int, ...]
    num_tasks: int
    capacity: int | None = EpisodeConfig.capacity
    capacity_bytes: int | None = EpisodeConfig.capacity_bytes
    embedding_noise: float = EpisodeConfig.embedding_noise

    def __post_init__(self) -> None:
        """Check every value; see `VisitConfig`."""
        super().__post_init__()
        check_whole("num_tasks", self.num_tasks, least=1)
        object.__setattr__(self, "visits", checked_positions("visits", self.visits, self.num_tasks))
        for name in ("capacity", "capacity_bytes"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), least=0)
        check_number("embedding_noise", self.embedding_noise, low=0.0)

    @classmethod
    def of_pool(cls, pool: Pool, visits: Sequence[int], arguments: Mapping[str, Any]) -> Self:
        """Build the configuration of a pool's tasks in a given order.

        Args:
            pool: the tasks.
            visits: (V,) positions in the pool, one per visit.
            arguments: of an environment, by name.

        Raises:
            UnknownNameError: an argument does not exist; the message names the closest.
            InvalidValueError: no visits, or positions outside the pool; arguments that say how
                an order is drawn; a value of another type or out of range.
        """
        drawn = [name for name in _DRAWN if name in arguments]
        if drawn:
            raise InvalidValueError(
                f"Expected visits without {', '.join(drawn)}: tasks and their order follow from "
                f"visits. Leave {', '.join(drawn)} out, or leave visits out to have an order drawn."
            )
        order = checked_positions("visits", visits, len(pool))
        given = dict(arguments) | {"visits": order, "num_tasks": len(pool)}
        return cls.from_arguments(given, others=FACE_ARGUMENTS)

    @property
    def num_visits(self) -> int:
        """V, the visits of an episode."""
        return len(self.visits)

    @property
    def max_tasks(self) -> int:
        """M."""
        return self.num_tasks

    @property
    def max_visits(self) -> int:
        """V."""
        return self.num_visits

    def draw_plan(self, pool: Pool, rng: np.random.Generator) -> EpisodePlan:
        """Return the episode, always the same; nothing is drawn."""
        return EpisodePlan(
            stream=TaskStream.from_pool(pool, members=range(len(pool)), visits=self.visits),
            capacity=self.capacity,
            capacity_bytes=self.capacity_bytes,
            embedding_noise=self.embedding_noise,
        )

    def check_pool(self, pool: Pool) -> None:
        """Refuse a pool of other than M tasks, which the visits are no positions in."""
        if self.num_tasks != len(pool):
            raise InvalidValueError(
                f"Expected num_tasks to be {len(pool)}, the tasks of the pool {pool.name!r}; got "
                f"{self.num_tasks}."
            )
