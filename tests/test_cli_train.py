"""`nsr-gym train`: one command trains, goes on where it was stopped, and shows what came of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nsr_gym import cli

PAGING = "NSR/Paging-v0"
SHORT = [
    "--steps", "512", "--envs", "8", "--eval-every", "128", "--eval-episodes", "4",
    "--hyper", "n_steps=8", "--hyper", "n_epochs=2", "--set", "num_tasks=3", "--set", "cycles=2",
]  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    status: int
    out: str
    err: str


Call = Callable[..., Answer]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `nsr-gym train` in this process, as the console script does."""

    def run(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["nsr-gym", "train", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return Answer(status, " ".join(out.split()), " ".join(err.split()))

    return run


def test_seeds_are_trained_side_by_side_and_shown(call: Call, tmp_path: Path) -> None:
    answer = call(PAGING, *SHORT, "--seeds", "2", "--name", "mine", "--runs", tmp_path)
    assert answer.status == 0
    for seed in (0, 1):
        folder = tmp_path / "mine" / f"seed-{seed}"
        assert json.loads((folder / "run.json").read_text())["config"]["seed"] == seed
        for name in ("best", "last"):
            assert (folder / name / "controller.safetensors").exists()
        assert f"seed {seed}: 512 of 512 steps, validation return" in answer.err
    assert f"{tmp_path}/mine/seed-1" in answer.out
    assert "finished before" not in answer.out


def test_a_finished_run_is_shown_again(call: Call, tmp_path: Path) -> None:
    command = (PAGING, *SHORT, "--seed", "3", "--runs", tmp_path)
    first, again = call(*command), call(*command)
    assert (tmp_path / "train-ppo-Paging-v0" / "seed-3" / "run.json").exists()
    assert again.status == 0
    assert again.out.replace("finished before, nothing was trained: seed 3 ", "") == first.out
    assert again.out != first.out
    assert again.err == ""


def test_options_reach_the_run_and_flags_win_over_files(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text("default: {gamma: 0.5, ent_coef: 1e-2, n_timesteps: 1e6}\n")
    answer = call(
        PAGING, *SHORT, "--algo", "maskable-ppo", "--hyperparameters", file, "--hyper",
        "gamma=0.25", "--name", "m", "--runs", tmp_path,
    )  # fmt: skip
    assert answer.status == 0
    config = json.loads((tmp_path / "m/seed-0/run.json").read_text())["config"]
    assert config["algorithm"] == "maskable-ppo"
    assert config["steps"] == 512
    assert config["arguments"] == {"num_tasks": 3, "cycles": 2}
    values = config["hyperparameters"]
    assert (values["gamma"], values["ent_coef"], values["n_steps"]) == (0.25, 0.01, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "split=test"], "the test split stays held out"),
        (["--hyper", "gama=1"], "Did you mean 'gamma'"),
        (["--hyper", "gamma"], "Expected --hyper NAME=VALUE"),
        (["--algo", "pp0"], "Did you mean 'ppo'"),
        (["--seed", "1", "--seeds", "2"], "Expected --seed or --seeds"),
        (["--seed", "1", "--seed", "1"], "Expected each --seed once"),
        (["--name", "../up"], "plain folder name"),
        (["--hyperparameters", "nowhere.yml"], "nowhere.yml"),
    ],
)
def test_mistakes_are_one_clear_line_and_leave_nothing(
    call: Call, tmp_path: Path, options: list[str], message: str
) -> None:
    answer = call(PAGING, *SHORT, *options, "--runs", tmp_path / "runs")
    assert answer.status == 2
    assert answer.err.startswith("error: ")
    assert message in answer.err
    assert not (tmp_path / "runs").exists()


def test_another_run_under_the_same_name_is_refused(call: Call, tmp_path: Path) -> None:
    call(PAGING, *SHORT, "--runs", tmp_path)
    answer = call(PAGING, *SHORT, "--hyper", "gamma=0.5", "--runs", tmp_path)
    assert answer.status == 2
    assert "holds another run (hyperparameters: " in answer.err


def test_a_stopped_command_says_so_and_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [shutil.which("nsr-gym", path=Path(sys.executable).parent) or "nsr-gym", "train"]
    command += [PAGING, *SHORT, "--runs", str(tmp_path)]
    command[command.index("512")] = "8192"
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline().startswith("seed 0: 128 of 8,192 steps")
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; the same command goes on where it was." in rest
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "seed 0: 8,192 of 8,192 steps" in again.stderr
    assert "seed 0: 128 of 8,192 steps" not in again.stderr, "what was made is not made again"
