"""Environments on a user's own tasks."""

from __future__ import annotations

from typing import Any

from nsr_gym.backbones.base import Backbone
from nsr_gym.envs.arguments import FACE_ARGUMENTS
from nsr_gym.envs.build import live_engine, open_device
from nsr_gym.envs.config import EpisodeConfig
from nsr_gym.envs.engine import EpisodeEngine
from nsr_gym.envs.single import EngineEnv
from nsr_gym.envs.vector import EngineVectorEnv
from nsr_gym.learning.data import TaskData
from nsr_gym.tasks import TaskPool


class ContinualEnv(EngineEnv):
    """Continual-learning episodes on a pool of your own tasks.

    Spaces, rewards and arguments are those of `NSR/CyclicDigits-v0` (less `tasks`).
    """

    def __init__(
        self,
        pool: TaskPool,
        backbone: Backbone,
        *,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        """Build the environment.

        Args:
            pool: the tasks; its split becomes the environment's.
            backbone: a frozen network that takes the pool's images.
            render_mode: None, `"ansi"` or `"rgb_array"`.
            **arguments: of `EpisodeConfig`.

        Raises:
            InvalidValueError: arguments that do not fit each other, the pool or the backbone.
        """
        super().__init__(_engine(pool, backbone, arguments, 1), render_mode=render_mode)


class ContinualVectorEnv(EngineVectorEnv):
    """`ContinualEnv`, n episodes side by side in one batched computation."""

    def __init__(
        self,
        pool: TaskPool,
        backbone: Backbone,
        num_envs: int = 1,
        *,
        autoreset_mode: str = "next_step",
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        """Build the environments; see `ContinualEnv`."""
        super().__init__(
            _engine(pool, backbone, arguments, num_envs),
            autoreset_mode=autoreset_mode,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
        )


def _engine(
    pool: TaskPool, backbone: Backbone, arguments: dict[str, Any], num_episodes: int
) -> EpisodeEngine:
    config = EpisodeConfig.from_arguments({"split": pool.split} | arguments, others=FACE_ARGUMENTS)
    placed = backbone.to(open_device(config.device))
    data = TaskData(pool, placed, own_heads=config.head == "trained")
    return live_engine(data, placed, config, num_episodes)
