from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nsr_gym.errors import DataError, InvalidValueError, UnknownNameError
from nsr_gym.regret import (
    cumulative_bounds,
    delta_switch,
    expected_ratio,
    measured_regret,
)

HIT, MISS = 0.9, 0.5


def table(
    misses: dict[str, Any],
    *,
    tasks: int = 4,
    cycles: int = 3,
    seeds: int = 3,
    visits: list[int] | None = None,
    shift: float = 0.0,
) -> pd.DataFrame:
    """Rewards of the paging model: MISS at each visit for which `misses[agent](visit)`, else HIT.

    `shift` adds `shift * seed` to every agent's reward: pairing by seed must remove it.
    """
    stream = list(range(tasks)) * cycles if visits is None else visits
    rows = []
    for agent, missed in misses.items():
        for seed in range(seeds):
            for visit, task in enumerate(stream):
                reward = (MISS if missed(visit) else HIT) - shift * seed
                rows.append(
                    {
                        "environment": "NSR/Test-v0",
                        "agent": agent,
                        "access": "memoryless",
                        "seed": seed,
                        "split": "test",
                        "stream_hash": f"s{seed}",
                        "num_tasks": tasks,
                        "visit": visit,
                        "task": task,
                        "task_name": f"task-{task}",
                        "reward_online": reward,
                        "reward_post_task": reward,
                        "curve": [0.1, reward],
                        "bytes": 8,
                        "retention": [0.5] * tasks,
                        "baseline": [0.1] * tasks,
                    }
                )
    return pd.DataFrame(rows)


AGENTS = {
    "oracle": lambda visit: visit < 4,
    "pin-one": lambda visit: visit < 4 or visit % 4 != 0,
    "fresh": lambda visit: True,
}


@pytest.mark.parametrize("reward", ["online", "post_task"])
def test_the_paging_model_gives_the_exact_ratios(reward: Any) -> None:
    regret = measured_regret(table(AGENTS, shift=0.05), reward=reward)
    assert regret.delta is not None
    assert regret.delta.estimator == "fresh"
    assert regret.delta.mean.point == pytest.approx(HIT - MISS)
    assert regret.bound == pytest.approx(3 * 3 * 0.4)
    # (C-1)(M-1) misses for pinning, (C-1)M for forced reloading, at M = 4 and C = 3.
    assert regret.agents["pin-one"].total.point == pytest.approx(2 * 3 * 0.4)
    assert regret.agents["pin-one"].ratio.point == pytest.approx(regret.expected.best_bank_free)
    assert regret.agents["fresh"].ratio.point == pytest.approx(regret.expected.forced_reload)
    assert regret.agents["oracle"].total.point == 0
    assert regret.agents["pin-one"].cumulative[0, 3] == 0
    assert regret.notes == ()


def test_expected_ratios_at_ten_tasks_and_six_cycles() -> None:
    expected = expected_ratio(10, 6)
    assert expected.best_bank_free == pytest.approx(45 / 54)
    assert expected.forced_reload == pytest.approx(50 / 54)
    assert math.isnan(expected_ratio(1, 6).best_bank_free)
    with pytest.raises(InvalidValueError):
        expected_ratio(0, 6)


def test_without_a_fresh_agent_the_references_first_visits_stand_in_and_it_says_so() -> None:
    rows = table({name: AGENTS[name] for name in ("oracle", "pin-one")})
    regret = measured_regret(rows)
    assert regret.delta is not None
    assert regret.delta.estimator == "first-visits"
    assert regret.delta.mean.point == pytest.approx(HIT - MISS)
    assert "first visits" in regret.notes[0]


def test_the_minimum_over_tasks_finds_the_task_that_costs_least() -> None:
    rows = table(AGENTS)
    cheap = (rows["agent"] == "fresh") & (rows["task"] == 2)
    rows.loc[cheap, "reward_online"] = HIT - 0.1
    delta = delta_switch(rows)
    assert delta.minimum.point == pytest.approx(0.1)
    assert delta.mean.point == pytest.approx((3 * 0.4 + 0.1) / 4)
    assert delta.by_task == pytest.approx(
        {"task-0": 0.4, "task-1": 0.4, "task-2": 0.1, "task-3": 0.4}
    )


def test_agents_with_fewer_seeds_are_paired_on_the_common_ones() -> None:
    rows = table(AGENTS, shift=0.05)
    rows = rows[(rows["agent"] != "pin-one") | (rows["seed"] > 0)]
    regret = measured_regret(rows)
    assert regret.agents["pin-one"].seeds == (1, 2)
    assert regret.agents["pin-one"].ratio.runs == 2
    assert regret.agents["pin-one"].total.point == pytest.approx(2 * 3 * 0.4)
    assert regret.notes == ("pin-one: 2 of the reference's 3 seeds.",)


def test_row_order_does_not_matter() -> None:
    rows = table(AGENTS, shift=0.05)
    mixed = rows.sample(frac=1, random_state=1)
    assert measured_regret(mixed).agents["pin-one"].total == (
        measured_regret(rows).agents["pin-one"].total
    )


def test_one_task_and_one_run_leave_the_ratio_and_the_interval_undefined() -> None:
    agents = {"oracle": lambda visit: visit < 1, "fresh": lambda visit: True}
    regret = measured_regret(table(agents, tasks=1, seeds=1))
    assert regret.bound == 0
    assert math.isnan(regret.agents["fresh"].ratio.point)
    assert math.isnan(regret.agents["fresh"].total.low)
    assert "One task" in regret.notes[0]


def test_no_bound_where_streams_are_not_cyclic_nothing_returns_or_knowledge_does_not_pay() -> None:
    iid = measured_regret(table(AGENTS, visits=[0, 0, 1, 2, 3, 1, 1, 2]))
    assert not iid.cyclic
    assert math.isnan(iid.agents["fresh"].ratio.point)
    assert "not cyclic" in iid.notes[0]

    once = measured_regret(table(AGENTS, cycles=1))
    assert once.delta is None
    assert math.isnan(once.bound)
    with pytest.raises(DataError, match="needs returns"):
        delta_switch(table(AGENTS, cycles=1))

    useless = measured_regret(table({"oracle": lambda v: True, "fresh": lambda v: False}))
    assert math.isnan(useless.agents["fresh"].ratio.point)
    assert "not above 0" in useless.notes[0]


def test_the_drawn_bounds_end_at_the_stated_ones() -> None:
    absolute, relative = cumulative_bounds(4, 12, 0.4)
    assert absolute[-1] == pytest.approx(3 * 3 * 0.4)
    assert relative[-1] == pytest.approx(2 * 3 * 0.4)
    assert not relative[:4].any()
    assert (np.diff(absolute) > 0).all()


def test_tables_that_cannot_be_compared_are_refused() -> None:
    rows = table(AGENTS)
    with pytest.raises(UnknownNameError, match="reference agent"):
        measured_regret(rows, reference="orcale")
    with pytest.raises(InvalidValueError, match="reward"):
        measured_regret(rows, reward="final")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="duplicate or missing"):
        measured_regret(pd.concat([rows, rows.iloc[:1]]))
    with pytest.raises(DataError, match=r"no column\(s\) curve"):
        measured_regret(rows.drop(columns="curve"))
    with pytest.raises(DataError, match="no rows"):
        measured_regret(rows.iloc[:0])
    short = (rows["agent"] == "fresh") & (rows["visit"] >= 8)
    with pytest.raises(DataError, match="differ in"):
        measured_regret(rows[~short])
    other = rows.copy()
    other.loc[other["agent"] == "fresh", "stream_hash"] = "another"
    with pytest.raises(DataError, match="different streams"):
        measured_regret(other)
    two = pd.concat([rows, rows.assign(environment="NSR/Other-v0")])
    with pytest.raises(InvalidValueError, match="name one"):
        measured_regret(two)
    assert measured_regret(two, environment="NSR/Other-v0").environment == "NSR/Other-v0"
