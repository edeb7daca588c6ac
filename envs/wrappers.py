"""One whole number instead of several: flat actions for learners that take `Discrete` only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from nsr_gym.envs.protocol import Ints
from nsr_gym.envs.single import check_actions
from nsr_gym.errors import InvalidValueError

Masks = NDArray[np.bool_]


class FlatActions:
    """The members of a `MultiDiscrete` space, numbered.

    The order is that of nested loops with the last component innermost (C order, as
    `numpy.unravel_index` counts): of `MultiDiscrete([S+1, Q, 3])` the action (s, q, v) is number
    (s Q + q) 3 + v. A `Discrete` space stays as it is.

    Attributes:
        nvec: values of each component.
        space: `Discrete` with the product of `nvec`.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        """Number the members of a space.

        Raises:
            InvalidValueError: it is neither `Discrete` nor a `MultiDiscrete` with one dimension,
                or does not begin at 0.
        """
        one = isinstance(space, spaces.Discrete)
        if not one and not (isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1):
            raise InvalidValueError(
                "Expected actions of a Discrete space or of a MultiDiscrete space with one "
                f"dimension; got {space}."
            )
        if np.any(space.start):  # type: ignore[attr-defined]
            raise InvalidValueError(f"Expected actions that are counted from 0; got {space}.")
        counts = [space.n] if one else space.nvec  # type: ignore[attr-defined]
        self.nvec = tuple(int(n) for n in counts)
        self.space = spaces.Discrete(math.prod(self.nvec))
        self._one = one

    def decode(self, actions: Any) -> Ints:
        """Return the members with some numbers.

        Args:
            actions: (n,) whole numbers.

        Returns:
            (n, components); (n,) where the space was `Discrete` already.

        Raises:
            InvalidValueError: another shape or type, or no member has the number.
        """
        numbers = check_actions(self.space, actions)
        return numbers if self._one else np.stack(np.unravel_index(numbers, self.nvec), axis=-1)

    def masks(self, parts: Masks) -> Masks:
        """Return which numbers are allowed: those all of whose components are.

        Args:
            parts: (..., sum of nvec), the masks of the components behind each other.

        Returns:
            (..., product of nvec).
        """
        first, *others = np.split(parts, np.cumsum(self.nvec)[:-1], axis=-1)
        for part in others:
            joint = first[..., :, None] & part[..., None, :]
            first = joint.reshape(*joint.shape[:-2], -1)
        return first

    def info(self, info: dict[str, Any]) -> dict[str, Any]:
        """Return an environment's info with masks of numbers, final infos too."""
        changed = dict(info)
        if "action_mask" in info:
            changed["action_mask"] = self.masks(info["action_mask"])
        if "final_info" in info:
            changed["final_info"] = self.info(info["final_info"])
        return changed


class FlatDiscrete(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """An environment whose action is one number, for DQN and other value-based learners.

    The action space is `Discrete(product of nvec)`, in the order of `FlatActions`; `action_masks()`
    and `info["action_mask"]` are (product of nvec,). All else is the environment's own. Made by
    `FlatDiscrete(gymnasium.make(...))`, or as one of `make_vec`'s `wrappers`; the spec keeps it.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Wrap an environment.

        Raises:
            InvalidValueError: actions that cannot be numbered.
        """
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.flat = FlatActions(env.action_space)
        self.action_space = self.flat.space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start a new episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, self.flat.info(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Play the action with a number.

        Raises:
            InvalidValueError: no action has it.
        """
        *answer, info = self.env.step(self.flat.decode([action])[0])
        return (*answer, self.flat.info(info))

    def action_masks(self) -> Masks:
        """Return which actions may be taken, (product of nvec,) bool."""
        return self.flat.masks(self.env.get_wrapper_attr("action_masks")())


class FlatDiscreteVector(VectorWrapper[Any, Any, Any, Any, Any]):
    """`FlatDiscrete` for a native vector environment, equal to it seed for seed.

    Actions are (n,), `action_masks()` and `info["action_mask"]` (n, product of nvec).
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        """Wrap a vector environment.

        Raises:
            InvalidValueError: actions that cannot be numbered.
        """
        super().__init__(env)
        self.flat = FlatActions(env.single_action_space)
        self.single_action_space = self.flat.space
        self.action_space = batch_space(self.flat.space, env.num_envs)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start new episodes."""
        observations, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        return observations, self.flat.info(info)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Play the actions with (n,) numbers.

        Raises:
            InvalidValueError: another shape, or no action has one of the numbers.
        """
        *answer, info = self.env.step(self.flat.decode(actions))
        return (*answer, self.flat.info(info))

    def action_masks(self) -> Masks:
        """Return which actions may be taken, (n, product of nvec) bool."""
        return self.flat.masks(vector_attribute(self.env, "action_masks")())


def vector_attribute(env: Any, name: str) -> Any:
    """Return an attribute of a vector environment, found through its wrappers.

    Gymnasium's vector wrappers, unlike its single ones, pass on no attributes by themselves.

    Args:
        env: the vector environment; the outermost wrapper that has the attribute answers.
        name: of the attribute.

    Raises:
        AttributeError: neither it nor any wrapper has the attribute.
    """
    while isinstance(env, VectorWrapper) and not hasattr(env, name):
        env = env.env
    return getattr(env, name)
