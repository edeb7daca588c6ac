"""A native vector environment, `SyncVectorEnv` and single environments, played in lockstep."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from nsr_gym.envs.comparing import Difference, describe, difference, overwrite
from nsr_gym.errors import NsrGymError

_SPACES = ("single_observation_space", "observation_space", "single_action_space", "action_space")
_RESET = ("observation", "info")
_STEP = ("observation", "reward", "terminated", "truncated", "info")
_INTERRUPT = 2
"""Steps after which some environments are reset, so that episodes end at different times."""

Named = dict[str, Any]
"""An answer to a reset or a step, its parts by name."""


class VectorEnvMismatch(NsrGymError, AssertionError):
    """A native vector environment answers otherwise than single environments do."""


class Lockstep:
    """Asks all three the same and compares what they answer."""

    def __init__(
        self,
        *,
        native: Any,
        single: Callable[[], Any],
        mode: AutoresetMode,
        masks: bool,
        tolerance: float,
    ) -> None:
        """Put single environments beside a native vector environment.

        Args:
            native: the vector environment, of n environments.
            single: makes a single environment.
            mode: of autoreset, which the native environment was made with.
            masks: whether the native environment can reset some environments.
            tolerance: absolute plus relative, of floating-point values.
        """
        self.native, self.mode, self.masks, self.tolerance = native, mode, masks, tolerance
        self.n: int = native.num_envs
        self.sync = SyncVectorEnv([single] * self.n, autoreset_mode=mode)
        self.singles = [single() for _ in range(self.n)]
        self.id = self.singles[0].spec.id
        self.overwriting = False
        self.over = np.zeros(self.n, dtype=bool)
        self.episode, self.elapsed = np.zeros((2, self.n), dtype=np.int64)
        self.started = self.moment = "the first call"
        self.kept: tuple[str, Named, Named] | None = None

    def close(self) -> None:
        """Close all environments."""
        for env in (self.native, self.sync, *self.singles):
            env.close()

    def check(self, *, episodes: int, seed: int, max_steps: int) -> bool:
        """Compare the spaces, resets with every form of seed, and played episodes.

        Args:
            episodes: that every environment plays to their end.
            seed: of environments and actions.
            max_steps: steps after which playing stops.

        Returns:
            Whether any episode ended.

        Raises:
            VectorEnvMismatch: at the first difference.
        """
        for name in _SPACES:
            ours, theirs = getattr(self.native, name, None), getattr(self.sync, name)
            if ours != theirs:
                self._fail(f"{name} differs", Difference((name,), str(ours), str(theirs)))
        n = self.n
        space = copy.deepcopy(self.sync.single_action_space)
        space.seed(seed)
        alternate = np.zeros(n, dtype=bool)
        alternate[n - 1 :: -2] = True
        self.reset(seed)
        self.reset()
        self.reset([seed + 2 * (n - i) for i in range(n)])
        self.reset([None if i % 2 else seed + i for i in range(n)])
        if self.masks:
            self.reset(seed + 1, mask=alternate)
            self.reset([seed + n - i for i in range(n)], mask=alternate)
            self.reset(mask=~alternate if n > 1 else alternate)
        self.reset(seed)
        ended = self.play(space, episodes, max_steps, interrupt=alternate)
        # Some episodes are just over: nothing of that may outlive a reset.
        self.reset()
        self.play(space, episodes, min(2, max_steps))
        self.overwriting = True
        self.reset(seed)
        self.play(space, 1, max_steps)
        return ended

    def play(
        self,
        space: gym.Space[Any],
        episodes: int,
        max_steps: int,
        interrupt: NDArray[np.bool_] | None = None,
    ) -> bool:
        """Take random actions until every environment has ended that many episodes.

        Returns:
            Whether any episode ended.
        """
        ends = np.zeros(self.n, dtype=np.int64)
        for step in range(max_steps):
            mask = self.over & (self.mode is AutoresetMode.DISABLED)
            if step == _INTERRUPT and interrupt is not None and self.masks:
                mask = mask | interrupt
            if mask.any():
                self.reset(mask=mask)
            actions = [space.sample() for _ in range(self.n)]
            empty: Any = create_empty_array(space, self.n)
            self.step(concatenate(space, actions, empty), step + 1)
            ends += self.over
            if (ends >= episodes).all():
                break
        return bool(ends.any())

    def reset(
        self,
        seed: int | Sequence[int | None] | None = None,
        *,
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        """Reset all environments, or those in the mask, and compare the answers."""
        words = [] if seed is None else [f"seed={seed}"]
        if mask is not None:
            words.append(f"options={{'reset_mask': {mask.tolist()}}}")
        self.moment = f"reset({', '.join(words)})"
        chosen = np.ones(self.n, dtype=bool) if mask is None else mask
        if mask is None:
            self.started = self.moment
            self.episode[:] = 0
        self.episode[chosen] += 1
        self.elapsed[chosen] = 0

        def ask(env: Any) -> Any:
            # Each gets its own: SyncVectorEnv takes the mask out of the options it is given.
            options = None if mask is None else {"reset_mask": mask.copy()}
            return env.reset(seed=copy.copy(seed), options=options)

        ours = self._native(lambda: ask(self.native), _RESET)
        self._compare(ours, _named(ask(self.sync), _RESET))
        if isinstance(seed, int):
            seed = [seed + i for i in range(self.n)]
        rows = list(iterate(self.sync.observation_space, ours["observation"]))
        for i in np.flatnonzero(chosen).tolist():
            answer = self.singles[i].reset(
                seed=None if seed is None else seed[i], options=None if mask is None else {}
            )
            self._compare_one(i, ours, rows[i], _named(answer, _RESET))
            self.over[i] = False
        self._keep(ours)

    def step(self, actions: Any, number: int) -> None:
        """Step all environments and compare the answers."""
        self.moment = f"step {number} after {self.started}"
        again = self.over.copy()
        waits = again & (self.mode is AutoresetMode.NEXT_STEP)
        self.episode[again] += 1
        self.elapsed[again] = 0
        self.elapsed[~waits] += 1
        given = copy.deepcopy(actions)
        ours = self._native(lambda: self.native.step(given), _STEP)
        if found := difference(given, actions, path=("actions",)):
            what = f"{found.quantity} of the caller was changed by the native vector environment"
            self._fail(what, found, labels=("now", "then"))
        self._compare(ours, _named(self.sync.step(copy.deepcopy(actions)), _STEP))
        rows = list(iterate(self.sync.observation_space, ours["observation"]))
        for i, action in enumerate(iterate(self.sync.action_space, actions)):
            self._compare_one(i, ours, rows[i], self._by_hand(i, action, waits=bool(waits[i])))
        self._keep(ours)

    def _by_hand(self, i: int, action: Any, *, waits: bool) -> Named:
        """Step a single environment as the autoreset mode asks; `waits`: for its reset."""
        env = self.singles[i]
        if waits:
            self.over[i] = False
            observation, info = env.reset()
            return _named((observation, 0.0, False, False, info), _STEP)
        answer = _named(env.step(action), _STEP)
        self.over[i] = answer["terminated"] or answer["truncated"]
        if self.over[i] and self.mode is AutoresetMode.SAME_STEP:
            final = {"final_obs": answer["observation"], "final_info": answer["info"]}
            answer["observation"], info = env.reset()
            answer["info"] = final | info
        return answer

    def _native(self, call: Callable[[], Any], names: tuple[str, ...]) -> Named:
        """Ask the native environment; what it answered before must not change by that."""
        try:
            answer = call()
        except Exception as error:
            message = f"the native vector environment raised {type(error).__name__}: {error}"
            raise VectorEnvMismatch(self._message(message)) from error
        if not isinstance(answer, tuple) or len(answer) != len(names):
            wanted = Difference(("answer",), describe(answer), f"({', '.join(names)})")
            self._fail("the answer has another form", wanted)
        if self.kept is not None:
            moment, kept, before = self.kept
            for name, value in kept.items():
                if found := difference(value, before[name], path=(name,)):
                    self._fail(
                        f"{found.quantity} that {moment} returned was changed by a later call; "
                        "what is returned must belong to the caller",
                        found,
                        labels=("now", "then"),
                    )
        return _named(answer, names)

    def _keep(self, answer: Named) -> None:
        if self.overwriting:
            overwrite(answer)
        self.kept = (self.moment, answer, copy.deepcopy(answer))

    def _compare(self, ours: Named, theirs: Named) -> None:
        for name, value in theirs.items():
            if found := difference(ours[name], value, path=(name,), tolerance=self.tolerance):
                self._fail(f"{found.quantity} differs from SyncVectorEnv", found)

    def _compare_one(self, i: int, ours: Named, observation: Any, theirs: Named) -> None:
        """Compare environment i with the single one; types were compared with Gymnasium's."""
        part = {name: value[i] for name, value in ours.items() if name not in _RESET}
        part |= {"observation": observation, "info": _one_info(ours["info"], i)}
        for name, value in theirs.items():
            found = difference(
                part[name], value, path=(name,), tolerance=self.tolerance, exact=False
            )
            if found:
                labels = ("native", "single environment")
                what = f"{found.quantity} differs from a single environment stepped by hand"
                self._fail(what, found, labels=labels, row=i)

    def _fail(
        self,
        what: str,
        found: Difference,
        *,
        labels: tuple[str, str] = ("native", "SyncVectorEnv"),
        row: int | None = None,
    ) -> None:
        row = found.row if row is None else row
        width = max(map(len, labels)) + 1
        lines = [
            f"{label + ':':<{width}} {value}"
            for label, value in zip(labels, (found.ours, found.theirs), strict=True)
        ]
        raise VectorEnvMismatch(self._message(what, row, *lines, found.extent))

    def _message(self, what: str, row: int | None = None, *lines: str) -> str:
        where = f"{self.moment}, {self.n} environment(s), autoreset mode {self.mode.name.lower()}"
        if row is not None and self.moment != "the first call":
            where += f"; environment {row}, its episode {self.episode[row]}, "
            where += f"step {self.elapsed[row]}" if self.elapsed[row] else "at the reset"
        note = "every array returned so far was overwritten by the caller, as it may be"
        notes = [note] if self.overwriting and self.kept is not None else []
        return "\n  ".join([f"{self.id}: {what}.", f"at {where}", *filter(None, lines), *notes])


def _named(answer: Sequence[Any], names: tuple[str, ...]) -> Named:
    return dict(zip(names, answer, strict=True))


def _one_info(info: Any, i: int) -> dict[str, Any]:
    """Return what a batched info holds of environment i, by its masks."""
    return {
        key: _one_info(value, i) if isinstance(value, dict) else value[i]
        for key, value in info.items()
        if f"_{key}" in info and info[f"_{key}"][i]
    }
