"""The comparison of systems: every system, its answers, its bounds, and the verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from nsr_gym.agents.systems import NAMES, SYSTEMS, TESTED, run_systems
from nsr_gym.bank.kinds import BANKS
from nsr_gym.cli import app
from nsr_gym.errors import DataError, UnknownNameError
from nsr_gym.learning.kinds import LEARNERS
from nsr_gym.report.systems import summarise_systems

SMALL: dict[str, Any] = {
    "num_tasks": 3, "cycles": 1, "learning_steps": 2, "updates": 1, "support_size": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("systems")
    return run_systems(
        folder, families=["Cyclic"], systems=["lora", "inflora", "sequential"],
        routers=["rls", "random"], seeds=range(3), arguments=SMALL,
    )  # fmt: skip


def test_every_learner_and_every_bank_stands_in_the_table() -> None:
    assert {system.learner for system in SYSTEMS} == set(LEARNERS)
    assert {system.bank for system in SYSTEMS} == set(BANKS)
    assert len(set(NAMES)) == len(NAMES)


def test_every_system_answers_with_the_task_known_and_by_every_router(rows: pd.DataFrame) -> None:
    answers = rows.groupby("system")["answer"].unique().map(set)
    assert answers["lora"] == {"task known", "rls", "random"}
    assert answers["inflora"] == answers["sequential"] == {"one model"}
    assert answers["random projection + ridge, lower features"] == {"task known", "one for all"}
    assert (rows.groupby(["system", "answer"])["seed"].nunique() == 3).all()
    means = rows.groupby(["system", "answer"])["accuracy"].mean()
    assert means["lora", "rls"] > means["lora", "random"]
    lora = rows[rows["system"] == "lora"]
    assert (lora["forgetting"] == 0.0).all()  # entries apart forget nothing
    assert lora[lora["answer"] == "rls"]["right"].min() > 0.9


def test_a_finished_comparison_is_not_made_again(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "families": ["Cyclic"], "systems": ["lora"], "routers": ["ncm"], "seeds": range(2),
        "arguments": SMALL,
    }  # fmt: skip
    first = run_systems(tmp_path, **arguments)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cells/*.parquet")}
    again = run_systems(tmp_path, **arguments)
    pd.testing.assert_frame_equal(first, again)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cells/*.parquet")}


def test_verdicts_follow_the_paired_differences_to_the_stronger_floor(rows: pd.DataFrame) -> None:
    table = summarise_systems(rows).set_index(["system", "answer"])
    assert (table["runs"] == 3).all()
    lora = table.loc["lora", "rls"]
    floors = table[table["verdict"].notna()].loc[
        ["random projection + ridge, lower features", "random projection + ridge, final features"]
    ]
    best = floors.xs("one for all", level="answer")["accuracy"].idxmax()
    assert lora["floor"] == best
    assert lora["to_floor"] == pytest.approx(
        lora["accuracy"] - table.loc[(best, "one for all"), "accuracy"]
    )
    assert lora["verdict"] == "below"
    assert table.loc[(best, "one for all"), "verdict"] == "open"
    less = table.loc["lora", "rls"]["less_forgetting"]
    assert less == pytest.approx(table.loc["sequential", "one model"]["forgetting"])
    assert np.isnan(table.loc["frozen backbone", "one model"]["forgetting"])


def test_a_comparison_without_its_bounds_is_refused(rows: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="bounds"):
        summarise_systems(rows[~rows["system"].str.startswith("random projection")])
    with pytest.raises(DataError, match="all streams"):
        summarise_systems(rows[(rows["system"] != "lora") | (rows["seed"] < 2)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"systems": ["infloar"]}, "inflora"),
        ({"families": ["Cyclical"]}, "Cyclic"),
        ({"routers": ["rsl"]}, "rls"),
    ],
)
def test_names_that_do_not_exist_are_answered(
    arguments: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UnknownNameError, match=words):
        run_systems(tmp_path, **arguments)


def test_the_command_writes_table_rows_and_figure(tmp_path: Path) -> None:
    settings = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    result = CliRunner().invoke(
        app,
        ["systems", "--name", "mine", "--runs", str(tmp_path), "--family", "Aliased", "--system",
         "lora", "--system", "sequential", "--router", "cosine", "--seeds", "2", "--workers", "1",
         *settings],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for name in ("systems.csv", "episodes.csv", "systems.png"):
        assert (tmp_path / "mine" / name).stat().st_size > 0
    assert "sequential" in result.output
    assert "below" in result.output
    assert "cosine" in TESTED
