"""`nsr-gym record`, `fidelity` and `study` on the smallest settings that make sense."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nsr_gym import registry
from nsr_gym.cli import main
from nsr_gym.outcome_files import load_table


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["nsr-gym", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_record_writes_a_table_that_says_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "table"
    command = [
        "record", "NSR/CyclicDigits-v0", "--output", str(output), "--batch", "50",
        "--fresh-chains", "1", "--foreign-chains", "0", "--levels", "2", "--sources", "1",
        "--supports", "2",
    ]  # fmt: skip
    for setting in ("learning_steps=1", "updates=1", "support_size=8", "ranks=[1]", "split=test"):
        command += ["--set", setting]
    assert run(monkeypatch, *command) == 0
    assert "200 visits of 50 tasks" in capsys.readouterr().out
    table = load_table(output)
    assert table.provenance["environment"] == "NSR/CyclicDigits-v0"
    assert table.provenance["arguments"]["ranks"] == [1]
    assert "torch" in table.provenance["versions"]
    assert table.pool.split == "test"
    assert not np.isnan(table.own).any()
    assert not (tmp_path / "table.parts").exists()
    assert run(monkeypatch, *command) == 2
    assert "holds a table already" in capsys.readouterr().err


def test_fidelity_prints_correlations_and_writes_the_agents(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "fidelity.csv"
    command = ["fidelity", "NSR/CyclicDigits-v0", "--seeds", "1", "--output", str(output)]
    for agent in ("oracle", "random", "fresh"):
        command += ["--agent", agent]
    for setting in ("num_tasks=2", "cycles=2"):
        command += ["--set", setting]
    assert run(monkeypatch, *command) == 0
    assert "rank correlation of 3 agents' returns" in capsys.readouterr().out
    rows = pd.read_csv(output).set_index("agent")
    assert set(rows.index) == {"oracle", "random", "fresh"}
    assert rows.loc["oracle", "online_error"] == pytest.approx(
        rows.loc["oracle", "online_recorded"] - rows.loc["oracle", "online_live"]
    )


def test_study_trains_plays_and_draws(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "_AGENTS", dict(registry._AGENTS))
    command = [
        "study", "--runs", str(tmp_path), "--family", "Capped", "--controller", "ppo:mlp",
        "--steps", "2048", "--seeds", "2", "--training-seeds", "1", "--workers", "1",
        "--set", "num_tasks=3", "--set", "cycles=2", "--set", "capacity=1",
    ]  # fmt: skip
    assert run(monkeypatch, *command) == 0
    assert "ppo mlp" in capsys.readouterr().out
    files = {path.suffix: path for path in (tmp_path / "study").glob("study-capped-*")}
    assert set(files) == {".csv", ".png"}
    summary = pd.read_csv(files[".csv"]).set_index("agent")
    assert {"similarity", "holding optimum", "ppo mlp", "bank-linucb"} <= set(summary.index)
    run_file = next((tmp_path / "study" / "controllers").rglob("run.json"))
    assert json.loads(run_file.read_text())["finished"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "--family", "Caped"], "Capped"),
        (["study", "--dynamics", "dead"], "recorded"),
        (["study", "--controller", "ppo"], "ALGORITHM:NETWORK"),
        (["study", "--set", "split=train"], "split"),
        (["fidelity", "--agent", "oracle"], "at least three agents"),
        (["record", "--batch", "0"], "--batch"),
        (["record", "--levels", "1"], "at least 2 levels"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
