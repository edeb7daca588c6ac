"""The bank's bandits: features, learning from rewards, frozen weights, files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from nsr_gym.agents import make_agent
from nsr_gym.agents.bandit_features import choice_features, feature_names
from nsr_gym.agents.bandit_training import LinearBandit, train_bandit
from nsr_gym.agents.bank_bandits import (
    KINDS,
    BanditWeights,
    BankBanditAgent,
)
from nsr_gym.errors import InvalidValueError, UnknownNameError

Make = Callable[..., Any]

DISCARD, UPDATE, ADD = range(3)
RANKS = (1, 2, 4, 8)
NAMES = feature_names(RANKS)


def weights(*, threshold: float = 1.0, keep: bool = True, **chosen: float) -> BanditWeights:
    """Weights of 0 but for the chosen features."""
    theta = tuple(float(chosen.get(name.replace(" ", "_"), 0.0)) for name in NAMES)
    return BanditWeights(
        kind="linucb", ranks=RANKS, features=NAMES, theta=theta, threshold=threshold, keep=keep
    )


def seen(layout: Any, *, losses: list[float], occupancy: float = 0.0, bare: float = 2.3) -> Any:
    """One observation with entries of rank 8 and these trial losses in nats."""
    held = np.arange(layout.sizes["stored_rank"]) < len(losses)
    values: dict[str, Any] = {name: np.zeros((1, size)) for name, size in layout.sizes.items()}
    values["stored_rank"][0] = held
    values["similarity"][0] = np.where(held, 0.9, 0.0)
    values["trial_loss"][0] = 1.0
    values["trial_loss"][0, : len(losses)] = layout.scale_loss(np.array(losses, dtype=float))
    values["bare_loss"][0] = layout.scale_loss(np.array(bare))
    values["occupancy"][0], values["budget_left"][0] = occupancy, 1.0
    return layout.encode(1, values)


def test_every_choice_has_its_entry_s_and_its_rank_s_features(make_env: Make) -> None:
    layout = make_env().engine.layout
    phi, valid = choice_features(layout, seen(layout, losses=[1.0, 0.5]))
    assert phi.shape == (1, 9, 4, len(NAMES))
    assert valid[0].tolist() == [True] * 3 + [False] * 6
    column = {name: phi[0, :, :, i] for i, name in enumerate(NAMES)}
    assert (column["warm"] == (np.arange(9) % 9 > 0)[:, None] * valid[0][:, None]).all()
    assert (column["similarity"][0] == 0).all(), "a fresh start has no entry"
    assert column["trial_loss"][2, 0] == pytest.approx(layout.scale_loss(np.array(0.5)))
    assert column["lowest loss"][:3, 0].tolist() == [0, 0, 1]
    assert column["most similar"][:3, 0].tolist() == [0, 1, 0]
    assert (column["gain"][1:3] > 0).all()
    assert (column["bare_loss"] == column["bare_loss"][0, 0]).all()
    for i, rank in enumerate(RANKS):
        assert column[f"rank {rank} * 1"].tolist() == [np.eye(4)[i].tolist()] * 9
        np.testing.assert_allclose(
            column[f"rank {rank} * trial_loss"][:, i], column["trial_loss"][:, i]
        )


def test_a_choice_s_features_do_not_depend_on_episodes_beside_it(make_vec: Make) -> None:
    env = make_vec(5)
    agent = make_agent("random", env)
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        observation, *_ = env.step(agent.predict(observation)[0])
    layout = env.unwrapped.engine.layout
    together, _ = choice_features(layout, observation)
    for i in range(5):
        np.testing.assert_array_equal(choice_features(layout, observation[[i]])[0][0], together[i])
    assert np.isfinite(together).all()
    assert np.abs(together).max() <= 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_bandit_finds_the_best_choice_from_rewards_alone(kind: str) -> None:
    rng = np.random.default_rng(0)
    truth = np.array([0.6, -0.4, 0.2])
    bandit = LinearBandit(kind=kind, size=3, exploration=0.2)
    lost = []
    for _ in range(60):
        phi = rng.random((8, 4, 2, 3))
        valid = np.ones((8, 4), dtype=bool)
        valid[:, 3] = False
        recall, rank = bandit.choose(phi, valid, rng)
        assert (recall < 3).all(), "what is not there was chosen"
        best = (phi[:, :3] @ truth).max(axis=(1, 2))
        x = phi[np.arange(8), recall, rank]
        lost.append((best - x @ truth).mean())
        bandit.learn(x, x @ truth + 0.05 * rng.standard_normal(8))
    np.testing.assert_allclose(bandit.theta, truth, atol=0.06)
    assert np.mean(lost[-20:]) < 0.12
    assert np.mean(lost[-20:]) < 0.6 * np.mean(lost[:3])


def test_linucb_prefers_what_it_knows_less_by_the_width_of_its_interval() -> None:
    rng = np.random.default_rng(0)
    bandit = LinearBandit(kind="linucb", size=2, exploration=1.0)
    bandit.learn(np.tile([1.0, 0.0], (3, 1)), np.full(3, 0.8))  # theta_0 = 2.4 / 4, width 1 / 2
    known, unknown = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    for scale, expected in ((1.0, 0), (1.2, 1)):  # 1.1 against 1.0 and 1.2
        phi = np.stack([known, scale * unknown]).reshape(1, 2, 1, 2)
        assert bandit.choose(phi, np.ones((1, 2), dtype=bool), rng)[0].tolist() == [expected]


def test_thompson_sampling_draws_with_the_posterior_s_covariance() -> None:
    rng = np.random.default_rng(1)
    bandit = LinearBandit(kind="thompson", size=2, exploration=1.0)
    x = np.array([[1.0, 0.5]])
    bandit.learn(x, np.array([0.0]))
    deviation = np.sqrt(x @ np.linalg.inv(np.eye(2) + x.T @ x) @ x.T)[0, 0]
    # Against a choice of certain value c the drawn x . theta exceeds c with probability 1 - Phi(c).
    phi = np.stack([np.zeros(2), x[0]]).reshape(1, 2, 1, 2).repeat(20_000, axis=0)
    taken = bandit.choose(phi, np.ones((20_000, 2), dtype=bool), rng)[0]
    assert taken.mean() == pytest.approx(0.5, abs=0.02)
    bandit.theta = np.array([deviation, 0.0])  # one deviation above zero: Phi(1) = 0.841
    taken = bandit.choose(phi, np.ones((20_000, 2), dtype=bool), rng)[0]
    assert taken.mean() == pytest.approx(0.8413, abs=0.02)


@pytest.mark.parametrize(
    ("kind", "exploration", "error"),
    [("ucb", 0.5, UnknownNameError), ("linucb", -0.1, InvalidValueError)],
)
def test_what_no_bandit_is_is_refused(kind: str, exploration: float, error: type) -> None:
    with pytest.raises(error):
        LinearBandit(kind=kind, size=2, exploration=exploration)


@pytest.mark.parametrize(
    ("chosen", "losses", "occupancy", "expected"),
    [
        ({"trial_loss": -1.0, "warm": 1.0, "rank_4_*_1": 1.0}, [0.9, 0.5], 0.2, [2, 2, UPDATE]),
        ({"trial_loss": -1.0, "warm": 1.0, "rank_4_*_1": 1.0}, [2.0, 1.5], 0.2, [2, 2, ADD]),
        ({"trial_loss": -1.0, "warm": 1.0, "rank_4_*_1": 1.0}, [2.0, 1.5], 1.0, [2, 2, DISCARD]),
        ({"trial_loss": -1.0, "warm": 1.0, "rank_4_*_1": 1.0}, [2.0, 0.5], 1.0, [2, 2, UPDATE]),
        ({"warm": -1.0, "rank_8_*_1": 1.0}, [0.9, 0.5], 0.2, [0, 3, UPDATE]),
        ({"warm": -1.0, "rank_8_*_1": 1.0}, [0.9, 0.5], 1.0, [0, 3, DISCARD]),
        ({"warm": 1.0, "rank_1_*_1": 1.0}, [], 0.0, [0, 0, UPDATE]),  # nothing to recall
    ],
)
def test_a_frozen_bandit_makes_the_choice_of_the_highest_expected_reward(
    chosen: dict[str, float],
    losses: list[float],
    occupancy: float,
    expected: list[int],
    make_env: Make,
) -> None:
    env = make_env()
    agent = BankBanditAgent(env, weights=weights(threshold=1.0, **chosen))
    actions, _ = agent.predict(seen(agent.layout, losses=losses, occupancy=occupancy))
    assert actions[0].tolist() == expected


def test_a_bandit_may_be_told_not_to_keep(make_env: Make) -> None:
    agent = BankBanditAgent(make_env(), weights=weights(warm=-1.0), keep=False)
    actions, _ = agent.predict(seen(agent.layout, losses=[0.5], occupancy=1.0))
    assert actions[0, 2] == UPDATE


def test_other_ranks_than_those_it_knows_are_refused(make_env: Make) -> None:
    with pytest.raises(InvalidValueError, match=r"\[1, 2, 4, 8\].*\[1, 8\].*bandit_training"):
        BankBanditAgent(make_env(ranks=[1, 8]), weights=weights())


@pytest.mark.parametrize("kind", KINDS)
def test_training_twice_gives_the_same_weights(kind: str, tiny: dict[str, Any]) -> None:
    def train(seed: int) -> BanditWeights:
        return train_bandit(
            kind, "NSR/CyclicDigits-v0", tiny, episodes=4, num_envs=4, seed=seed, threshold=2.0
        )

    assert train(1) == train(1)
    assert train(1).theta != train(2).theta


def test_a_trained_bandit_recalls_what_fits_at_a_high_rank() -> None:
    # Tasks with the same inputs: similarity tells nothing, the trial loss does.
    aliased, given = "NSR/AliasedDigitsRecorded-v0", {"num_tasks": 5, "cycles": 4}
    found = train_bandit("linucb", aliased, given, episodes=64)
    env = gym.make_vec(aliased, 8, vectorization_mode=None, split="test", **given)

    def play(agent: Any) -> tuple[float, np.ndarray]:
        observation, _ = env.reset(seed=list(range(8)))
        total, ranks, over = 0.0, [], False
        while not over:
            actions, _ = agent.predict(observation)
            observation, reward, terminated, _, _ = env.step(actions)
            total += float(reward.mean())
            ranks.append(actions[:, 1])
            over = bool(terminated.all())
        return total, np.array(ranks)

    reached, ranks = play(BankBanditAgent(env, weights=found))
    assert reached > play(make_agent("similarity", env))[0] + 1.0
    assert reached > play(BankBanditAgent(env, weights=weights()))[0] + 1.0
    assert ranks.mean() > 2.5
    env.close()
