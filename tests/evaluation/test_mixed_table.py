"""Episodes that differ in length: each row says its own, and every report takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nsr_gym.errors import DataError
from nsr_gym.evaluation.rollout import play
from nsr_gym.metrics.conventions import conventions
from nsr_gym.metrics.episodes import read_episodes
from nsr_gym.regret.judge_live import judge_live
from nsr_gym.regret.measured import measured_regret
from nsr_gym.report.figures import draw_figures
from nsr_gym.report.summary import summarise
from nsr_gym.report.terminal import render_summary

ENV = "NSR/MixedDigitsRecorded-v0"
SEEDS = range(6)
ARGUMENTS = {"num_tasks": [2, 5], "cycles": 3}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pd.concat(
        [play(ENV, agent, SEEDS, arguments=ARGUMENTS) for agent in ("oracle", "fresh", "random")],
        ignore_index=True,
    )


def test_every_row_says_its_own_episode_s_tasks_and_kind(table: pd.DataFrame) -> None:
    lengths = set()
    for _, rows in table.groupby(["agent", "seed"]):
        m = int(rows["num_tasks"].iloc[0])
        lengths.add(m)
        assert rows["visit"].tolist() == list(range(3 * m))
        assert (rows["num_tasks"] == m).all()
        for column in ("retention", "baseline"):
            assert {len(values) for values in rows[column]} == {m}
            assert not np.isnan(np.concatenate(rows[column].tolist())).any()
        assert rows["stream_hash"].nunique() == rows["family"].nunique() == 1
    assert len(lengths) > 1
    assert table["family"].nunique() > 1
    # The same seed is the same episode for every agent.
    same = table.groupby("seed")[["stream_hash", "family", "num_tasks"]]
    assert (same.nunique() == 1).all(axis=None)


def test_an_episode_among_others_is_the_episode_alone(table: pd.DataFrame) -> None:
    for seed in SEEDS:
        alone = play(ENV, "random", [seed], arguments=ARGUMENTS).drop(columns="seconds")
        together = table[(table["agent"] == "random") & (table["seed"] == seed)]
        pd.testing.assert_frame_equal(
            alone, together.drop(columns="seconds").reset_index(drop=True)
        )


def test_reports_take_episodes_of_different_lengths(table: pd.DataFrame, tmp_path: Path) -> None:
    summary = summarise(table).set_index("agent")
    numbers = table.groupby("seed")["num_tasks"].first()
    assert (summary["num_tasks"] == numbers.max()).all()
    assert (summary["fewest_tasks"] == numbers.min()).all()
    assert summary["ratio"].isna().all()
    assert np.isfinite(summary["difference"]).all()
    assert "tasks: T(M-1)Delta_switch differs" in summary["notes"].iloc[0]
    assert f"M = {numbers.min()} to {numbers.max()} tasks" in str(
        render_summary(summarise(table)).renderables[1]
    )
    assert len(conventions(table)) > 0
    assert len(draw_figures(table, tmp_path)) == 3


def test_regret_is_that_of_each_episode_and_nothing_after_its_end(table: pd.DataFrame) -> None:
    regret = measured_regret(table)
    fresh = regret.agents["fresh"]
    rewards = table.set_index(["agent", "seed"])["reward_online"]
    for row, seed in zip(fresh.per_visit, fresh.seeds, strict=True):
        gaps = rewards["oracle", seed].to_numpy() - rewards["fresh", seed].to_numpy()
        np.testing.assert_allclose(row[: len(gaps)], gaps)
        assert (row[len(gaps) :] == 0).all()
    returns = table[table["agent"] == "oracle"].groupby("seed")["is_return"].sum()
    assert regret.returns == pytest.approx(returns.mean())
    verdict = judge_live(regret, {})
    assert verdict.bound is None
    assert verdict.why.startswith("Episodes differ")


def test_agents_with_other_episodes_of_the_same_seed_are_refused(table: pd.DataFrame) -> None:
    last = table["visit"] == 3 * table["num_tasks"] - 1
    cut = table[~((table["agent"] == "fresh") & (table["seed"] == 0) & last)]
    with pytest.raises(DataError, match="differ in"):
        read_episodes(cut)
