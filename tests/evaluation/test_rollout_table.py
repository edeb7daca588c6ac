"""`play` writes down every visit in the long table, the same alone and in a block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from nsr_gym.agents import agent_specs
from nsr_gym.errors import InvalidValueError, UnknownNameError
from nsr_gym.evaluation.rollout import play
from nsr_gym.metrics.episodes import check_columns

ENV = "NSR/CyclicDigits-v0"
NAMES = [spec.name for spec in agent_specs("live")]
M, VISITS, STEPS = 3, 6, 2
SEEDS = (3, 0)

COLUMNS: dict[str, str] = {
    "environment": "O", "agent": "O", "access": "O", "seed": "i", "split": "O",
    "stream_hash": "O", "num_tasks": "i", "visit": "i", "cycle": "i", "task": "i",
    "task_name": "O", "is_return": "b", "recall": "i", "rank": "i", "reserve": "i",
    "projected": "b", "reward": "f", "reward_post_task": "f", "reward_online": "f",
    "accuracy_before": "f", "accuracy_after": "f", "curve": "O", "recovery_steps": "i",
    "shortfall": "f", "entries": "i", "bytes": "i", "retention": "O", "baseline": "O",
    "seconds": "f", "family": "O",
}  # fmt: skip
"""Column -> kind; text is of kind O. `run` is added where a comparison is put together."""


@pytest.fixture(scope="module")
def tables(tiny: dict[str, Any]) -> dict[str, pd.DataFrame]:
    return {name: play(ENV, name, SEEDS, arguments=tiny) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_column_is_there_with_its_type(name: str, tables: dict[str, pd.DataFrame]) -> None:
    table = tables[name]
    assert set(table.columns) == set(COLUMNS)
    kinds = {column: table[column].to_numpy().dtype.kind for column in table.columns}
    assert kinds == COLUMNS
    check_columns(table)


@pytest.mark.parametrize("name", NAMES)
def test_one_row_for_each_visit_in_order(name: str, tables: dict[str, pd.DataFrame]) -> None:
    table = tables[name]
    assert table[["seed", "visit"]].to_numpy().tolist() == [
        [seed, visit] for seed in sorted(SEEDS) for visit in range(VISITS)
    ]
    assert (table["cycle"] == table["visit"] // M).all()
    assert set(table["environment"]) == {ENV}
    assert set(table["agent"]) == {name}
    assert set(table["split"]) == {"test"}
    assert set(table["num_tasks"]) == {M}


@pytest.mark.parametrize("name", NAMES)
def test_curves_rewards_and_references_belong_together(
    name: str, tables: dict[str, pd.DataFrame]
) -> None:
    table = tables[name]
    curves, retention = np.stack(table["curve"]), np.stack(table["retention"])
    assert curves.shape == (len(table), STEPS + 1)
    assert retention.shape == (len(table), M)
    np.testing.assert_array_equal(curves[:, 0], table["accuracy_before"])
    np.testing.assert_array_equal(curves[:, -1], table["accuracy_after"])
    np.testing.assert_array_equal(curves[:, -1], table["reward_post_task"])
    np.testing.assert_allclose(curves[:, 1:].mean(axis=1), table["reward_online"])
    np.testing.assert_array_equal(table["reward"], table["reward_post_task"])
    for _, episode in table.groupby("seed"):
        assert len({tuple(row) for row in episode["baseline"]}) == 1
    first = ~table["is_return"]
    assert (table.loc[first, "recovery_steps"] == -1).all()
    assert (table.loc[first, "shortfall"] == 0.0).all()
    assert (table.loc[~first, "recovery_steps"] != -1).all()
    assert (table["seconds"] > 0).all()


def test_streams_are_the_same_for_every_agent(tables: dict[str, pd.DataFrame]) -> None:
    streams = {
        tuple(table[["seed", "visit", "stream_hash", "task", "task_name"]].itertuples(index=False))
        for table in tables.values()
    }
    assert len(streams) == 1
    per_seed = tables["oracle"].groupby("seed")["stream_hash"].nunique()
    assert (per_seed == 1).all()
    assert tables["oracle"]["stream_hash"].nunique() == len(SEEDS)


def test_baselines_are_the_same_for_every_agent(tables: dict[str, pd.DataFrame]) -> None:
    baselines = [np.stack(table["baseline"]) for table in tables.values()]
    for other in baselines[1:]:
        np.testing.assert_array_equal(other, baselines[0])


@pytest.mark.parametrize("name", ["similarity", "random", "random-rank", "pin-one"])
def test_a_seed_plays_the_same_alone_and_in_a_block(
    name: str, tables: dict[str, pd.DataFrame], tiny: dict[str, Any]
) -> None:
    block = tables[name]
    for seed in SEEDS:
        alone = play(ENV, name, [seed], arguments=tiny)
        together = block[block["seed"] == seed].reset_index(drop=True)
        for column, kind in COLUMNS.items():
            a, b = alone[column], together[column]
            if column == "seconds":
                continue
            if column in ("curve", "retention", "baseline"):
                np.testing.assert_allclose(np.stack(a), np.stack(b), rtol=0, atol=1e-6)
            elif kind == "f":
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
            else:
                assert a.tolist() == b.tolist(), column


def test_retention_of_the_oracle_is_that_of_its_entries(tables: dict[str, pd.DataFrame]) -> None:
    # An entry, compressed to the granted rank, is the trained model: one image in 200 apart.
    for _, episode in tables["oracle"].groupby("seed"):
        expected = np.array(episode["baseline"].iloc[0])
        for row in episode.itertuples():
            expected[row.task] = row.accuracy_after
            np.testing.assert_allclose(row.retention, expected, rtol=0, atol=0.0051)


def test_retention_of_greedy_is_that_of_one_adapter(tables: dict[str, pd.DataFrame]) -> None:
    for row in tables["greedy"].itertuples():
        assert row.retention[row.task] == pytest.approx(row.accuracy_after, abs=0.0051)


def test_pin_one_keeps_what_it_retains(tables: dict[str, pd.DataFrame]) -> None:
    for _, episode in tables["pin-one"].groupby("seed"):
        retention = np.stack(episode["retention"])
        np.testing.assert_array_equal(retention, np.broadcast_to(retention[0], retention.shape))


def test_agents_run_at_their_own_access_level(tables: dict[str, pd.DataFrame]) -> None:
    for spec in agent_specs("live"):
        assert set(tables[spec.name]["access"]) == {spec.access}
        if spec.access != "bank":
            assert (tables[spec.name]["entries"] == 0).all()


def test_progress_counts_visits(tiny: dict[str, Any]) -> None:
    seen: list[int] = []
    play(ENV, "greedy", [0, 1], arguments=tiny, progress=seen.append)
    assert sum(seen) == 2 * VISITS


def test_other_splits_observations_and_agent_arguments_are_played(tiny: dict[str, Any]) -> None:
    flat = play(ENV, "similarity", [0], arguments=tiny | {"split": "train"})
    named = play(ENV, "similarity", [0], arguments=tiny | {"split": "train", "observation": "dict"})
    assert set(flat["split"]) == {"train"}
    np.testing.assert_array_equal(np.stack(flat["retention"]), np.stack(named["retention"]))
    never = play(ENV, "similarity", [0], arguments=tiny, agent_arguments={"threshold": 1.0})
    assert (never["recall"] == 0).all()


def test_what_cannot_be_played_is_refused(tiny: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match="seed"):
        play(ENV, "greedy", [], arguments=tiny)
    with pytest.raises(UnknownNameError, match="'greedy'"):
        play(ENV, "greedi", [0], arguments=tiny)
    with pytest.raises(UnknownNameError, match="'num_tasks'"):
        play(ENV, "greedy", [0], arguments={"num_task": 3})
