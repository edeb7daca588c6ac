"""A run of training that was stopped and begun again equals the run that was not stopped."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from nsr_gym.agents import training
from nsr_gym.agents.algorithms import ALGORITHMS
from nsr_gym.agents.training import TrainingConfig, TrainingResult, train
from nsr_gym.agents.training_log import PROGRESS
from nsr_gym.agents.training_run import STATE
from nsr_gym.errors import FileFormatError, StateError
from nsr_gym.files import TEMPORARY

PAGING = "NSR/Paging-v0"
LIVE, RECORDED = "NSR/CyclicDigits-v0", "NSR/CyclicDigitsRecorded-v0"
PLACES: dict[str, Any] = {"num_tasks": 3, "cycles": 3, "slots": 2, "bank": 1}
FEW: dict[str, dict[str, Any]] = {
    "dqn": {
        "learning_starts": 100, "batch_size": 16, "buffer_size": 300, "n_steps": 2,
        "target_update_interval": 40, "exploration_fraction": 1.0, "exploration_final_eps": 0.5,
    },
    "a2c": {"n_steps": 4},
}  # fmt: skip
"""Of learners beside PPO. The replay buffer is filled more than once, returns reach over several
steps, the target network is updated out of step with the segments, and exploration never ends."""

SEGMENT = 128


def config(algorithm: str = "ppo", **more: Any) -> TrainingConfig:
    """Return four segments of 128 steps of 8 environments; episodes have 9 steps."""
    few = FEW.get(algorithm, {"n_steps": 8, "batch_size": 32, "n_epochs": 2})
    values = {"learning_rate": "lin_1e-2", **few}
    chosen = {"steps": 4 * SEGMENT, "eval_every": SEGMENT, "envs": 8, "eval_episodes": 4} | more
    return TrainingConfig.from_files(
        PAGING, algorithm=algorithm, hyperparameters=values, arguments=dict(PLACES), **chosen
    )


class Stopped(Exception):
    """Stands for whatever ends a process."""


def stop_at(steps: int) -> Callable[[int, int, Mapping[str, float] | None], None]:
    """Return what stops a run once it has made that many steps."""

    def progress(made: int, total: int, score: Mapping[str, float] | None) -> None:
        if made >= steps:
            raise Stopped

    return progress


def controllers(folder: Path) -> dict[str, Any]:
    """Return all tensors of the best and the last controller."""
    found = {
        f"{name}/{key}": tensor
        for name in ("best", "last")
        for key, tensor in load_file(folder / name / "controller.safetensors").items()
    }
    assert len(found) > 10
    return found


def rows(folder: Path) -> pd.DataFrame:
    """Return the log without what a clock says."""
    return pd.read_csv(folder / PROGRESS).drop(columns="seconds")


def assert_same_run(one: Path, other: Path) -> None:
    theirs = controllers(other)
    ours = controllers(one)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor == theirs[name]).all(), name
    pd.testing.assert_frame_equal(rows(one), rows(other), check_exact=True)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_stopped_and_resumed_equals_the_run_not_stopped(
    algorithm: str, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = train(config(algorithm), whole)
    # Once at the end of a segment, once within one, which is then begun anew.
    for steps in (SEGMENT, 2 * SEGMENT + 1):
        with pytest.raises(Stopped):
            train(config(algorithm), parts, progress=stop_at(steps))
        assert (parts / STATE).exists()
    resumed = train(config(algorithm), parts)
    assert resumed.trained == 2 * SEGMENT
    assert resumed.scores == result.scores
    assert_same_run(parts, whole)


@pytest.mark.parametrize(
    ("environment", "network"), [(LIVE, "mlp"), (RECORDED, "pointer")], ids=["live", "recorded"]
)
def test_runs_on_digits_go_on_exactly_too(
    environment: str, network: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    chosen = TrainingConfig.from_files(
        environment,
        network=network,
        hyperparameters={"n_steps": 8, "n_epochs": 1},
        arguments=dict(tiny) if environment == LIVE else {"num_tasks": 3, "cycles": 2},
        steps=64,
        eval_every=32,
        envs=4,
        eval_episodes=2,
    )
    train(chosen, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(chosen, tmp_path / "parts", progress=stop_at(32))
    assert train(chosen, tmp_path / "parts").trained == 32
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(config(seed=seed), tmp_path / str(seed))
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "0", tmp_path / "1")


def test_training_twice_gives_the_same_parameters(tmp_path: Path) -> None:
    for name in ("first", "again"):
        train(config(), tmp_path / name)
    assert_same_run(tmp_path / "first", tmp_path / "again")


def test_how_often_it_is_evaluated_does_not_reach_the_learner(tmp_path: Path) -> None:
    for episodes in (1, 6):
        train(config(eval_episodes=episodes), tmp_path / str(episodes))
    ours, theirs = (load_file(tmp_path / n / "last/controller.safetensors") for n in ("1", "6"))
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_a_killed_process_goes_on_exactly(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from test_training_resume import config, train\n"
        "train(config(), Path(sys.argv[1]), "
        "progress=lambda made, total, score: print(made, flush=True))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "killed")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if int(line) > SEGMENT:
                process.send_signal(signal.SIGKILL)
                break
    assert process.wait() == -signal.SIGKILL
    assert train(config(), tmp_path / "killed").trained > 0
    train(config(), tmp_path / "whole")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_run_killed_before_its_end_was_written_down_is_finished_without_training(
    tmp_path: Path,
) -> None:
    with pytest.raises(Stopped):
        train(config(), tmp_path / "run", progress=stop_at(4 * SEGMENT))
    result = train(config(), tmp_path / "run")
    assert result.trained == 0
    assert result.scores["last"]["steps"] == 4 * SEGMENT
    assert not (tmp_path / "run" / STATE).exists()


def test_a_finished_run_is_shown_and_not_repeated(tmp_path: Path) -> None:
    first = train(config(), tmp_path)
    before = controllers(tmp_path)

    def never(*_: Any) -> None:
        raise AssertionError("nothing is trained")

    again = train(config(), tmp_path, progress=never)
    assert again == TrainingResult(folder=tmp_path, scores=first.scores, trained=0)
    assert all((controllers(tmp_path)[name] == part).all() for name, part in before.items())


def test_what_another_process_finished_meanwhile_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):
        train(config(), tmp_path, progress=stop_at(2 * SEGMENT))
    build, results = training.build_model, []

    def overtaken(*arguments: Any, **more: Any) -> Any:
        monkeypatch.setattr(training, "build_model", build)
        results.append(train(config(), tmp_path))
        return build(*arguments, **more)

    monkeypatch.setattr(training, "build_model", overtaken)
    late = train(config(), tmp_path)
    assert results[0].trained > 0
    assert late.trained == 0
    assert late.scores == results[0].scores


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(config(), tmp_path, progress=stop_at(2 * SEGMENT))
    for part in (tmp_path, tmp_path / "best", tmp_path / "last"):
        (part / f"{TEMPORARY}x").touch()
    train(config(), tmp_path)
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))


def test_another_configuration_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    train(config(), tmp_path)
    with pytest.raises(StateError, match=r"steps: 512 there, 1024 now"):
        train(config(steps=1024), tmp_path)
    with pytest.raises(StateError, match=r"seed: 0 there, 3 now"):
        train(config(seed=3), tmp_path)


def test_a_run_that_failed_at_once_binds_nobody(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(config(), tmp_path / "run", progress=stop_at(0))
    assert train(config(seed=1), tmp_path / "run").trained == 4 * SEGMENT


def test_another_installation_does_not_go_on_with_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):
        train(config(), tmp_path, progress=stop_at(SEGMENT))
    from nsr_gym.agents import training

    monkeypatch.setattr(training, "installation", lambda *more: {"torch": "0.1"})
    with pytest.raises(StateError, match="another installation"):
        train(config(), tmp_path)


def test_a_damaged_or_foreign_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(config(), tmp_path, progress=stop_at(SEGMENT))
    content = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(content[: len(content) // 2])
    with pytest.raises(FileFormatError, match="cannot be read as the state"):
        train(config(), tmp_path)
    save_file(load_file(tmp_path / "last/controller.safetensors"), tmp_path / STATE)
    with pytest.raises(FileFormatError, match="cannot be read as the state"):
        train(config(), tmp_path)
    (tmp_path / STATE).write_bytes(content.replace(b'\\"format\\": 1', b'\\"format\\": 7'))
    with pytest.raises(FileFormatError, match="format 1; got 7"):
        train(config(), tmp_path)
    (tmp_path / STATE).write_bytes(content)
    assert train(config(), tmp_path).trained == 3 * SEGMENT


def test_a_state_of_another_network_does_not_fit(tmp_path: Path) -> None:
    for name, width in (("a", [8]), ("b", [16])):
        chosen = dataclasses.replace(config(), hyperparameters={"net_arch": width, "n_steps": 8})
        with pytest.raises(Stopped):
            train(chosen, tmp_path / name, progress=stop_at(SEGMENT))
    (tmp_path / "a" / STATE).replace(tmp_path / "b" / STATE)
    with pytest.raises(FileFormatError, match="does not fit the learner"):
        train(chosen, tmp_path / "b")


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    refusals = []

    def second(made: int, total: int, score: Mapping[str, float] | None) -> None:
        if made == SEGMENT:
            with pytest.raises(StateError, match="Another process") as refused:
                train(config(), tmp_path)
            refusals.append(refused)

    train(config(), tmp_path, progress=second)
    assert refusals
