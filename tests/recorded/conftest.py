"""A small table, recorded once for all tests here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nsr_gym.backbones.pretrain import digits_backbone
from nsr_gym.datasets.digits import digits_pool
from nsr_gym.envs import ContinualVectorEnv
from nsr_gym.envs.recording import Recorder
from nsr_gym.envs.recording_plan import RecordingPlan
from nsr_gym.outcome_files import load_table, save_table
from nsr_gym.outcomes import OutcomeTable

PLAN = RecordingPlan(
    fresh_chains=2, foreign_chains=1, levels=3, branches=(0, 2), sources=2, supports=3
)
SETTINGS: dict[str, Any] = {
    "learning_steps": 3, "updates": 2, "support_size": 32, "ranks": [1, 4], "num_tasks": 3,
    "cycles": 3,
}  # fmt: skip


def _small_env(num_envs: int = 8, **arguments: Any) -> ContinualVectorEnv:
    pool = digits_pool("permutation", "train", 4)
    return ContinualVectorEnv(pool, digits_backbone(), num_envs, **SETTINGS | arguments)


@pytest.fixture(scope="session")
def small_env() -> Callable[..., ContinualVectorEnv]:
    """Make the environment that the table is recorded from."""
    return _small_env


@pytest.fixture(scope="session")
def plan() -> RecordingPlan:
    return PLAN


@pytest.fixture(scope="session")
def table_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    recorder = Recorder(_small_env().engine, PLAN, folder / "parts")
    save_table(recorder.record(), folder / "table")
    recorder.remove_parts()
    return folder / "table"


@pytest.fixture(scope="session")
def table(table_folder: Path) -> OutcomeTable:
    return load_table(table_folder)
