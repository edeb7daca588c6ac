"""Fidelity: the same agents, streams and seeds, live and recorded, side by side."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nsr_gym.errors import DataError, InvalidValueError
from nsr_gym.evaluation.fidelity import Fidelity, compare_dynamics, measure_fidelity, spearman

ENV = "NSR/CappedDigits-v0"
AGENTS = ("oracle", "similarity", "fresh")
SHORT: dict[str, Any] = {"num_tasks": 2, "cycles": 2}


@pytest.fixture(scope="module")
def measured() -> tuple[Fidelity, pd.DataFrame]:
    return measure_fidelity(ENV, AGENTS, (0, 1), arguments=SHORT)


def test_both_dynamics_are_played_on_the_same_held_out_streams(
    measured: tuple[Fidelity, pd.DataFrame],
) -> None:
    found, table = measured
    assert table.groupby(["dynamics", "agent", "seed"]).size().tolist() == [4] * 12
    assert set(table["split"]) == {"test"}
    assert (found.episodes, len(found.streams)) == (2, 2)
    assert sorted(found.agents["agent"]) == sorted(AGENTS)


def test_errors_are_recorded_minus_live_and_the_worst_is_an_agents(
    measured: tuple[Fidelity, pd.DataFrame],
) -> None:
    found, table = measured
    means = table.groupby(["dynamics", "agent"])["reward_online"].mean()
    rows = found.agents.set_index("agent")
    for agent in AGENTS:
        error = means["recorded", agent] - means["live", agent]
        assert rows.loc[agent, "online_error"] == pytest.approx(error, abs=1e-9)
    assert found.worst["online"] == pytest.approx(rows["online_error"].abs().max())
    assert 0 < found.worst["online"] < 0.2, "recorded draws are others than the live ones"


def test_other_streams_are_refused(measured: tuple[Fidelity, pd.DataFrame]) -> None:
    table = measured[1].copy()
    table.loc[table["dynamics"] == "recorded", "stream_hash"] += "x"
    with pytest.raises(DataError, match="other streams"):
        compare_dynamics(table)


@pytest.mark.parametrize(
    ("agents", "match"),
    [
        (("oracle", "fresh"), "three agents"),
        (("oracle", "fresh", "fresh"), "each once"),
        (("oracle", "fresh", "random", "fresh"), "each once"),
        (("similarity", "fresh", "random"), "reference"),
        (("oracle", "fresh", "greedy"), "memoryless"),
    ],
)
def test_agents_that_cannot_be_compared_are_refused(agents: tuple[str, ...], match: str) -> None:
    with pytest.raises(InvalidValueError, match=match):
        measure_fidelity(ENV, agents, (0,), arguments=SHORT)


def test_rank_correlation_counts_order_alone_and_is_nan_without_one() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(x, x**5) == pytest.approx(1.0)
    assert spearman(x, -np.exp(x)) == pytest.approx(-1.0)
    assert math.isnan(spearman(x, np.ones(4)))
