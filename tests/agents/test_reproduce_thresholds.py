"""Thresholds of an experiment's part: which agents ask, when they are calibrated, what is kept."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nsr_gym.agents import reproduce_thresholds as module
from nsr_gym.agents import thresholds
from nsr_gym.agents.reproduce import EXPERIMENTS
from nsr_gym.agents.reproduce_thresholds import (
    ASKED,
    calibrated_thresholds,
    publish,
    train_arguments,
)
from nsr_gym.agents.thresholds import Thresholds
from nsr_gym.errors import DataError, FileFormatError, InvalidValueError, StateError
from nsr_gym.evaluation.cells import ResultFolder
from nsr_gym.evaluation.compare import Comparison, run
from nsr_gym.registry import agent_spec

ENVIRONMENT = "NSR/CyclicDigits-v0"
TINY: dict[str, Any] = {
    "num_tasks": 2, "cycles": 2, "learning_steps": 2, "updates": 1, "support_size": 32,
}  # fmt: skip

Calls = list[dict[str, Any]]


def comparison(agents: tuple[str, ...] = ("similarity", "pin-one"), **more: Any) -> Comparison:
    chosen = {"arguments": TINY} | more
    return Comparison(environments=(ENVIRONMENT,), agents=agents, seeds=(0,), **chosen)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What is calibrated, where no thresholds ship for the digits."""
    monkeypatch.setattr(thresholds, "_table", lambda: {})
    made: Calls = []
    real: Callable[..., Any] = module.calibrate

    def calibrate(environment: str, seeds: Any, *, arguments: dict[str, Any]) -> Any:
        made.append(arguments)
        return real(environment, seeds, arguments=arguments)

    monkeypatch.setattr(module, "calibrate", calibrate)
    return made


def test_every_agent_of_an_experiment_that_asks_for_a_threshold_is_known() -> None:
    asking = set()
    for agent in {a for make in EXPERIMENTS.values() for part in make() for a in part.agents}:
        place, name = agent_spec(agent).entry_point.split(":")
        signature = inspect.signature(getattr(importlib.import_module(place), name))
        if "threshold" in signature.parameters:
            asking.add(agent)
    assert asking == set(ASKED)


def test_what_holds_for_the_test_split_or_other_scores_is_left_out() -> None:
    given = {"order": "random", "order_seed": 3, "split": "test", "evaluate": "test",
             "router": "rls", "observe_signals": True}  # fmt: skip
    assert train_arguments({**given, "num_tasks": 5}) == {"num_tasks": 5}


def test_each_agent_gets_the_threshold_it_asks_for(calls: Calls, tmp_path: Path) -> None:
    found = calibrated_thresholds(comparison(), tmp_path / "part")
    assert calls == [TINY]
    kept = json.loads((tmp_path / "part" / ".thresholds.json").read_text())
    assert found == {"similarity": kept["similarity"], "pin-one": kept["trial_loss"]}
    assert kept["split"] == "train"


def test_nothing_is_calibrated_where_thresholds_ship_are_given_or_not_asked_for(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"similarity": {"threshold": 0.9}, "pin-one": {"threshold": 1.0}}
    assert calibrated_thresholds(comparison(agent_arguments=given), tmp_path) == {}
    assert calibrated_thresholds(comparison(("oracle", "fresh")), tmp_path) == {}
    table = {"digits-permutation": Thresholds(0.9, 1.0)}
    monkeypatch.setattr(thresholds, "_table", lambda: table)
    assert calibrated_thresholds(comparison(), tmp_path) == {}
    assert calls == []
    assert list(tmp_path.glob("*.json")) == []


def test_a_given_threshold_is_kept_and_the_other_is_calibrated(
    calls: Calls, tmp_path: Path
) -> None:
    given = {"similarity": {"threshold": 0.9}}
    found = calibrated_thresholds(comparison(agent_arguments=given), tmp_path)
    assert set(found) == {"pin-one"}
    assert len(calls) == 1


def test_what_was_calibrated_before_a_stop_is_found_again_unless_the_arguments_differ(
    calls: Calls, tmp_path: Path
) -> None:
    said: list[str] = []
    first = calibrated_thresholds(comparison(), tmp_path, said.append)
    assert calibrated_thresholds(comparison(), tmp_path, said.append) == first
    assert (len(calls), len(said)) == (1, 1)
    other = TINY | {"learning_steps": 3}
    second = calibrated_thresholds(comparison(arguments=other), tmp_path, said.append)
    assert (len(calls), len(said)) == (2, 2)
    assert second["pin-one"] != first["pin-one"]


def test_once_something_was_played_the_thresholds_stay_and_other_arguments_are_refused(
    calls: Calls, tmp_path: Path
) -> None:
    asked = comparison(("similarity",))
    found = calibrated_thresholds(asked, tmp_path)
    threshold = {"similarity": {"threshold": found["similarity"]}}
    run(comparison(("similarity",), agent_arguments=threshold), tmp_path, workers=1)
    publish(tmp_path)
    assert (tmp_path / "thresholds.json").exists()
    assert not (tmp_path / ".thresholds.json").exists()
    assert calibrated_thresholds(asked, tmp_path) == found
    other = TINY | {"learning_steps": 3}
    again = calibrated_thresholds(comparison(("similarity",), arguments=other), tmp_path)
    threshold = {"similarity": {"threshold": again["similarity"]}}
    with pytest.raises(StateError, match="another comparison"):
        run(
            comparison(("similarity",), arguments=other, agent_arguments=threshold),
            tmp_path, workers=1,
        )  # fmt: skip
    assert len(calls) == 1


def test_mistakes_of_other_agents_are_found_before_anything_is_calibrated(
    calls: Calls, tmp_path: Path
) -> None:
    asked = comparison(("similarity", "oracle"), agent_arguments={"oracle": {"rank": 3}})
    with pytest.raises(InvalidValueError, match="rank"):
        calibrated_thresholds(asked, tmp_path / "part")
    assert calls == []
    assert not (tmp_path / "part").exists()


def test_thresholds_that_cannot_be_read_are_refused(calls: Calls, tmp_path: Path) -> None:
    for text in ("{", "[]", '{"similarity": 0.5}', '{"similarity": 0.5, "trial_loss": null}'):
        (tmp_path / ".thresholds.json").write_text(text)
        with pytest.raises(FileFormatError, match=r"thresholds\.json cannot be read"):
            calibrated_thresholds(comparison(), tmp_path)


def test_two_processes_do_not_calibrate_the_same_part(calls: Calls, tmp_path: Path) -> None:
    with ResultFolder(tmp_path).lock(), pytest.raises(StateError, match="Another process"):
        calibrated_thresholds(comparison(), tmp_path)
    assert calls == []


def test_too_little_to_calibrate_on_is_said_and_leaves_no_thresholds(
    calls: Calls, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="longer episodes"):
        calibrated_thresholds(comparison(arguments=TINY | {"cycles": 1}), tmp_path)
    assert list(tmp_path.glob("*thresholds*")) == []
