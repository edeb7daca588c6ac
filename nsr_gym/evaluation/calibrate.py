"""Chooses the rules' thresholds on train-split streams, never on test streams."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import DataError
from nsr_gym.files import write_whole
from nsr_gym.registry import make_agent


def calibrate(
    environment: str, seeds: Sequence[int], *, arguments: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """Find the similarity and the trial loss that tell a task's own entry from the others.

    The oracle plays train-split episodes. Of every arrival the best entry counts (the most
    similar one, or the one with the lowest trial loss): it holds the task or it does not. Each
    threshold is the one with the lowest balanced error, midway between the nearest values.

    Args:
        environment: id.
        seeds: one episode each.
        arguments: of the environment, such as `tasks`.

    Returns:
        The name of the pool, and plain JSON: both thresholds, their error rates, and what they
        were measured on.
    """
    env: Any = gym.make_vec(
        environment,
        num_envs=len(seeds),
        vectorization_mode=None,
        **dict(arguments or {}) | {"split": "train", "access": "bank", "observe_task_id": True},
    )
    try:
        engine = env.unwrapped.engine
        layout = engine.layout
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
    arrivals = arrivals[layout.read(arrivals, "stored_rank")[:, 0] > 0]
    held = layout.read(arrivals, "stored_rank") > 0
    own = layout.read(arrivals, "same_task") > 0.5
    similarity = layout.read(arrivals, "similarity").astype(np.float64)
    loss = layout.unscale_loss(layout.read(arrivals, "trial_loss"))
    cut, wrong = _decide(np.where(held, similarity, -np.inf), own)
    loss_cut, loss_wrong = _decide(np.where(held, -loss, -np.inf), own)
    found = {
        "similarity": cut,
        "similarity_error": wrong,
        "trial_loss": -loss_cut,
        "trial_loss_error": loss_wrong,
        "split": "train",
        "episodes": len(seeds),
        "arrivals": len(arrivals),
        "environment": environment,
        "arguments": dict(arguments or {}),
    }
    return engine.pool_name, found


def _decide(score: NDArray[np.float64], own: NDArray[np.bool_]) -> tuple[float, float]:
    best = score.argmax(axis=1)
    rows = np.arange(len(score))
    value, right = score[rows, best], own[rows, best]
    return best_cut(value[right], value[~right])


def best_cut(high: NDArray[np.float64], low: NDArray[np.float64]) -> tuple[float, float]:
    """Return the cut that separates two samples best, and its balanced error rate.

    The balanced error rate is the mean of the share of `high` below the cut (tasks that are not
    recognised) and the share of `low` at or above it (wrong warm starts), however many there
    are of each: the second are rarer and cost more. Of equally good cuts the one in the middle
    of the widest gap is taken.

    Raises:
        DataError: fewer than two different values, so that there is nothing to cut.
    """
    values = np.unique(np.concatenate([high, low]))
    if len(values) < 2 or not len(high) or not len(low):
        raise DataError(
            "Expected arrivals that differ; play more or longer episodes to calibrate on."
        )
    cuts = (values[1:] + values[:-1]) / 2
    missed = np.searchsorted(np.sort(high), cuts)
    mistaken = len(low) - np.searchsorted(np.sort(low), cuts)
    errors = (missed / len(high) + mistaken / len(low)) / 2
    good = np.flatnonzero(errors == errors.min())
    widest = good[np.argmax(np.diff(values)[good])]
    return float(cuts[widest]), float(errors[widest])


def update_file(path: Path, pool: str, found: dict[str, Any]) -> None:
    """Replace one pool's entry in a JSON file of thresholds."""
    table = json.loads(path.read_text()) if path.exists() else {}
    table[pool] = found
    text = json.dumps(table, indent=2) + "\n"
    write_whole(path, lambda file: file.write_text(text))
