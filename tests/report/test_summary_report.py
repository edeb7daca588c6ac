from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nsr_gym.report.figures import draw_figures
from nsr_gym.report.style import line_styles, spread
from nsr_gym.report.summary import summarise
from nsr_gym.report.terminal import render_summary

MakeTable = Callable[..., pd.DataFrame]


def text(summary: pd.DataFrame, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render_summary(summary))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def by_agent(summary: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {str(row["agent"]): dict(row) for _, row in summary.iterrows()}


@pytest.fixture(scope="module")
def summary(full_table: pd.DataFrame) -> pd.DataFrame:
    return summarise(full_table)


def test_one_row_per_agent_with_the_values_of_the_table(
    summary: pd.DataFrame, full_table: pd.DataFrame
) -> None:
    assert sorted(summary["agent"]) == sorted(full_table["agent"].unique())
    rows = by_agent(summary)
    per_seed = full_table[full_table["agent"] == "greedy"].groupby("seed")["reward_online"].mean()
    low, high = per_seed.min(), per_seed.max()
    assert low <= rows["greedy"]["online_low"] <= rows["greedy"]["online"]
    assert rows["greedy"]["online"] <= rows["greedy"]["online_high"] <= high
    assert (summary["online"].diff().dropna() <= 0).all()
    assert rows["oracle"]["regret"] == 0
    assert rows["fresh"]["ratio"] == pytest.approx(50 / 54, abs=0.02)
    assert rows["similarity"]["recovery_median"] == 0
    assert math.isinf(rows["uniform"]["recovery_median"])
    assert rows["uniform"]["recovery_tries"] == pytest.approx(16, abs=0.1)
    # By its own standard the agent that learns least recovers about as fast as the others.
    assert rows["uniform"]["own_recovery_tries"] < 12
    assert rows["oracle"]["bytes_per_task"] == 12_288


def test_no_bwt_ratio_where_a_bwt_is_exactly_zero(summary: pd.DataFrame) -> None:
    assert (summary.loc[summary["agent"] == "oracle", "bwt"] == 0).all()
    assert summary["bwt_ratio"].isna().all()
    assert "exactly 0: values are given and no ratio" in text(summary)


def test_the_terminal_tables_fit_120_columns_and_state_their_conditions(
    summary: pd.DataFrame,
) -> None:
    shown = text(summary)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 120
    for fact in ("T = 6 cycles", "M = 10 tasks", "L = 15", "10 runs", "Delta_switch", "> 15"):
        assert fact in shown
    assert "0.833" in shown  # (C-1)/C
    assert "0.926" in shown  # (C-1)M / (C(M-1))


def test_without_the_reference_the_rest_is_shown_and_a_line_says_why(
    make_table: MakeTable, tmp_path: Path
) -> None:
    rows = make_table(agents=("similarity", "greedy"), seeds=2, cycles=2)
    summary = summarise(rows)
    for name in ("difference", "regret", "ratio", "recovery_tries", "delta_switch"):
        assert summary[name].isna().all()
    assert summary["own_recovery_tries"].notna().all()
    assert "'oracle' is not in the table" in text(summary)
    names = [file.name for file in draw_figures(rows, tmp_path)]
    assert names == ["NSR-CyclicDigits-v0-accuracy.png", "NSR-CyclicDigits-v0-recovery.png"]


def test_partial_tables_pair_on_common_seeds_and_say_how_many(make_table: MakeTable) -> None:
    rows = make_table(agents=("oracle", "greedy", "fresh"), seeds={"greedy": 2, "fresh": 3})
    summary = summarise(rows)
    assert by_agent(summary)["greedy"]["paired_runs"] == 2
    shown = text(summary)
    assert "2 to 10 runs per agent" in shown
    assert "greedy: 2 of the reference's 10 seeds." in " ".join(shown.split())


def test_one_run_has_values_and_no_intervals(make_table: MakeTable) -> None:
    summary = summarise(make_table(agents=("oracle", "greedy", "fresh"), seeds=1, cycles=2))
    assert summary["online"].notna().all()
    assert summary["online_low"].isna().all()
    assert "(no interval)" in text(summary)


def test_streams_without_returns_and_with_one_task_are_reported(
    make_table: MakeTable, tmp_path: Path
) -> None:
    once = make_table(agents=("oracle", "greedy"), seeds=2, cycles=1)
    shown = text(summarise(once))
    assert "No task returns" in shown
    assert len(draw_figures(once, tmp_path / "once")) == 2

    one = make_table(agents=("oracle", "pin-one", "fresh"), seeds=2, num_tasks=1)
    summary = summarise(one)
    assert summary["bwt"].isna().all()
    assert summary["ratio"].isna().all()
    assert "One task" in text(summary)
    assert len(draw_figures(one, tmp_path / "one")) == 3


def test_environments_are_kept_apart(make_table: MakeTable) -> None:
    small = {"agents": ("oracle", "fresh"), "seeds": 2, "cycles": 2}
    rows = pd.concat(
        [make_table(**small), make_table(**small, num_tasks=3, environment="NSR/Other-v0")]
    )
    summary = summarise(rows)
    assert summary.groupby("environment")["num_tasks"].unique().map(list).to_dict() == {
        "NSR/CyclicDigits-v0": [10],
        "NSR/Other-v0": [3],
    }


def test_a_parquet_round_trip_changes_nothing(make_table: MakeTable, tmp_path: Path) -> None:
    rows = make_table(agents=("oracle", "fresh"), seeds=2, cycles=2)
    rows.to_parquet(tmp_path / "table.parquet")
    read = pd.read_parquet(tmp_path / "table.parquet")
    pd.testing.assert_frame_equal(summarise(rows), summarise(read))


def test_figures_are_png_files(full_table: pd.DataFrame, tmp_path: Path) -> None:
    files = draw_figures(full_table, tmp_path / "new" / "folder", reward="post_task")
    assert len(files) == 3
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_no_two_agents_look_alike_and_access_shows_without_colour(
    full_table: pd.DataFrame,
) -> None:
    access = dict(zip(full_table["agent"], full_table["access"], strict=True))
    styles = line_styles(access, "oracle")
    assert len({(s.colour, s.dashes) for s in styles.values()}) == len(access)
    by_access = {
        kind: {styles[a].dashes for a in access if access[a] == kind}
        for kind in set(access.values())
    }
    assert all(len(dashes) == 1 for dashes in by_access.values())
    assert len(set.union(*by_access.values())) == 3


@given(st.lists(st.floats(0, 1), min_size=1, max_size=15).map(sorted))
def test_labels_never_overlap_and_stay_in_order(wanted: list[float]) -> None:
    placed = np.array(spread(wanted, 0.05))
    assert (np.diff(placed) >= 0.05 - 1e-9).all()
    assert placed.min() >= -1e-9
    assert placed.max() <= 1 + 1e-9


def test_the_conventions_table_has_a_row_for_each_episode(make_table: MakeTable) -> None:
    from nsr_gym.metrics.conventions import conventions

    table = make_table(agents=("oracle", "fresh"), num_tasks=4, cycles=2, seeds=3)
    found = conventions(table)
    assert len(found) == 2 * 3
    assert {"acc", "bwt_gem", "fwt_gem", "forgetting_coda"} <= set(found.columns)
    assert found.drop(columns=["environment", "agent", "seed"]).notna().all().all()
