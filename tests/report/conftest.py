"""A result table with the shape and the numbers of a real comparison, without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import pytest

ACCESS = {
    "similarity": "bank",
    "trial-loss": "bank",
    "oracle": "bank",
    "random": "bank",
    "greedy": "memoryless",
    "uniform": "memoryless",
    "loss-proportional": "memoryless",
    "recency": "memoryless",
    "random-rank": "memoryless",
    "pin-one": "memoryless",
    "fresh": "visit",
}
# Where a first visit ends, and how fast it gets there (share of the way per learning step).
CEILING = {"uniform": 0.62, "recency": 0.78, "random-rank": 0.72, "loss-proportional": 0.7}
START = 0.12


def realistic_table(
    *,
    agents: Iterable[str] = tuple(ACCESS),
    num_tasks: int = 10,
    cycles: int = 6,
    learning_steps: int = 15,
    seeds: int | dict[str, int] = 10,
    environment: str = "NSR/CyclicDigits-v0",
) -> pd.DataFrame:
    """One row per visit; accuracies are multiples of 1/200, as 200 test images give."""
    rows: list[dict[str, Any]] = []
    for agent in agents:
        count = seeds if isinstance(seeds, int) else seeds.get(agent, 10)
        for seed in range(count):
            rng = np.random.default_rng([seed, sum(map(ord, agent))])
            rows += _episode(agent, seed, num_tasks, cycles, learning_steps, environment, rng)
    return pd.DataFrame(rows)


def _episode(
    agent: str,
    seed: int,
    num_tasks: int,
    cycles: int,
    learning_steps: int,
    environment: str,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    order = np.random.default_rng(seed).permutation(num_tasks)
    known = np.full(num_tasks, START)
    level = np.full(num_tasks, START)
    rows = []
    ceiling = CEILING.get(agent, 0.8) + 0.01 * rng.standard_normal(num_tasks)
    for visit in range(num_tasks * cycles):
        task = int(order[visit % num_tasks])
        recalls = ACCESS[agent] == "bank" and (agent != "random" or rng.random() < 0.15)
        pinned = agent == "pin-one" and task == order[0]
        start = known[task] if recalls or pinned else max(START, level[task])
        top = min(0.94, max(ceiling[task], start + 0.25 * (0.94 - start)))
        path = top - (top - start) * np.exp(-0.28 * np.arange(learning_steps + 1))
        noise = 0.012 * rng.standard_normal(learning_steps + 1)
        curve = np.round(np.clip(path + noise, 0, 1) * 200) / 200
        if ACCESS[agent] == "bank":
            known[task] = level[task] = curve[-1] if recalls or visit < num_tasks else start
        elif agent == "pin-one":
            if task == order[0]:
                known[task] = level[task] = curve[-1]
        elif agent == "fresh":
            level[:] = START
            level[task] = curve[-1]
        else:
            fade = 0.35 if agent == "uniform" else 0.12
            level = START + fade * (level - START)
            level[task] = curve[-1]
        retained = np.where(ACCESS[agent] == "bank", known, level)
        rows.append(
            {
                "run": "synthetic",
                "environment": environment,
                "agent": agent,
                "access": ACCESS[agent],
                "seed": seed,
                "split": "test",
                "stream_hash": f"stream-{seed}",
                "num_tasks": num_tasks,
                "visit": visit,
                "cycle": visit // num_tasks,
                "task": task,
                "task_name": f"permutation-{100 * seed + task}",
                "is_return": visit >= num_tasks,
                "reward_post_task": curve[-1],
                "reward_online": curve[1:].mean(),
                "curve": curve.tolist(),
                "bytes": 12_288.0 * (min(visit + 1, num_tasks) if recalls else 2),
                "retention": retained.tolist(),
                "baseline": [START] * num_tasks,
            }
        )
    return rows


@pytest.fixture(scope="session")
def full_table() -> pd.DataFrame:
    return realistic_table()


@pytest.fixture(scope="session")
def make_table() -> Callable[..., pd.DataFrame]:
    return realistic_table
