"""The single-environment face of an episode engine."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from nsr_gym.envs.protocol import Engine, Info
from nsr_gym.envs.render import RENDER_FPS, RENDER_MODES, check_render_mode
from nsr_gym.errors import InvalidValueError, StateError

Observation = NDArray[np.float32] | dict[str, NDArray[np.float32]]
ActionSpace = spaces.Discrete | spaces.MultiDiscrete
_ROW = np.zeros(1, dtype=np.int64)


class EngineEnv(gym.Env[Observation, NDArray[np.int64]]):
    """One episode of an engine as a Gymnasium environment."""

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": RENDER_FPS}  # noqa: RUF012

    def __init__(self, engine: Engine, *, render_mode: str | None = None) -> None:
        """Wrap an engine of one episode.

        Raises:
            UnknownNameError: a render mode that does not exist.
        """
        check_render_mode(render_mode)
        self.engine: Any = engine
        self.render_mode = render_mode
        self.observation_space = engine.observation_space
        space: Any = engine.action_space
        self.action_space = space
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a new episode; the same seed gives the same episode. Options are not used."""
        super().reset(seed=seed)
        observation, info = self.engine.reset(_ROW, [self.np_random])
        self._over = False
        return self._shape(observation), _scalars(info)

    def step(
        self, action: NDArray[np.int64]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Play one step.

        Raises:
            StateError: the episode is over, or none was started.
            InvalidValueError: the action is not a member of the action space.
        """
        if self._over:
            raise StateError("No episode is running; call reset() first.")
        checked = check_actions(self.action_space, [action])
        observation, reward, terminated, info = self.engine.step(_ROW, checked)
        self._over = bool(terminated[0])
        return self._shape(observation), float(reward[0]), self._over, False, _scalars(info)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which values each action component may take, (sum of nvec,) bool."""
        return np.asarray(self.engine.masks(_ROW)[0])

    def render(self) -> Any:
        """Return the state as a table (`ansi`) or the episode as a picture (`rgb_array`)."""
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render_mode; pass one to gym.make.")
            return None
        return self.engine.render(0, self.render_mode)

    def _shape(self, observation: NDArray[np.float32]) -> Observation:
        if self.engine.config.observation == "dict":
            named: dict[str, NDArray[np.float32]] = self.engine.layout.as_dict(observation[0])
            return named
        return np.asarray(observation[0])


def check_actions(space: Any, actions: ArrayLike) -> NDArray[np.int64]:
    """Return n actions as int64: (n,) for a `Discrete` space, (n, components) otherwise.

    Raises:
        InvalidValueError: another shape or type, or a component out of range.
    """
    limits = np.asarray(space.n if isinstance(space, spaces.Discrete) else space.nvec)
    try:
        array = np.asarray(actions)
    except ValueError as error:
        raise InvalidValueError(
            f"Expected actions as {_wanted(limits)}; got rows of unequal length."
        ) from error
    if array.shape[1:] != limits.shape or not array.ndim or array.dtype.kind not in "iu":
        raise InvalidValueError(
            f"Expected actions as {_wanted(limits)}; got shape {array.shape[1:]} of type "
            f"{array.dtype}."
        )
    outside = (array < 0) | (array >= limits)
    if outside.any():
        bad = array[outside if array.ndim == 1 else outside.any(axis=1)][0]
        raise InvalidValueError(
            f"Expected actions as {_wanted(limits)} and not negative; got {bad.tolist()}."
        )
    return array.astype(np.int64)


def _wanted(limits: NDArray[np.int64]) -> str:
    number = f"{limits.size} whole numbers" if limits.ndim else "a whole number"
    return f"{number} below {limits.tolist()}"


def mask_parts(env: Any, mask: NDArray[np.bool_] | None = None) -> Any:
    """Cast a flat mask to the form that the action space's `sample(mask=...)` takes.

    Args:
        env: an environment with `action_masks()`.
        mask: (sum of nvec,) bool; None asks the environment.

    Returns:
        One int8 array, for a `MultiDiscrete` space a tuple of one for each component.
    """
    unwrapped = env.unwrapped
    flat = unwrapped.action_masks() if mask is None else mask
    if isinstance(unwrapped.action_space, spaces.Discrete):
        return flat.astype(np.int8)
    ends = np.cumsum(unwrapped.action_space.nvec)[:-1]
    return tuple(part.astype(np.int8) for part in np.split(flat, ends))


def _scalars(info: Info) -> dict[str, Any]:
    """Take the only episode's values, as plain Python scalars where they are scalars."""
    return {
        key: value[0].copy() if value.ndim > 1 else value.tolist()[0] for key, value in info.items()
    }
