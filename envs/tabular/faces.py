"""The single and the vector face of an exact environment: arguments in, engine behind."""

from __future__ import annotations

from typing import Any, ClassVar

from nsr_gym.envs.arguments import FACE_ARGUMENTS, check_whole
from nsr_gym.envs.single import EngineEnv
from nsr_gym.envs.tabular.config import TabularConfig
from nsr_gym.envs.vector import EngineVectorEnv


class ExactEnv(EngineEnv):
    """One episode of an exact engine.

    Attributes:
        config_class: of the arguments.
        engine_class: built from the arguments and a number of episodes.
    """

    config_class: ClassVar[type[TabularConfig]]
    engine_class: ClassVar[Any]

    def __init__(self, *, render_mode: str | None = None, **arguments: Any) -> None:
        """Build the environment; the arguments are those of the class docstring."""
        super().__init__(self.build_engine(arguments, 1), render_mode=render_mode)

    @classmethod
    def build_engine(cls, arguments: dict[str, Any], num_episodes: int) -> Any:
        """Build the engine of n episodes from the environment's arguments."""
        check_whole("num_envs", num_episodes, least=1)
        config = cls.config_class.from_arguments(arguments, others=FACE_ARGUMENTS)
        return cls.engine_class(config, num_episodes)


class ExactVectorEnv(EngineVectorEnv):
    """n episodes of an exact engine side by side in arrays.

    Attributes:
        single_class: whose arguments and engine it has.
    """

    single_class: ClassVar[type[ExactEnv]]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str = "next_step",
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        """Build the environments; the arguments are those of the single environment."""
        super().__init__(
            self.single_class.build_engine(arguments, num_envs),
            autoreset_mode=autoreset_mode,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
        )
