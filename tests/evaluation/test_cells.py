"""Cells are picklable units of work with a stable key; their files are whole or not there."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nsr_gym.errors import FileFormatError
from nsr_gym.evaluation.cells import Cell, ResultFolder, read_parquet, write_parquet

CELL: dict[str, Any] = {
    "environment": "NSR/CyclicDigits-v0",
    "agent": "greedy",
    "seeds": (0, 1),
    "arguments": {"num_tasks": 3, "cycles": 2, "ranks": [1, 2]},
}


def test_a_cell_survives_pickling_and_runs_by_itself(tiny: dict[str, Any]) -> None:
    cell = Cell(**CELL | {"arguments": tiny})
    again = pickle.loads(pickle.dumps(cell))
    assert again == cell
    assert again.key == cell.key
    table = again.run()
    assert set(table["seed"]) == {0, 1}
    assert set(table["agent"]) == {"greedy"}


def test_a_key_is_the_same_in_every_process() -> None:
    code = f"from nsr_gym.evaluation.cells import Cell\nprint(Cell(**{CELL!r}).key)"
    for hash_seed in ("0", "1"):
        there = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": hash_seed},
        )  # fmt: skip
        assert there.stdout.strip() == Cell(**CELL).key


def test_a_key_does_not_depend_on_the_order_of_arguments() -> None:
    arguments = dict(reversed(CELL["arguments"].items()))
    assert Cell(**CELL | {"arguments": arguments}).key == Cell(**CELL).key


@pytest.mark.parametrize(
    "other",
    [
        {"environment": "NSR/Other-v0"},
        {"agent": "fresh"},
        {"seeds": (0, 2)},
        {"seeds": (0, 5, 1)},
        {"arguments": {"num_tasks": 4, "cycles": 2, "ranks": [1, 2]}},
        {"agent_arguments": {"threshold": 0.5}},
    ],
    ids=str,
)
def test_every_part_of_a_cell_is_in_its_key(other: dict[str, Any]) -> None:
    assert Cell(**CELL | other).key != Cell(**CELL).key


def test_a_key_is_a_file_name(tmp_path: Path) -> None:
    key = Cell(**CELL).key
    assert Path(key).name == key
    (tmp_path / key).touch()


def test_a_folder_knows_the_finished_cells(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    cells = [Cell(**CELL | {"seeds": (i,)}) for i in range(3)]
    rows = pd.DataFrame({"seed": [1], "curve": [[0.1, 0.2]]})
    folder.write_cell(cells[1], rows)
    assert folder.finished(cells) == {cells[1].key}
    pd.testing.assert_frame_equal(folder.table([cells[1]])[["seed"]], rows[["seed"]])


def test_leftovers_of_a_killed_run_are_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    folder.write_cell(Cell(**CELL), pd.DataFrame({"seed": [1]}))
    for name in (".tmp-abc", "cells/.tmp-def"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    folder.remove_leftovers()
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert left == [f"cells/{Cell(**CELL).key}.parquet", "notes.txt"]


def test_a_write_that_fails_leaves_the_previous_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "visits.parquet"
    write_parquet(path, pd.DataFrame({"a": [1]}))
    with pytest.raises(Exception, match="a"):
        write_parquet(path, pd.DataFrame({"a": [object()]}))
    assert read_parquet(path)["a"].tolist() == [1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not a table at all", None], ids=str)
def test_a_file_that_is_no_table_is_refused_by_name(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "visits.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"visits\.parquet"):
        read_parquet(path)


def test_a_table_cut_short_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "visits.parquet"
    write_parquet(path, pd.DataFrame({"a": range(1000)}))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FileFormatError, match=r"visits\.parquet"):
        read_parquet(path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1, 2]", b'"text"', b"3"], ids=repr)
def test_a_damaged_manifest_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(FileFormatError, match=r"manifest\.json"):
        ResultFolder(tmp_path).read_manifest()


def test_a_manifest_is_plain_json(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    assert folder.read_manifest() is None
    folder.write_manifest({"b": [1], "a": "x"})
    assert folder.read_manifest() == json.loads((tmp_path / "manifest.json").read_text())
