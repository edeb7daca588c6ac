"""Plays episodes of exact environments, in which a visit has many cheap steps or one."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd


def play_exact(
    env: Any,
    player: Any,
    seeds: Sequence[int],
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Play one episode per seed side by side and sum what happens over each visit.

    Args:
        env: a native vector environment of the suite with one environment for each seed, which
            resets in the step after an end.
        player: an agent with the `predict` signature of Stable-Baselines3.
        seeds: of the episodes.
        progress: called with the number of visits finished since the last call.

    Returns:
        One row per visit that was begun: `seed`, `stream_hash`, `num_tasks` (M), `instance`,
        `num_visits` (V), `visit`, `cycle`, `task`, `is_return`, `steps`, `wrong` (steps that were
        not right, or 1 for a miss), `reward`, `oracle_reward`, `finished`, `seconds`.
    """
    engine, n = env.unwrapped.engine, len(seeds)
    v, rows = engine.config.num_visits, np.arange(n)
    sums = {name: np.zeros((n, v)) for name in ("reward", "oracle_reward", "steps", "wrong")}
    facts = {name: np.zeros((n, v), dtype=np.int64) for name in ("task", "is_return")}
    takes_masks = "action_masks" in inspect.signature(player.predict).parameters
    began = time.perf_counter()
    observation, first = env.reset(seed=list(seeds))
    instance = first["instance"]
    hashes = [engine.streams.hash(row) for row in rows]
    state = player.initial_state(seeds) if hasattr(player, "initial_state") else None
    start, ended, playing = np.ones(n, dtype=bool), np.zeros(n, dtype=bool), np.ones(n, dtype=bool)
    finished = np.zeros((n, v), dtype=bool)
    while playing.any():
        masks = {"action_masks": env.unwrapped.action_masks()} if takes_masks else {}
        actions, state = player.predict(
            observation, state=state, episode_start=start, deterministic=False, **masks
        )
        observation, reward, terminated, truncated, info = env.step(actions)
        # Episodes that are over go on with another one, which is not counted. Its first observation
        # comes one step after the end.
        start, ended = ended, terminated | truncated
        row = rows[playing]
        visit = info["visit"][row]
        cell = row, visit
        right = info["correct" if "correct" in info else "hit"][row]
        for name, values in (
            ("reward", reward[row]), ("oracle_reward", info["oracle_reward"][row]),
            ("steps", 1.0), ("wrong", ~right),
        ):  # fmt: skip
            sums[name][cell] += values
        for name in facts:
            facts[name][cell] = info[name][row]
        before = int(finished.sum())
        # A visit is over when another one has begun, or the episode has ended by itself.
        later = visit > 0
        finished[row[later], visit[later] - 1] = True
        whole = terminated[row]
        finished[row[whole], visit[whole]] = True
        playing[row] &= ~ended[row]
        if progress is not None and (made := int(finished.sum()) - before):
            progress(made)
    begun = sums["steps"] > 0
    row, visit = np.nonzero(begun)
    table = {
        "seed": np.asarray(seeds)[row],
        "stream_hash": np.array(hashes, dtype=object)[row],
        "num_tasks": np.full(len(row), engine.config.num_tasks),
        "instance": instance[row],
        "num_visits": np.full(len(row), v),
        "visit": visit,
        "cycle": visit // engine.config.num_tasks,
        "task": facts["task"][begun],
        "is_return": facts["is_return"][begun].astype(bool),
        "steps": sums["steps"][begun].astype(np.int64),
        "wrong": sums["wrong"][begun].astype(np.int64),
        "reward": sums["reward"][begun],
        "oracle_reward": sums["oracle_reward"][begun],
        "finished": finished[begun],
        "seconds": (time.perf_counter() - began) / begun.sum(),
    }
    return pd.DataFrame(table)
