"""Every registered environment is a Gymnasium environment without exemptions."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

from nsr_gym.envs.config import ACCESS, OBSERVATIONS, EpisodeConfig
from nsr_gym.registration import ENVIRONMENTS, register_environments

# pytest turns warnings into errors, so that a checker's complaint fails as well.

ENV_IDS = sorted(ENVIRONMENTS)
Make = Callable[..., Any]

VARIANTS = [
    pytest.param({"access": access, "observation": observation}, id=f"{access}-{observation}")
    for access in ACCESS
    for observation in OBSERVATIONS
]
VARIANTS.append(pytest.param({"observe_task_id": True}, id="observe_task_id"))


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("arguments", VARIANTS)
def test_gymnasium_checker_finds_nothing(
    env_id: str, arguments: dict[str, Any], make_env: Make
) -> None:
    check_env(make_env(env_id, **arguments), skip_render_check=True)


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("arguments", VARIANTS)
def test_sb3_checker_finds_nothing(env_id: str, arguments: dict[str, Any], make_env: Make) -> None:
    check_env_of_sb3(make_env(env_id, **arguments))


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("render_mode", ["ansi", "rgb_array"])
def test_checkers_find_nothing_where_episodes_are_rendered(
    env_id: str, render_mode: str, make_env: Make
) -> None:
    env = make_env(env_id, render_mode=render_mode)
    check_env(env)
    check_env_of_sb3(env)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_wrapped_as_gymnasium_makes_it_the_default_episode_begins(env_id: str) -> None:
    env = gym.make(env_id)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    env.close()


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_spec_survives_json_and_pickle(env_id: str, tiny: dict[str, Any]) -> None:
    env = gym.make(env_id, **tiny, ranks=[1, 3], access="memoryless")
    for spec in (
        EnvSpec.from_json(env.spec.to_json()),
        pickle.loads(pickle.dumps(env.spec)),
    ):
        again = gym.make(spec)
        assert again.unwrapped.engine.config == env.unwrapped.engine.config
        assert again.observation_space == env.observation_space
        assert again.action_space == env.action_space
        again.close()
    env.close()


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_vector_spec_survives_json(env_id: str, make_vec: Make) -> None:
    env = make_vec(2, env_id, autoreset_mode="same_step")
    again = gym.make_vec(EnvSpec.from_json(env.spec.to_json()))
    assert again.num_envs == 2
    assert again.metadata["autoreset_mode"] is gym.vector.AutoresetMode.SAME_STEP
    again.close()


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_default_arguments_are_plain_json(env_id: str) -> None:
    spec = gym.spec(env_id)
    assert json.loads(json.dumps(spec.kwargs)) == spec.kwargs
    assert isinstance(spec.entry_point, str)
    assert isinstance(spec.vector_entry_point, str)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_ids_carry_namespace_and_version(env_id: str) -> None:
    assert re.fullmatch(r"NSR/[A-Z]\w*-v\d+", env_id)


def test_registering_again_changes_nothing_and_warns_of_nothing() -> None:
    before = {env_id: gym.registry[env_id] for env_id in ENV_IDS}
    register_environments()
    assert {env_id: gym.registry[env_id] for env_id in ENV_IDS} == before


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_vector_face_says_how_it_resets(env_id: str, make_vec: Make) -> None:
    modes = {
        "next_step": gym.vector.AutoresetMode.NEXT_STEP,
        "same_step": gym.vector.AutoresetMode.SAME_STEP,
        "disabled": gym.vector.AutoresetMode.DISABLED,
    }
    assert make_vec(1, env_id).metadata["autoreset_mode"] is modes["next_step"]
    for name, mode in modes.items():
        assert make_vec(1, env_id, autoreset_mode=name).metadata["autoreset_mode"] is mode


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_rewards_and_flags_are_plain_python(env_id: str, make_env: Make) -> None:
    env = make_env(env_id)
    env.reset(seed=0)
    _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
    assert type(reward) is float
    assert type(terminated) is bool
    assert truncated is False


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_documentation_has_every_section_and_every_argument(env_id: str, make_env: Make) -> None:
    text = type(make_env(env_id)).__doc__ or ""
    for section in (
        "Description", "Action Space", "Observation Space", "Rewards", "Starting State",
        "Episode End", "Arguments", "Version History", "Instances and Splits",
        "Oracle and Baselines", "Cost",
    ):  # fmt: skip
        assert section in text, f"no section {section!r}"
    for field in fields(EpisodeConfig):
        assert re.search(rf"\b{field.name}\b", text), f"argument {field.name!r} is not described"


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("arguments", VARIANTS)
def test_observation_space_is_bounded_by_zero_and_one(
    env_id: str, arguments: dict[str, Any], make_env: Make
) -> None:
    space = make_env(env_id, **arguments).observation_space
    for box in space.spaces.values() if isinstance(space, gym.spaces.Dict) else [space]:
        assert box.dtype == np.float32
        assert (box.low == 0.0).all()
        assert (box.high == 1.0).all()
