"""The controlled study: trains, plays held-out streams, and says what it saw."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nsr_gym import registry
from nsr_gym.agents.study import (
    FAMILIES,
    Study,
    Trained,
    controlled_study,
    parse_controller,
    run_study,
)
from nsr_gym.errors import DataError, InvalidValueError, StateError, UnknownNameError
from nsr_gym.report.study import summarise_study
from nsr_gym.report.study_figure import draw_study

ENV = "NSR/CappedDigitsRecorded-v0"


@pytest.fixture(scope="module", autouse=True)
def _no_agents_left_behind() -> Iterator[None]:
    kept = dict(registry._AGENTS)
    yield
    registry._AGENTS.clear()
    registry._AGENTS.update(kept)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def small() -> Study:
    return Study(
        environments=(ENV,),
        rules=("similarity", "similarity-pin", "oracle-pin"),
        controllers=(Trained(network="mlp", steps=2048),),
        training_seeds=(0, 1),
        seeds=(0, 1, 2),
        arguments={"num_tasks": 4, "cycles": 3, "capacity": 2},
        optimum=(ENV,),
    )


@pytest.fixture(scope="module")
def episodes(small: Study, folder: Path) -> pd.DataFrame:
    return run_study(small, folder)


def test_every_agent_plays_every_stream(episodes: pd.DataFrame) -> None:
    counts = episodes.groupby("agent").size().to_dict()
    assert counts == {
        "similarity": 3, "similarity-pin": 3, "oracle-pin": 3, "holding optimum": 3, "ppo mlp": 6,
    }  # fmt: skip
    assert set(episodes.loc[episodes["agent"] == "ppo mlp", "trained"]) == {0, 1}
    assert episodes["value"].between(0, 1).all()


def test_nobody_who_only_holds_entries_beats_the_optimum(episodes: pd.DataFrame) -> None:
    table = episodes.pivot_table(index="seed", columns="agent", values="value")
    assert (table["oracle-pin"] <= table["holding optimum"] + 1e-9).all()
    assert (table["similarity-pin"] > table["similarity"]).all()


def test_a_finished_study_is_not_done_again(
    small: Study, folder: Path, episodes: pd.DataFrame
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    again = run_study(small, folder)
    pd.testing.assert_frame_equal(again, episodes)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_the_summary_pairs_streams_and_counts_seeds(episodes: pd.DataFrame, tmp_path: Path) -> None:
    summary = summarise_study(episodes, references=("oracle-pin", "oracle")).set_index("agent")
    pinned = episodes[episodes["agent"] == "similarity-pin"].set_index("seed")["value"]
    plain = episodes[episodes["agent"] == "similarity"].set_index("seed")["value"]
    row = summary.loc["similarity-pin"]
    assert row["difference"] == pytest.approx((pinned - plain).mean())
    assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    assert (row["trained"], row["streams"]) == (0, 3)
    assert summary.loc["ppo mlp", "trained"] == 2
    assert summary.loc["oracle-pin", "share_of_oracle-pin"] == pytest.approx(1.0)
    assert np.isnan(row["share_of_oracle"])
    assert summary.loc["similarity", "difference"] == 0
    path = draw_study(summary.reset_index(), tmp_path / "study.png", reward="online")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_intervals_are_wider_where_training_seeds_differ() -> None:
    rng = np.random.default_rng(0)
    streams = rng.normal(0, 0.01, size=40)
    frames = [
        pd.DataFrame(
            {"environment": "e", "agent": agent, "trained": trained, "seed": range(40),
             "value": streams + offset}
        )
        for agent, trained, offset in (
            ("similarity", -1, 0.0), ("steady", 0, 0.1), ("steady", 1, 0.1),
            ("shaky", 0, 0.0), ("shaky", 1, 0.2),
        )
    ]  # fmt: skip
    summary = summarise_study(pd.concat(frames)).set_index("agent")
    width = summary["difference_high"] - summary["difference_low"]
    assert width["steady"] == pytest.approx(0, abs=1e-9)
    assert width["shaky"] > 0.15


def test_missing_streams_and_baselines_are_named(episodes: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="has not played all streams"):
        summarise_study(episodes.iloc[1:])
    first = (episodes["agent"] == "similarity-pin") & (episodes["seed"] == 0)
    with pytest.raises(DataError, match=r"similarity-pin and similarity .* same streams"):
        summarise_study(episodes[~first])
    other = episodes["seed"].where(~first, 7)
    with pytest.raises(DataError, match="same streams"):
        summarise_study(episodes.assign(seed=other))
    with pytest.raises(DataError, match="lacks 'nearest'"):
        summarise_study(episodes, baseline="nearest")


@pytest.mark.parametrize("arguments", [{"split": "train"}, {"reward": "post_task"}])
def test_what_a_study_sets_itself_is_no_argument(arguments: dict[str, str]) -> None:
    with pytest.raises(InvalidValueError, match=next(iter(arguments))):
        controlled_study(arguments=arguments)


def test_another_controller_in_the_same_place_is_not_taken_for_the_one_that_played(
    small: Study, folder: Path, episodes: pd.DataFrame, tmp_path: Path
) -> None:
    shutil.copytree(folder / "controllers", tmp_path / "study" / "controllers")
    pd.testing.assert_frame_equal(run_study(small, tmp_path / "study"), episodes)
    places = sorted((tmp_path / "study" / "controllers").glob("*/seed-*/best"))
    assert len(places) == 2
    for file in ("controller.json", "controller.safetensors"):
        shutil.copy(places[1] / file, places[0] / file)
    with pytest.raises(StateError, match="another comparison"):
        run_study(small, tmp_path / "study")


def test_the_suites_study_covers_all_families() -> None:
    assert len(controlled_study().environments) == len(FAMILIES)
    assert controlled_study(dynamics="live").optimum == ()
    with pytest.raises(UnknownNameError, match="Capped"):
        controlled_study(families=["Caped"])
    with pytest.raises(InvalidValueError, match="optimum"):
        Study(environments=(ENV,), rules=("similarity",), optimum=("NSR/Other-v0",))


def test_controllers_are_named_by_algorithm_network_and_where_they_were_trained() -> None:
    assert parse_controller("a2c:mlp") == Trained(algorithm="a2c", network="mlp")
    mixed = parse_controller("ppo:pointer:Mixed")
    assert mixed.environment == "NSR/MixedDigitsRecorded-v0"
    assert mixed.name == "ppo pointer (MixedDigitsRecorded)"
    with pytest.raises(UnknownNameError, match="pointer"):
        parse_controller("ppo:pointr")
    with pytest.raises(InvalidValueError, match="ALGORITHM:NETWORK"):
        parse_controller("ppo")
