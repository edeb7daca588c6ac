"""Native vector environments for Stable-Baselines3, which trains on its own `VecEnv` only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from nsr_gym.envs.comparing import describe
from nsr_gym.envs.wrappers import FlatDiscreteVector, vector_attribute
from nsr_gym.errors import InvalidValueError, StateError

_SINGLE = {
    "observation_space": "single_observation_space",
    "action_space": "single_action_space",
}
"""What means all environments in a vector environment and one of them in Stable-Baselines3."""

_OWN_CALLS = ("reset", "step", "close")
_FINAL = ("final_obs", "final_info")
Indices = Any
"""None for all environments, one index or several."""


def make_sb3_env(
    env_id: str,
    n: int,
    *,
    seed: int | None = None,
    flat_actions: bool = False,
    **arguments: Any,
) -> SB3VecEnv:
    """Make n environments that play side by side, for agents of Stable-Baselines3.

    Step for step the same as its `DummyVecEnv` over n times `gymnasium.make(env_id, **arguments)`
    with the same seeds (bit for bit; live environments within rounding), in one computation.
    As with these, episodes are logged once it is wrapped: `VecMonitor(make_sb3_env(...))`.

    Args:
        env_id: of an environment with a native vector environment.
        n: number of environments.
        seed: of the first reset, s + i for environment i; None for none.
        flat_actions: whether an action is one number (see `FlatDiscreteVector`), as DQN needs.
        **arguments: of the environment.

    Raises:
        gymnasium.error.Error: no such id, or one without a native vector environment.
        UnknownNameError: an argument that the environment does not have.
        InvalidValueError: arguments out of range, or another autoreset mode than `"same_step"`.
    """
    chosen = {"autoreset_mode": "same_step"} | arguments
    vector_env: Any = gym.make_vec(env_id, n, vectorization_mode="vector_entry_point", **chosen)
    env = SB3VecEnv(FlatDiscreteVector(vector_env) if flat_actions else vector_env)
    if seed is not None:
        env.seed(seed)
    return env


class SB3VecEnv(VecEnv):
    """A native Gymnasium vector environment as a `VecEnv` of Stable-Baselines3.

    Answers are those of `DummyVecEnv` over single environments: float32 rewards, one dict of plain
    scalars for each environment, `terminal_observation` and `TimeLimit.truncated` in it where
    an episode has ended, what the resets said in `reset_infos`.

    There is one object behind all n environments, so that attributes are the same for all:
    `get_attr` returns the vector environment's (its single spaces as the spaces), `set_attr` sets
    it for all. Methods are called once, for all, and return n results.

    Attributes:
        vector_env: the vector environment.
    """

    def __init__(self, vector_env: VectorEnv[Any, Any, Any]) -> None:
        """Adapt a vector environment.

        Args:
            vector_env: one whose autoreset mode is same-step, possibly in wrappers.

        Raises:
            InvalidValueError: it is no vector environment, or its autoreset mode is another.
        """
        if not isinstance(vector_env, VectorEnv):
            raise InvalidValueError(
                f"Expected a vector environment, as make_vec returns it; got {vector_env!r}."
            )
        mode = vector_env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise InvalidValueError(
                "Expected a vector environment that resets in the step in which an episode ends; "
                f"the autoreset mode of {vector_env} is {getattr(mode, 'name', mode)}. Make it "
                'with autoreset_mode="same_step".'
            )
        # Before the base class, which asks for the render mode by get_attr.
        self.vector_env = vector_env
        self._actions: Any = None
        spaces = vector_env.single_observation_space, vector_env.single_action_space
        super().__init__(vector_env.num_envs, *spaces)
        self.metadata = dict(vector_env.metadata)
        self._all = np.arange(self.num_envs)

    @property
    def spec(self) -> Any:
        """Gymnasium's spec, None where there is none; `VecMonitor` notes the id in its file."""
        return self.vector_env.spec

    def reset(self) -> Any:
        """Start new episodes, with the seeds and options set since the last reset.

        Returns:
            Observations, (n, ...) or a dict of such.

        Raises:
            InvalidValueError: options that differ between environments, or name some of them.
        """
        seed, options = _common_seed(self._seeds), self._options
        # For this reset only, even if it fails.
        self._reset_seeds()
        self._reset_options()
        reset: Any = self.vector_env.reset  # Gymnasium's type of seeds leaves out lists
        observations, info = reset(seed=seed, options=_common_options(options))
        self.reset_infos = _split(info, self._all)
        return self._own(observations)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take actions (n, ...), to be played by `step_wait`."""
        self._actions = actions

    def step_wait(self) -> Any:
        """Play the actions.

        Returns:
            Observations (of the next episode where one has ended), rewards (n,) float32, whether
            episodes have ended (n,), and n infos.

        Raises:
            StateError: no actions were given.
        """
        if self._actions is None:
            raise StateError("There are no actions to play; call step_async(actions) first.")
        actions, self._actions = self._actions, None
        observations, rewards, terminated, truncated, info = self.vector_env.step(actions)
        infos = _split({k: v for k, v in info.items() if k not in _FINAL}, self._all)
        dones = terminated | truncated
        ended = np.flatnonzero(dones)
        if len(ended):
            finals = _split(info.get("final_info", {}), ended)
            for i, final in zip(ended.tolist(), finals, strict=True):
                self.reset_infos[i] = infos[i]
                infos[i] = final | {"terminal_observation": info["final_obs"][i]}
        for one, cut in zip(infos, (truncated & ~terminated).tolist(), strict=True):
            one["TimeLimit.truncated"] = cut
        return self._own(observations), rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Close the vector environment."""
        self.vector_env.close()

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return the vector environment's attribute, once for each environment asked for.

        Raises:
            AttributeError: neither it nor any of its wrappers has the attribute.
        """
        value = vector_attribute(self.vector_env, _SINGLE.get(attr_name, attr_name))
        return [value for _ in self._rows(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of the vector environment.

        Raises:
            InvalidValueError: for some environments only.
        """
        if len(set(self._rows(indices))) < self.num_envs:
            raise InvalidValueError(
                f"Expected {attr_name!r} to be set for all {self.num_envs} environments, which "
                f"share it; got indices={indices!r}. Leave the indices out."
            )
        setattr(self.vector_env, _SINGLE.get(attr_name, attr_name), value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the vector environment, and return its results for some environments.

        Args:
            method_name: of a method that answers for all n environments, such as `action_masks`
                or `render`, or returns None. It is called once, for all.
            *method_args: passed on.
            indices: which results are returned.
            **method_kwargs: passed on.

        Raises:
            AttributeError: neither it nor any of its wrappers has the method.
            InvalidValueError: what it returned is not one result for each environment, or it is
                one that only this adapter may call.
        """
        if method_name in _OWN_CALLS:
            raise InvalidValueError(
                f"Expected a method that does not play; got {method_name!r}. Call it on this "
                "object, for all environments."
            )
        rows = self._rows(indices)
        results = vector_attribute(self.vector_env, method_name)(*method_args, **method_kwargs)
        if results is None:
            return [None for _ in rows]
        several = isinstance(results, list | tuple) or np.ndim(results) > 0
        if not several or len(results) != self.num_envs:
            raise InvalidValueError(
                f"Expected {method_name!r} to return one result for each of the {self.num_envs} "
                f"environments; got {describe(results)}."
            )
        return [results[i] for i in rows]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Indices = None) -> list[bool]:
        """Return whether it is in a (vector) wrapper, for each environment asked for."""
        env: Any = self.vector_env
        while isinstance(env, VectorWrapper) and not isinstance(env, wrapper_class):
            env = env.env
        return [isinstance(env, wrapper_class) for _ in self._rows(indices)]

    def get_images(self) -> Sequence[NDArray[Any] | None]:
        """Return a picture of each environment, None where they do not render `"rgb_array"`."""
        if self.render_mode != "rgb_array":
            return [None] * self.num_envs
        return self.env_method("render")

    def _rows(self, indices: Indices) -> list[int]:
        # Looked up in a range, so that an index that does not exist is an IndexError.
        return [range(self.num_envs)[int(i)] for i in self._get_indices(indices)]

    def _own(self, observations: Any) -> Any:
        """Copy observations, which the vector environment may write over in the next step."""
        if isinstance(observations, Mapping):
            return {name: np.array(values) for name, values in observations.items()}
        return np.array(observations)


def _common_seed(seeds: Sequence[int | None]) -> int | list[int | None] | None:
    """Return seeds as vector environments take them: an int wherever it says the same.

    Gymnasium's own native environments know no lists.
    """
    first = seeds[0]
    if first is None:
        return None if all(seed is None for seed in seeds) else list(seeds)
    return first if list(seeds) == [first + i for i in range(len(seeds))] else list(seeds)


def _common_options(options: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    first = options[0]
    if any(one != first for one in options[1:]):
        raise InvalidValueError(
            "Expected the same options for all environments, which are reset by one call; got "
            f"{list(options)!r}."
        )
    if "reset_mask" in first:
        raise InvalidValueError(
            "Expected options without 'reset_mask': Stable-Baselines3 resets all environments."
        )
    return first or None


def _split(info: Mapping[str, Any], rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Take a batched info apart.

    Args:
        info: arrays over all environments, or such infos in it, each key k with its mask `_k`.
        rows: (m,) environments.

    Returns:
        What it says of each of these, scalars as plain Python ones.
    """
    out: list[dict[str, Any]] = [{} for _ in rows]
    whole: dict[str, list[Any]] = {}
    for key, value in info.items():
        if f"_{key}" not in info:
            continue  # a mask itself
        there = info[f"_{key}"][rows]
        column = _split(value, rows) if isinstance(value, Mapping) else _column(value[rows])
        if there.all():
            whole[key] = column
            continue
        for i in np.flatnonzero(there).tolist():
            out[i][key] = column[i]
    # What all have, the usual case, by rows at once.
    for one, values in zip(out, zip(*whole.values(), strict=True), strict=False):
        one.update(zip(whole, values, strict=True))
    return out


def _column(values: NDArray[Any]) -> list[Any]:
    return values.tolist() if values.ndim == 1 else list(values)
