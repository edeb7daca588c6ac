"""Actions as one number: the same environment, in which the order of numbers is documented."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

from nsr_gym.envs import FlatDiscrete, FlatDiscreteVector
from nsr_gym.envs.lockstep import Lockstep
from nsr_gym.envs.wrappers import FlatActions
from nsr_gym.errors import InvalidValueError

PAGING, BLIND, LIVE = "NSR/Paging-v0", "NSR/BlindAllocation-v0", "NSR/CyclicDigits-v0"
PLACES = {"slots": 2, "bank": 1}
Make = Callable[..., Any]


def test_numbers_run_through_the_last_component_first() -> None:
    flat = FlatActions(spaces.MultiDiscrete([3, 2, 4]))
    members = list(itertools.product(range(3), range(2), range(4)))
    assert flat.space == spaces.Discrete(24)
    np.testing.assert_array_equal(flat.decode(np.arange(24)), members)


def test_a_number_is_allowed_if_all_its_components_are() -> None:
    flat = FlatActions(spaces.MultiDiscrete([3, 2, 4]))
    parts = np.random.default_rng(0).random((2, 5, 9)) < 0.6
    joint = flat.masks(parts)
    assert joint.shape == (2, 5, 24)
    for number, (a, b, c) in enumerate(flat.decode(np.arange(24))):
        wanted = parts[..., a] & parts[..., 3 + b] & parts[..., 5 + c]
        np.testing.assert_array_equal(joint[..., number], wanted)


def test_actions_that_are_one_number_already_stay_as_they_are(make_env: Make) -> None:
    env = make_env(BLIND)
    flat = FlatDiscrete(env)
    assert flat.action_space == env.action_space
    np.testing.assert_array_equal(flat.action_masks(), env.action_masks())
    flat.reset(seed=0)
    assert flat.step(np.int64(2))[4]["visit"] == 0


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0.0, 1.0, (2,), np.float32),
        spaces.MultiDiscrete([[2, 3], [2, 2]]),
        spaces.MultiDiscrete([2, 3], start=[0, 1]),
        spaces.Discrete(3, start=1),
        spaces.MultiBinary(3),
    ],
    ids=str,
)
def test_actions_that_cannot_be_numbered_are_refused(space: spaces.Space[Any]) -> None:
    with pytest.raises(InvalidValueError, match="Expected actions"):
        FlatActions(space)


@pytest.mark.parametrize("action", [-1, 10_000, 0.5, [0, 0, 0], "0"], ids=str)
def test_numbers_of_no_action_are_refused(action: Any, make_env: Make) -> None:
    env = FlatDiscrete(make_env(PAGING))
    env.reset(seed=0)
    with pytest.raises(InvalidValueError, match="whole number"):
        env.step(action)


@pytest.mark.parametrize("env_id", [PAGING, BLIND, LIVE])
# Said of every wrapper; all that the checker asks of an environment is asked of this one.
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_checkers_find_nothing(env_id: str, make_env: Make) -> None:
    env = FlatDiscrete(make_env(env_id))
    check_env(env, skip_render_check=True)
    check_env_of_sb3(env)


def test_an_episode_is_that_of_the_components(make_env: Make) -> None:
    flat, plain = FlatDiscrete(make_env(PAGING, **PLACES)), make_env(PAGING, **PLACES)
    flat.reset(seed=3)
    plain.reset(seed=3)
    flat.action_space.seed(0)
    over = False
    while not over:
        mask = flat.action_masks()
        action = flat.action_space.sample(mask=mask.astype(np.int8))
        assert mask[action]
        ours, theirs = flat.step(action), plain.step(flat.flat.decode([action])[0])
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:4] == theirs[1:4]
        np.testing.assert_array_equal(ours[4]["action_mask"], flat.action_masks())
        over = ours[2]


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize(("env_id", "n"), [(PAGING, 3), (PAGING, 1), (BLIND, 2)])
def test_the_vector_wrapper_is_the_single_one_side_by_side(
    env_id: str, n: int, mode: AutoresetMode
) -> None:
    arguments = {"num_tasks": 3, "cycles": 2, "order": "iid", "max_episode_steps": 5}
    native = gym.make_vec(env_id, n, autoreset_mode=mode.name.lower(), **arguments)
    lockstep = Lockstep(
        native=FlatDiscreteVector(native),
        single=lambda: FlatDiscrete(gym.make(env_id, **arguments)),
        mode=mode,
        masks=True,
        tolerance=0.0,
    )
    lockstep.check(episodes=2, seed=0, max_steps=50)
    lockstep.close()


def test_masks_of_the_vector_wrapper_are_its_info(make_vec: Make) -> None:
    env = FlatDiscreteVector(make_vec(3, PAGING, **PLACES))
    _, info = env.reset(seed=0)
    for _ in range(4):
        assert env.action_masks().shape == (3, env.single_action_space.n)
        np.testing.assert_array_equal(env.action_masks(), info["action_mask"])
        *_, info = env.step(env.action_space.sample())


def test_the_spec_keeps_the_wrapper() -> None:
    env = FlatDiscrete(gym.make(PAGING, **PLACES))
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.action_space == env.action_space
    assert isinstance(again, FlatDiscrete)


def test_it_is_one_of_make_vec_s_wrappers() -> None:
    env = gym.make_vec(PAGING, 2, vectorization_mode="sync", wrappers=[FlatDiscrete])
    assert isinstance(env.single_action_space, spaces.Discrete)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()
