"""Episodes that visit the tasks of a pool in an order that is given, not drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from nsr_gym.datasets.streams_in import checked_positions
from nsr_gym.envs.arguments import FACE_ARGUMENTS
from nsr_gym.envs.config import UniformConfig
from nsr_gym.envs.plans import EpisodePlan
from nsr_gym.errors import InvalidValueError
from nsr_gym.pools import Pool
from nsr_gym.streams import TaskStream

_DRAWN = ("num_tasks", "cycles", "schedule", "markov_noise")
"""Arguments of `EpisodeConfig` that say how an order is drawn."""


@dataclass(frozen=True, kw_only=True)
class OrderedConfig(UniformConfig):
    """Episodes that all have the same tasks in the same order, in plain JSON values.

    What else an episode draws (support images, batches, fresh directions) follows from its seed.

    Attributes:
        visits: (V,) positions in the pool, one per visit.
        num_tasks: M, the tasks of the pool. All take part, visited or not.
    """

    visits: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check every value; see `VisitConfig`."""
        super().__post_init__()
        object.__setattr__(self, "visits", checked_positions("visits", self.visits, self.num_tasks))

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
        given = dict(arguments) | {"visits": visits, "num_tasks": len(pool)}
        return cls.from_arguments(given, others=FACE_ARGUMENTS)

    @property
    def num_visits(self) -> int:
        """V, the visits of an episode."""
        return len(self.visits)

    def draw_plan(self, pool: Pool, rng: np.random.Generator) -> EpisodePlan:
        """Return the episode, always the same; nothing is drawn."""
        members = range(len(pool))
        return self.plan(TaskStream.from_pool(pool, members=members, visits=self.visits))

    def check_pool(self, pool: Pool) -> None:
        """Refuse a pool of other than M tasks, which the visits are no positions in."""
        if self.num_tasks != len(pool):
            raise InvalidValueError(
                f"Expected num_tasks to be {len(pool)}, the tasks of the pool {pool.name!r}; got "
                f"{self.num_tasks}."
            )
