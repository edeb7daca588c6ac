"""`run` plays every cell once, resumes after a kill, and refuses to mix or overwrite."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nsr_gym.errors import (
    FileFormatError,
    InvalidValueError,
    NsrGymError,
    StateError,
    UnknownNameError,
)
from nsr_gym.evaluation.cells import ResultFolder
from nsr_gym.evaluation.compare import Comparison, load, run

ENV = "NSR/CyclicDigits-v0"
ARGUMENTS = {"num_tasks": 2, "cycles": 2, "learning_steps": 2, "updates": 1, "split": "test"}
CHOSEN: dict[str, Any] = {
    "environments": (ENV,),
    "agents": ("oracle", "greedy"),
    "seeds": (0, 1, 2),
    "arguments": ARGUMENTS,
    "block": 2,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """An uninterrupted run in this process."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, run(Comparison(**CHOSEN), folder, workers=1)


def assert_same_table(a: pd.DataFrame, b: pd.DataFrame) -> None:
    """Compare tables but for the run's name and the seconds it took."""
    assert list(a.columns) == list(b.columns)
    assert len(a) == len(b)
    for column in a.columns:
        if column in ("run", "seconds"):
            continue
        if column in ("curve", "retention", "baseline"):
            np.testing.assert_allclose(
                np.stack(a[column]), np.stack(b[column]), rtol=0, atol=1e-6, err_msg=column
            )
        elif a[column].dtype.kind == "f":
            np.testing.assert_allclose(a[column], b[column], rtol=0, atol=1e-6, err_msg=column)
        else:
            assert a[column].tolist() == b[column].tolist(), column


def stamps(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (folder / "cells").iterdir()}


def copy_of(finished: tuple[Path, pd.DataFrame], tmp_path: Path, name: str = "copy") -> Path:
    import shutil

    return Path(shutil.copytree(finished[0], tmp_path / name))


def test_a_comparison_is_cut_into_cells() -> None:
    cells = Comparison(**CHOSEN).cells()
    assert [(cell.agent, cell.seeds) for cell in cells] == [
        ("oracle", (0, 1)), ("oracle", (2,)), ("greedy", (0, 1)), ("greedy", (2,)),
    ]  # fmt: skip
    assert len({cell.key for cell in cells}) == 4


def test_the_table_holds_every_agent_and_seed_in_order(
    finished: tuple[Path, pd.DataFrame],
) -> None:
    folder, table = finished
    assert table.columns[0] == "run"
    assert set(table["run"]) == {"whole"}
    assert table[["agent", "seed", "visit"]].to_numpy().tolist() == [
        [agent, seed, visit]
        for agent in ("oracle", "greedy") for seed in range(3) for visit in range(4)
    ]  # fmt: skip
    assert_same_table(load(folder), table)


def test_the_manifest_says_what_was_run(finished: tuple[Path, pd.DataFrame]) -> None:
    folder, table = finished
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["finished"] is True
    assert manifest["comparison"]["seeds"] == [0, 1, 2]
    assert manifest["comparison"]["arguments"] == ARGUMENTS
    text = json.dumps(manifest)
    for package in ("nsr-gym", "torch", "gymnasium", "numpy", "python"):
        assert package in text
    expected = {str(s): h for s, h in zip(table["seed"], table["stream_hash"], strict=True)}
    assert manifest["streams"] == {ENV: expected}


def test_nothing_half_written_stays_behind(finished: tuple[Path, pd.DataFrame]) -> None:
    assert not [file for file in finished[0].rglob(".tmp*")]
    assert len(list((finished[0] / "cells").iterdir())) == 4


def test_two_processes_make_the_same_table(
    finished: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    seen = np.zeros(2, dtype=int)

    def progress(visits: int, cells: int) -> None:
        seen[:] += visits, cells

    table = run(Comparison(**CHOSEN), tmp_path / "two", workers=2, progress=progress)
    assert_same_table(table, finished[1])
    assert seen.tolist() == [2 * 3 * 4, 4]


def test_a_finished_run_is_shown_and_not_run_again(
    finished: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, table = finished
    before = stamps(folder)
    monkeypatch.setattr("nsr_gym.evaluation.cells.Cell.run", None)
    assert_same_table(run(Comparison(**CHOSEN), folder, workers=1), table)
    assert stamps(folder) == before


KILLED = """
import sys, time
from pathlib import Path
from nsr_gym.evaluation.compare import Comparison, run

finished = 0

def progress(visits, cells):
    global finished
    finished += cells
    if finished == 2 and visits:
        print("in the middle of the third cell", flush=True)
        time.sleep(600)

run(Comparison(**{chosen!r}), Path(sys.argv[1]), workers=1, progress=progress)
"""


def test_a_killed_run_repeats_no_finished_cell_and_loses_none(
    finished: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    code = KILLED.format(chosen=CHOSEN)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "third cell" in process.stdout.readline()
        process.kill()
    before = stamps(folder)
    assert len(before) == 2
    with pytest.raises(FileFormatError):
        load(folder)
    # What a kill in the middle of a write would leave.
    (folder / "cells" / ".tmp-half").write_bytes(b"PAR1")
    (folder / ".tmp-half").write_bytes(b"{")
    assert json.loads((folder / "manifest.json").read_text())["finished"] is False

    table = run(Comparison(**CHOSEN), folder, workers=1)
    after = stamps(folder)
    assert {name: after[name] for name in before} == before
    assert len(after) == 4
    assert_same_table(table, finished[1])
    assert not list(folder.rglob(".tmp*"))


def test_a_run_killed_before_its_manifest_was_there_begins_anew(tmp_path: Path) -> None:
    (tmp_path / ".tmp-half").write_bytes(b"{")
    comparison = Comparison(**CHOSEN | {"agents": ("greedy",), "seeds": (0,)})
    assert len(run(comparison, tmp_path, workers=1)) == 4
    assert not list(tmp_path.rglob(".tmp*"))


@pytest.mark.parametrize(
    "other",
    [
        {"agents": ("oracle",)},
        {"seeds": (0, 1)},
        {"arguments": ARGUMENTS | {"cycles": 3}},
        {"arguments": ARGUMENTS | {"split": "train"}},
    ],
    ids=str,
)
def test_results_of_another_comparison_are_not_mixed(
    other: dict[str, Any], finished: tuple[Path, pd.DataFrame]
) -> None:
    folder, _ = finished
    before = stamps(folder), (folder / "manifest.json").read_bytes()
    with pytest.raises(StateError, match="nothing was overwritten"):
        run(Comparison(**CHOSEN | other), folder, workers=1)
    assert (stamps(folder), (folder / "manifest.json").read_bytes()) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(StateError, match="not empty"):
        run(Comparison(**CHOSEN), tmp_path, workers=1)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_resuming_can_be_forbidden(finished: tuple[Path, pd.DataFrame]) -> None:
    with pytest.raises(StateError, match="already"):
        run(Comparison(**CHOSEN), finished[0], workers=1, resume=False)


@pytest.mark.parametrize("damage", ["cut short", "foreign", "empty"])
def test_a_damaged_cell_is_named_and_repeated_once_it_is_deleted(
    damage: str, finished: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    folder = copy_of(finished, tmp_path)
    victim = sorted((folder / "cells").iterdir())[0]
    whole = victim.read_bytes()
    victim.write_bytes({"cut short": whole[:-30], "foreign": b"text", "empty": b""}[damage])
    with pytest.raises(FileFormatError, match=victim.name.replace(".", r"\.")):
        run(Comparison(**CHOSEN), folder, workers=1)
    kept = {name: stamp for name, stamp in stamps(folder).items() if name != victim.name}
    victim.unlink()
    assert_same_table(run(Comparison(**CHOSEN), folder, workers=1), finished[1])
    after = stamps(folder)
    assert {name: after[name] for name in kept} == kept


def test_a_damaged_manifest_is_named(finished: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    folder = copy_of(finished, tmp_path)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"manifest\.json"):
        run(Comparison(**CHOSEN), folder, workers=1)


def test_two_runs_do_not_work_in_one_folder(
    finished: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    pytest.importorskip("fcntl")
    folder = copy_of(finished, tmp_path)
    with ResultFolder(folder).lock(), pytest.raises(StateError, match="Another process"):
        run(Comparison(**CHOSEN), folder, workers=1)
    assert_same_table(run(Comparison(**CHOSEN), folder, workers=1), finished[1])


@pytest.mark.parametrize(
    ("wrong", "workers"),
    [
        ({"arguments": {"num_task": 2}}, 1),
        ({"arguments": {"num_tasks": 0}}, 1),
        ({"arguments": {"num_tasks": 10_000}}, 1),
        ({"arguments": {"split": "validation"}}, 1),
        ({}, 0),
    ],
    ids=str,
)
def test_a_comparison_that_cannot_run_leaves_nothing_behind(
    wrong: dict[str, Any], workers: int, tmp_path: Path
) -> None:
    # Or the corrected command would be refused: the folder would hold another comparison.
    with pytest.raises(NsrGymError):
        run(Comparison(**CHOSEN | wrong), tmp_path / "new", workers=workers)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"environments": ("NSR/CyclicDigit-v0",)}, UnknownNameError, "'NSR/CyclicDigits-v0'"),
        ({"environments": ("CartPole-v1",)}, NsrGymError, "CartPole"),
        ({"environments": ()}, InvalidValueError, "environments"),
        ({"agents": ("greedi",)}, UnknownNameError, "'greedy'"),
        ({"agents": ()}, InvalidValueError, "agents"),
        ({"agents": ("greedy", "greedy")}, InvalidValueError, "each once"),
        ({"seeds": ()}, InvalidValueError, "seeds"),
        ({"seeds": (1, 1)}, InvalidValueError, "each once"),
        ({"seeds": (-1,)}, InvalidValueError, "negative"),
        ({"block": 0}, InvalidValueError, "block"),
        ({"arguments": {"access": "bank"}}, InvalidValueError, "access"),
        ({"arguments": {"observe_task_id": True}}, InvalidValueError, "observe_task_id"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_a_comparison_is_checked_before_anything_runs(
    wrong: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        Comparison(**CHOSEN | wrong)


def test_loading_where_nothing_is_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="nowhere"):
        load(tmp_path / "nowhere")
