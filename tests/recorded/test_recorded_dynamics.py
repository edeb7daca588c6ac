"""Recorded environments: the engine, bank and rewards of live ones, with outcomes looked up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from nsr_gym.envs import (
    ContinualVectorEnv,
    EpisodeConfig,
    RecordedEnv,
    RecordedVectorEnv,
    check_vector_env,
)
from nsr_gym.errors import AccessError, FileFormatError, InvalidValueError
from nsr_gym.outcomes import OutcomeTable

MakeEnv = Callable[..., ContinualVectorEnv]
FRESH_ADD, RECALL_UPDATE = [0, 1, 2], [1, 1, 1]


def test_spaces_streams_and_info_are_those_of_the_live_environment(
    table_folder: Path, small_env: MakeEnv
) -> None:
    live, recorded = (
        small_env(3),
        RecordedVectorEnv(table_folder, 3, num_tasks=3, cycles=3),
    )
    assert recorded.single_observation_space == live.single_observation_space
    assert recorded.single_action_space == live.single_action_space
    _, info = live.reset(seed=5)
    _, again = recorded.reset(seed=5)
    assert info["stream"].tolist() == again["stream"].tolist()
    action = np.array([FRESH_ADD] * 3)
    for _ in range(4):
        _, reward, _, _, info = live.step(action)
        _, same, _, _, again = recorded.step(action)
        assert list(again) == list(info)
        assert [v.dtype for v in again.values()] == [v.dtype for v in info.values()]
        for name in ("task_name", "is_return", "entries", "bytes", "visit", "cycle"):
            assert again[name].tolist() == info[name].tolist(), name
        assert np.abs(reward - same).max() < 0.5


def test_outcomes_are_the_recorded_ones_along_one_chain(
    table: OutcomeTable, table_folder: Path
) -> None:
    env = RecordedEnv(table_folder, num_tasks=1, cycles=3, reward="online")
    _, info = env.reset(seed=3)
    t = table.pool.index(env.engine.streams[0].tasks[0])
    _, reward, _, _, info = env.step(FRESH_ADD)
    chain = int(env.engine.dynamics.fresh_chain(np.array([0]), np.array([0]))[0])
    np.testing.assert_allclose(info["curve"], table.fresh[t, 1, chain])
    assert reward == pytest.approx(table.fresh[t, 1, chain, 1:].mean())
    for level in range(2):
        before = info["accuracy_after"]
        _, _, _, _, info = env.step(RECALL_UPDATE)
        np.testing.assert_allclose(info["curve"], table.own[t, 1, level, chain, 1])
        assert info["accuracy_before"] == before


def test_a_recall_at_another_rank_and_from_another_task_is_looked_up(
    table: OutcomeTable, table_folder: Path
) -> None:
    env = RecordedEnv(table_folder, num_tasks=2, cycles=2)
    env.reset(seed=0)
    a, b = (table.pool.index(name) for name in env.engine.streams[0].tasks)
    env.step(FRESH_ADD)
    _, _, _, _, info = env.step([1, 0, 2])  # the second task from the first one's entry, at rank 1
    g = table.source_index[b, a]
    np.testing.assert_allclose(info["curve"], table.foreign[b, g, 1, 0])
    bank = env.engine.memory.bank
    slot = int(np.flatnonzero(bank.tags["task"][0] == b)[0])
    assert bank.tags["chain"][0, slot] == table.foreign_chain[b, g, 1, 0]
    assert (bank.rank[0, slot], bank.tags["level"][0, slot]) == (1, 0)


def test_retention_is_the_recorded_accuracy_of_what_would_be_recalled(
    table: OutcomeTable, table_folder: Path
) -> None:
    env = RecordedEnv(table_folder, num_tasks=2, cycles=2)
    env.reset(seed=0)
    tasks = [table.pool.index(name) for name in env.engine.streams[0].tasks]
    rows = np.array([0])
    np.testing.assert_allclose(env.engine.baseline(rows)[0], table.bare_accuracy[tasks])
    _, _, _, _, info = env.step(FRESH_ADD)
    kept = env.engine.retention(rows)[0]
    assert kept[0] == info["accuracy_after"]
    g = table.source_index[tasks[1], tasks[0]]
    assert kept[1] == pytest.approx(table.foreign[tasks[1], g, 1, 1, 0])


@pytest.mark.parametrize("access", ["bank", "visit"])
def test_single_sync_and_native_agree_bit_for_bit(table_folder: Path, access: str) -> None:
    gym.register(
        id="TestRecorded-v0",
        entry_point="nsr_gym.envs.replay:RecordedEnv",
        vector_entry_point="nsr_gym.envs.replay:RecordedVectorEnv",
        kwargs={"table": str(table_folder), "num_tasks": 3, "cycles": 2, "access": access},
    )
    try:
        check_vector_env("TestRecorded-v0", tolerance=0.0)  # in all autoreset modes
    finally:
        del gym.registry["TestRecorded-v0"]


def test_memoryless_access_needs_live_dynamics(table_folder: Path) -> None:
    with pytest.raises(AccessError, match="live"):
        RecordedEnv(table_folder, num_tasks=2, access="memoryless")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"learning_steps": 4}, "learning_steps=3"),
        ({"ranks": [1, 2]}, r"\[2\]"),
        ({"energy": 0.9}, "energy=None"),
        ({"num_tasks": 5}, "num_tasks"),
    ],
)
def test_what_was_not_recorded_is_refused(
    table_folder: Path, arguments: dict[str, object], match: str
) -> None:
    with pytest.raises(InvalidValueError, match=match):
        RecordedEnv(table_folder, **{"num_tasks": 2} | arguments)


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no readable table"):
        RecordedEnv(tmp_path)


def test_visit_access_starts_afresh_whatever_is_asked(
    table: OutcomeTable, table_folder: Path
) -> None:
    env = RecordedEnv(table_folder, num_tasks=1, cycles=2, access="visit")
    env.reset(seed=0)
    env.step(FRESH_ADD)
    observation, _, _, _, info = env.step(RECALL_UPDATE)
    t = table.pool.index(env.engine.streams[0].tasks[0])
    assert any(np.allclose(info["curve"], curve) for curve in table.fresh[t, 1])
    assert (info["recall"], info["bytes"], info["projected"]) == (0, 0, True)
    assert observation.shape == (1,)
    assert EpisodeConfig().access == "bank"


def test_no_sample_of_support_images_comes_twice_in_a_row_of_returns(table_folder: Path) -> None:
    env = RecordedVectorEnv(table_folder, 64, num_tasks=2, cycles=3)  # as many visits as samples
    observation, _ = env.reset(seed=0)
    for _ in range(5):
        observation, *_ = env.step(np.array([FRESH_ADD] * 64))
        similarity = env.engine.layout.read(observation, "similarity")
        # An image set met again would be recognised by a similarity of exactly 1.
        assert similarity.max() < 1 - 1e-6
