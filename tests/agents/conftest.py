"""What the tests of the exact environments' agents share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from nsr_gym.agents import agent_spec, make_agent
from nsr_gym.registration import ENVIRONMENTS


@pytest.fixture
def regrets() -> Callable[..., np.ndarray]:
    """Play a named agent until every episode has ended once, and return their regrets (n,)."""

    def play(
        env_id: str,
        agent: str,
        n: int = 2,
        *,
        agent_arguments: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> np.ndarray:
        family = ENVIRONMENTS[env_id].family
        chosen = agent_spec(agent).environment_arguments(family) | arguments
        env = gym.make_vec(env_id, n, vectorization_mode=None, **chosen)
        player = make_agent(agent, env, **(agent_arguments or {}))
        seeds = list(range(n))
        observation, _ = env.reset(seed=seeds)
        state = player.initial_state(seeds)
        regret, over = np.zeros(n), np.zeros(n, dtype=bool)
        while not over.all():
            actions, state = player.predict(observation, state)
            observation, _, terminated, truncated, info = env.step(actions)
            assert not truncated.any(), "no episode of these tests may run into the limit"
            ends = terminated & ~over  # what an autoreset plays after the end does not count
            regret[ends] = info["regret"][ends]
            over |= terminated
        env.close()
        return regret

    return play


@pytest.fixture
def agrees() -> Callable[[np.ndarray, float], bool]:
    """Whether a mean lies within three standard errors of an exact value."""

    def within(values: np.ndarray, exact: float) -> bool:
        error = values.std(ddof=1) / np.sqrt(len(values))
        return bool(error > 0 and abs(values.mean() - exact) <= 3 * error)

    return within
