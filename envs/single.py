"""The single-environment face of an episode engine."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsr_gym.envs.engine import EpisodeEngine, Info
from nsr_gym.envs.render import RENDER_FPS, RENDER_MODES, check_render_mode, render
from nsr_gym.errors import InvalidValueError, StateError

Observation = NDArray[np.float32] | dict[str, NDArray[np.float32]]
_ROW = np.zeros(1, dtype=np.int64)


class EngineEnv(gym.Env[Observation, NDArray[np.int64]]):
    """One episode of an engine as a Gymnasium environment."""

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": RENDER_FPS}  # noqa: RUF012

    def __init__(self, engine: EpisodeEngine, *, render_mode: str | None = None) -> None:
        """Wrap an engine of one episode.

        Raises:
            UnknownNameError: a render mode that does not exist.
        """
        check_render_mode(render_mode)
        self.engine = engine
        self.render_mode = render_mode
        self.observation_space = engine.observation_space
        self.action_space = engine.action_space
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
        """Play one visit.

        Raises:
            StateError: the episode is over, or none was started.
            InvalidValueError: the action is not a member of the action space.
        """
        if self._over:
            raise StateError("No episode is running; call reset() first.")
        checked = check_actions(self.engine, [action])
        observation, reward, terminated, info = self.engine.step(_ROW, checked)
        self._over = bool(terminated[0])
        return self._shape(observation), float(reward[0]), self._over, False, _scalars(info)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which values each action component may take, (sum of nvec,) bool."""
        return np.asarray(self.engine.masks(_ROW)[0])

    def render(self) -> Any:
        """Return the bank table (`ansi`) or the picture of accuracies (`rgb_array`)."""
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render_mode; pass one to gym.make.")
            return None
        return render(self.engine, 0, self.render_mode)

    def _shape(self, observation: NDArray[np.float32]) -> Observation:
        if self.engine.config.observation == "dict":
            return self.engine.layout.as_dict(observation[0])
        return np.asarray(observation[0])


def check_actions(engine: EpisodeEngine, actions: ArrayLike) -> NDArray[np.int64]:
    """Return actions (n, components) as int64.

    Raises:
        InvalidValueError: another shape or type, or a component out of range.
    """
    nvec = engine.action_space.nvec
    try:
        actions = np.asarray(actions)
    except ValueError as error:
        raise InvalidValueError(
            f"Expected actions of {len(nvec)} whole numbers; got rows of unequal length."
        ) from error
    if actions.ndim != 2 or actions.shape[1] != len(nvec) or actions.dtype.kind not in "iu":
        raise InvalidValueError(
            f"Expected actions of {len(nvec)} whole numbers (recall, rank index, reserve); got "
            f"shape {actions.shape[1:]} of type {actions.dtype}."
        )
    if (actions < 0).any() or (actions >= nvec).any():
        bad = actions[((actions < 0) | (actions >= nvec)).any(axis=1)][0]
        raise InvalidValueError(
            f"Expected action components below {nvec.tolist()} and not negative; got "
            f"{bad.tolist()}."
        )
    return actions.astype(np.int64)


def mask_parts(env: Any, mask: NDArray[np.bool_] | None = None) -> tuple[NDArray[np.int8], ...]:
    """Cast a flat mask to the form that `MultiDiscrete.sample(mask=...)` takes.

    Args:
        env: an environment with `action_masks()`.
        mask: (sum of nvec,) bool; None asks the environment.

    Returns:
        One int8 array per action component.
    """
    unwrapped = env.unwrapped
    flat = unwrapped.action_masks() if mask is None else mask
    ends = np.cumsum(unwrapped.action_space.nvec)[:-1]
    return tuple(part.astype(np.int8) for part in np.split(flat, ends))


def _scalars(info: Info) -> dict[str, Any]:
    """Take the only episode's values, as plain Python scalars where they are scalars."""
    return {
        key: value[0].copy() if value.ndim > 1 else value.tolist()[0] for key, value in info.items()
    }
