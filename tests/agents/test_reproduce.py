"""The paper's comparisons as commands: parts, tables, bounds, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nsr_gym.agents import reproduce
from nsr_gym.agents.reproduce import EXPERIMENTS, MEMORYLESS, Part, run_experiment
from nsr_gym.errors import UnknownNameError
from nsr_gym.registry import agent_spec
from nsr_gym.report.reproduce_figure import draw_experiment

TINY: dict[str, Any] = {"cycles": 2, "learning_steps": 2, "updates": 1, "support_size": 32}


@pytest.fixture
def on_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand digits in for the image streams, which need data."""
    parts = [
        Part(
            label=f"tasks-{m}", environment="NSR/CyclicDigits-v0", columns={"M": m},
            agents=("oracle", "similarity", "fresh"), arguments={"num_tasks": m, "capacity": 2},
        )
        for m in (2, 3)
    ]  # fmt: skip
    monkeypatch.setitem(reproduce.EXPERIMENTS, "cyclic-cifar100", lambda: parts)


def test_every_experiment_names_agents_that_exist_and_parts_of_their_own() -> None:
    assert set(EXPERIMENTS) == {
        "cyclic-cifar100", "five-datasets", "controlled-study", "memory-budget",
        "class-incremental",
    }  # fmt: skip
    for make in EXPERIMENTS.values():
        parts = make()
        assert len({part.label for part in parts}) == len(parts)
        for part in parts:
            assert part.environment in (reproduce.CIFAR, reproduce.FIVE)
            for agent in part.agents:
                assert agent_spec(agent).environment_arguments("live")
    assert all(agent_spec(name).access != "bank" for name in MEMORYLESS)


def test_an_experiment_comes_to_a_summary_and_bounds(on_digits: None, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary, bounds = run_experiment(
        "cyclic-cifar100", tmp_path, seeds=(0, 1), arguments=TINY,
        note=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(1, 2), (2, 2)]
    assert set(summary["agent"]) == {"oracle", "similarity", "fresh"}
    assert summary.groupby("label")["M"].first().to_dict() == {"tasks-2": 2, "tasks-3": 3}
    assert (summary["runs"] == 2).all()
    fresh = summary[summary["agent"] == "fresh"]
    assert fresh["retained"].isna().all()  # nothing is ever recalled
    oracle = summary[summary["agent"] == "oracle"].set_index("M")
    assert np.isnan(oracle.loc[2, "dropped"])  # room for both tasks
    assert np.isnan(oracle.loc[3, "retained"])  # room for two of three in a cycle: always gone
    assert oracle.loc[2, "retained"] < oracle.loc[3, "dropped"]
    assert set(bounds["label"]) == {"tasks-2", "tasks-3"}
    assert bounds["accuracy"].between(0, 1).all()
    path = draw_experiment(summary, tmp_path / "figure.png")
    assert path.stat().st_size > 0


def test_a_part_can_be_played_alone_and_is_not_played_again(
    on_digits: None, tmp_path: Path
) -> None:
    chosen: dict[str, Any] = {
        "seeds": (0,), "arguments": TINY, "only": ["tasks-2"], "agents": ["oracle"],
    }  # fmt: skip
    first, _ = run_experiment("cyclic-cifar100", tmp_path, **chosen)
    assert set(first["label"]) == {"tasks-2"}
    assert set(first["agent"]) == {"oracle"}
    cells = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cells/*.parquet")}
    again, _ = run_experiment("cyclic-cifar100", tmp_path, **chosen)
    pd.testing.assert_frame_equal(first, again)
    assert cells == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cells/*.parquet")}


def test_names_that_do_not_exist_are_answered(on_digits: None, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="cyclic-cifar100"):
        run_experiment("cyclic-cifar", tmp_path)
    with pytest.raises(UnknownNameError, match="tasks-2"):
        run_experiment("cyclic-cifar100", tmp_path, only=["tasks-5"])


def test_parts_that_differ_in_the_bank_alone_share_their_bounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = [
        Part(label=f"capacity-{k}", environment="NSR/CyclicDigits-v0", agents=("oracle",),
             arguments={"num_tasks": 2, "capacity": k})
        for k in (1, 2)
    ]  # fmt: skip
    monkeypatch.setitem(reproduce.EXPERIMENTS, "memory-budget", lambda: parts)
    calls: list[Any] = []
    measure = reproduce.measure_bounds
    monkeypatch.setattr(
        reproduce, "measure_bounds", lambda *given: calls.append(given) or measure(*given)
    )
    _, bounds = run_experiment("memory-budget", tmp_path, seeds=(0,), arguments=TINY)
    assert len(calls) == 1
    one, two = (rows["accuracy"].to_numpy() for _, rows in bounds.groupby("label"))
    np.testing.assert_array_equal(one, two)


def test_routers_answer_after_the_last_visit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    part = Part(
        label="digits", environment="NSR/CyclicDigits-v0", agents=("oracle",),
        arguments={"num_tasks": 3}, routers=("oracle", "rls", "random"),
    )  # fmt: skip
    monkeypatch.setitem(reproduce.EXPERIMENTS, "class-incremental", lambda: [part])
    settings = {**TINY, "updates": 10}
    summary, _ = run_experiment("class-incremental", tmp_path, seeds=(0, 1), arguments=settings)
    (row,) = summary.to_dict("records")
    assert row["right.oracle"] == 1.0
    assert row["routed.oracle"] == pytest.approx(row["acc"], abs=0.02)
    assert row["routed.oracle"] >= row["routed.rls"] > row["routed.random"]
    assert row["right.rls"] > row["right.random"] == pytest.approx(1 / 3, abs=0.1)
