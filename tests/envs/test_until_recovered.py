"""Reading C as an environment: a visit lasts until the right allocation was tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from nsr_gym.errors import InvalidValueError

ENV = "NSR/UntilRecovered-v0"
Make = Callable[..., Any]


def test_a_visit_ends_with_the_right_allocation_and_wrong_ones_cost_delta(make_env: Make) -> None:
    env = make_env(ENV, num_tasks=4, cycles=2, delta=0.25)
    right = env.engine.problem.rewards.argmax(axis=1)
    env.reset(seed=0)
    wrong = 0
    for visit in range(8):
        for tries, action in enumerate(range(right[visit % 4] + 1), start=1):
            _, reward, terminated, _, info = env.step(action)
            found = action == right[visit % 4]
            wrong += not found
            assert reward == (0.0 if found else -0.25)
            assert (info["visit"], info["task"], info["tries"]) == (visit, visit % 4, tries)
            assert info["correct"] == found
            assert info["oracle_reward"] == 0.0
            assert info["regret"] == 0.25 * wrong
            assert terminated == (found and visit == 7)


@pytest.mark.parametrize("redraw", [False, True])
def test_the_symbol_stays_for_a_visit_unless_it_is_drawn_again(redraw: bool) -> None:
    env = gym.make_vec(ENV, 300, num_tasks=4, cycles=3, obs="channel:0.5", redraw=redraw)
    first, _ = env.reset(seed=1)
    right = env.unwrapped.engine.problem.rewards.argmax(axis=1)
    changed = []
    for _ in range(4):
        seen, _, _, _, info = env.step(np.full(300, (right[0] + 1) % 4))
        assert (info["visit"] == 0).all()
        changed.append((seen != first).any(axis=1).mean())
    assert (np.mean(changed) > 0.3) == redraw
    if not redraw:
        assert max(changed) == 0.0
    env.close()


def test_an_episode_that_never_recovers_is_truncated_by_the_registered_limit() -> None:
    env = gym.make(ENV, num_tasks=2, cycles=1)
    right = env.unwrapped.engine.problem.rewards.argmax(axis=1)
    env.reset(seed=0)
    truncated, steps = False, 0
    while not truncated:
        _, _, terminated, truncated, info = env.step(1 - right[0])
        steps += 1
        assert not terminated
    assert steps == gym.spec(ENV).max_episode_steps == 10_000
    assert info["regret"] == 10_000
    env.close()


@pytest.mark.parametrize("limit", [0, -1, 2.5, True])
def test_a_limit_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises(InvalidValueError, match="max_episode_steps"):
        gym.make_vec(ENV, 2, max_episode_steps=limit)


@pytest.mark.parametrize("arguments", [{"delta": 0.0}, {"delta": "1"}, {"redraw": 1}], ids=str)
def test_wrong_arguments_are_answered(arguments: dict[str, Any], make_env: Make) -> None:
    with pytest.raises(InvalidValueError, match=next(iter(arguments))):
        make_env(ENV, **arguments)
