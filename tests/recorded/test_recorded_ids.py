"""Recorded ids: twins of the live ones, the same through the SB3 adapter, and light."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from playable import playable_ids
from stable_baselines3.common.vec_env import DummyVecEnv

from nsr_gym.envs import make_sb3_env
from nsr_gym.registration import ENVIRONMENTS

TWINS = {name for name in ENVIRONMENTS if "Recorded" in name}
IDS = [name for name in playable_ids("live") if name in TWINS]
SHORT = {"cycles": 2}


def test_every_live_family_has_a_recorded_twin() -> None:
    live = {name for name, spec in ENVIRONMENTS.items() if spec.family == "live"}
    assert {name.replace("Recorded", "") for name in TWINS} == live - TWINS
    assert not any(ENVIRONMENTS[name].needs_data for name in TWINS)


@pytest.mark.parametrize("env_id", IDS)
def test_the_sb3_adapter_agrees_with_single_environments(env_id: str) -> None:
    adapter = make_sb3_env(env_id, 3, seed=4, **SHORT)
    dummy = DummyVecEnv([lambda: gym.make(env_id, **SHORT)] * 3)
    dummy.seed(4)
    np.testing.assert_array_equal(adapter.reset(), dummy.reset())
    rng = np.random.default_rng(0)
    for _ in range(40):  # past the end of an episode
        actions = rng.integers(adapter.action_space.nvec, size=(3, 3))  # type: ignore[attr-defined]
        ours, theirs = adapter.step(actions), dummy.step(actions)
        for mine, other in zip(ours[:3], theirs[:3], strict=True):
            np.testing.assert_array_equal(mine, other)


def test_recorded_environments_need_no_torch() -> None:
    code = (
        "import gymnasium, nsr_gym, sys; "
        "gymnasium.make_vec('NSR/MixedDigitsRecorded-v0', 8).reset(seed=0); "
        "sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
