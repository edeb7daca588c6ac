"""Seconds until PPO, from scratch, comes within 2 % of the similarity rule.

Run as `python -m benchmarks.training_time`. PPO is trained on NSR/CyclicDigitsRecorded-v0 (train
split, online reward, the suite's hyper-parameters, one thread) with both networks; every 16,384
steps its deterministic policy plays held-out streams of the test split, which does not count into
the time. What counts is the first evaluation that reaches 0.98 of the rule's mean return on the
same streams.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from nsr_gym.agents.algorithms import build_model
from nsr_gym.envs import make_sb3_env
from nsr_gym.registry import make_agent

ENV = "NSR/CyclicDigitsRecorded-v0"
SHARE = 0.98


def mean_return(agent: Any, env: Any, visits: int) -> float:
    """Play one episode in each environment and return the mean return."""
    observation, _ = env.reset(seed=10_000)
    total = np.zeros(env.num_envs)
    for _ in range(visits):
        action, _ = agent.predict(observation, deterministic=True)
        observation, reward, *_ = env.step(action)
        total += reward
    return float(total.mean())


def run(
    *, networks: Sequence[str] = ("mlp", "pointer"), seeds: Sequence[int] = (0, 1, 2),
    every: int = 16_384, most: int = 196_608, streams: int = 64,
) -> dict[str, Any]:  # fmt: skip
    """Train each network with each seed until it is good enough.

    Returns:
        The rule's return and for each network a list of runs: seconds, steps, return at that point
        (None for a run that did not get there in `most` steps).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    held_out: Any = gym.make_vec(
        ENV, streams, vectorization_mode="vector_entry_point", split="test", reward="online",
        autoreset_mode="disabled",
    )  # fmt: skip
    visits = held_out.unwrapped.engine.config.max_visits
    rule = mean_return(make_agent("similarity", held_out), held_out, visits)
    result: dict[str, Any] = {"environment": ENV, "similarity": rule, "runs": {}}
    try:
        for network in networks:
            for seed in seeds:
                env = make_sb3_env(ENV, 64, reward="online")
                model = build_model("ppo", env, network=network, seed=seed)
                seconds, reached = 0.0, None
                while model.num_timesteps < most:
                    begun = time.perf_counter()
                    model.learn(every, reset_num_timesteps=False)
                    seconds += time.perf_counter() - begun
                    value = mean_return(model, held_out, visits)
                    if value >= SHARE * rule:
                        reached = {
                            "seconds": seconds, "steps": model.num_timesteps, "return": value,
                        }  # fmt: skip
                        break
                result["runs"].setdefault(network, []).append(reached)
                env.close()
    finally:
        torch.set_num_threads(threads)
        held_out.close()
    return result


def main() -> None:
    """Print the numbers as JSON."""
    print(json.dumps(run(), indent=2))


if __name__ == "__main__":
    main()
