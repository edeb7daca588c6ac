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
from playable import playable_ids
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

from nsr_gym.envs.arguments import OBSERVATIONS
from nsr_gym.envs.cyclic_digits import CyclicDigitsEnv
from nsr_gym.registration import ENVIRONMENTS, register_environments

# pytest turns warnings into errors, so that a checker's complaint fails as well.

ENV_IDS = sorted(playable_ids())
WITHOUT_DATA = [env_id for env_id in ENV_IDS if not ENVIRONMENTS[env_id].needs_data]
Make = Callable[..., Any]

_EXACT: dict[str, list[dict[str, Any]]] = {
    "NSR/BlindAllocation-v0": [
        {},
        {"obs": "channel:0.5", "feedback": "last-action+reward", "clock": 2, "steps": 3},
        {"obs": "classes:2", "order": "iid", "instance": None, "observation": "dict"},
        {"rewards": "compromise", "order": "reshuffled", "feedback": "last-reward"},
    ],
    "NSR/Paging-v0": [
        {},
        {"slots": 2, "bank": 1, "residual": [1.0, 0.4, 0.0], "transfer": 0.2},
        {"bank": None, "similarity_noise": 0.7, "recall_error": 0.1, "observation": "dict"},
        {"forced": True, "costs": "random", "instance": None, "order": "iid"},
    ],
    "NSR/UntilRecovered-v0": [
        {},
        {"obs": "channel:0.5", "redraw": True, "feedback": "last-action+reward", "clock": 2},
        {"obs": "full", "order": "reshuffled", "instance": None, "observation": "dict"},
    ],
}


def _variants(env_id: str) -> list[dict[str, Any]]:
    spec = ENVIRONMENTS[env_id]
    if spec.family != "live":
        return _EXACT[env_id]
    if not env_id.startswith("NSR/CyclicDigits"):
        return [{}, {"observation": "dict", "observe_task_id": True, "split": "test"}]
    levels = [{"access": a, "observation": o} for a in spec.access for o in OBSERVATIONS]
    return [*levels, {"observe_task_id": True}]


VARIANTS = [
    pytest.param(env_id, arguments, id=f"{env_id}-{'-'.join(map(str, arguments.values()))}")
    for env_id in ENV_IDS
    for arguments in _variants(env_id)
]


@pytest.mark.parametrize(("env_id", "arguments"), VARIANTS)
def test_gymnasium_checker_finds_nothing(
    env_id: str, arguments: dict[str, Any], make_env: Make
) -> None:
    check_env(make_env(env_id, **arguments), skip_render_check=True)


@pytest.mark.parametrize(("env_id", "arguments"), VARIANTS)
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


@pytest.mark.parametrize("env_id", WITHOUT_DATA)
def test_wrapped_as_gymnasium_makes_it_the_default_episode_begins(env_id: str) -> None:
    env = gym.make(env_id)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    env.close()


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_spec_survives_json_and_pickle(
    env_id: str, tiny_of: Callable[[str], dict[str, Any]]
) -> None:
    ranks = ENVIRONMENTS[env_id].kwargs.get("ranks", [1, 4])[-1:]
    given: dict[str, Any] = {"ranks": ranks, "access": ENVIRONMENTS[env_id].access[-1]}
    if ENVIRONMENTS[env_id].family != "live":
        given = _EXACT[env_id][1]
    env = gym.make(env_id, **tiny_of(env_id), **given)
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


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_default_arguments_are_plain_json(env_id: str) -> None:
    spec = gym.spec(env_id)
    assert json.loads(json.dumps(spec.kwargs)) == spec.kwargs
    assert isinstance(spec.entry_point, str)
    assert isinstance(spec.vector_entry_point, str)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
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
    env = make_env(env_id)
    text = type(env).__doc__ or ""
    common = CyclicDigitsEnv.__doc__ or "" if "CyclicDigitsEnv" in text else ""
    for section in (
        "Description", "Action Space", "Observation Space", "Rewards", "Starting State",
        "Episode End", "Arguments", "Version History", "Instances and Splits",
        "Oracle and Baselines", "Cost",
    ):  # fmt: skip
        assert section in text, f"no section {section!r}"
    for field in fields(env.engine.config):
        named = rf"\b{field.name}\b"
        assert re.search(named, text + common), f"argument {field.name!r} is not described"


@pytest.mark.parametrize(("env_id", "arguments"), VARIANTS)
def test_observation_space_is_bounded_by_zero_and_one(
    env_id: str, arguments: dict[str, Any], make_env: Make
) -> None:
    space = make_env(env_id, **arguments).observation_space
    for box in space.spaces.values() if isinstance(space, gym.spaces.Dict) else [space]:
        assert box.dtype == np.float32
        assert (box.low == 0.0).all()
        assert (box.high == 1.0).all()
