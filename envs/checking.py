"""Is a native vector environment equal to `SyncVectorEnv` over single ones, and to these?"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode

from nsr_gym.envs.arguments import check_number, check_whole
from nsr_gym.envs.lockstep import Lockstep, VectorEnvMismatch
from nsr_gym.errors import InvalidValueError

__all__ = ["VectorEnvMismatch", "check_vector_env"]

_OF_MAKE_VEC = ("num_envs", "vectorization_mode", "vector_kwargs", "wrappers", "autoreset_mode")
_REFUSALS = (TypeError, ValueError, KeyError, AttributeError, AssertionError, gym.error.Error)
"""What constructors raise of an autoreset mode, or a form of it, that they do not take."""


def check_vector_env(
    id_or_env: Any,
    *,
    num_envs: int | Sequence[int] = (1, 2, 7),
    episodes: int = 3,
    seed: int = 0,
    tolerance: float = 0.0,
    max_steps: int = 1_000,
    **arguments: Any,
) -> None:
    """Check that a native vector environment is equal to single environments, step for step.

    The vector environment of the spec's `vector_entry_point`, Gymnasium's `SyncVectorEnv` over
    single environments, and single environments stepped by hand get the same seeds and the same
    random actions. Compared are the spaces, and of every reset (with an int, with lists, unseeded)
    and every step the observations, rewards, ends and infos: keys, masks, types, shapes, values,
    `final_obs` and `final_info`. What was returned must belong to the caller: no later call may
    change it, and overwriting it may change nothing. This is done in every autoreset mode that the
    native environment can be made with (by the argument `autoreset_mode`, as `"next_step"` or
    as an `AutoresetMode`; otherwise the one its metadata states). Where that includes the
    disabled mode, resets of some environments by `options={"reset_mask": ...}` are checked too,
    in all modes, in the middle of episodes.

    Not checked: first resets without a seed, rendering, other methods and attributes, actions
    outside the action space or ruled out by a mask, options of a reset beside `reset_mask`, kinds
    of mappings (a `dict` equals an `OrderedDict`), and whether arrays of one answer share memory.

    Args:
        id_or_env: id of any Gymnasium environment, or an environment (single or vector) as
            `gymnasium.make` or `make_vec` returned it, which is built anew from its spec.
        num_envs: numbers of environments to check with.
        episodes: how many each environment plays to their end.
        seed: of the environments and the actions, at least 0.
        tolerance: absolute plus relative, of floating-point values; 0 asks for the same bits.
        max_steps: steps after which playing stops; an episode has to end before.
        **arguments: of the environment; `autoreset_mode` restricts the check to that mode.
            An environment whose own arguments have one of the names above is to be given
            built.

    Raises:
        VectorEnvMismatch: what differs first, with mode, number of environments, step,
            environment and both values.
        InvalidValueError: there is no native vector environment or no single one; an environment
            without a spec or inside other wrappers than `make` puts; numbers out of range; no
            episode ended, so that nothing was seen of what happens then.
    """
    sizes: list[Any] = list(num_envs) if isinstance(num_envs, Sequence) else [num_envs]
    for size in sizes or [None]:  # nothing to check with would pass
        check_whole("num_envs", size, least=1)
    check_whole("episodes", episodes, least=1)
    check_whole("seed", seed, least=0)
    check_whole("max_steps", max_steps, least=1)
    check_number("tolerance", tolerance, low=0.0)
    recipe = _Recipe.of(id_or_env, arguments)
    modes = recipe.modes()
    asked = arguments.get("autoreset_mode")
    chosen = [m for m in modes if asked is None or asked in (m, m.name.lower(), m.value)]
    if not chosen:
        raise InvalidValueError(
            f"Expected an autoreset mode that {recipe.spec.id} can be made with "
            f"({', '.join(mode.name.lower() for mode in modes)}); got {asked!r}."
        )
    for mode in chosen:
        for n in sizes:
            lockstep = Lockstep(
                native=recipe.native(n, modes[mode]),
                single=recipe.single,
                mode=mode,
                masks=AutoresetMode.DISABLED in modes,
                tolerance=tolerance,
            )
            try:
                ended = lockstep.check(episodes=episodes, seed=seed, max_steps=max_steps)
            finally:
                lockstep.close()
            if not ended:
                raise InvalidValueError(
                    f"No episode of {recipe.spec.id} ended within max_steps={max_steps} steps, so "
                    "that resets after an end could not be compared. Give a larger max_steps, or "
                    "arguments that make episodes shorter (max_episode_steps, for instance)."
                )


@dataclass(frozen=True)
class _Recipe:
    """How to build the environments: a spec without arguments, and the arguments."""

    spec: EnvSpec
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, id_or_env: Any, arguments: Mapping[str, Any]) -> _Recipe:
        spec: object
        if isinstance(id_or_env, str):
            module, _, name = id_or_env.rpartition(":")
            if module:
                importlib.import_module(module)
            spec = gym.spec(name)
        else:
            spec = getattr(id_or_env, "spec", None)
        if not isinstance(spec, EnvSpec):
            raise InvalidValueError(
                "Expected the id of an environment, or an environment with a spec, as "
                f"gymnasium.make and make_vec return it; got {id_or_env!r}."
            )
        if spec.additional_wrappers:
            names = ", ".join(wrapper.name for wrapper in spec.additional_wrappers)
            raise InvalidValueError(
                f"Expected {spec.id} as gymnasium.make returns it: a native vector environment has "
                f"none of the wrappers {names}. Give its id and arguments instead."
            )
        for name, what in (("entry_point", "single"), ("vector_entry_point", "native vector")):
            if getattr(spec, name) is None:
                raise InvalidValueError(
                    f"There is nothing to compare: {spec.id} has no {what} environment. Register "
                    f"it with {name}=..."
                )
        everything = {**spec.kwargs, **arguments}
        return cls(
            replace(spec, kwargs={}), {k: v for k, v in everything.items() if k not in _OF_MAKE_VEC}
        )

    def single(self) -> Any:
        return gym.make(self.spec, **self.arguments)

    def native(self, n: int, mode: Mapping[str, Any]) -> Any:
        return gym.make_vec(
            self.spec, n, vectorization_mode="vector_entry_point", **self.arguments, **mode
        )

    def modes(self) -> dict[AutoresetMode, dict[str, Any]]:
        """Return the native environment's autoreset modes, each with the argument that sets it."""
        self.single().close()  # arguments that no environment takes are no mismatch
        try:
            stated = self._stated_mode({})
        except Exception as error:
            raise VectorEnvMismatch(
                f"{self.spec.id}: the native vector environment cannot be built with the arguments "
                f"of the single one, {dict(self.arguments)}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(stated, AutoresetMode):
            raise VectorEnvMismatch(
                f"{self.spec.id}: expected an AutoresetMode as metadata['autoreset_mode'] of the "
                f"native vector environment; got {stated!r}."
            )
        entry: Any = self.spec.vector_entry_point
        parameters = inspect.signature(
            load_env_creator(entry) if isinstance(entry, str) else entry
        ).parameters
        named = "autoreset_mode" in parameters
        found: dict[AutoresetMode, dict[str, Any]] = {stated: {}}
        if not named and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            return found
        for mode in AutoresetMode:
            for value in (mode.name.lower(), mode):
                try:
                    states = self._stated_mode({"autoreset_mode": value})
                except _REFUSALS:
                    continue
                if states is mode:
                    found[mode] = {"autoreset_mode": value}
                    break
                if named:
                    raise VectorEnvMismatch(
                        f"{self.spec.id}: the native vector environment made with "
                        f"autoreset_mode={value!r} has metadata['autoreset_mode'] {states!r}."
                    )
        return found

    def _stated_mode(self, argument: Mapping[str, Any]) -> object:
        made = self.native(1, argument)
        try:
            return made.metadata.get("autoreset_mode")
        finally:
            made.close()
