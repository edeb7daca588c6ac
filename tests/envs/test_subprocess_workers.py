"""Ids resolve in processes that have imported nothing of the suite."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from nsr_gym.registration import ENVIRONMENTS

# Processes start slowly: of the environments on digits those that differ in how they are built.
ENV_IDS = [
    name
    for name, spec in sorted(ENVIRONMENTS.items())
    if spec.family != "live" or "Cyclic" in name or name == "NSR/MixedDigits-v0"
]


def first_step(env_id: str, arguments: dict[str, Any]) -> tuple[list[float], float]:
    """Play one step in another process, by the module-prefixed id."""
    import gymnasium

    env = gymnasium.make(f"nsr_gym:{env_id}", **arguments)
    env.reset(seed=1)
    env.action_space.seed(3)
    observation, reward, *_ = env.step(env.action_space.sample())
    return observation.tolist(), float(reward)


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_prefixed_id_plays_the_same_step_in_a_fresh_process(
    method: str, env_id: str, tiny_of: Callable[[str], dict[str, Any]]
) -> None:
    tiny = tiny_of(env_id)
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        there = pool.submit(first_step, env_id, tiny).result(timeout=120)
    observation, reward = first_step(env_id, tiny)
    assert there[0] == pytest.approx(observation, abs=1e-6)
    assert there[1] == pytest.approx(reward, abs=1e-6)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_async_vector_environment_plays_the_native_episode(
    env_id: str, tiny_of: Callable[[str], dict[str, Any]]
) -> None:
    tiny = tiny_of(env_id)
    native = gym.make_vec(env_id, 1, vectorization_mode=None, **tiny)
    asynchronous = gym.make_vec(
        f"nsr_gym:{env_id}", 1, vectorization_mode="async", vector_kwargs={"context": "spawn"},
        **tiny,
    )  # fmt: skip
    try:
        ours, _ = native.reset(seed=2)
        theirs, _ = asynchronous.reset(seed=2)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
        native.action_space.seed(3)
        actions = native.action_space.sample()
        for a, b in zip(native.step(actions)[:4], asynchronous.step(actions)[:4], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    finally:
        asynchronous.close()
        native.close()
