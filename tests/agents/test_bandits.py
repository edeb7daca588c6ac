"""Bandits learn the best stationary allocation, and in the long run nothing beyond it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from nsr_gym.agents import make_agent
from nsr_gym.errors import InvalidValueError

BLIND = "NSR/BlindAllocation-v0"
SMALL = {"num_tasks": 3, "obs": "channel:0.8", "order": "iid"}
BANDITS = ["ucb", "thompson", "linucb"]
Regrets = Callable[..., np.ndarray]


def bandit(name: str, n: int = 1, **told: Any) -> Any:
    env = gym.make_vec(BLIND, n, vectorization_mode=None, feedback="last-action+reward", **SMALL)
    return make_agent(name, env, **told)


@pytest.mark.parametrize("agent", [*BANDITS, "history-aware"])
def test_bandits_approach_the_best_memoryless_policy_from_above(
    agent: str, regrets: Regrets
) -> None:
    per_cycle = 3 * 0.2 * 0.5  # M P_e gap
    ratios = [
        regrets(BLIND, agent, 40, cycles=cycles, **SMALL).mean() / (cycles * per_cycle)
        for cycles in (20, 1_000)
    ]
    assert 1.0 < ratios[1] < 1.4
    assert ratios[1] < ratios[0] - 0.2


@pytest.mark.parametrize("agent", BANDITS)
def test_a_symbol_that_tells_the_task_is_learned(agent: str, regrets: Regrets) -> None:
    lost = [
        regrets(BLIND, agent, 10, num_tasks=3, obs="full", cycles=cycles).mean()
        for cycles in (100, 200)
    ]
    assert lost[1] - lost[0] < 0.1 * 100 * 2 * 0.5  # of what pin loses in the second half


def test_a_fixed_order_fools_a_deterministic_bandit(regrets: Regrets) -> None:
    # Blind, every allocation is right once a cycle: a bandit takes for chance what is order.
    pin, ucb = (regrets(BLIND, agent)[0] for agent in ("pin", "ucb"))
    assert ucb > pin


def test_ucb_tries_everything_once_and_then_weighs_mean_against_width() -> None:
    agent = bandit("ucb", exploration=1.0)
    counts, earned = np.zeros((1, 3, 3)), np.zeros((1, 3, 3))
    counts[0, 1], earned[0, 1] = [2, 0, 1], [1.0, 0.0, 0.5]
    symbol, unused = np.array([1]), np.zeros((1, 1))
    index = agent.index(counts, earned, symbol, unused)[0]
    assert index[1] == np.inf
    assert index[0] == pytest.approx(0.5 + np.sqrt(np.log(3) / 2))
    assert index[2] == pytest.approx(0.5 + np.sqrt(np.log(3)))


def test_thompson_draws_from_the_gaussian_posterior() -> None:
    agent = bandit("thompson")
    n = 20_000
    counts = np.zeros((n, 3, 3))
    earned = np.zeros((n, 3, 3))
    counts[:, 2], earned[:, 2] = [3, 0, 8], [3.0, 0.0, 4.0]
    numbers = np.random.default_rng(0).random((n, 3))
    index = agent.index(counts, earned, np.full(n, 2), numbers)
    assert index.mean(axis=0) == pytest.approx([3 / 4, 0.0, 4 / 9], abs=0.03)
    assert index.std(axis=0) == pytest.approx([1 / 2, 1.0, 1 / 3], rel=0.03)


def test_linucb_is_ridge_regression_on_symbol_and_constant() -> None:
    agent, rng = bandit("linucb", alpha=0.7), np.random.default_rng(1)
    counts = rng.integers(0, 6, (5, 3, 3)).astype(float)
    earned = counts * rng.random((5, 3, 3))
    symbol = rng.integers(3, size=5)
    index = agent.index(counts, earned, symbol, np.zeros((5, 1)))
    features = np.hstack([np.eye(3), np.ones((3, 1))])
    for row in range(5):
        x = features[symbol[row]]
        for arm in range(3):
            gram = np.eye(4) + (features.T * counts[row, :, arm]) @ features
            theta = np.linalg.solve(gram, features.T @ earned[row, :, arm])
            width = np.sqrt(x @ np.linalg.solve(gram, x))
            assert index[row, arm] == pytest.approx(x @ theta + 0.7 * width)


@pytest.mark.parametrize(
    ("name", "told"), [("ucb", {"exploration": -1}), ("linucb", {"alpha": -1})]
)
def test_factors_are_checked(name: str, told: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match="Expected"):
        bandit(name, **told)
