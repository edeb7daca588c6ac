"""Regret of exact environments: read from the table, cut off where it was, placed in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nsr_gym.errors import DataError, InvalidValueError
from nsr_gym.evaluation.rollout import play
from nsr_gym.regret.exact import divide, exact_environments, exact_regret, is_exact
from nsr_gym.regret.standing import standing

BLIND = "NSR/BlindAllocation-v0"
LIVE = "NSR/CyclicDigits-v0"


def table(
    lost: dict[str, Sequence[float]],
    *,
    tasks: int = 2,
    seeds: int = 3,
    finished: bool = True,
    spread: float = 0.0,
) -> pd.DataFrame:
    """One row per visit; agent loses `lost[agent][visit] + spread * seed` against an oracle's 1."""
    rows: list[dict[str, Any]] = []
    for agent, values in lost.items():
        for seed in range(seeds):
            for visit, value in enumerate(values):
                rows.append(
                    {
                        "environment": BLIND, "agent": agent, "access": "memoryless",
                        "seed": seed, "split": "test", "stream_hash": f"s{seed}",
                        "num_tasks": tasks, "instance": 0, "visit": visit,
                        "cycle": visit // tasks, "task": visit % tasks,
                        "is_return": visit >= tasks, "steps": 2, "wrong": 1,
                        "reward": 1.0 - value - spread * seed, "oracle_reward": 1.0,
                        "finished": finished or visit < len(values) - 1, "seconds": 0.1,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def live_rows() -> pd.DataFrame:
    return pd.DataFrame(
        {"environment": [LIVE] * 2, "agent": "oracle", "visit": [0, 1], "reward_online": 0.5}
    )


def test_regret_is_what_the_oracle_earns_more() -> None:
    regret = exact_regret(table({"a": [0.5, 0.25, 0.0, 1.0]}))
    agent = regret.agents["a"]
    assert (regret.num_tasks, regret.num_visits, regret.cycles) == (2, 4, 2.0)
    np.testing.assert_array_equal(agent.cumulative, np.tile([0.5, 0.75, 0.75, 1.75], (3, 1)))
    assert agent.finished.all()
    assert agent.total.point == pytest.approx(1.75)
    # The same in every run: an interval without width, not one that is undefined.
    assert agent.total.low == pytest.approx(1.75)
    assert agent.total.high == pytest.approx(1.75)


def test_relative_regret_pairs_the_runs() -> None:
    rows = table({"a": [1.0, 1.0], "history-aware": [0.25, 0.0]}, spread=0.5)
    relative = exact_regret(rows).agents["a"].relative
    # Each seed loses 0.5 more a visit, the reference too: nothing of it is left in the difference.
    assert (relative.point, relative.low, relative.high) == pytest.approx((1.75, 1.75, 1.75))
    assert exact_regret(rows).agents["a"].total.high > exact_regret(rows).agents["a"].total.low


def test_without_the_reference_regret_is_still_there() -> None:
    regret = exact_regret(table({"a": [1.0, 0.0]}))
    assert regret.agents["a"].total.point == pytest.approx(1.0)
    assert np.isnan(regret.agents["a"].relative.point)


def test_an_episode_that_was_cut_off_counts_as_what_was_played() -> None:
    rows = pd.concat(
        [table({"a": [1.0, 0.5, 9.0]}, finished=False), table({"history-aware": [1.0] * 4})]
    )
    agent = exact_regret(rows).agents["a"]
    assert not agent.finished.any()
    assert agent.total.point == pytest.approx(10.5)
    # Regret of a visit that did not end is not known, nor is any after it.
    np.testing.assert_array_equal(agent.cumulative[0], [1.0, 1.5, np.nan, np.nan])
    assert agent.relative.point == pytest.approx(6.5)


def test_relative_to_a_reference_that_did_not_finish_there_is_nothing() -> None:
    rows = pd.concat(
        [table({"a": [1.0] * 4}), table({"history-aware": [1.0, 5.0]}, finished=False)]
    )
    assert np.isnan(exact_regret(rows).agents["a"].relative.point)


def test_the_length_of_an_episode_nobody_finished_is_filled_up_or_given() -> None:
    rows = table({"a": [7.0]}, tasks=3, finished=False)
    assert exact_regret(rows).num_visits == 3
    assert exact_regret(rows, num_visits=12).cycles == 4
    with pytest.raises(InvalidValueError, match="num_visits"):
        exact_regret(table({"a": [1.0] * 4}), num_visits=3)


def test_the_table_itself_says_how_long_an_episode_is() -> None:
    rows = table({"a": [7.0]}, tasks=3, finished=False).assign(num_visits=12)
    assert exact_regret(rows).num_visits == 12
    assert exact_regret(rows, num_visits=15).num_visits == 15
    unknown = rows.assign(num_visits=np.nan)
    assert exact_regret(unknown).num_visits == 3
    longer = table({"b": [7.0]}, tasks=3, finished=False).assign(num_visits=9)
    with pytest.raises(DataError, match="number of visits"):
        exact_regret(pd.concat([rows, longer]))


def test_live_and_exact_rows_are_told_apart_in_one_table() -> None:
    mixed = pd.concat([live_rows(), table({"a": [1.0, 0.0]})], ignore_index=True)
    assert exact_environments(mixed) == [BLIND]
    assert is_exact(mixed, BLIND)
    assert not is_exact(mixed, LIVE)
    live, exact = divide(mixed)
    assert (len(live), len(exact)) == (2, 6)
    assert exact_regret(mixed).agents["a"].total.point == pytest.approx(1.0)
    assert not is_exact(live_rows(), LIVE)
    with pytest.raises(InvalidValueError, match="measured_regret"):
        exact_regret(mixed, LIVE)


@pytest.mark.parametrize(
    ("rows", "error", "text"),
    [
        (lambda: live_rows(), DataError, "oracle_reward"),
        (lambda: table({"a": [1.0, 0.0]}).drop(index=0), DataError, "duplicate or missing"),
        (lambda: pd.concat([table({"a": [1.0]})] * 2), DataError, "duplicate or missing"),
        (
            lambda: pd.concat([table({"a": [1.0]}), table({"b": [1.0]}, tasks=3)]),
            DataError,
            "number of tasks",
        ),
        (
            lambda: pd.concat(
                [table({"a": [1.0]}), table({"history-aware": [1.0]}).assign(stream_hash="x")]
            ),
            DataError,
            "different streams",
        ),
    ],
    ids=["live only", "gap", "twice", "two M", "other streams"],
)
def test_a_table_that_cannot_be_read_says_why(rows: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        exact_regret(rows())


def test_the_environment_has_to_be_one_of_the_table() -> None:
    two = pd.concat([table({"a": [1.0]}), table({"a": [1.0]}).assign(environment="NSR/Paging-v0")])
    with pytest.raises(InvalidValueError, match="name one"):
        exact_regret(two)
    assert exact_regret(two, "NSR/Paging-v0").environment == "NSR/Paging-v0"
    with pytest.raises(InvalidValueError, match="There is no"):
        exact_regret(two, "NSR/Other-v0")


def test_pin_in_the_blind_environment_loses_the_gap_on_all_tasks_but_one() -> None:
    frames = [
        play(BLIND, agent, range(3), arguments={"num_tasks": 4, "cycles": 6})
        for agent in ("pin", "history-aware")
    ]
    regret = exact_regret(pd.concat(frames, ignore_index=True))
    assert regret.cyclic
    assert regret.agents["pin"].totals.tolist() == [0.5 * 3 * 6] * 3
    # Without repetition the four tasks take 0, 1, 2 and 3 wrong steps.
    assert regret.agents["history-aware"].totals.tolist() == [0.5 * 6] * 3
    assert regret.agents["pin"].relative.point == pytest.approx(6.0)


def test_pin_never_recovers_a_task_whose_allocation_it_does_not_choose() -> None:
    rows = play("NSR/UntilRecovered-v0", "pin", [0, 1], arguments={"num_tasks": 3, "cycles": 2})
    agent = exact_regret(rows, num_visits=6).agents["pin"]
    assert not agent.finished.any()
    assert (agent.totals >= 9_000).all()


@pytest.mark.parametrize(
    ("totals", "options", "place", "text"),
    [
        ([9.0, 9.0], {"bound": 9.0, "optimum": 9.0}, "at bound", "which is the optimum, exactly"),
        ([9.0, 9.0], {"bound": 4.0, "optimum": 9.0}, "at optimum", "at the optimum, exactly"),
        ([4.0, 4.0], {"bound": 4.0, "optimum": 9.0}, "at bound", "at the bound, exactly"),
        ([8.0, 10.5], {"bound": 9.0}, "at bound", "not told apart from the bound (3 st"),
        ([8.0, 10.5], {"bound": 9.0, "optimum": 9.0}, "at bound", "apart from the bound, which is"),
        ([6.0, 6.0], {"bound": 4.0, "optimum": 9.0}, "between", "remembers"),
        ([1.0, 1.0], {"bound": 4.0, "optimum": 9.0}, "below bound", "remembers (bank access)"),
        ([1.0, 1.0], {"optimum": 9.0}, "below optimum", "remembers"),
        ([18.0, 18.0], {"bound": 4.0, "optimum": 9.0}, "above", "2.00 times"),
        ([6.0, 6.0], {"bound": 4.0}, "above", "above the bound, 1.50 times"),
        ([6.0, 6.0], {"optimum": 0.0}, "above", "above the optimum of 0"),
        ([6.0, 6.0], {}, "undefined", "no bound"),
        ([6.0, 6.0], {"bound": 9.0, "finished": [False, False]}, "unfinished", "never finished"),
        ([6.0, 6.0], {"bound": 9.0, "finished": [True, False]}, "unfinished", "50 %"),
    ],
)
def test_where_an_agent_lies(
    totals: list[float], options: dict[str, Any], place: str, text: str
) -> None:
    found = standing(totals, access="bank", **options)
    assert found.place == place
    assert text in found.text


def test_an_agent_whose_expected_regret_is_known_is_placed_by_that() -> None:
    def placed(expected: float | None) -> tuple[str, str]:
        # Runs that three standard errors do not tell apart from either value.
        found = standing([8.0, 10.5], access="visit", expected=expected, bound=9.0, optimum=9.0)
        return found.place, found.text

    assert placed(10.0) == ("above", "expected above the optimum, 1.11 times it")
    assert placed(9.0) == ("at bound", "expected at the bound, which is the optimum, exactly")
    assert placed(8.5)[0] == "below bound"
    assert placed(None)[0] == placed(float("inf"))[0] == "at bound"


def test_below_the_bound_the_kind_of_memory_is_named() -> None:
    def why(access: str, **options: Any) -> str:
        return standing([1.0, 1.0], access=access, bound=4.0, **options).text

    assert "within a visit" in why("visit")
    assert "cannot be" in why("memoryless")
    assert "its own last action" in why("memoryless", sees_its_actions=True)
