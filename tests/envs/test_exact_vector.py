"""Exact environments, natively vectorised, are single ones bit for bit."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from nsr_gym.envs import check_vector_env

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "blind": ("NSR/BlindAllocation-v0", {}),
    "blind, all that can be drawn": (
        "NSR/BlindAllocation-v0",
        {"obs": "channel:0.4", "order": "reshuffled", "instance": None, "rewards": "random",
         "feedback": "last-action+reward", "clock": 2, "steps": 2},
    ),
    "blind, dict": ("NSR/BlindAllocation-v0", {"observation": "dict", "order": "iid"}),
    "blind, cut off": ("NSR/BlindAllocation-v0", {"max_episode_steps": 4}),
    "paging": ("NSR/Paging-v0", {}),
    "paging, all that can be drawn": (
        "NSR/Paging-v0",
        {"slots": 1, "bank": 2, "order": "reshuffled", "instance": None, "costs": "random",
         "similarity_noise": 0.8, "transfer": 0.3,
         "residual": [1.0, 0.3, 0.0]},
    ),
    "paging, forced, dict": (
        "NSR/Paging-v0", {"forced": True, "observation": "dict", "order": "iid"},
    ),
    "until recovered": ("NSR/UntilRecovered-v0", {}),
    "until recovered, all that can be drawn": (
        "NSR/UntilRecovered-v0",
        {"obs": "channel:0.4", "redraw": True, "order": "iid", "instance": None,
         "feedback": "last-action+reward", "clock": 2},
    ),
    "until recovered, kept symbol, cut off": (
        "NSR/UntilRecovered-v0", {"obs": "channel:0.4", "max_episode_steps": 9},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_native_synchronous_and_single_environments_are_the_same(case: str) -> None:
    env_id, arguments = CASES[case]
    check_vector_env(env_id, **({"num_tasks": 3, "cycles": 2} | arguments))


@pytest.mark.parametrize("env_id", sorted({env_id for env_id, _ in CASES.values()}))
def test_as_registered_they_are_the_same(env_id: str) -> None:
    check_vector_env(env_id, num_envs=(2,), episodes=1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("env_id", sorted({env_id for env_id, _ in CASES.values()}))
def test_a_copy_in_the_middle_of_an_episode_goes_on_as_the_original(
    env_id: str, copied: Any
) -> None:
    more = {"slots": 3} if "Paging" in env_id else {"feedback": "last-action+reward"}
    env = gym.make_vec(env_id, 2, num_tasks=5, cycles=4, **more)
    env.reset(seed=0)
    space = env.single_action_space
    actions = [np.stack([space.sample(), space.sample()]) for _ in range(15)]
    for action in actions[:6]:
        env.step(action)
    other = copied(env)
    for action in actions[6:]:
        for ours, theirs in zip(env.step(action)[:4], other.step(action)[:4], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip((env.reset(seed=1),), (other.reset(seed=1),), strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
    for action in actions:
        np.testing.assert_array_equal(env.step(action)[1], other.step(action)[1])


@pytest.mark.parametrize("env_id", sorted({env_id for env_id, _ in CASES.values()}))
def test_an_episode_does_not_depend_on_its_neighbours(env_id: str) -> None:
    arguments = {"num_tasks": 4, "cycles": 3, "order": "iid", "instance": None}
    one, many = (gym.make_vec(env_id, n, **arguments) for n in (1, 5))
    seen, _ = one.reset(seed=[13])
    crowd, _ = many.reset(seed=[10, 11, 12, 13, 14])
    rng = np.random.default_rng(0)
    for _ in range(12):
        np.testing.assert_array_equal(seen[0], crowd[3])
        actions = np.stack([many.single_action_space.sample() for _ in range(5)])
        actions[[0, 1, 2, 4]] = actions[rng.permutation([0, 1, 2, 4])]
        seen, reward, over, *_ = one.step(actions[[3]])
        crowd, rewards, *_ = many.step(actions)
        assert reward[0] == rewards[3]
        if over[0]:
            break
