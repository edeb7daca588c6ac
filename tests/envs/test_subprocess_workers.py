"""Ids resolve in processes that have imported nothing of the suite."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from nsr_gym.registration import ENVIRONMENTS

ENV_IDS = sorted(ENVIRONMENTS)


def first_accuracy(env_id: str, arguments: dict[str, Any]) -> tuple[str, float]:
    """Play one visit in another process, by the module-prefixed id."""
    import gymnasium

    env = gymnasium.make(f"nsr_gym:{env_id}", **arguments)
    env.reset(seed=1)
    *_, info = env.step(np.array([0, 0, 2]))
    return info["stream"], info["accuracy_after"]


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_prefixed_id_plays_the_same_visit_in_a_fresh_process(
    method: str, env_id: str, tiny: dict[str, Any]
) -> None:
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        there = pool.submit(first_accuracy, env_id, tiny).result(timeout=120)
    stream, accuracy = first_accuracy(env_id, tiny)
    assert there[0] == stream
    assert there[1] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_async_vector_environment_plays_the_native_episode(
    env_id: str, tiny: dict[str, Any]
) -> None:
    native = gym.make_vec(env_id, 1, vectorization_mode=None, **tiny)
    asynchronous = gym.make_vec(
        f"nsr_gym:{env_id}", 1, vectorization_mode="async", vector_kwargs={"context": "spawn"},
        **tiny,
    )  # fmt: skip
    try:
        ours, _ = native.reset(seed=2)
        theirs, _ = asynchronous.reset(seed=2)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
        actions = np.array([[0, 1, 2]])
        for a, b in zip(native.step(actions)[:4], asynchronous.step(actions)[:4], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    finally:
        asynchronous.close()
        native.close()
