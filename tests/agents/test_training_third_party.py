"""Code that knows nothing of the suite trains and evaluates on its environments by their ids."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

from nsr_gym.agents.hyperparameters import FOLDER
from nsr_gym.envs import make_sb3_env

BLIND = "NSR/BlindAllocation-v0"
SMALL: dict[str, Any] = {"num_tasks": 3, "cycles": 2, "obs": "channel:0.5", "order": "iid"}
KINDS = ("native", "DummyVecEnv", "SubprocVecEnv")


def made(kind: str) -> VecEnv:
    """Return two environments, side by side in one of three ways."""
    if kind == "native":
        return VecMonitor(make_sb3_env(BLIND, 2, seed=0, **SMALL))
    # Another process finds the id by the module that registers it.
    one = functools.partial(gym.make, f"nsr_gym:{BLIND}", **SMALL)
    env = DummyVecEnv([one] * 2) if kind == "DummyVecEnv" else SubprocVecEnv([one] * 2)
    env.seed(0)
    return VecMonitor(env)


@pytest.fixture
def envs(request: pytest.FixtureRequest) -> Iterator[tuple[VecEnv, VecEnv]]:
    pair = made(request.param), made(request.param)
    yield pair
    for env in pair:
        env.close()


@pytest.mark.parametrize("envs", KINDS, indirect=True)
def test_an_eval_callback_and_evaluate_policy_work_on_every_kind(
    envs: tuple[VecEnv, VecEnv], tmp_path: Path
) -> None:
    training, evaluation = envs
    model = PPO("MlpPolicy", training, n_steps=16, batch_size=32, n_epochs=1, seed=0, device="cpu")
    callback = EvalCallback(
        evaluation,
        eval_freq=16,
        n_eval_episodes=4,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    model.learn(64, callback=callback)
    scores = np.load(tmp_path / "evaluations.npz")
    assert scores["timesteps"].tolist() == [32, 64]
    assert (scores["ep_lengths"] == 6).all()
    assert callback.best_mean_reward == pytest.approx(scores["results"].mean(axis=1).max())
    returns, lengths = evaluate_policy(model, evaluation, 4, return_episode_rewards=True)
    assert lengths == [6] * 4
    assert all(0.0 <= value <= 6.0 for value in returns)


def test_what_is_evaluated_does_not_depend_on_the_kind() -> None:
    model = PPO("MlpPolicy", make_sb3_env(BLIND, 2, **SMALL), seed=3, device="cpu")
    found = []
    for kind in KINDS:
        env = made(kind)
        found.append(evaluate_policy(model, env, 6, return_episode_rewards=True)[0])
        env.close()
    assert len(set(found[0])) > 1
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[2] == pytest.approx(found[0], abs=1e-5)


def test_hyper_parameters_in_the_suites_files_go_into_stable_baselines3_as_they_are() -> None:
    block = yaml.safe_load((FOLDER / "ppo.yml").read_text())["default"]
    run = {name: block.pop(name) for name in ("n_timesteps", "n_envs", "network")}
    assert run["network"] == "mlp"
    env = make_sb3_env(BLIND, 4, seed=0, **SMALL)
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=32, device="cpu", **block)
    assert model.learn(128).num_timesteps == 128
    assert model.gamma == block["gamma"]


class Agent(torch.nn.Module):
    """Actor and critic of a script in the style of CleanRL."""

    def __init__(self, envs: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        super().__init__()
        size = int(np.prod(envs.single_observation_space.shape or ()))
        actions: Any = envs.single_action_space
        self.sizes = [int(actions.n)] if isinstance(actions, gym.spaces.Discrete) else actions.nvec
        self.flat = isinstance(actions, gym.spaces.Discrete)
        self.actor = torch.nn.Linear(size, int(sum(self.sizes)))
        self.critic = torch.nn.Linear(size, 1)

    def act(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        parts = torch.split(self.actor(observation), list(map(int, self.sizes)), dim=1)
        drawn = [torch.distributions.Categorical(logits=part) for part in parts]
        taken = [one.sample() for one in drawn]
        chance = sum(one.log_prob(a) for one, a in zip(drawn, taken, strict=True))
        entropy = sum(one.entropy() for one in drawn)
        return torch.stack(taken, dim=1), chance, entropy


def test_a_script_with_its_own_loop_learns_through_make_vec() -> None:
    torch.manual_seed(0)
    envs: Any = gym.make_vec(BLIND, num_envs=32, num_tasks=3, cycles=4, obs="full", order="iid")
    agent = Agent(envs)
    optimizer = torch.optim.Adam(agent.parameters(), lr=0.05)
    observation, _ = envs.reset(seed=0)
    start = np.zeros(32, dtype=bool)
    means = []
    for _ in range(60):
        loss, total, count = torch.zeros(()), 0.0, 0
        for _ in range(12):
            seen = torch.as_tensor(observation, dtype=torch.float32)
            actions, chance, entropy = agent.act(seen)
            taken = actions[:, 0] if agent.flat else actions
            observation, reward, terminated, truncated, _ = envs.step(taken.numpy())
            value = agent.critic(seen)[:, 0]
            # Rewards are those of the step itself; in the step after an end nothing is played.
            played = torch.as_tensor(~start, dtype=torch.float32)
            gain = torch.as_tensor(reward, dtype=torch.float32) - value
            policy = -(gain.detach() * chance + 0.01 * entropy)
            loss = loss + ((policy + gain**2) * played).mean()
            total, count = total + float(reward[~start].sum()), count + int((~start).sum())
            start = terminated | truncated
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        means.append(total / count)
    envs.close()
    assert np.mean(means[:5]) < 0.7
    assert np.mean(means[-5:]) > 0.95
