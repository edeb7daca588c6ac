"""Chooses the rules' thresholds on train-split streams, never on test streams."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from nsr_gym.agents.thresholds import backbone_of, entry_key
from nsr_gym.errors import DataError, StateError
from nsr_gym.files import write_whole
from nsr_gym.registry import make_agent


def calibrate(
    environment: str, seeds: Sequence[int], *, arguments: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """Find the similarity and the trial loss that tell a task's own entry from the others.

    The oracle plays train-split episodes. Of every arrival the best entry counts (the most
    similar one, or the one with the lowest trial loss): it holds the task or it does not. Each
    threshold is the one with the lowest balanced error, midway between the nearest values.

    Where the environment sorts its view by a router other than cosine similarity, or shows its
    signals, the router's score and the novelty are cut in the same way, and nothing else is.

    Where the bank has a byte budget, the cut points between ranks are found first (see
    `best_rank_cuts`), and the oracle that keeps to them plays.

    Args:
        environment: id.
        seeds: one episode each.
        arguments: of the environment, such as `tasks`.

    Returns:
        The name of the pool, and plain JSON: both thresholds, their error rates, the cut points
        where there is a byte budget, and what they were measured on; with another router or with
        signals `scores`: the router, or `novelty/` and the bank -> the same of its one threshold.
    """
    env: Any = gym.make_vec(
        environment,
        num_envs=len(seeds),
        vectorization_mode=None,
        **dict(arguments or {}) | {"split": "train", "access": "bank", "observe_task_id": True},
    )
    try:
        layout, pool = env.unwrapped.engine.layout, env.unwrapped.engine.pool_name
        config, backbone = env.unwrapped.engine.config, backbone_of(env)
        arrivals, _ = _play(env, make_agent("oracle", env), seeds)
        cuts: dict[str, Any] = {}
        held = layout.read(arrivals, "stored_rank")[:, 0] > 0
        if (layout.read(arrivals, "budget_left")[held] < 1.0).any():
            cuts["rank_cuts"] = best_rank_cuts(env, seeds, arrivals)
            thrifty = make_agent("oracle-thrifty", env, cuts=cuts["rank_cuts"])
            arrivals, _ = _play(env, thrifty, seeds)
    finally:
        env.close()
    arrivals = arrivals[layout.read(arrivals, "stored_rank")[:, 0] > 0]
    held = layout.read(arrivals, "stored_rank") > 0
    own = layout.read(arrivals, "same_task") > 0.5
    similarity = layout.read(arrivals, "similarity").astype(np.float64)
    measured = {
        "split": "train",
        "episodes": len(seeds),
        "arrivals": len(arrivals),
        "environment": environment,
        "arguments": dict(arguments or {}),
        "backbone": backbone,
    }
    cut, wrong = _decide(np.where(held, similarity, -np.inf), own)
    scores = {}
    if config.router != "cosine":
        scores[config.router] = {"threshold": cut, "error": wrong, **measured}
    if config.observe_signals:
        familiar = 1.0 - layout.read(arrivals, "novelty").astype(np.float64)
        cut, wrong = _decide(familiar, own.any(axis=1, keepdims=True))
        scores[f"novelty/{config.bank}"] = {"threshold": 1.0 - cut, "error": wrong, **measured}
    if scores:
        return pool, {"scores": scores}
    loss = layout.unscale_loss(layout.read(arrivals, "trial_loss"))
    loss_cut, loss_wrong = _decide(np.where(held, -loss, -np.inf), own)
    return pool, {
        "similarity": cut,
        "similarity_error": wrong,
        "trial_loss": -loss_cut,
        "trial_loss_error": loss_wrong,
        **cuts,
        **measured,
    }


def best_rank_cuts(env: Any, seeds: Sequence[int], arrivals: NDArray[Any]) -> list[float]:
    """Return the cut points between ranks with which the thrifty oracle earns most.

    All ascending choices among 0, the deciles of the arrivals' bare losses and a value above all
    of them are played on the same streams.

    Args:
        env: a vector environment that tells the task.
        seeds: one episode for each of its rows.
        arrivals: (k, size) observations that the losses are taken from.

    Returns:
        Q - 1 losses in nats, ascending; of equally good ones the first, which grant most.
    """
    engine = env.unwrapped.engine
    bare = engine.layout.unscale_loss(engine.layout.read(arrivals, "bare_loss")[:, 0])
    steps = np.quantile(bare, np.linspace(0.1, 0.9, 9))
    grid = [0.0, *np.unique(steps).tolist(), float(bare.max()) + 1.0]
    best, most = [], -np.inf
    for cuts in itertools.combinations_with_replacement(grid, len(engine.config.ranks) - 1):
        _, earned = _play(env, make_agent("oracle-thrifty", env, cuts=cuts), seeds)
        if earned > most:
            best, most = list(cuts), earned
    return best


def _play(env: Any, agent: Any, seeds: Sequence[int]) -> tuple[NDArray[np.float32], float]:
    """Play one episode for each seed; return all observations and the mean return."""
    observation, _ = env.reset(seed=list(seeds))
    seen, earned = [], 0.0
    over = np.zeros(len(seeds), dtype=bool)
    while not over.all():
        # Episodes may differ in length; what follows an episode's end is not counted.
        seen.append(observation[~over])
        actions, _ = agent.predict(observation)
        observation, reward, terminated, _, _ = env.step(actions)
        earned += float(reward[~over].sum())
        over |= terminated
    return np.concatenate(seen), earned / len(seeds)


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
    """Replace one pool's entry in a JSON file of thresholds, of its `scores` those found alone.

    Where the pool's entry was found with another frozen network (or its scores, where the entry
    does not say with which), it stays, and the new one comes beside it (see
    `nsr_gym.agents.thresholds.entry_key`). No entry keeps scores of another network than its own.

    Raises:
        StateError: scores alone were found, and there is no entry yet for the pool and network.
    """
    table = json.loads(path.read_text()) if path.exists() else {}
    scores = found.get("scores", {})
    network = next(iter(_networks(found)), None)
    known, key = _networks(table.get(pool, {})), pool
    if network is None and known and not scores:
        raise StateError(
            f"Expected thresholds of {pool!r} found with a network that is known, as are those in "
            f"{path} ({known[0]}), which they would replace; calibrate with live dynamics."
        )
    if network is not None:
        own = entry_key(pool, network)
        key = own if own in table or (known and network not in known) else pool
    if scores and key not in table:
        raise StateError(
            f"Expected thresholds of {key!r} in {path} before those of its scores; calibrate "
            "without router and observe_signals first."
        )
    entry = table.get(key, {})
    kept = {
        name: score
        for name, score in entry.get("scores", {}).items()
        if None in (network, score.get("backbone")) or score["backbone"] == network
    }
    scores = kept | scores
    whole = entry | found if "scores" in found else found
    table[key] = whole | ({"scores": scores} if scores else {})
    text = json.dumps(table, indent=2) + "\n"
    write_whole(path, lambda file: file.write_text(text))


def _networks(entry: Mapping[str, Any]) -> list[str]:
    """Return the frozen network of an entry, or those of its scores where it does not say."""
    if entry.get("backbone") is not None:
        return [str(entry["backbone"])]
    found = [score.get("backbone") for score in entry.get("scores", {}).values()]
    return [str(one) for one in found if one is not None]
