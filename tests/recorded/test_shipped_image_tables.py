"""The tables of outcomes on images that ship with the package, where they do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from playable import playable_ids

from nsr_gym import outcomes
from nsr_gym.backbones.shipped import image_backbone
from nsr_gym.datasets.sources import VARIABLE
from nsr_gym.outcomes import OutcomeTable
from nsr_gym.pools import PoolRecord

CIFAR, FIVE = "NSR/SplitCIFAR100Recorded-v0", "NSR/FiveDatasetsRecorded-v0"
FRESH_ADD = [0, 1, 2]
SHIPPED = [
    (env_id, split)
    for env_id, pool in ((CIFAR, "split-cifar100-10"), (FIVE, "offline5"))
    for split in ("test", "train")
    if f"{pool}-{split}" in outcomes.shipped_tables()
]


@pytest.mark.parametrize(("env_id", "split"), SHIPPED)
def test_the_table_that_ships_is_that_of_the_default_arguments(env_id: str, split: str) -> None:
    env: Any = gym.make(env_id, split=split).unwrapped
    table: OutcomeTable = env.engine.dynamics.table
    assert list(table.ranks) == gym.spec(env_id).kwargs["ranks"]
    assert table.validated
    assert table.provenance["environment"] == env_id.replace("Recorded", "")
    # The weights that ship today are those that were recorded.
    name = table.provenance["images"]["backbone"]
    assert image_backbone(name).fingerprint == table.provenance["backbone"]
    assert "/" not in json.dumps(table.provenance["arguments"]).replace("five_datasets/", "")
    env.reset(seed=0)
    rewards = [env.step(FRESH_ADD)[1] for _ in range(env.engine.config.num_visits)]
    assert np.mean(rewards) > 0.3  # ten classes; a visit teaches something
    env.close()


@pytest.mark.parametrize(("env_id", "split"), SHIPPED)
def test_the_tasks_of_the_table_are_those_of_the_data(
    env_id: str, split: str, make_env: Callable[..., Any]
) -> None:
    live = env_id.replace("Recorded", "")
    if live not in playable_ids():
        pytest.skip(f"{VARIABLE} names no folder with the data of {live}")
    given: dict[str, Any] = {**gym.spec(env_id).kwargs, "dynamics": "live", "split": split}
    engine = gym.make(live, cache=False, **given).unwrapped.engine  # type: ignore[attr-defined]
    assert PoolRecord.of(engine.dynamics.pool) == make_env(env_id, split=split).engine.dynamics.pool
