"""What the environments on images share: how an engine is put together, defaults, and faces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from nsr_gym.envs.arguments import FACE_ARGUMENTS
from nsr_gym.envs.build import live_engine, open_device, recorded_engine
from nsr_gym.envs.config import EpisodeConfig
from nsr_gym.envs.digits import DYNAMICS
from nsr_gym.envs.engine import EpisodeEngine
from nsr_gym.envs.image_arguments import ImageArguments
from nsr_gym.envs.image_tables import BACKBONE, IMAGES, described, image_table
from nsr_gym.envs.single import EngineEnv
from nsr_gym.envs.vector import EngineVectorEnv
from nsr_gym.errors import unknown

if TYPE_CHECKING:
    from nsr_gym.backbones.base import Backbone
    from nsr_gym.learning.data import TaskData
    from nsr_gym.tasks import TaskPool

IMAGE_DEFAULTS: dict[str, Any] = {
    "cycles": 5,
    "head": "trained",
    "capacity": None,
    "learning_rate": 3e-3,
}
"""Arguments of the episode that have other defaults on images than on digits."""


@dataclass(frozen=True, kw_only=True)
class ImageRecipe:
    """What makes an environment on images.

    Attributes:
        images: what its data and backbone are asked for by.
        defaults: arguments that have other defaults than `IMAGE_DEFAULTS` or the
            configuration.
    """

    images: type[ImageArguments]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def read(self, arguments: Mapping[str, Any]) -> tuple[ImageArguments, EpisodeConfig]:
        """Return the arguments of data and backbone, and those of the episode, checked.

        Raises:
            NsrGymError: arguments that do not exist, are out of range or do not fit each other.
        """
        chosen = {**IMAGE_DEFAULTS, **self.defaults, **arguments}
        names = [one.name for one in fields(self.images)]
        asked = {name: chosen.pop(name) for name in names if name in chosen}
        others = ["dynamics", *names, *FACE_ARGUMENTS]
        config = EpisodeConfig.from_arguments(chosen, others=others)
        return self.images.from_arguments(asked), config

    def engine(
        self, arguments: Mapping[str, Any], dynamics: str, num_episodes: int
    ) -> EpisodeEngine:
        """Build an engine.

        Args:
            arguments: of the environment.
            dynamics: one of `DYNAMICS`; recorded ones need neither data nor torch.
            num_episodes: E.

        Raises:
            DataError: data is missing; the message says how to get it.
            StateError: recorded outcomes of such tasks do not ship.
            NsrGymError: arguments that do not exist, are out of range, do not fit each other, or
                are not those that outcomes were recorded with.
        """
        if dynamics not in DYNAMICS:
            raise unknown("dynamics", dynamics, DYNAMICS)
        images, config = self.read(arguments)
        if dynamics == "recorded":
            return recorded_engine(image_table(images, config), config, num_episodes)
        device = str(open_device(config.device))
        # Data first: it is what is missing most often, and the message says how to get it.
        pool = images.pool(config)
        data, backbone = _prepared(pool, images, device, config.head == "trained")
        return live_engine(data, backbone, config, num_episodes)


@lru_cache(maxsize=2)
def _prepared(
    pool: TaskPool, images: ImageArguments, device: str, own_heads: bool
) -> tuple[TaskData, Backbone]:
    # Shared by the environments of a process: the frozen part is computed once per data set.
    from nsr_gym.learning.data import TaskData

    backbone = images.network(device)
    data = TaskData(
        pool,
        backbone,
        own_heads=own_heads,
        cache=images.features(),
        prefix_dtype=images.prefix_dtype,
    )
    return data, backbone


class ImagesEnv(EngineEnv):
    """An environment on images; what it is follows from its recipe."""

    recipe: ClassVar[ImageRecipe]

    def __init__(
        self, *, dynamics: str = "live", render_mode: str | None = None, **arguments: Any
    ) -> None:
        """Build the environment; the arguments are those of the class docstring."""
        engine = self.recipe.engine(arguments, dynamics, 1)
        super().__init__(engine, render_mode=render_mode)


class ImagesVectorEnv(EngineVectorEnv):
    """n episodes of an environment on images side by side in one batched computation."""

    recipe: ClassVar[ImageRecipe]

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
        self._arguments = arguments

    def origin(self) -> dict[str, Any]:
        """Return what a table that is recorded here has to say of data and backbone, plain JSON."""
        images, config = self.recipe.read(self._arguments)
        backbone = self.engine.dynamics.learner.backbone
        return {IMAGES: described(images, config), BACKBONE: backbone.fingerprint}
