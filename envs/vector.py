"""The native vector-environment face of an episode engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from nsr_gym.envs.arguments import check_whole
from nsr_gym.envs.protocol import Engine, Info
from nsr_gym.envs.render import RENDER_FPS, RENDER_MODES, check_render_mode
from nsr_gym.envs.single import Observation, check_actions
from nsr_gym.errors import InvalidValueError, StateError, unknown

AUTORESET_MODES = {
    "next_step": AutoresetMode.NEXT_STEP,
    "same_step": AutoresetMode.SAME_STEP,
    "disabled": AutoresetMode.DISABLED,
}

Step = tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class EngineVectorEnv(VectorEnv[Observation, NDArray[np.int64], NDArray[Any]]):
    """n episodes of an engine as a Gymnasium vector environment.

    Equal, seed for seed, to `SyncVectorEnv` over n single environments in every autoreset mode:
    environment i is seeded with seed + i and keeps a generator of its own.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": RENDER_FPS}  # noqa: RUF012

    def __init__(
        self,
        engine: Engine,
        *,
        autoreset_mode: str | AutoresetMode = "next_step",
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Wrap an engine.

        Args:
            engine: of n episodes.
            autoreset_mode: `"next_step"`, `"same_step"` or `"disabled"`, or Gymnasium's member.
            max_episode_steps: steps after which an episode is truncated, as Gymnasium's
                `TimeLimit` does; None for no limit.
            render_mode: None, `"ansi"` or `"rgb_array"`.

        Raises:
            UnknownNameError: an autoreset or render mode that does not exist.
            InvalidValueError: a limit that is no whole number of at least 1.
        """
        if isinstance(autoreset_mode, AutoresetMode):
            autoreset_mode = autoreset_mode.name.lower()
        if not isinstance(autoreset_mode, str) or autoreset_mode not in AUTORESET_MODES:
            raise unknown("autoreset mode", autoreset_mode, AUTORESET_MODES)
        check_render_mode(render_mode)
        if max_episode_steps is not None:
            check_whole("max_episode_steps", max_episode_steps, least=1)
        self.engine: Any = engine
        self.num_envs = n = engine.num_episodes
        self.render_mode = render_mode
        self.single_observation_space = engine.observation_space
        self.single_action_space = engine.action_space
        self.observation_space = batch_space(engine.observation_space, n)
        self.action_space = batch_space(engine.action_space, n)
        self._mode = AUTORESET_MODES[autoreset_mode]
        self.metadata = {**self.metadata, "autoreset_mode": self._mode}
        self._limit = max_episode_steps
        self._generators: list[np.random.Generator | None] = [None] * n
        self._all = np.arange(n)
        self._observations = np.zeros((n, engine.layout.size), dtype=np.float32)
        self._started = np.zeros(n, dtype=bool)
        self._over = np.zeros(n, dtype=bool)
        self._elapsed = np.zeros(n, dtype=np.int64)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: an int s seeds environment i with s + i; a list gives one seed or None each;
                None goes on with each environment's own generator.
            options: `{"reset_mask": (n,) bool}` resets only some environments.

        Raises:
            InvalidValueError: seeds or mask of another length or type.
        """
        mask = np.ones(self.num_envs, dtype=bool)
        if options is not None and "reset_mask" in options:
            mask = self._check_mask(options["reset_mask"])
        for i, one in enumerate(self._seeds(seed)):
            if mask[i] and (one is not None or self._generators[i] is None):
                self._generators[i], _ = seeding.np_random(one)
        rows = np.flatnonzero(mask)
        info = self._spread(self._reset_rows(rows), rows)
        return self._shape(self._observations), info

    def step(self, actions: NDArray[np.int64]) -> Step:
        """Play one step in every environment.

        Raises:
            StateError: before the first reset, or of an episode that is over where autoreset
                is disabled.
            InvalidValueError: actions outside the action space.
        """
        if not self._started.all():
            raise StateError("An environment has no episode yet; call reset() for all first.")
        n, stale = self.num_envs, np.flatnonzero(self._over)
        if len(stale) and self._mode is AutoresetMode.DISABLED:
            raise StateError(
                f"Episodes {stale.tolist()} are over; reset them with "
                "reset(options={'reset_mask': ...})."
            )
        actions = np.asarray(actions)
        if actions.shape[:1] != (n,):
            raise InvalidValueError(f"Expected {n} actions; got shape {actions.shape}.")
        rows = np.flatnonzero(~self._over) if len(stale) else self._all
        rewards = np.zeros(n, dtype=np.float64)
        terminated, truncated = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        info: Info = {}
        extra: dict[str, Any] = {}
        if len(rows):
            # Where all play, nothing has to be gathered.
            some = rows if len(stale) else slice(None)
            checked = check_actions(self.single_action_space, actions[some])
            seen, rewards[some], terminated[some], info = self.engine.step(rows, checked)
            self._observations[some] = seen
            if self._limit is not None:
                self._elapsed[some] += 1
                truncated[some] = self._elapsed[some] >= self._limit
        self._over = terminated | truncated
        done = np.flatnonzero(self._over)
        if len(done) and self._mode is AutoresetMode.SAME_STEP:
            extra = self._final(done, rows, info)
            again, place = self._reset_rows(done), np.searchsorted(rows, done)
            for key, value in again.items():
                info[key][place] = value
        if len(stale):
            # NEXT_STEP: the action is ignored, the reset observation comes with reward 0.
            again = self._reset_rows(stale)
            if len(rows):
                info = {
                    key: self._join(value, rows, again[key], stale) for key, value in info.items()
                }
            else:
                info = again
        infos: dict[str, Any] = extra | info
        every = np.ones(n, dtype=bool)
        infos |= {f"_{key}": every.copy() for key in info}
        return self._shape(self._observations), rewards, terminated, truncated, infos

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which values each action component may take, (n, sum of nvec) bool."""
        return np.asarray(self.engine.masks(self._all))

    def render(self) -> tuple[Any, ...] | None:
        """Return one frame per environment."""
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render_mode; pass one to make_vec.")
            return None
        return tuple(self.engine.render(i, self.render_mode) for i in range(self.num_envs))

    def _reset_rows(self, rows: NDArray[np.int64]) -> Info:
        generators = [g for i in rows.tolist() if (g := self._generators[i]) is not None]
        info: Info
        self._observations[rows], info = self.engine.reset(rows, generators)
        self._started[rows] = True
        self._over[rows] = False
        self._elapsed[rows] = 0
        return info

    def _final(self, done: NDArray[np.int64], rows: NDArray[np.int64], info: Info) -> Info:
        final = np.full(self.num_envs, None, dtype=object)
        shaped = self._shape(self._observations)
        for i in done:
            final[i] = (
                {k: v[i] for k, v in shaped.items()} if isinstance(shaped, dict) else shaped[i]
            )
        place = np.searchsorted(rows, done)
        return {
            "final_obs": final,
            "_final_obs": self._over.copy(),
            "final_info": self._spread({k: v[place] for k, v in info.items()}, done),  # type: ignore[dict-item]
            "_final_info": self._over.copy(),
        }

    def _spread(self, info: Info, rows: NDArray[np.int64]) -> dict[str, Any]:
        """Lay values of some environments into arrays over all, each with its mask."""
        mask = np.zeros(self.num_envs, dtype=bool)
        mask[rows] = True
        out: dict[str, Any] = {}
        for key, value in info.items():
            empty = None if value.dtype == object else 0
            out[key] = np.full((self.num_envs, *value.shape[1:]), empty, dtype=value.dtype)
            out[key][rows] = value
            out[f"_{key}"] = mask.copy()
        return out

    def _join(
        self,
        some: NDArray[Any],
        rows: NDArray[np.int64],
        others: NDArray[Any],
        other_rows: NDArray[np.int64],
    ) -> NDArray[Any]:
        """Put the values of all environments together from two disjoint parts."""
        out = np.empty((self.num_envs, *some.shape[1:]), dtype=some.dtype)
        out[rows] = some
        out[other_rows] = others
        return out

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if _is_whole(seed):
            return [int(seed) + i for i in range(self.num_envs)]  # type: ignore[arg-type]
        seeds = [] if isinstance(seed, str | float | int) else list(seed)
        if len(seeds) != self.num_envs or not all(s is None or _is_whole(s) for s in seeds):
            raise InvalidValueError(
                f"Expected a whole number as seed, or a list of {self.num_envs} whole numbers or "
                f"None; got {seed!r}."
            )
        return [None if one is None else int(one) for one in seeds]

    def _check_mask(self, mask: Any) -> NDArray[np.bool_]:
        if (
            not isinstance(mask, np.ndarray)
            or mask.shape != (self.num_envs,)
            or mask.dtype != np.bool_
            or not mask.any()
        ):
            raise InvalidValueError(
                f"Expected reset_mask as a boolean array of shape ({self.num_envs},) with at "
                f"least one True; got {mask!r}."
            )
        return mask

    def _shape(self, observations: NDArray[np.float32]) -> Observation:
        if self.engine.config.observation == "dict":
            named: dict[str, NDArray[np.float32]] = self.engine.layout.as_dict(observations)
            return named
        return observations.copy()


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
