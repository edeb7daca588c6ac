"""Environments on a table of recorded visits of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nsr_gym.envs.arguments import FACE_ARGUMENTS
from nsr_gym.envs.build import recorded_engine
from nsr_gym.envs.config import EpisodeConfig
from nsr_gym.envs.engine import EpisodeEngine
from nsr_gym.envs.single import EngineEnv
from nsr_gym.envs.vector import EngineVectorEnv
from nsr_gym.outcome_files import load_table


class RecordedEnv(EngineEnv):
    """Replays a table that `nsr-gym record` wrote, on the engine, bank and rewards of live visits.

    Spaces, rewards and arguments are those of `NSR/CyclicDigits-v0` (less `tasks`), with
    access to the bank or to the visit alone. What the outcomes depend on (learning steps, batch
    size, ...) has the recorded value, and an episode has at most the tasks of the table. The table
    may be one of images: neither they nor torch are needed.
    """

    def __init__(
        self, table: str | Path, *, render_mode: str | None = None, **arguments: Any
    ) -> None:
        """Build the environment.

        Args:
            table: folder of the table; its split and its ranks become the environment's.
            render_mode: None, `"ansi"` or `"rgb_array"`.
            **arguments: of `EpisodeConfig`.

        Raises:
            FileFormatError: no table, or a damaged one.
            AccessError: memoryless access.
            InvalidValueError: arguments that do not fit each other, or were not recorded.
        """
        super().__init__(_engine(table, arguments, 1), render_mode=render_mode)


class RecordedVectorEnv(EngineVectorEnv):
    """`RecordedEnv`, n episodes side by side."""

    def __init__(
        self,
        table: str | Path,
        num_envs: int = 1,
        *,
        autoreset_mode: str = "next_step",
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        """Build the environments; see `RecordedEnv`."""
        super().__init__(
            _engine(table, arguments, num_envs),
            autoreset_mode=autoreset_mode,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
        )


def _engine(table: str | Path, arguments: dict[str, Any], num_episodes: int) -> EpisodeEngine:
    loaded = load_table(Path(table))
    recorded = {
        "split": loaded.pool.split,
        "num_tasks": min(EpisodeConfig.num_tasks, len(loaded.pool)),
        "ranks": loaded.ranks,
        **loaded.settings,
    }
    config = EpisodeConfig.from_arguments(recorded | arguments, others=FACE_ARGUMENTS)
    return recorded_engine(loaded, config, num_episodes)
