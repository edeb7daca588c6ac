"""Entries with heads of their own are recorded with them, and replayed as such."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from safetensors.numpy import load_file

from nsr_gym.envs import ContinualVectorEnv, RecordedEnv
from nsr_gym.envs.recording import Recorder
from nsr_gym.envs.recording_plan import RecordingPlan
from nsr_gym.errors import InvalidValueError
from nsr_gym.outcome_files import load_table, save_table
from nsr_gym.outcomes import OutcomeTable

MakeEnv = Callable[..., ContinualVectorEnv]
HEAD_BYTES = 4 * 10 * (64 + 1)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="module")
def folder(
    parts: Path, tmp_path_factory: pytest.TempPathFactory, small_env: MakeEnv, plan: RecordingPlan
) -> Path:
    table = Recorder(small_env(head="trained").engine, plan, parts).record()
    folder = tmp_path_factory.mktemp("headed") / "table"
    save_table(table, folder)
    return folder


@pytest.fixture(scope="module")
def headed(folder: Path) -> OutcomeTable:
    return load_table(folder)


def test_before_anything_is_learned_an_empty_head_knows_nothing(headed: OutcomeTable) -> None:
    np.testing.assert_allclose(headed.bare_loss, np.log(10), atol=1e-2)  # in half precision
    assert np.unique(headed.fresh[..., 0]).tolist() == np.unique(headed.bare_accuracy).tolist()
    assert headed.bare_accuracy.max() < 0.2  # one class for all


def test_a_recalled_entry_starts_with_its_head_where_it_ended(headed: OutcomeTable) -> None:
    for q in range(2):
        first = headed.fresh[:, q, :, -1]
        np.testing.assert_array_equal(first, headed.end[:, q, 0, : headed.fresh_chains])
    own, foreign = headed.own[:, 1, :, :, 1, 0].mean(), headed.foreign[:, :, 1, 1, 0].mean()
    assert own > foreign + 0.1
    assert own > headed.bare_accuracy.mean() + 0.1


def test_heads_survive_in_finished_parts(folder: Path, parts: Path) -> None:
    part = load_file(parts / "fresh-4.safetensors")
    assert part["head.weight"].shape == (4, 10, 64)
    assert part["head.bias"].shape == (4, 10)
    assert np.abs(part["head.weight"]).max() > 0.0


def test_replayed_entries_have_the_bytes_of_live_ones(folder: Path, small_env: MakeEnv) -> None:
    live = small_env(1, head="trained")
    replayed = RecordedEnv(folder, num_tasks=3, cycles=3)
    live.reset(seed=0)
    replayed.reset(seed=0)
    for action in ([0, 1, 1], [1, 0, 2], [0, 0, 1]):
        info = live.step(np.array([action]))[4]
        assert replayed.step(np.array(action))[4]["bytes"] == info["bytes"][0]
    assert replayed.engine.config.head == "trained"
    kinds: dict[str, Any] = replayed.engine.memory.bank.bytes_by_kind(rows=[0])
    assert kinds["head"][0] == 3 * HEAD_BYTES


def test_a_table_answers_for_the_heads_it_was_recorded_with(
    folder: Path, table_folder: Path
) -> None:
    with pytest.raises(InvalidValueError, match=r"head='trained'.*got 'frozen'"):
        RecordedEnv(folder, num_tasks=3, cycles=3, head="frozen")
    with pytest.raises(InvalidValueError, match=r"head='frozen'.*got 'trained'"):
        RecordedEnv(table_folder, num_tasks=3, cycles=3, head="trained")


def test_tables_from_before_heads_could_be_trained_are_of_frozen_ones() -> None:
    with pytest.raises(InvalidValueError, match=r"head='frozen'.*got 'trained'"):
        gym.make("NSR/CyclicDigitsRecorded-v0", head="trained")
