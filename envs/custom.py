"""Environments on a user's own tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nsr_gym.backbones.base import Backbone
from nsr_gym.envs.arguments import FACE_ARGUMENTS
from nsr_gym.envs.build import live_engine, open_device
from nsr_gym.envs.config import EpisodeConfig, VisitConfig
from nsr_gym.envs.engine import EpisodeEngine
from nsr_gym.envs.ordered import OrderedConfig
from nsr_gym.envs.single import EngineEnv
from nsr_gym.envs.vector import EngineVectorEnv
from nsr_gym.learning.data import TaskData
from nsr_gym.tasks import TaskPool


class ContinualEnv(EngineEnv):
    """Continual-learning episodes on a pool of your own tasks.

    Spaces, rewards and arguments are those of `NSR/CyclicDigits-v0` (less `tasks`). An imported
    stream is played in its own order by `ContinualEnv(stream.pool, backbone,
    visits=stream.visits)`, see `nsr_gym.datasets.ImportedStream`.
    """

    def __init__(
        self,
        pool: TaskPool,
        backbone: Backbone,
        *,
        visits: Sequence[int] | None = None,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        """Build the environment.

        Args:
            pool: the tasks; its split becomes the environment's.
            backbone: a frozen network that takes the pool's images.
            visits: (V,) positions in the pool, one per visit: the order of every episode,
                whatever its seed, in place of `num_tasks`, `cycles`, `schedule` and
                `markov_noise`. All tasks of the pool take part. None: each episode draws its
                own order.
            render_mode: None, `"ansi"` or `"rgb_array"`.
            **arguments: of `EpisodeConfig`.

        Raises:
            UnknownNameError: an argument does not exist; the message names the closest.
            InvalidValueError: arguments that do not fit each other, the pool or the backbone.
        """
        super().__init__(_engine(pool, backbone, visits, arguments, 1), render_mode=render_mode)


class ContinualVectorEnv(EngineVectorEnv):
    """`ContinualEnv`, n episodes side by side in one batched computation."""

    def __init__(
        self,
        pool: TaskPool,
        backbone: Backbone,
        num_envs: int = 1,
        *,
        visits: Sequence[int] | None = None,
        autoreset_mode: str = "next_step",
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        """Build the environments; see `ContinualEnv`."""
        super().__init__(
            _engine(pool, backbone, visits, arguments, num_envs),
            autoreset_mode=autoreset_mode,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
        )


def _engine(
    pool: TaskPool,
    backbone: Backbone,
    visits: Sequence[int] | None,
    arguments: dict[str, Any],
    num_episodes: int,
) -> EpisodeEngine:
    chosen = {"split": pool.split} | arguments
    config: VisitConfig
    if visits is None:
        config = EpisodeConfig.from_arguments(chosen, others=("visits", *FACE_ARGUMENTS))
    else:
        config = OrderedConfig.of_pool(pool, visits, chosen)
    placed = backbone.to(open_device(config.device))
    data = TaskData(pool, placed, own_heads=config.head == "trained")
    return live_engine(data, placed, config, num_episodes)
