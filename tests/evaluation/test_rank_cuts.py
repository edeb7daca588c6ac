"""The cut points between ranks are those with which the thrifty oracle earns most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nsr_gym.agents import make_agent
from nsr_gym.evaluation.calibrate import best_rank_cuts, calibrate

Make = Callable[..., Any]

BUDGETED: dict[str, Any] = {
    "num_tasks": 3, "cycles": 2, "learning_steps": 4, "updates": 3, "ranks": [1, 8],
    "capacity_bytes": 30_000,
}  # fmt: skip
"""Room for one entry of rank 8 and two of rank 1, not for two of rank 8."""


def mean_return(env: Any, cuts: list[float], seeds: list[int]) -> float:
    agent = make_agent("oracle-thrifty", env, cuts=cuts)
    observation, _ = env.reset(seed=seeds)
    total, over = 0.0, False
    while not over:
        actions, _ = agent.predict(observation)
        observation, reward, terminated, _, _ = env.step(actions)
        total += float(reward.mean())
        over = bool(terminated.all())
    return total


def test_no_other_cut_earns_more_on_the_same_streams(make_vec: Make) -> None:
    env = make_vec(3, **BUDGETED, observe_task_id=True)
    observation, _ = env.reset(seed=[0, 1, 2])
    found = best_rank_cuts(env, [0, 1, 2], observation)
    assert len(found) == 1
    layout = env.unwrapped.engine.layout
    bare = layout.unscale_loss(layout.read(observation, "bare_loss")[:, 0])
    others = [0.0, float(np.median(bare)), float(bare.max()) + 1.0]
    reached = [mean_return(env, [cut], [0, 1, 2]) for cut in others]
    assert max(reached) > min(reached), "the cut makes no difference here"
    assert mean_return(env, found, [0, 1, 2]) >= max(reached) - 1e-9


def test_cuts_are_found_where_bytes_are_short_and_only_there() -> None:
    pool, found = calibrate("NSR/CyclicDigits-v0", range(2), arguments=BUDGETED)
    assert pool == "digits-permutation"
    assert len(found["rank_cuts"]) == 1
    free = {name: value for name, value in BUDGETED.items() if name != "capacity_bytes"}
    assert "rank_cuts" not in calibrate("NSR/CyclicDigits-v0", range(2), arguments=free)[1]
