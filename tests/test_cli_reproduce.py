"""`nsr-gym reproduce` on digits that stand in for images: texts, files, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from console import Call, caller, is_clear

from nsr_gym.agents import reproduce, thresholds
from nsr_gym.agents.reproduce import Part

SMALL = [
    part
    for setting in ("cycles=2", "learning_steps=2", "updates=1", "support_size=32")
    for part in ("--set", setting)
]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Call:
    """Run `reproduce` in this process; results go below the test's own folder."""
    parts = [
        Part(
            label=f"tasks-{m}", environment="NSR/CyclicDigits-v0", columns={"M": m},
            agents=("oracle", "similarity", *more), arguments={"num_tasks": m},
        )
        for m, more in ((2, ("fresh",)), (3, ()))
    ]  # fmt: skip
    monkeypatch.setitem(reproduce.EXPERIMENTS, "cyclic-cifar100", lambda: parts)
    # The others project features to thousands of numbers, which takes longer than all the rest.
    monkeypatch.setattr(reproduce, "IMAGE_FLOORS", reproduce.IMAGE_FLOORS[:1])

    run = caller(monkeypatch, capsys)
    return lambda *arguments: run("reproduce", *arguments, "--runs", tmp_path)


def labels(file: Path) -> list[str]:
    return list(dict.fromkeys(pd.read_csv(file)["label"]))


def test_a_part_at_a_time_comes_to_the_tables_and_the_figure_of_all(
    call: Call, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    command = ("cyclic-cifar100", "--name", "mine", "--seeds", "1", *SMALL)
    answer = call(*command, "--part", "tasks-3")
    assert answer.status == 0, answer.err
    for text in ("cyclic-cifar100, tasks-3", "oracle", "similarity", "frozen backbone",
                 "summary.csv", "bounds.csv", "streams.csv", "cyclic-cifar100.png",
                 "task-incremental"):  # fmt: skip
        assert text in answer.text
    assert "calibrat" not in answer.text  # thresholds of the digits ship
    assert labels(folder / "summary.csv") == ["tasks-3"]
    answer = call(*command, "--part", "tasks-2")
    assert answer.status == 0, answer.err
    assert "tasks-3" not in answer.out  # what was asked for is shown, the files have all
    for name in ("summary.csv", "bounds.csv", "streams.csv"):
        assert labels(folder / name) == ["tasks-2", "tasks-3"]
    assert (folder / "cyclic-cifar100.png").read_bytes().startswith(b"\x89PNG")
    before = (folder / "summary.csv").read_bytes()
    answer = call(*command)
    assert answer.status == 0, answer.err
    assert "tasks-2" in answer.out
    assert "tasks-3" in answer.out
    assert (folder / "summary.csv").read_bytes() == before


def test_thresholds_that_do_not_ship_are_calibrated_and_that_is_said(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thresholds, "_table", lambda: {})
    command = ("cyclic-cifar100", "--part", "tasks-3", "--seeds", "1", *SMALL)
    answer = call(*command)
    assert answer.status == 0, answer.err
    assert "no thresholds ship for digits-permutation" in answer.err
    assert "calibrating those of similarity on 3 episodes of the train split" in answer.err
    assert (tmp_path / "cyclic-cifar100" / "tasks-3" / "thresholds.json").exists()
    answer = call(*command)
    assert answer.status == 0, answer.err
    assert "calibrating" not in answer.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cyclic-cifar"], "'cyclic-cifar100'"),
        (["cyclic-cifar100", "--part", "tasks-5"], "'tasks-3' or 'tasks-2'"),
        (["cyclic-cifar100", "--agent", "nonsense"], "There is no agent of cyclic-cifar100"),
        (["cyclic-cifar100", "--agent", "ppo"], "no agent of cyclic-cifar100 'ppo'"),
        (["five-datasets", "--controller", "here"], "no agent of five-datasets 'ppo'"),
        (
            ["cyclic-cifar100", "--agent", "fresh", "--part", "tasks-3"],
            "tasks-3 has oracle, similarity",
        ),
        (["cyclic-cifar100", "--workers", "0"], "--workers"),
        (["cyclic-cifar100", "--seeds", "0"], "--seeds"),
        (["cyclic-cifar100", "--set", "cycles"], "NAME=VALUE"),
        (["cyclic-cifar100", "--set", "cycels=2"], "cycels"),
        (["cyclic-cifar100", "--name", "../else"], "plain folder name"),
        (["five-datasets", "--set", "root=/nowhere"], "fetch("),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_answered_in_one_line_and_nothing_is_written(
    arguments: list[str], said: str, call: Call, tmp_path: Path
) -> None:
    answer = call(*arguments)
    assert is_clear(answer), answer
    assert said in answer.text
    assert list(tmp_path.iterdir()) == []


def test_other_settings_under_the_same_name_are_refused_and_leave_the_tables(
    call: Call, tmp_path: Path
) -> None:
    command = ("cyclic-cifar100", "--part", "tasks-2", "--agent", "oracle", *SMALL)
    assert call(*command, "--seeds", "1").status == 0
    before = (tmp_path / "cyclic-cifar100" / "summary.csv").read_bytes()
    answer = call(*command, "--seeds", "2")
    assert is_clear(answer), answer
    assert "another comparison" in answer.text
    assert (tmp_path / "cyclic-cifar100" / "summary.csv").read_bytes() == before
