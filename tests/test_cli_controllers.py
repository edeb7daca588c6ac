"""Comparisons play the suite's controller, and train one where there is none that fits."""

from __future__ import annotations

import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nsr_gym import cli_controllers, registry
from nsr_gym.agents import training
from nsr_gym.agents.controller import shipped_folder
from nsr_gym.cli import main
from nsr_gym.cli_controllers import controllers_for

CYCLIC = "NSR/CyclicDigits-v0"


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any], Path]]:
    """Note what would be trained, and train for a moment only."""
    asked: list[tuple[str, dict[str, Any], Path]] = []

    def short(environment: str, arguments: Any, folder: Path, *, progress: Any = None) -> Path:
        asked.append((environment, dict(arguments), folder))
        config = training.TrainingConfig(
            environment=training.recorded_twin(environment, arguments),
            arguments=dict(arguments), steps=256, envs=8, eval_every=256, eval_episodes=2,
            hyperparameters={"n_steps": 32, "n_epochs": 1},
        )  # fmt: skip
        return training.train(config, folder, progress=progress).folder / training.BEST

    monkeypatch.setattr(training, "train_on_the_spot", short)
    return asked


def test_nothing_is_trained_where_a_controller_comes_with_the_suite(
    trainings: list[Any], tmp_path: Path
) -> None:
    for name in ("Cyclic", "Capped", "Mixed"):
        env = f"NSR/{name}Digits-v0"
        assert controllers_for([env], ["ppo", "random"], {"split": "test"}, tmp_path) == {}
    assert controllers_for([CYCLIC], ["random"], {"ranks": [1]}, tmp_path) == {}
    assert controllers_for(["NSR/Paging-v0"], ["ppo"], {}, tmp_path) == {}
    assert trainings == []


def test_compare_trains_once_where_none_fits_and_plays_it(
    trainings: list[tuple[str, dict[str, Any], Path]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("first", "second"):
        command = [
            "nsr-gym", "compare", "--name", name, "--runs", str(tmp_path), "--seeds", "2",
            "--agent", "oracle", "--agent", "ppo", "--workers", "1", "--env",
            "NSR/CyclicDigitsRecorded-v0", "--set", "ranks=[1,4]", "--set", "num_tasks=2",
            "--set", "cycles=2",
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code
        table = pd.read_parquet(tmp_path / name / "visits.parquet")
        assert set(table["agent"]) == {"oracle", "ppo"}
        assert "no controller comes with the suite" in capsys.readouterr().err
    environment, arguments, folder = trainings[0]
    assert environment == "NSR/CyclicDigitsRecorded-v0"
    assert arguments == {"ranks": [1, 4], "num_tasks": 2, "cycles": 2}  # and never the test split
    assert trainings[1] == trainings[0]  # the same folder, where it is finished already
    assert folder.is_relative_to(tmp_path / "controllers")
    assert cli_controllers.LEARNED == "ppo"


class _Marker:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def compare_controller(monkeypatch: pytest.MonkeyPatch, runs: Path, *more: str) -> int:
    monkeypatch.setattr(registry, "_AGENTS", dict(registry._AGENTS))
    command = [
        "nsr-gym", "compare", "--runs", str(runs), "--seeds", "2", "--agent", "oracle", "--workers",
        "1", "--env", "NSR/CyclicDigitsRecorded-v0", "--set", "num_tasks=2", "--set", "cycles=2",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [*command, *more])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_somebody_elses_controller_plays_by_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = shipped_folder(CYCLIC)
    assert compare_controller(monkeypatch, tmp_path, "--controller", str(folder)) == 0
    table = pd.read_parquet(tmp_path / "compare" / "visits.parquet")
    assert set(table["agent"]) == {"oracle", "trained/cyclic-digits-ppo"}


def test_a_zip_is_refused_and_nothing_in_it_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker, crafted = tmp_path / "marker", tmp_path / "model.zip"
    with zipfile.ZipFile(crafted, "w") as archive:
        archive.writestr("data", pickle.dumps(_Marker(marker)))
    assert compare_controller(monkeypatch, tmp_path / "runs", "--controller", str(crafted)) == 2
    assert "--trust-pickle" in capsys.readouterr().err
    assert not marker.exists()
    assert not (tmp_path / "runs").exists()


def test_a_path_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare_controller(monkeypatch, tmp_path, "--controller", str(tmp_path / "no")) == 2
    assert "There is no controller" in capsys.readouterr().err
