"""Chooses the rules' thresholds on train-split streams, never on test streams."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from nsr_gym.backbones.pretrain import write_whole
from nsr_gym.registry import make_agent


def calibrate(environment: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Find the similarity and the trial loss that tell a task's own entry from the others.

    The oracle plays train-split episodes; every arrival shows the similarity and the trial
    loss of entries that hold the task and of entries that do not. Each threshold is the
    one with the fewest errors, midway between the nearest values on both sides.

    Args:
        environment: id.
        seeds: one episode each.

    Returns:
        Plain JSON: both thresholds, their error rates, and what they were measured on.
    """
    env = gym.make_vec(
        environment, num_envs=len(seeds), vectorization_mode=None, split="train", access="bank",
        observe_task_id=True,
    )  # fmt: skip
    try:
        layout = env.unwrapped.engine.layout
        oracle = make_agent("oracle", env)
        observation, _ = env.reset(seed=list(seeds))
        seen = []
        over = False
        while not over:
            seen.append(observation)
            actions, _ = oracle.predict(observation)
            observation, _, terminated, _, _ = env.step(actions)
            over = bool(terminated.all())
    finally:
        env.close()
    arrivals = np.concatenate(seen)
    held = layout.read(arrivals, "stored_rank") > 0
    own = (layout.read(arrivals, "same_task") > 0.5) & held
    other = held & ~own
    similarity = layout.read(arrivals, "similarity").astype(np.float64)
    loss = layout.unscale_loss(layout.read(arrivals, "trial_loss"))
    cut, wrong = best_cut(similarity[own], similarity[other])
    loss_cut, loss_wrong = best_cut(-loss[own], -loss[other])
    return {
        "similarity": cut,
        "similarity_error": wrong,
        "trial_loss": -loss_cut,
        "trial_loss_error": loss_wrong,
        "split": "train",
        "episodes": len(seeds),
        "own": int(own.sum()),
        "other": int(other.sum()),
    }


def best_cut(high: NDArray[np.float64], low: NDArray[np.float64]) -> tuple[float, float]:
    """Return the cut that separates two samples best, and its balanced error rate.

    The balanced error is the mean of the share of `high` below the cut and the share of `low`
    at or above it. Of equally good cuts the one in the middle of the widest gap is taken.
    """
    values = np.unique(np.concatenate([high, low]))
    cuts = (values[1:] + values[:-1]) / 2
    errors = (
        np.searchsorted(np.sort(high), cuts) / len(high)
        + (1 - np.searchsorted(np.sort(low), cuts) / len(low))
    ) / 2
    good = np.flatnonzero(errors == errors.min())
    widest = good[np.argmax(np.diff(values)[good])]
    return float(cuts[widest]), float(errors[widest])


def update_file(path: Path, environment: str, found: dict[str, Any]) -> None:
    """Replace one environment's entry in a JSON file of thresholds."""
    table = json.loads(path.read_text()) if path.exists() else {}
    table[environment] = found
    write_whole(path, (json.dumps(table, indent=2) + "\n").encode())
