"""What the environments on handwritten digits share: how an engine is put together, and faces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from nsr_gym.envs.arguments import FACE_ARGUMENTS
from nsr_gym.envs.build import live_engine, open_device, recorded_engine
from nsr_gym.envs.config import EpisodeConfig, VisitConfig
from nsr_gym.envs.engine import EpisodeEngine
from nsr_gym.envs.single import EngineEnv
from nsr_gym.envs.vector import EngineVectorEnv
from nsr_gym.errors import InvalidValueError, unknown

if TYPE_CHECKING:
    from nsr_gym.backbones.mlp import MLPBackbone
    from nsr_gym.learning.data import TaskData

DYNAMICS = ("live", "recorded")
"""What a visit does: train an adapter, or look up what such a visit did when it was recorded."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What makes an environment on digits.

    Attributes:
        tasks: pool of tasks, a family of `nsr_gym.datasets.digits.FAMILIES` or `"mixed"`.
        defaults: arguments that have other defaults than in the configuration.
        tasks_argument: whether an argument `tasks` may choose another pool.
        config: what checks the arguments and draws episodes.
    """

    tasks: str
    tasks_argument: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    config: type[VisitConfig] = EpisodeConfig

    def engine(
        self, arguments: Mapping[str, Any], dynamics: str, num_episodes: int
    ) -> EpisodeEngine:
        """Build an engine.

        Args:
            arguments: of the environment.
            dynamics: one of `DYNAMICS`; recorded ones need no torch.
            num_episodes: E.

        Raises:
            NsrGymError: arguments that do not exist, are out of range or do not fit each other.
        """
        if dynamics not in DYNAMICS:
            raise unknown("dynamics", dynamics, DYNAMICS)
        others, chosen, tasks = ["dynamics", *FACE_ARGUMENTS], dict(arguments), self.tasks
        if self.tasks_argument:
            others.append("tasks")
            tasks = chosen.pop("tasks", self.tasks)
            if not isinstance(tasks, str):
                raise InvalidValueError(f"Expected tasks as the name of a family; got {tasks!r}.")
        config = self.config.from_arguments({**self.defaults, **chosen}, others=others)
        if dynamics == "recorded":
            from nsr_gym.outcomes import shipped_table

            return recorded_engine(shipped_table(tasks, config.split), config, num_episodes)
        device = str(open_device(config.device))
        data, backbone = _prepared(tasks, config.split, device)
        return live_engine(data, backbone, config, num_episodes)


@cache
def _prepared(tasks: str, split: str, device: str) -> tuple[TaskData, MLPBackbone]:
    # Shared by all environments of a process: the frozen part is computed once per data set.
    from nsr_gym.backbones.pretrain import digits_backbone
    from nsr_gym.datasets.digits import digits_pool, mixed_pool
    from nsr_gym.learning.data import TaskData

    backbone = digits_backbone(device)
    pool = mixed_pool(split) if tasks == "mixed" else digits_pool(tasks, split)
    return TaskData(pool, backbone), backbone


class DigitsEnv(EngineEnv):
    """An environment on digits; what it is follows from its recipe."""

    recipe: ClassVar[Recipe]

    def __init__(
        self, *, dynamics: str = "live", render_mode: str | None = None, **arguments: Any
    ) -> None:
        """Build the environment; the arguments are those of the class docstring."""
        engine = self.recipe.engine(arguments, dynamics, 1)
        super().__init__(engine, render_mode=render_mode)


class DigitsVectorEnv(EngineVectorEnv):
    """n episodes of an environment on digits side by side in one batched computation."""

    recipe: ClassVar[Recipe]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        dynamics: str = "live",
        autoreset_mode: str = "next_step",
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        """Build the environments; the arguments are those of the single environment."""
        super().__init__(
            self.recipe.engine(arguments, dynamics, num_envs),
            autoreset_mode=autoreset_mode,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
        )
