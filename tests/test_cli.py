"""The command line: results where they are asked for, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from console import Call, caller, is_clear

from nsr_gym.agents import agent_specs
from nsr_gym.metrics.episodes import check_columns
from nsr_gym.registration import ENVIRONMENTS

SETTINGS = ["num_tasks=2", "cycles=2", "learning_steps=2", "updates=1"]
TINY = [part for setting in SETTINGS for part in ("--set", setting)]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command in this process, as the console script does."""
    return caller(monkeypatch, capsys)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run one comparison through the installed console script."""
    runs = tmp_path_factory.mktemp("runs")
    script = Path(sys.executable).parent / "nsr-gym"
    done = subprocess.run(
        [script, "compare", "--name", "tiny", "--runs", runs, "--seeds", "2", "--workers", "1",
         "--agent", "oracle", "--agent", "similarity", "--agent", "greedy", *TINY],
        capture_output=True, text=True, check=False, cwd=runs, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for name in ("oracle", "similarity", "greedy", "visits.parquet", "summary.csv", ".png"):
        assert name in done.stdout
    return runs / "tiny"


def test_compare_writes_table_summary_manifest_and_figures(compared: Path) -> None:
    table = pd.read_parquet(compared / "visits.parquet")
    check_columns(table)
    assert len(table) == 3 * 2 * 4
    assert set(table["split"]) == {"test"}
    summary = pd.read_csv(compared / "summary.csv")
    assert set(summary["agent"]) == {"oracle", "similarity", "greedy"}
    assert set(summary["runs"]) == {2}
    assert json.loads((compared / "manifest.json").read_text())["finished"] is True
    figures = list((compared / "figures").glob("*.png"))
    assert len(figures) >= 3
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)


def test_compare_writes_into_its_folder_alone(compared: Path) -> None:
    assert [path.name for path in compared.parent.iterdir()] == ["tiny"]


def test_the_same_command_again_shows_the_result_and_runs_nothing(
    compared: Path, tmp_path: Path, call: Call
) -> None:
    shutil.copytree(compared, tmp_path / "tiny")
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "tiny" / "cells").iterdir()}
    answer = call(
        "compare", "--name", "tiny", "--runs", tmp_path, "--seeds", "2", "--workers", "1",
        "--agent", "oracle", "--agent", "similarity", "--agent", "greedy", *TINY,
    )  # fmt: skip
    assert answer.status == 0
    assert "similarity" in answer.out
    assert {path: path.stat().st_mtime_ns for path in cells} == cells


def test_another_comparison_of_the_same_name_is_refused(compared: Path, call: Call) -> None:
    before = (compared / "visits.parquet").read_bytes()
    answer = call("compare", "--name", "tiny", "--runs", compared.parent, "--seeds", "3", *TINY)
    assert is_clear(answer), answer
    assert "nothing was overwritten" in answer.text
    assert (compared / "visits.parquet").read_bytes() == before


def test_report_shows_a_finished_comparison_again(
    compared: Path, tmp_path: Path, call: Call
) -> None:
    folder = Path(shutil.copytree(compared, tmp_path / "copy"))
    shutil.rmtree(folder / "figures")
    (folder / "summary.csv").unlink()
    answer = call("report", folder, "--reward", "post_task")
    assert answer.status == 0
    assert "similarity" in answer.out
    assert (folder / "summary.csv").exists()
    assert list((folder / "figures").glob("*.png"))


def test_a_comparison_without_the_reference_is_shown_all_the_same(
    tmp_path: Path, call: Call
) -> None:
    answer = call(
        "compare", "--runs", tmp_path, "--seeds", "1", "--workers", "1", "--agent", "greedy", *TINY
    )
    assert answer.status == 0, answer.err
    assert "greedy" in answer.out


def test_envs_and_agents_list_what_there_is(call: Call) -> None:
    listed = call("envs")
    assert listed.status == 0
    for env_id, environment in ENVIRONMENTS.items():
        assert env_id in listed.text
        assert environment.summary in listed.text
    listed = call("agents")
    assert listed.status == 0
    for spec in agent_specs():
        assert spec.name in listed.text
        assert f"[{spec.access} access]" in listed.text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--agent", "similarty"], "'similarity'"),
        (["--env", "NSR/CyclicDigit-v0"], "'NSR/CyclicDigits-v0'"),
        (["--env", "CartPole-v1"], "CartPole-v1"),
        (["--split", "tests"], "'test'"),
        (["--reward", "onlin"], "'online'"),
        (["--reference", "orakel"], "'oracle'"),
        (["--set", "num_task=3"], "'num_tasks'"),
        (["--set", "num_tasks"], "NAME=VALUE"),
        (["--set", "=3"], "NAME=VALUE"),
        (["--set", "num_tasks=three"], "'three'"),
        (["--set", "num_tasks=0"], "num_tasks"),
        (["--set", "num_tasks=100000"], "num_tasks"),
        (["--set", "learning_rate=fast"], "learning_rate"),
        (["--set", "ranks=[1, 65]"], "between 1 and 64"),
        (["--set", "tasks=[1]"], "tasks"),
        (["--set", "tasks=rotations"], "'rotation'"),
        (["--set", "device=gpu"], "device"),
        (["--set", "access=bank"], "access"),
        (["--set", "schedule=once"], "once"),
        (["--seeds", "0"], "--seeds"),
        (["--first-seed", "-1"], "negative"),
        (["--workers", "0"], "worker"),
        (["--block", "0"], "block"),
        (["--name", "a/b"], "--name"),
        (["--name", ".."], "--name"),
        (["--name", ""], "--name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_answered_in_one_line_and_leaves_nothing_behind(
    arguments: list[str], text: str, tmp_path: Path, call: Call
) -> None:
    fast = [] if "--workers" in arguments else ["--workers", "1"]
    agent = [] if "--agent" in arguments else ["--agent", "greedy"]
    answer = call("compare", "--runs", tmp_path, *TINY, *fast, *agent, *arguments)
    assert is_clear(answer), answer
    assert text in answer.text
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_a_worker_process_is_one_line_too(
    compared: Path, tmp_path: Path, call: Call
) -> None:
    folder = Path(shutil.copytree(compared, tmp_path / "tiny"))
    shutil.rmtree(folder / "cells")
    (folder / "cells").write_text("a file where the folder of cells has to be")
    answer = call(
        "compare", "--name", "tiny", "--runs", tmp_path, "--seeds", "2", "--workers", "2",
        "--agent", "oracle", "--agent", "similarity", "--agent", "greedy", *TINY,
    )  # fmt: skip
    assert is_clear(answer), answer
    assert "cells" in answer.text


@pytest.mark.parametrize(
    "arguments",
    [["--seeds", "two"], ["--nonsense"], ["extra"], ["--workers", "1.5"]],
    ids=lambda arguments: " ".join(arguments),
)
def test_a_malformed_option_is_a_usage_error(arguments: list[str], call: Call) -> None:
    answer = call("compare", *arguments)
    assert answer.status == 2
    assert "Traceback" not in answer.text
    assert "Usage" in answer.err


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, call: Call) -> None:
    (tmp_path / "file").write_text("in the way")
    answer = call(
        "compare", "--runs", tmp_path / "file", "--seeds", "1", "--workers", "1",
        "--agent", "greedy", *TINY,
    )  # fmt: skip
    assert is_clear(answer), answer
    assert "file" in answer.text
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_report_on_a_missing_folder_names_it(tmp_path: Path, call: Call) -> None:
    answer = call("report", tmp_path / "nowhere")
    assert is_clear(answer), answer
    assert "nowhere" in answer.text
    assert list(tmp_path.iterdir()) == []


def test_a_report_on_a_damaged_table_names_it(tmp_path: Path, call: Call) -> None:
    (tmp_path / "visits.parquet").write_bytes(b"PAR1 no more")
    answer = call("report", tmp_path)
    assert is_clear(answer), answer
    assert "visits.parquet" in answer.text


@pytest.mark.parametrize("option", [["--reward", "both"], ["--reference", "orakel"]], ids=str)
def test_a_report_with_a_wrong_name_is_refused(
    option: list[str], compared: Path, call: Call
) -> None:
    assert is_clear(call("report", compared, *option))


def test_pretrain_writes_weights_and_card_into_the_folder_asked_for(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = call("pretrain", "digits", "--output", tmp_path / "made")
    assert answer.status == 0, answer.err
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "digits_mlp.json",
        "digits_mlp.safetensors",
    ]
    card = json.loads((tmp_path / "made" / "digits_mlp.json").read_text())
    assert card["base_accuracy"] > 0.9
    assert card["fingerprint"] in answer.text
    assert "to the shipped weights" in answer.text
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_pretraining_what_there_is_not_is_refused(tmp_path: Path, call: Call) -> None:
    answer = call("pretrain", "digit", "--output", tmp_path / "made")
    assert is_clear(answer), answer
    assert "'digits'" in answer.text
    assert not (tmp_path / "made").exists()


def test_pretraining_into_a_file_is_refused(tmp_path: Path, call: Call) -> None:
    (tmp_path / "file").write_text("in the way")
    answer = call("pretrain", "digits", "--output", tmp_path / "file")
    assert answer.status == 2
    assert "Traceback" not in answer.text
    assert "error: " in answer.err


def test_calibrate_writes_only_where_it_is_asked_to(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nsr_gym.agents import thresholds

    shipped = Path(str(thresholds.__file__)).with_name(thresholds.THRESHOLDS_FILE)
    before = shipped.read_bytes()
    found = {"similarity": 0.5, "trial_loss": 1.5}
    monkeypatch.setattr(
        "nsr_gym.evaluation.calibrate.calibrate", lambda env, seeds, arguments: ("a-pool", found)
    )
    monkeypatch.chdir(tmp_path)
    answer = call("calibrate", "--seeds", "1")
    assert answer.status == 0, answer.err
    assert json.loads(answer.out) == {"a-pool": found}
    assert list(tmp_path.iterdir()) == []
    answer = call("calibrate", "--seeds", "1", "--output", "mine.json")
    assert answer.status == 0
    assert json.loads((tmp_path / "mine.json").read_text()) == {"a-pool": found}
    assert shipped.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [["NSR/CyclicDigit-v0"], ["CartPole-v1"], ["--seeds", "0"]],
    ids=lambda arguments: " ".join(arguments),
)
def test_a_mistake_in_calibrate_is_answered_in_one_line(arguments: list[str], call: Call) -> None:
    assert is_clear(call("calibrate", *arguments))


def test_calibrating_into_a_folder_that_is_not_there_is_refused_before_any_work(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[str] = []
    monkeypatch.setattr(
        "nsr_gym.evaluation.calibrate.calibrate",
        lambda env, seeds: played.append(env) or {},
    )
    answer = call("calibrate", "--seeds", "1", "--output", tmp_path / "nowhere" / "mine.json")
    assert is_clear(answer), answer
    assert played == []


def test_without_a_command_there_is_help(call: Call) -> None:
    answer = call()
    for command in ("compare", "report", "envs", "agents", "calibrate", "pretrain"):
        assert command in answer.text
    assert "Traceback" not in answer.text
