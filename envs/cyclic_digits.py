"""NSR/CyclicDigits: recurring tasks on real handwritten digits, trained live."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from nsr_gym.envs.build import live_engine
from nsr_gym.envs.config import EpisodeConfig
from nsr_gym.envs.engine import EpisodeEngine
from nsr_gym.envs.single import EngineEnv
from nsr_gym.envs.vector import EngineVectorEnv

from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.backbones.pretrain import digits_backbone
from nsr_gym.datasets.digits import digits_pool
from nsr_gym.learning.data import TaskData


class CyclicDigitsEnv(EngineEnv):
    """TODO."""

    def __init__(
        self, *, tasks: str = "permutation", render_mode: str | None = None, **arguments: Any
    ) -> None:
        """Build the environment; the arguments are those of the class docstring."""
        super().__init__(_engine(tasks, arguments, 1), render_mode=render_mode)


class CyclicDigitsVectorEnv(EngineVectorEnv):
    """`CyclicDigitsEnv`, n episodes side by side in one batched computation."""

    def __init__(
        self,
        num_envs: int = 1,
        *,
        tasks: str = "permutation",
        autoreset_mode: str = "next_step",
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        """Build the environments; the arguments are those of `CyclicDigitsEnv`."""
        super().__init__(
            _engine(tasks, arguments, num_envs),
            autoreset_mode=autoreset_mode,
            render_mode=render_mode,
        )


def _engine(tasks: str, arguments: dict[str, Any], num_episodes: int) -> EpisodeEngine:
    config = EpisodeConfig.from_arguments(arguments)
    data, backbone = _prepared(tasks, config.split, config.device)
    return live_engine(data, backbone, config, num_episodes)


@cache
def _prepared(tasks: str, split: str, device: str) -> tuple[TaskData, MLPBackbone]:
    # Shared by all environments of a process: the frozen part is computed once per data set.
    backbone = digits_backbone(torch.device(device))
    return TaskData(digits_pool(tasks, split), backbone), backbone
