"""`nsr-gym regret`, and `compare` and `report` where environments are exact."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from console import Call, caller, is_clear

from nsr_gym import cli
from nsr_gym.registry import agent_specs

BLIND, PAGING, RECOVERY = "NSR/BlindAllocation-v0", "NSR/Paging-v0", "NSR/UntilRecovered-v0"
LIVE = "NSR/CyclicDigits-v0"
SMALL = ["--set", "num_tasks=3", "--set", "cycles=3", "--seeds", "2", "--workers", "1"]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command in this process, as the console script does."""
    return caller(monkeypatch, capsys)


def test_an_exact_environment_is_played_judged_and_drawn(tmp_path: Path, call: Call) -> None:
    command = ("regret", PAGING, "--runs", tmp_path, *SMALL)
    answer = call(*command)
    assert answer.status == 0, answer.err
    folder = tmp_path / "regret-NSR-Paging-v0"
    for part in ("Bound: 4 over the whole episode", "Optimum: 4", "Where each agent lies"):
        assert part in answer.text
    for spec in agent_specs("paging"):
        assert spec.name in answer.out
    regret = pd.read_csv(folder / "regret.csv").set_index("agent")
    assert regret.loc["pin", ["regret", "bound", "ratio"]].tolist() == [4.0, 4.0, 1.0]
    assert regret.loc["lru", "place"] == "above"
    verdict = json.loads((folder / "verdict.json").read_text())[PAGING]
    assert (verdict["reading"], verdict["bound"]) == ("B", 4.0)
    assert verdict["agents"]["history-aware"]["place"] == "below bound"
    figure = folder / "figures" / "NSR-Paging-v0-regret.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    # The same command again, and the folder as a target, show the same and play nothing.
    cells = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    assert call(*command).out == answer.out
    assert call("regret", folder).out == answer.out
    assert {path: path.stat().st_mtime_ns for path in cells} == cells


def test_twenty_seeds_are_the_default(tmp_path: Path, call: Call) -> None:
    answer = call(
        "regret", BLIND, "--runs", tmp_path, "--workers", "1", "--agent", "pin",
        "--set", "num_tasks=2", "--set", "cycles=2",
    )  # fmt: skip
    assert answer.status == 0, answer.err
    assert "20 runs per agent" in answer.out


def test_agents_that_cannot_play_are_left_out_and_named(tmp_path: Path, call: Call) -> None:
    answer = call("regret", BLIND, "--runs", tmp_path, *SMALL, "--set", "order=iid")
    assert answer.status == 0, answer.err
    assert "left out: clock" in answer.err
    assert "clock" not in set(
        pd.read_csv(tmp_path / "regret-NSR-BlindAllocation-v0/regret.csv")["agent"]
    )
    asked = call(
        "regret", BLIND, "--runs", tmp_path, "--name", "asked", *SMALL, "--set", "order=iid",
        "--agent", "clock",
    )  # fmt: skip
    assert is_clear(asked), asked


def test_the_scaling_study_adds_table_figure_and_rows(tmp_path: Path, call: Call) -> None:
    answer = call(
        "regret", BLIND, "--runs", tmp_path, "--name", "s", *SMALL, "--agent", "pin",
        "--agent", "last-action", "--scaling", "--tasks", "2,4",
    )  # fmt: skip
    assert answer.status == 0, answer.err
    assert "Scaling of NSR/BlindAllocation-v0, M = 2, 4, 2 runs" in answer.out
    rows = pd.read_csv(tmp_path / "s" / "scaling.csv")
    assert sorted(rows["num_tasks"].unique()) == [2, 4]
    exponents = pd.read_csv(tmp_path / "s" / "exponents.csv").set_index("agent")
    assert exponents.loc["pin", ["time", "tasks"]].tolist() == pytest.approx([1.0, 1.0])
    assert exponents.loc["last-action", "note"] == "0 throughout"
    assert (tmp_path / "s" / "figures" / "NSR-BlindAllocation-v0-scaling.png").exists()
    assert (tmp_path / "s" / "scaling" / "NSR-BlindAllocation-v0" / "M2").is_dir()


def test_numbers_of_tasks_that_can_all_be_held_are_left_out_and_named(
    tmp_path: Path, call: Call
) -> None:
    answer = call(
        "regret", PAGING, "--runs", tmp_path, "--name", "s", *SMALL, "--agent", "pin",
        "--set", "slots=2", "--scaling", "--tasks", "2,3,5",
    )  # fmt: skip
    assert answer.status == 0, answer.err
    assert "M = 3, 5, 2 runs" in answer.text
    assert "M = 2 left out" in answer.text
    exponents = pd.read_csv(tmp_path / "s" / "exponents.csv").set_index("agent")
    assert exponents.loc["pin", ["time", "tasks", "held"]].tolist() == pytest.approx([1, 1, 2])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compare a live and two exact environments in one folder."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        arguments = [
            "nsr-gym", "compare", "--runs", str(runs), "--name", "mixed", *SMALL,
            "--env", LIVE, "--env", PAGING, "--agent", "oracle", "--agent", "fresh",
            "--agent", "pin", "--agent", "history-aware",
        ]  # fmt: skip
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
    return runs / "mixed"


def test_compare_reports_live_and_exact_environments_side_by_side(mixed: Path) -> None:
    assert set(pd.read_csv(mixed / "summary.csv")["environment"]) == {LIVE}
    exact = pd.read_csv(mixed / "exact.csv").set_index("agent")
    assert set(exact["environment"]) == {PAGING}
    assert exact.loc["pin", "regret"] == 4.0
    figures = {path.name for path in (mixed / "figures").iterdir()}
    assert {"NSR-Paging-v0-regret.png", "NSR-CyclicDigits-v0-regret.png"} <= figures


def test_regret_judges_every_environment_of_a_folder(
    mixed: Path, tmp_path: Path, call: Call
) -> None:
    folder = shutil.copytree(mixed, tmp_path / "copy")
    answer = call("regret", folder)
    assert answer.status == 0, answer.err
    assert f"Verdict on {LIVE}" in answer.out
    assert f"Verdict on {PAGING}" in answer.out
    assert "oracle the reference" in answer.text
    found = pd.read_csv(folder / "regret.csv")
    assert set(found["environment"]) == {LIVE, PAGING}
    assert set(json.loads((folder / "verdict.json").read_text())) == {LIVE, PAGING}


def test_report_shows_both_kinds_again(mixed: Path, tmp_path: Path, call: Call) -> None:
    folder = shutil.copytree(mixed, tmp_path / "copy")
    (folder / "exact.csv").unlink()
    answer = call("report", folder, "--reference", "pin")
    assert answer.status == 0, answer.err
    assert (folder / "exact.csv").exists()
    # What was asked for where it plays, the default where it does not.
    assert pd.read_csv(folder / "exact.csv")["reference"].unique().tolist() == ["pin"]
    assert "reference: oracle" in answer.out


def test_compare_takes_the_agents_that_play_the_environment(tmp_path: Path, call: Call) -> None:
    answer = call("compare", "--env", PAGING, "--runs", tmp_path, *SMALL)
    assert answer.status == 0, answer.err
    found = set(pd.read_csv(tmp_path / "compare" / "exact.csv")["agent"])
    assert found == {spec.name for spec in agent_specs("paging")}
    assert not (tmp_path / "compare" / "summary.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere"], "folder of results or environment of the suite"),
        (["NSR/Pagin-v0"], "'NSR/Paging-v0'"),
        (["nomodule:NSR/Paging-v0"], "nomodule"),
        ([PAGING, "--tasks", "3,x"], "--tasks"),
        ([PAGING, "--tasks", "1,3"], "--tasks"),
        ([PAGING, "--seeds", "0"], "--seeds"),
        ([PAGING, "--reward", "onlin"], "'online'"),
        ([PAGING, "--reference", "histori-aware"], "'history-aware'"),
        ([PAGING, "--agent", "oracle"], "'oracle'"),
        ([PAGING, "--set", "slot=2"], "'slots'"),
        ([PAGING, "--set", "num_tasks=0"], "num_tasks"),
        ([PAGING, "--name", "a/b"], "--name"),
        ([PAGING, "--tasks", "3,5"], "with --scaling only"),
        ([BLIND, "--set", "obs=classes:5", "--scaling", "--tasks", "3,6"], "classes:5"),
        ([PAGING, "--set", "slots=4", "--scaling", "--tasks", "3,4"], "above the 4 solutions"),
        ([LIVE, "--agent", "pin-one"], "--agent oracle"),
        ([LIVE, "--agent", "oracle", "--agent", "fresh", "--reference", "fresh"], "bank access"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_answered_in_one_line_and_leaves_nothing_behind(
    arguments: list[str], text: str, tmp_path: Path, call: Call
) -> None:
    answer = call("regret", *arguments, "--runs", tmp_path, "--workers", "1")
    assert is_clear(answer), answer
    assert text in answer.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_has_its_own_agents_and_seeds(mixed: Path, call: Call) -> None:
    answer = call("regret", mixed, "--seeds", "3", "--agent", "pin", "--runs", "elsewhere")
    assert is_clear(answer), answer
    assert "--agent, --seeds, --runs" in answer.text


def test_no_workers_are_refused_at_once(mixed: Path, tmp_path: Path, call: Call) -> None:
    assert is_clear(call("regret", mixed, "--workers", "0"))
    assert is_clear(call("regret", PAGING, "--runs", tmp_path, "--workers", "0"))
    assert list(tmp_path.iterdir()) == []


def test_only_what_remembers_can_be_the_reference_of_live_regret(
    mixed: Path, tmp_path: Path, call: Call
) -> None:
    answer = call("regret", mixed, "--reference", "fresh")
    assert is_clear(answer), answer
    assert "bank access" in answer.text
    # What plays the exact environment alone is its reference, and the other one is named.
    folder = shutil.copytree(mixed, tmp_path / "copy")
    answer = call("regret", folder, "--reference", "history-aware")
    assert answer.status == 0, answer.err
    assert f"history-aware does not play {LIVE}; oracle is the reference there" in answer.err
    found = pd.read_csv(folder / "regret.csv").drop_duplicates("environment")
    assert found.set_index("environment")["reference"].to_dict() == {
        LIVE: "oracle",
        PAGING: "history-aware",
    }


def test_a_folder_without_results_or_manifest_is_refused(
    mixed: Path, tmp_path: Path, call: Call
) -> None:
    answer = call("regret", tmp_path)
    assert is_clear(answer), answer
    assert "holds no finished comparison" in answer.text
    shutil.copy(mixed / "visits.parquet", tmp_path)
    answer = call("regret", tmp_path)
    assert is_clear(answer), answer
    assert "manifest.json" in answer.text
