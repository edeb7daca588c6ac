"""Stable-Baselines3's agents train on the environments, with its own tools and without warnings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
)

from nsr_gym import register_agent, registry
from nsr_gym.envs import FlatDiscrete, make_sb3_env
from nsr_gym.evaluation.exact_rollout import play_exact
from nsr_gym.evaluation.rollout import play

# pytest turns warnings into errors, so that whatever a learner warns of fails as well.

BLIND, PAGING, LIVE = "NSR/BlindAllocation-v0", "NSR/Paging-v0", "NSR/CyclicDigits-v0"
SMALL: dict[str, Any] = {"num_tasks": 3, "cycles": 2}
PLACES: dict[str, Any] = {"slots": 2, "bank": 1, **SMALL}
STEPS = 256


def small(**more: Any) -> dict[str, Any]:
    """Return arguments of a small network, anew: A2C writes its optimizer into what it is given."""
    return {"policy_kwargs": {"net_arch": [16], **more}, "device": "cpu"}


def rollout(**more: Any) -> dict[str, Any]:
    return {"n_steps": 16, "batch_size": 32, "n_epochs": 2} | small() | more


def plain(env: Any, **arguments: Any) -> Any:
    return PPO("MlpPolicy", env, **rollout(**arguments))


def actor_critic(env: Any, **arguments: Any) -> Any:
    return A2C("MlpPolicy", env, **(small() | {"n_steps": 8} | arguments))


def deep_q(env: Any, **arguments: Any) -> Any:
    few = {"learning_starts": 32, "train_freq": 4, "batch_size": 16, "buffer_size": 500}
    return DQN("MlpPolicy", env, **(few | small() | arguments))


def maskable(env: Any, **arguments: Any) -> Any:
    contrib = pytest.importorskip("sb3_contrib")
    return contrib.MaskablePPO("MlpPolicy", env, **rollout(**arguments))


def recurrent(env: Any, **arguments: Any) -> Any:
    contrib = pytest.importorskip("sb3_contrib")
    chosen = rollout() | small(lstm_hidden_size=8) | arguments
    return contrib.RecurrentPPO("MlpLstmPolicy", env, **chosen)


LEARNERS: dict[str, Callable[..., Any]] = {
    "PPO": plain,
    "A2C": actor_critic,
    "DQN": deep_q,
    "MaskablePPO": maskable,
    "RecurrentPPO": recurrent,
}


def parameters(model: Any) -> list[np.ndarray]:
    return [p.detach().numpy().copy() for p in model.policy.parameters()]


@pytest.mark.parametrize("env_id", [BLIND, PAGING])
@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_trains_on_native_environments(learner: str, env_id: str) -> None:
    env = make_sb3_env(env_id, 4, seed=0, flat_actions=learner == "DQN", **SMALL)
    model = LEARNERS[learner](env, seed=0)
    before = parameters(model)
    model.learn(STEPS)
    after = parameters(model)
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    assert all(np.isfinite(part).all() for part in after)


def test_observations_by_name_train_too() -> None:
    env = make_sb3_env(PAGING, 4, observation="dict", **PLACES)
    PPO("MultiInputPolicy", env, **rollout()).learn(STEPS)


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("env_id", [BLIND, PAGING])
def test_every_learner_trains_on_single_environments(learner: str, env_id: str) -> None:
    wrapper = {"wrapper_class": FlatDiscrete} if learner == "DQN" else {}
    env = make_vec_env(env_id, 2, env_kwargs=SMALL, vec_env_cls=DummyVecEnv, **wrapper)
    model = LEARNERS[learner](env, seed=0)
    model.learn(STEPS // 4)
    assert model.num_timesteps >= STEPS // 4


def test_workers_in_other_processes_train() -> None:
    one = functools.partial(gym.make, f"nsr_gym:{PAGING}", **PLACES)
    env = VecMonitor(SubprocVecEnv([one, one]))
    try:
        model = plain(env).learn(STEPS // 4)
    finally:
        env.close()
    assert {episode["l"] for episode in model.ep_info_buffer} == {6}


def test_normalised_and_monitored_environments_train_and_are_evaluated(tmp_path: Any) -> None:
    def wrapped() -> Any:
        return VecNormalize(VecMonitor(make_sb3_env(BLIND, 4, obs="full", **SMALL)))

    evaluation = wrapped()
    evaluation.training = evaluation.norm_reward = False
    callback = EvalCallback(
        evaluation,
        eval_freq=16,
        n_eval_episodes=8,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    model = plain(wrapped()).learn(STEPS, callback=callback)
    scores = np.load(tmp_path / "evaluations.npz")
    assert scores["results"].shape == (STEPS // (16 * 4), 8)
    assert (scores["ep_lengths"] == 6).all()
    assert {episode["l"] for episode in model.ep_info_buffer} == {6}
    assert (tmp_path / "best_model.zip").exists()


def test_scores_of_an_evaluation_are_those_on_single_environments() -> None:
    arguments = {"obs": "channel:0.5", "order": "iid", "instance": None, **SMALL}
    native = VecMonitor(make_sb3_env(BLIND, 4, seed=2, **arguments))
    single = make_vec_env(BLIND, 4, seed=2, env_kwargs=arguments)
    model = LEARNERS["PPO"](native)
    native.seed(2)
    ours, theirs = (
        evaluate_policy(model, env, n_eval_episodes=9, return_episode_rewards=True)
        for env in (native, single)
    )
    # `Monitor` rounds to six digits.
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert ours[1] == theirs[1]
    assert len(set(ours[0])) > 1


class Witness(VecEnvWrapper):
    """Counts steps, and those in which an action was not among the allowed ones."""

    steps = violations = closed = 0

    def reset(self) -> Any:
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        masks = np.stack(self.venv.env_method("action_masks"))
        ends = np.cumsum(self.action_space.nvec) if actions.ndim == 2 else [masks.shape[1]]
        parts = np.split(masks, ends[:-1], axis=1)
        columns = actions.reshape(self.num_envs, -1).T
        allowed = [part[np.arange(len(part)), a] for part, a in zip(parts, columns, strict=True)]
        self.steps += self.num_envs
        self.violations += int((~np.all(allowed, axis=0)).sum())
        self.closed += int((~masks).any(axis=1).sum())
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        return self.venv.step_wait()


@pytest.mark.parametrize("flat_actions", [False, True], ids=["components", "one number"])
def test_a_masked_policy_never_takes_what_its_mask_forbids(flat_actions: bool) -> None:
    make = functools.partial(make_sb3_env, PAGING, 50, seed=0, flat_actions=flat_actions)
    env = Witness(make(forced=True, **PLACES))
    model = maskable(env, n_steps=20, batch_size=100, n_epochs=1, seed=0)
    model.learn(5_000)
    assert env.steps >= 5_000, "masks reach the learner while it trains"
    observation = env.reset()
    while env.steps < 10_000:
        masks = np.stack(env.env_method("action_masks"))
        actions, _ = model.predict(observation, action_masks=masks, deterministic=False)
        observation, *_ = env.step(actions)
    assert env.violations == 0
    assert env.closed > 5_000, "something is forbidden in many steps"


def test_a_policy_without_masks_does() -> None:
    env = Witness(make_sb3_env(PAGING, 10, seed=0, **PLACES))
    LEARNERS["PPO"](env, seed=0).learn(STEPS)
    assert env.violations > 0


def test_masks_are_used_by_third_party_evaluation() -> None:
    contrib = pytest.importorskip("sb3_contrib.common.maskable.evaluation")
    env = Witness(VecMonitor(make_sb3_env(PAGING, 4, seed=0, **PLACES)))
    contrib.evaluate_policy(maskable(env, seed=0), env, 20, deterministic=False)
    assert env.steps >= 20 * 6
    assert env.violations == 0


def test_ppo_learns_to_allocate_as_the_oracle_does_where_the_task_is_shown() -> None:
    arguments = {"num_tasks": 4, "cycles": 4, "obs": "full", "order": "iid"}
    env = VecMonitor(make_sb3_env(BLIND, 16, seed=0, **arguments))
    model = PPO(
        "MlpPolicy", env, n_steps=16, batch_size=256, n_epochs=10, learning_rate=0.01, gamma=0.0,
        seed=0, **small(),
    )  # fmt: skip
    oracle = 16.0  # one for each of C M steps
    before, _ = evaluate_policy(model, env, 16)
    assert before < 0.9 * oracle
    model.learn(8_192)
    assert evaluate_policy(model, env, 32) == (oracle, 0.0)


@pytest.mark.parametrize("learner", ["PPO", "DQN", "MaskablePPO", "RecurrentPPO"])
def test_training_twice_gives_the_same_parameters(learner: str) -> None:
    assert torch.get_num_threads() == 1

    def trained(seed: int) -> list[np.ndarray]:
        env = make_sb3_env(PAGING, 4, flat_actions=learner == "DQN", **PLACES)
        return parameters(LEARNERS[learner](env, seed=seed).learn(STEPS))

    first, again, other = trained(0), trained(0), trained(1)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("env_id", [BLIND, PAGING])
def test_training_on_single_environments_gives_the_same_parameters(env_id: str) -> None:
    single = DummyVecEnv([lambda: gym.make(env_id, **SMALL)] * 4)
    native = make_sb3_env(env_id, 4, **SMALL)
    ours, theirs = (
        parameters(LEARNERS["PPO"](env, seed=0).learn(STEPS)) for env in (native, single)
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("learner", ["PPO", "A2C", "MaskablePPO", "RecurrentPPO"])
@pytest.mark.parametrize("env_id", [BLIND, PAGING])
def test_a_trained_model_plays_as_an_agent_of_the_suite(learner: str, env_id: str) -> None:
    model = LEARNERS[learner](make_sb3_env(env_id, 4, **SMALL), seed=0).learn(STEPS)
    table = play_exact(gym.make_vec(env_id, 3, **SMALL), model, [4, 5, 6])
    assert table.groupby("seed")["visit"].count().tolist() == [6, 6, 6]
    assert np.isfinite(table["reward"]).all()


def live_model(env: Any, *, learner: str) -> Any:
    arguments = {"num_tasks": 3, "cycles": 2, "learning_steps": 2, "updates": 1}
    return LEARNERS[learner](make_sb3_env(LIVE, 2, **arguments), seed=0)


@pytest.mark.parametrize("learner", ["PPO", "MaskablePPO", "RecurrentPPO"])
def test_a_model_plays_live_episodes_by_name(
    learner: str, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_AGENTS", dict(registry._AGENTS))
    register_agent("model", f"{__name__}:live_model", access="bank", summary="of this test")
    table = play(LIVE, "model", [0, 1, 2], arguments=tiny, agent_arguments={"learner": learner})
    assert len(table) == 3 * 6
    if learner == "MaskablePPO":
        assert not table["projected"].any()
