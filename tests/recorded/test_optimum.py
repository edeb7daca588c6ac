"""The optimum of holding entries: no sequence of actions gets more, and one gets as much."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from nsr_gym.errors import InvalidValueError
from nsr_gym.evaluation.optimum import holding_optimum

ENV = "TestHolding-v0"


@pytest.fixture
def env_id(table_folder: Path) -> Iterator[str]:
    gym.register(
        id=ENV,
        entry_point="nsr_gym.envs.replay:RecordedEnv",
        vector_entry_point="nsr_gym.envs.replay:RecordedVectorEnv",
        kwargs={
            "table": str(table_folder), "num_tasks": 2, "cycles": 3, "ranks": [4], "capacity": 1,
            "view_size": 1, "reward": "online", "split": "train",
        },
    )  # fmt: skip
    yield ENV
    del gym.registry[ENV]


def best_by_enumeration(env_id: str, seed: int, **arguments: object) -> float:
    """Play every sequence of (start afresh or from the own entry, discard or keep)."""
    plans = np.array(list(product(range(4), repeat=6)))
    env = gym.make_vec(
        env_id, num_envs=len(plans), vectorization_mode="vector_entry_point", **arguments
    )
    env.reset(seed=[seed] * len(plans))
    engine = env.unwrapped.engine  # type: ignore[attr-defined]
    total = np.zeros(len(plans))
    for visit in range(6):
        stream = engine.streams[0]
        task = stream.pool_indices(engine.dynamics.pool)[stream.visits[visit]]
        bank = engine.memory.bank
        own = bank.occupied[:, 0] & (bank.tags["task"][:, 0] == task)
        start, keep = np.divmod(plans[:, visit], 2)
        recall = start * own
        actions = np.stack([recall, np.zeros_like(recall), keep * np.where(recall, 1, 2)], axis=1)
        _, reward, _, _, _ = env.step(actions)
        total += reward
    env.close()
    return float(total.max())


@pytest.mark.parametrize("reward", ["online", "post_task"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_the_best_of_all_sequences(env_id: str, seed: int, reward: str) -> None:
    arguments = {"split": "train", "reward": reward}
    found, visits = holding_optimum(env_id, [seed], arguments=arguments)
    assert visits.tolist() == [6]
    assert found[0] == pytest.approx(best_by_enumeration(env_id, seed, **arguments), abs=1e-6)


def test_more_room_is_never_worse_and_bytes_bind_like_entries(env_id: str) -> None:
    seeds = range(4)

    def optimum(**arguments: object) -> np.ndarray:
        return holding_optimum(env_id, seeds, arguments={"split": "train", **arguments})[0]

    none, one, two = (optimum(capacity=k) for k in (0, 1, 2))
    assert (none < one).all()
    assert (one < two).all()
    env = gym.make(env_id)
    env.reset(seed=0)
    env.step(np.array([0, 0, 2]))
    entry = int(env.unwrapped.engine.memory.bank.nbytes()[0])  # type: ignore[attr-defined]
    np.testing.assert_allclose(optimum(capacity=None, capacity_bytes=entry), one)
    np.testing.assert_allclose(optimum(capacity=None, capacity_bytes=2 * entry - 1), one)
    np.testing.assert_allclose(optimum(capacity=None, capacity_bytes=2 * entry), two)


def test_where_nothing_is_recorded_there_is_no_optimum(env_id: str) -> None:
    for arguments in ({"access": "visit"}, {"rank_cost": 0.1}):
        with pytest.raises(InvalidValueError, match="not known"):
            holding_optimum(env_id, [0], arguments={"split": "train", **arguments})
