"""The paper's comparisons as commands: parts, tables, bounds, and resuming."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nsr_gym.agents import reproduce
from nsr_gym.agents.reproduce import (
    EXPERIMENTS,
    MEMORYLESS,
    Part,
    part_labels,
    run_experiment,
)
from nsr_gym.agents.reproduce_files import gather, read_part, write_gathered
from nsr_gym.errors import FileFormatError, InvalidValueError, StateError, UnknownNameError
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


@pytest.fixture
def few_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out bounds on projected features, which take longer than all the rest."""
    monkeypatch.setattr(reproduce, "IMAGE_FLOORS", reproduce.IMAGE_FLOORS[:1])


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
    summary, bounds, _ = run_experiment(
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
    first, *_ = run_experiment("cyclic-cifar100", tmp_path, **chosen)
    assert set(first["label"]) == {"tasks-2"}
    assert set(first["agent"]) == {"oracle"}
    cells = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cells/*.parquet")}
    again, *_ = run_experiment("cyclic-cifar100", tmp_path, **chosen)
    pd.testing.assert_frame_equal(first, again)
    assert cells == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cells/*.parquet")}


def test_names_that_do_not_exist_are_answered(on_digits: None, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="cyclic-cifar100"):
        run_experiment("cyclic-cifar", tmp_path)
    with pytest.raises(UnknownNameError, match="tasks-2"):
        run_experiment("cyclic-cifar100", tmp_path, only=["tasks-5"])
    with pytest.raises(
        UnknownNameError, match=r"agent of cyclic-cifar100 'similarty'.*'similarity'"
    ):
        run_experiment("cyclic-cifar100", tmp_path, agents=["similarty"])
    with pytest.raises(UnknownNameError, match="agent of cyclic-cifar100 'ppo'"):
        run_experiment("cyclic-cifar100", tmp_path, agents=["ppo"])
    with pytest.raises(UnknownNameError, match="agent of cyclic-cifar100 'ppo'"):
        run_experiment("cyclic-cifar100", tmp_path, agent_arguments={"ppo": {"folder": "x"}})
    assert list(tmp_path.iterdir()) == []


def test_parts_without_any_of_the_agents_are_skipped(
    few_bounds: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = [
        Part(label=label, environment="NSR/CyclicDigits-v0", agents=agents,
             arguments={"num_tasks": 2, "capacity": 2})
        for label, agents in (("rank-1", ("oracle",)), ("capacity-2", ("oracle", "oracle-pin")))
    ]  # fmt: skip
    monkeypatch.setitem(reproduce.EXPERIMENTS, "memory-budget", lambda: parts)
    seen: list[tuple[int, int]] = []
    chosen: dict[str, Any] = {"seeds": (0,), "arguments": TINY, "agents": ["oracle-pin"]}
    summary, *_ = run_experiment(
        "memory-budget", tmp_path, **chosen, note=lambda done, total: seen.append((done, total))
    )
    assert list(zip(summary["label"], summary["agent"], strict=True)) == [
        ("capacity-2", "oracle-pin")
    ]
    assert seen == [(1, 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["capacity-2"]
    with pytest.raises(InvalidValueError, match=r"rank-1 has oracle\); got oracle-pin"):
        run_experiment("memory-budget", tmp_path, **chosen, only=["rank-1"])
    for nothing in ({"agents": []}, {"only": []}):
        with pytest.raises(InvalidValueError, match="Expected an agent of a part"):
            run_experiment("memory-budget", tmp_path, **{**chosen, **nothing})


def test_files_of_an_experiment_are_gathered_from_all_finished_parts(
    on_digits: None, few_bounds: None, tmp_path: Path
) -> None:
    chosen: dict[str, Any] = {"seeds": (0,), "arguments": TINY, "agents": ["oracle", "fresh"]}
    labels = part_labels("cyclic-cifar100")
    assert gather(tmp_path, labels) is None
    assert write_gathered(tmp_path, "cyclic-cifar100", labels) == []
    run_experiment("cyclic-cifar100", tmp_path, **chosen, only=["tasks-3"])
    files = write_gathered(tmp_path, "cyclic-cifar100", labels)
    tables = ["summary.csv", "bounds.csv", "streams.csv"]
    assert [path.name for path in files] == [*tables, "cyclic-cifar100.png"]
    assert set(pd.read_csv(files[0])["label"]) == {"tasks-3"}
    figure = files[3].read_bytes()
    # Another process plays the other part: in the experiment's order, nothing is lost.
    played, *_ = run_experiment("cyclic-cifar100", tmp_path, **chosen, only=["tasks-2"])
    assert set(played["label"]) == {"tasks-2"}
    write_gathered(tmp_path, "cyclic-cifar100", labels)
    for path in files[:3]:
        assert list(dict.fromkeys(pd.read_csv(path)["label"])) == ["tasks-2", "tasks-3"]
    assert files[3].read_bytes() != figure
    streams, summary = pd.read_csv(files[2]), pd.read_csv(files[0])
    assert streams["seed"].tolist() == [0] * len(summary)
    both = streams.merge(summary, on=["label", "agent"], suffixes=("", "_summary"))
    assert both["acc"].tolist() == both["acc_summary"].tolist()  # one stream is all there is
    # A part that is not finished is left out.
    (tmp_path / "tasks-3" / "summary.parquet").unlink()
    write_gathered(tmp_path, "cyclic-cifar100", labels)
    assert set(pd.read_csv(files[0])["label"]) == {"tasks-2"}
    (tmp_path / "tasks-2" / "summary.parquet").write_bytes(b"PAR1")
    with pytest.raises(FileFormatError, match=r"summary\.parquet"):
        write_gathered(tmp_path, "cyclic-cifar100", labels)


def test_processes_gather_one_after_another(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    begun, done = threading.Event(), threading.Event()

    def write() -> None:
        begun.set()
        write_gathered(tmp_path, "cyclic-cifar100", ["tasks-2"])
        done.set()

    with (tmp_path / ".gathering").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        other = threading.Thread(target=write)
        other.start()
        assert begun.wait(60)
        assert not done.wait(0.3)
    assert done.wait(60)
    other.join()


def test_a_run_killed_between_playing_and_bounds_measures_what_is_missing_alone(
    on_digits: None, few_bounds: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: dict[str, Any] = {"seeds": (0,), "arguments": TINY, "agents": ["oracle"]}
    calls: list[Any] = []
    measure = reproduce.measure_bounds

    def stopped(*given: Any) -> pd.DataFrame:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*given)

    monkeypatch.setattr(reproduce, "measure_bounds", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_experiment("cyclic-cifar100", tmp_path, **chosen)
    assert read_part(tmp_path / "tasks-2") is not None
    assert read_part(tmp_path / "tasks-3") is None
    cells = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cells/*.parquet")}
    assert len(cells) == 2
    _, bounds, _ = run_experiment("cyclic-cifar100", tmp_path, **chosen)
    assert [given[1]["num_tasks"] for given in calls] == [2, 3, 3]
    assert set(bounds["label"]) == {"tasks-2", "tasks-3"}
    assert cells == {path: path.stat().st_mtime_ns for path in cells}
    run_experiment("cyclic-cifar100", tmp_path, **chosen)
    assert len(calls) == 3
    with pytest.raises(StateError, match="another comparison"):
        run_experiment("cyclic-cifar100", tmp_path, **chosen | {"seeds": (0, 1)})


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
    _, bounds, _ = run_experiment("memory-budget", tmp_path, seeds=(0,), arguments=TINY)
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
    summary, *_ = run_experiment("class-incremental", tmp_path, seeds=(0, 1), arguments=settings)
    (row,) = summary.to_dict("records")
    assert row["right.oracle"] == 1.0
    assert row["routed.oracle"] == pytest.approx(row["acc"], abs=0.02)
    assert row["routed.oracle"] >= row["routed.rls"] > row["routed.random"]
    assert row["right.rls"] > row["right.random"] == pytest.approx(1 / 3, abs=0.1)
