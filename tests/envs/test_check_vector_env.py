"""`check_vector_env` passes what is equal and says what differs where something is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit, TransformReward

from nsr_gym.envs.checking import VectorEnvMismatch, check_vector_env
from nsr_gym.errors import InvalidValueError, NsrGymError

MODES = {mode.name.lower(): mode for mode in AutoresetMode}
SMALL: dict[str, Any] = {"num_envs": (1, 3), "episodes": 2, "max_steps": 60}


class Walk(gym.Env[Any, Any]):
    """A walk of drawn length; every kind of space and of info that the check has to follow."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, *, longest: int = 6, endless: bool = False) -> None:
        self.longest, self.endless = longest, endless
        self.observation_space = spaces.Dict(
            {
                "place": spaces.Box(-100.0, 100.0, (2,), np.float32),
                "more": spaces.Tuple((spaces.Discrete(50), spaces.Text(5))),
            }
        )
        self.action_space = spaces.Dict(
            {"go": spaces.Discrete(3, start=-1), "push": spaces.Box(0.0, 1.0, (2,), np.float32)}
        )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.length = int(self.np_random.integers(2, self.longest))
        self.place, self.steps = self.np_random.normal(size=2), 0
        return self._seen(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = self.place + int(action["go"]) * action["push"]
        self.steps += 1
        over = self.steps >= self.length and not self.endless
        return self._seen(), float(self.place.sum()), over, False, self._info()

    def _seen(self) -> dict[str, Any]:
        return {
            "place": self.place.astype(np.float32),
            "more": (self.steps, "abcde"[self.steps % 5]),
        }

    def _info(self) -> dict[str, Any]:
        always = {"regret": 0.5 * self.steps, "name": f"walk {self.steps}", "unknown": np.nan}
        nested = {"inner": {"flags": np.array([self.steps > 1, True]), "steps": self.steps}}
        return always | nested | ({"odd": self.steps} if self.steps % 2 else {})


class Native(SyncVectorEnv):
    """Right, for it is Gymnasium's own; what is wrong below overrides a part of it."""

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str = "next_step",
        max_episode_steps: int | None = None,
        **arguments: Any,
    ) -> None:
        if autoreset_mode not in MODES:
            raise InvalidValueError(f"no autoreset mode {autoreset_mode!r}")

        def one() -> Any:
            env = Walk(**arguments)
            return TimeLimit(env, max_episode_steps) if max_episode_steps else env

        super().__init__([one] * num_envs, autoreset_mode=MODES[autoreset_mode])


class TakesTheEnumeration(Native):
    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
        **arguments: Any,
    ) -> None:
        super().__init__(num_envs, autoreset_mode=autoreset_mode.name.lower(), **arguments)


class OneMode(Native):
    """Takes no autoreset mode and cannot reset some environments."""

    def __init__(self, num_envs: int = 1, *, longest: int = 6) -> None:
        super().__init__(num_envs, longest=longest)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        assert options is None
        return super().reset(seed=seed)


class WrongRewardType(Native):
    def step(self, actions: Any) -> Any:
        observation, reward, *rest = super().step(actions)
        return observation, reward.astype(np.float32), *rest


class WrongReward(Native):
    def step(self, actions: Any) -> Any:
        observation, reward, *rest = super().step(actions)
        reward[-1] += 1e-7
        return observation, reward, *rest


class OneSeedForAll(Native):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        seed = [seed] * self.num_envs if isinstance(seed, int) else seed
        return super().reset(seed=seed, options=options)


class ForgetsItsGenerators(Native):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=0 if seed is None else seed, options=options)


class NoListsOfSeeds(Native):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if isinstance(seed, list):
            raise TypeError("seeds are whole numbers")
        return super().reset(seed=seed, options=options)


class TakesNoneForZero(Native):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        seed = [one or 0 for one in seed] if isinstance(seed, list) else seed
        return super().reset(seed=seed, options=options)


class ReusesItsArrays(Native):
    def __init__(self, num_envs: int = 1, **arguments: Any) -> None:
        super().__init__(num_envs, **arguments)
        self.copy = False


class TrustsItsReturnedArrays(Native):
    """Keeps the rewards it returned, and pays what these have become."""

    held: Any = None

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.held = None
        return super().reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        drift = 0.0 if self.held is None else self.held - self.paid
        observation, reward, *rest = super().step(actions)
        self.held, self.paid = reward + drift, (reward + drift).copy()
        return observation, self.held, *rest


class ChangesTheActions(Native):
    def step(self, actions: Any) -> Any:
        answer = super().step(actions)
        actions["push"][:] = 0.0
        return answer


class WrongFinalMask(Native):
    def step(self, actions: Any) -> Any:
        *rest, info = super().step(actions)
        if "final_info" in info:
            info["_final_info"] = np.ones(self.num_envs, dtype=bool)
        return *rest, info


class WrongFinalRegret(Native):
    def step(self, actions: Any) -> Any:
        *rest, info = super().step(actions)
        if "final_info" in info:
            info["final_info"]["regret"] += info["_final_info"]
        return *rest, info


class WrongFinalObservation(Native):
    def step(self, actions: Any) -> Any:
        observation, *rest, info = super().step(actions)
        for i in np.flatnonzero(info.get("_final_obs", np.zeros(1, dtype=bool))):
            info["final_obs"][i] = {key: value[i] for key, value in observation.items()}
        return observation, *rest, info


class StaleAutoreset(Native):
    """After a reset, still resets what was over before it."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        stale = self._autoreset_envs.copy()
        answer = super().reset(seed=seed, options=options)
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._autoreset_envs |= stale
        return answer


class IgnoresTheMask(Native):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=seed)


class LacksAKey(Native):
    def step(self, actions: Any) -> Any:
        *rest, info = super().step(actions)
        del info["inner"]["flags"]
        return *rest, info


class HasAKeyMore(Native):
    def step(self, actions: Any) -> Any:
        *rest, info = super().step(actions)
        return *rest, info | {"extra": 1}


class WrongInfoType(Native):
    def step(self, actions: Any) -> Any:
        *rest, info = super().step(actions)
        info["inner"]["steps"] = info["inner"]["steps"].astype(np.int32)
        return *rest, info


class WrongText(Native):
    def step(self, actions: Any) -> Any:
        *rest, info = super().step(actions)
        info["name"][-1] = "another"
        return *rest, info


class AnotherSpace(Native):
    def __init__(self, num_envs: int = 1, **arguments: Any) -> None:
        super().__init__(num_envs, **arguments)
        self.single_action_space = spaces.Discrete(4)


class Crashes(Native):
    def step(self, actions: Any) -> Any:
        raise IndexError("row 8 of 7")


class FourValues(Native):
    def step(self, actions: Any) -> Any:
        return super().step(actions)[:4]


class StatesAnotherMode(Native):
    def __init__(self, num_envs: int = 1, *, autoreset_mode: str = "next_step") -> None:
        super().__init__(num_envs, autoreset_mode=autoreset_mode)
        self.metadata["autoreset_mode"] = AutoresetMode.NEXT_STEP


class StatesNoMode(Native):
    def __init__(self, num_envs: int = 1, **arguments: Any) -> None:
        super().__init__(num_envs, **arguments)
        self.metadata["autoreset_mode"] = "next_step"


class IgnoresTheTimeLimit(Native):
    def __init__(
        self, num_envs: int = 1, *, max_episode_steps: int | None = None, **arguments: Any
    ) -> None:
        super().__init__(num_envs, **arguments)


class NeedsMore(Native):
    def __init__(self, num_envs: int = 1, *, more: int, autoreset_mode: str = "next_step") -> None:
        super().__init__(num_envs, autoreset_mode=autoreset_mode)


Register = Callable[..., str]


@pytest.fixture
def register() -> Iterator[Register]:
    """Register an environment for the time of a test; return its id."""
    names: list[str] = []

    def one(vector: Any, *, single: Any = Walk, **more: Any) -> str:
        names.append(f"nsr-test/Walk{len(names)}-v0")
        # Gymnasium's own checker warns about things that are not the subject here.
        gym.register(
            names[-1], entry_point=single, vector_entry_point=vector,
            disable_env_checker=True, **more,
        )  # fmt: skip
        return names[-1]

    yield one
    for name in names:
        del gym.registry[name]


def mismatch(env_id: Any, **arguments: Any) -> str:
    """Return what the check says of an environment that it is to refuse."""
    with pytest.raises(VectorEnvMismatch) as caught:
        check_vector_env(env_id, **(SMALL | arguments))
    return str(caught.value)


@pytest.mark.parametrize("native", [Native, OneMode, TakesTheEnumeration])
def test_a_right_environment_passes(native: Any, register: Register) -> None:
    check_vector_env(register(native), **SMALL)


@pytest.mark.parametrize("mode", MODES)
def test_live_digits_pass_within_a_tolerance(mode: str, tiny: dict[str, Any]) -> None:
    # Live training sums float32 in another order when more episodes share a batch.
    few = {"num_envs": (1, 2), "episodes": 1, "tolerance": 1e-5, "autoreset_mode": mode}
    check_vector_env("NSR/CyclicDigits-v0", **(tiny | few))


def test_cartpole_starts_elsewhere_than_single_ones() -> None:
    # Gymnasium's native CartPole draws all start states from one generator.
    message = mismatch("CartPole-v1", num_envs=(3,), episodes=1)
    assert message.startswith("CartPole-v1: observation[0][1] differs from SyncVectorEnv.")
    assert "reset(seed=0), 3 environment(s), autoreset mode next_step" in message
    assert "environment 0, its episode 1, at the reset" in message
    assert "values differ" in message


def test_cartpole_takes_no_list_of_seeds() -> None:
    assert "raised Error: Seed must be a python integer" in mismatch("CartPole-v1", num_envs=(1,))


@pytest.mark.parametrize(
    ("native", "says"),
    [
        (WrongRewardType, ["reward differs", "float32", "float64"]),
        (WrongReward, ["reward[0] differs", "1 environment(s)", "step 1 after reset(seed=0)"]),
        (OneSeedForAll, ["['place'][1][0] differs", "reset(seed=0), 3", "environment 1, its"]),
        (ForgetsItsGenerators, ["observation['place'][0][0] differs", "at reset(), 1"]),
        (NoListsOfSeeds, ["raised TypeError: seeds are whole numbers", "reset(seed=[2])"]),
        (TakesNoneForZero, ["['place'][1][0] differs", "at reset(seed=[0, None, 2])"]),
        (ReusesItsArrays, ["observation['place'][0][0] that reset(seed=0) returned was changed"]),
        (TrustsItsReturnedArrays, ["reward[0] differs", "overwritten by the caller"]),
        (ChangesTheActions, ["actions['push'][0][0] of the caller was changed"]),
        (WrongFinalMask, ["info['_final_info'][0] differs", "same_step", "True", "False"]),
        (WrongFinalRegret, ["info['final_info']['regret'][0] differs", "same_step"]),
        (WrongFinalObservation, ["info['final_obs'][0]['place']", "same_step"]),
        (StaleAutoreset, ["next_step", "step 1 after reset()"]),
        (IgnoresTheMask, ["reset(seed=1, options={'reset_mask': [True, False, True]})"]),
        (LacksAKey, ["info['inner']['flags'] differs", "native:        missing"]),
        (HasAKeyMore, ["info['extra'] differs", "SyncVectorEnv: missing"]),
        (WrongInfoType, ["info['inner']['steps'] differs", "int32", "int64"]),
        (WrongText, ["info['name'][0] differs", "'another'", "'walk 1'"]),
        (AnotherSpace, ["single_action_space differs", "Discrete(4)"]),
        (Crashes, ["raised IndexError: row 8 of 7", "step 1"]),
        (FourValues, ["the answer has another form"]),
        (StatesAnotherMode, ["autoreset_mode='same_step'", "NEXT_STEP"]),
        (NeedsMore, ["cannot be built with the arguments of the single one", "more"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found_and_named(native: Any, says: list[str], register: Register) -> None:
    message = mismatch(register(native))
    for part in says:
        assert part in message, message


def test_a_time_limit_is_part_of_the_comparison(register: Register) -> None:
    check_vector_env(register(Native, max_episode_steps=3), **SMALL)
    message = mismatch(register(IgnoresTheTimeLimit, max_episode_steps=3), endless=True)
    assert "truncated[0] differs" in message
    assert "environment 0, its episode 2, step 3" in message


def test_episodes_of_one_length_are_made_to_end_at_different_steps(register: Register) -> None:
    # Where all end at once, a mask that is true for all would be right.
    env_id = register(WrongFinalMask, max_episode_steps=4)
    message = mismatch(env_id, endless=True, longest=20, num_envs=(3,))
    assert "info['_final_info']" in message
    assert "step 4 after reset(seed=0)" in message


def test_a_metadata_without_an_autoreset_mode_is_refused(register: Register) -> None:
    with pytest.warns(UserWarning, match="not an instance of AutoresetMode"):
        message = mismatch(register(StatesNoMode))
    assert "expected an AutoresetMode" in message


def test_a_tolerance_lets_small_differences_pass(register: Register) -> None:
    env_id = register(WrongReward)
    check_vector_env(env_id, tolerance=1e-6, **SMALL)
    assert "reward" in mismatch(env_id, tolerance=1e-9)


def test_single_environments_stepped_by_hand_are_compared_too(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Native and Gymnasium's are wrong alike here, so only the third comparison can tell.
    right = SyncVectorEnv.step

    def wrong(self: Any, actions: Any) -> Any:
        *rest, info = right(self, actions)
        if "final_info" in info:
            info["final_info"]["regret"] += 1.0
        return *rest, info

    monkeypatch.setattr(SyncVectorEnv, "step", wrong)
    message = mismatch(register(Native))
    assert "info['final_info']['regret'] differs from a single environment" in message
    assert "environment 0, its episode" in message


def test_only_the_mode_asked_for_is_checked(register: Register) -> None:
    env_id = register(WrongFinalMask)
    check_vector_env(env_id, autoreset_mode="next_step", **SMALL)
    for same_step in ("same_step", AutoresetMode.SAME_STEP):
        assert "_final_info" in mismatch(env_id, autoreset_mode=same_step)
    with pytest.raises(InvalidValueError, match="next_step, same_step, disabled"):
        check_vector_env(env_id, autoreset_mode="sideways", **SMALL)


def test_episodes_that_do_not_end_leave_something_unchecked_and_that_is_said(
    register: Register,
) -> None:
    class LateError(Native):
        calls = 0

        def step(self, actions: Any) -> Any:
            type(self).calls += 1
            return super().step(actions)

    env_id = register(LateError)
    few = {"num_envs": (1,), "max_steps": 9, "autoreset_mode": "next_step"}
    with pytest.raises(InvalidValueError, match=r"No episode .* ended within max_steps=9"):
        check_vector_env(env_id, **few, endless=True)
    assert LateError.calls == 9 + 2 + 9


@pytest.mark.parametrize("num_envs", [(), 2.5, None, "2", (1, 0), (True,)], ids=str)
def test_numbers_of_environments_that_check_nothing_are_refused(num_envs: Any) -> None:
    with pytest.raises(InvalidValueError, match="num_envs"):
        check_vector_env("NSR/BlindAllocation-v0", num_envs=num_envs)


def test_built_environments_are_checked_with_their_own_arguments(register: Register) -> None:
    class RefusesOthers(Native):
        def __init__(self, num_envs: int = 1, *, longest: int, **arguments: Any) -> None:
            assert longest == 9
            super().__init__(num_envs, longest=longest, **arguments)

    env_id = register(RefusesOthers)
    check_vector_env(gym.make(env_id, longest=9), **SMALL)
    check_vector_env(gym.make_vec(env_id, 2, longest=9, autoreset_mode="disabled"), **SMALL)
    assert "cannot be built" in mismatch(env_id, longest=8)


def test_the_time_limit_of_a_built_environment_is_kept(register: Register) -> None:
    env_id = register(IgnoresTheTimeLimit)
    limit = {"max_episode_steps": 3, "endless": True}
    for env in (gym.make(env_id, **limit), gym.make_vec(env_id, 2, **limit)):
        assert "truncated" in mismatch(env)


def test_the_module_in_an_id_is_imported() -> None:
    assert "CartPole-v1" in mismatch("gymnasium.envs:CartPole-v1")


def test_what_cannot_be_compared_is_refused(register: Register) -> None:
    for native, single, missing in ((None, Walk, "native vector"), (Native, None, "single")):
        with pytest.raises(InvalidValueError, match=f"has no {missing} environment"):
            check_vector_env(register(native, single=single))
    with pytest.raises(InvalidValueError, match="environment with a spec"):
        check_vector_env(Walk())
    wrapped = TransformReward(gym.make("CartPole-v1"), abs)
    with pytest.raises(InvalidValueError, match=r"environment with a spec|none of the wrappers"):
        check_vector_env(wrapped)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_envs": (0,)},
        {"num_envs": (1, 2.0)},
        {"episodes": 0},
        {"seed": -1},
        {"max_steps": 0},
        {"tolerance": -1e-9},
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any], register: Register) -> None:
    with pytest.raises(InvalidValueError, match=next(iter(wrong))):
        check_vector_env(register(Native), **wrong)


def test_a_mismatch_is_an_error_of_the_suite_and_a_failed_assertion() -> None:
    assert issubclass(VectorEnvMismatch, NsrGymError)
    assert issubclass(VectorEnvMismatch, AssertionError)
