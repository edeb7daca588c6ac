"""Steps per second of the exact and recorded environments next to Gymnasium's CartPole.

Run as `python -m benchmarks.vector_steps`. All contestants are timed in turn within one run, so
that whatever else the machine does meets all of them, each for about the same time; the numbers
are medians over the rounds. Actions are drawn beforehand. Every environment resets itself when an
episode is over, in the step after its last one (Gymnasium's default), and that step counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

import nsr_gym  # noqa: F401  (registers the environments)
from nsr_gym.outcomes import shipped_tables

EXACT = ("NSR/BlindAllocation-v0", "NSR/Paging-v0", "NSR/UntilRecovered-v0")
RECORDED = ("NSR/CyclicDigitsRecorded-v0", "NSR/MixedDigitsRecorded-v0")
IMAGES = tuple(
    env_id
    for env_id, table in (
        ("NSR/SplitCIFAR100Recorded-v0", "split-cifar100-10-train"),
        ("NSR/FiveDatasetsRecorded-v0", "offline5-train"),
    )
    if table in shipped_tables()
)
"""Recorded environments on images, where the tables of their default arguments ship."""

IDS = (*EXACT, *RECORDED, *IMAGES)
REFERENCE = "CartPole-v1"
POOL = 64
"""Different actions that a contestant plays over and over."""

Play = Callable[[int], None]
"""Plays that many steps."""


def _vector(env_id: str, num_envs: int, mode: str, seed: int = 0) -> tuple[Any, Play]:
    env = gym.make_vec(env_id, num_envs, vectorization_mode=mode)
    env.action_space.seed(seed)
    actions = [env.action_space.sample() for _ in range(POOL)]
    env.reset(seed=seed)

    def play(steps: int) -> None:
        for step in range(steps):
            env.step(actions[step % POOL])

    return env, play


def _single(env_id: str, seed: int = 0) -> tuple[Any, Play]:
    env = gym.make(env_id)
    env.action_space.seed(seed)
    actions = [env.action_space.sample() for _ in range(POOL)]
    env.reset(seed=seed)
    over = False

    def play(steps: int) -> None:
        nonlocal over
        for step in range(steps):
            if over:
                env.reset()
                over = False
            else:
                _, _, terminated, truncated, _ = env.step(actions[step % POOL])
                over = terminated or truncated

    return env, play


def _seconds(play: Play, steps: int) -> float:
    start = time.perf_counter()
    play(steps)
    return time.perf_counter() - start


def _steps_within(play: Play, seconds: float) -> int:
    """Return about how many steps take that long; what is built at first use is not counted."""
    play(2)
    steps, taken = 1, 0.0
    while (taken := _seconds(play, steps)) < seconds / 4:
        steps *= 2
    return max(1, round(steps * seconds / taken))


def run(
    *,
    ids: Sequence[str] = IDS,
    num_envs: int = 1024,
    rounds: int = 9,
    seconds: float = 0.25,
) -> dict[str, Any]:
    """Time all contestants, in turn.

    Args:
        ids: environments with a native vector environment, played with their default arguments.
        num_envs: n, environments of a vector environment.
        rounds: timings of each contestant.
        seconds: about how long a timing takes.

    Returns:
        For each contestant (`"<id> native"`, `"<id> single"` and for CartPole also
        `"<id> sync"`) the environment steps per second: median, smallest and largest. For each
        of the ids the medians over the rounds of the ratios of its native steps per second to
        those of CartPole, native and sync. The environment steps per second that the native ones
        are to reach at n = 1,024 on two cores: 2 million exact, 100,000 recorded on digits,
        50,000 recorded on images.
    """
    contestants: dict[str, tuple[Any, Play]] = {}
    for env_id in (*ids, REFERENCE):
        contestants[f"{env_id} native"] = _vector(env_id, num_envs, "vector_entry_point")
        contestants[f"{env_id} single"] = _single(env_id)
    contestants[f"{REFERENCE} sync"] = _vector(REFERENCE, num_envs, "sync")
    steps = {name: _steps_within(play, seconds) for name, (_, play) in contestants.items()}
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, (env, play) in contestants.items():
            batch = getattr(env, "num_envs", 1)
            rates[name].append(batch * steps[name] / _seconds(play, steps[name]))
    for env, _ in contestants.values():
        env.close()
    return {
        "num_envs": num_envs,
        "steps_per_s": {
            name: {"median": float(np.median(r)), "smallest": min(r), "largest": max(r)}
            for name, r in rates.items()
        },
        "ratio_to_cartpole": {
            env_id: {
                kind: float(np.median(np.divide(rates[f"{env_id} native"], rates[reference])))
                for kind, reference in (
                    ("native", f"{REFERENCE} native"),
                    ("sync", f"{REFERENCE} sync"),
                )
            }
            for env_id in ids
        },
        "steps_per_s_bound": {"exact": 2e6, "recorded": 1e5, "recorded images": 5e4},
    }


def main() -> None:
    """Print the numbers as JSON."""
    print(json.dumps(run(), indent=2))


if __name__ == "__main__":
    main()
