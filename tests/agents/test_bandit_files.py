"""The bank's bandits in files: what is kept, what is refused, what ships, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nsr_gym.agents import bank_bandits, make_agent
from nsr_gym.agents.bandit_features import feature_names
from nsr_gym.agents.bandit_training import main, trainable
from nsr_gym.agents.bank_bandits import KINDS, BanditWeights, base_name, read_weights
from nsr_gym.errors import FileFormatError, StateError

Make = Callable[..., Any]

RANKS = (1, 2, 4, 8)
NAMES = feature_names(RANKS)


def weights() -> BanditWeights:
    return BanditWeights(
        kind="linucb", ranks=RANKS, features=NAMES, theta=(0.0,) * len(NAMES), threshold=1.0
    )


def test_weights_survive_a_file_to_the_last_digit(tmp_path: Path, make_env: Make) -> None:
    theta = tuple(np.random.default_rng(0).standard_normal(len(NAMES)).tolist())
    kept = replace(
        weights(), theta=theta, environment="NSR/CyclicDigits-v0", arguments={"cycles": 2}
    )
    text = json.dumps({"CyclicDigits": {"linucb": kept.to_json()}})
    assert read_weights(text)["CyclicDigits"]["linucb"] == kept
    (tmp_path / "mine.json").write_text(text)
    agent = make_agent("bank-linucb", make_env(), file=str(tmp_path / "mine.json"))
    assert agent.weights == kept


@pytest.mark.parametrize(
    "change",
    [
        {"theta": [0.0]},
        {"theta": 3},
        {"theta": [float("nan")] * len(NAMES)},
        {"theta": ["a"] * len(NAMES)},
        {"features": list(reversed(NAMES))},
        {"ranks": [1, 2]},
        {"kind": "greedy"},
        {"threshold": 0.0},
        {"threshold": "low"},
        {"surplus": 1},
    ],
    ids=str,
)
def test_damaged_weights_are_refused(change: dict[str, Any]) -> None:
    text = json.dumps({"CyclicDigits": {"linucb": weights().to_json() | change}})
    with pytest.raises(FileFormatError, match="weights of a bandit"):
        read_weights(text)


@pytest.mark.parametrize("text", ["", "[]x", "[1]", '{"a": 1}', '{"a": {"linucb": 1}}'])
def test_a_foreign_file_is_refused(text: str) -> None:
    with pytest.raises(FileFormatError):
        read_weights(text)


def test_an_environment_without_a_bandit_is_told_how_to_train_one(
    tmp_path: Path, make_env: Make
) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"Other": {"linucb": weights().to_json()}}))
    for name, file in (("bank-linucb", path), ("bank-thompson", path)):
        with pytest.raises(StateError, match=r"CyclicDigits, only for Other; .*bandit_training"):
            make_agent(name, make_env(), file=str(file))


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ("NSR/CyclicDigits-v0", "CyclicDigits"),
        ("NSR/CyclicDigitsRecorded-v0", "CyclicDigits"),
        ("NSR/CyclicDigitsRecorded-v12", "CyclicDigits"),
        ("Mine", "Mine"),
        ("", ""),
    ],
)
def test_live_and_recorded_forms_share_a_name(environment: str, name: str) -> None:
    assert base_name(environment) == name


def test_the_command_trains_every_kind_and_leaves_other_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str, int, int]] = []

    def train(kind: str, environment: str, *, episodes: int, seed: int) -> BanditWeights:
        asked.append((kind, environment, episodes, seed))
        return replace(weights(), kind=kind)

    monkeypatch.setattr("nsr_gym.agents.bandit_training.train_bandit", train)
    path = tmp_path / "bandits.json"
    path.write_text(json.dumps({"Other": {"linucb": weights().to_json()}}))
    main(["--output", str(path), "--env", "NSR/CyclicDigits-v0", "--episodes", "7", "--seed", "3"])
    assert asked == [(kind, "NSR/CyclicDigits-v0", 7, 3) for kind in KINDS]
    table = read_weights(path.read_text())
    assert {name: set(kinds) for name, kinds in table.items()} == {
        "Other": {"linucb"},
        "CyclicDigits": set(KINDS),
    }
    assert "NSR/CyclicDigits-v0" in capsys.readouterr().out


def test_every_environment_s_bandits_ship_and_fit_the_features() -> None:
    shipped = bank_bandits._shipped()
    assert set(shipped) == {base_name(name) for name in trainable()}
    for kinds in shipped.values():
        assert set(kinds) == set(KINDS)
        assert all(entry.kind == kind for kind, entry in kinds.items())
