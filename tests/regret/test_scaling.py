"""Exponents of regret in T and M-1: recovered where known, refused where there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nsr_gym.errors import InvalidValueError, UnknownNameError
from nsr_gym.evaluation.rollout import play
from nsr_gym.evaluation.scaling import (
    default_horizon,
    scaling_comparisons,
    scaling_study,
    scarce_tasks,
    solutions_held,
)
from nsr_gym.regret.scaling import (
    ROWS,
    Exponents,
    exponent_frame,
    fit_exponents,
    scaling_table,
)

BLIND, PAGING, RECOVERY = "NSR/BlindAllocation-v0", "NSR/Paging-v0", "NSR/UntilRecovered-v0"


def played(environment: str, agent: str, *, cycles: int = 4, seeds: int = 3) -> pd.DataFrame:
    return scaling_table(
        play(environment, agent, range(seeds), arguments={"num_tasks": m, "cycles": cycles})
        for m in (3, 5, 9)
    )


def rows(law: Any, *, seeds: int = 4, tasks: tuple[int, ...] = (3, 5, 9)) -> pd.DataFrame:
    """Regret `law(T, M, seed)` of an agent, in the columns of a scaling table."""
    found = [
        (BLIND, "a", "bank", m, t, seed, law(t, m, seed))
        for m in tasks for t in range(1, 6) for seed in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(found, columns=ROWS)


def one(found: pd.DataFrame, **options: Any) -> Exponents:
    (fit,) = fit_exponents(found, **options)
    return fit


@pytest.mark.parametrize(
    ("environment", "horizon"),
    [(BLIND, "cycles"), (PAGING, "later cycles")],
)
def test_pinning_has_both_exponents_exactly_one(environment: str, horizon: Any) -> None:
    fit = one(played(environment, "pin"), horizon=horizon)
    for interval in (fit.time, fit.tasks):
        assert (interval.point, interval.low, interval.high) == pytest.approx((1, 1, 1), abs=1e-9)
    assert fit.explained == pytest.approx(1.0)
    assert fit.note == ""


def test_where_c_solutions_can_be_held_pinning_has_exponent_one_in_m_minus_c() -> None:
    arguments = {"slots": 2, "bank": 1, "cycles": 4}
    found = scaling_table(
        play(PAGING, "pin", [0, 1], arguments=arguments | {"num_tasks": m}) for m in (4, 6, 9)
    )
    held = solutions_held(PAGING, arguments)
    fit = one(found, horizon="later cycles", held=held)
    assert (held, fit.held) == (3, 3)
    assert (fit.time.point, fit.tasks.point) == pytest.approx((1.0, 1.0))
    assert exponent_frame([fit]).loc[0, "held"] == 3
    # In M-1 it has none: the law is another one.
    assert one(found, horizon="later cycles").tasks.point > 1.5


def test_what_can_all_be_held_is_left_out_of_a_study() -> None:
    assert scarce_tasks(PAGING, [3, 4, 5, 10], {"slots": 3, "bank": 1}) == [5, 10]
    assert scarce_tasks(BLIND, [2, 3]) == [2, 3]
    with pytest.raises(InvalidValueError, match="above the 13 solutions"):
        scarce_tasks(PAGING, [3, 10], {"slots": 3, "bank": None})
    with pytest.raises(InvalidValueError, match=r"log\(M-4\).*M = 3"):
        fit_exponents(rows(lambda t, m, seed: 1.0), held=4)


def test_eliminating_within_visits_is_linear_in_visits_and_in_the_other_tasks() -> None:
    # (M-1)/2 wrong tries a visit, exactly, since every allocation is right for one task.
    fit = one(played(RECOVERY, "elimination"), horizon="visits")
    assert (fit.time.point, fit.tasks.point) == pytest.approx((1.0, 1.0), abs=1e-9)


def test_known_exponents_come_out_with_an_interval_that_holds_them() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 1_000)
    fit = one(rows(lambda t, m, seed: t**0.5 * (m - 1) ** 2 * np.exp(noise[7 * seed + m]), seeds=9))
    assert fit.time.low - 1e-9 <= 0.5 <= fit.time.high + 1e-9
    assert fit.tasks.low < 2.0 < fit.tasks.high
    assert fit.tasks.high - fit.tasks.low < 0.2
    assert fit.time.runs == 9


@pytest.mark.parametrize(
    ("law", "note"),
    [
        (lambda t, m, seed: 0.0, "0 throughout"),
        (lambda t, m, seed: t - 1.0, "not positive at M = 3 (T = 1), M = 5 (T = 1)"),
        (lambda t, m, seed: -1.0 if (t, m) == (4, 5) else 1.0, "not positive at M = 5 (T = 4)"),
        (lambda t, m, seed: np.nan if m == 9 else 1.0, "at M = 9"),
    ],
)
def test_where_there_is_no_logarithm_there_is_no_exponent(law: Any, note: str) -> None:
    fit = one(rows(law))
    assert note in fit.note
    assert np.isnan(fit.time.point)
    assert np.isnan(fit.tasks.point)


def test_the_first_cycle_is_left_out_where_only_later_ones_count() -> None:
    found = rows(lambda t, m, seed: (t - 1.0) * (m - 1))
    assert one(found, horizon="later cycles").time.point == pytest.approx(1.0)
    assert one(found, horizon="cycles").note


def test_one_number_of_tasks_gives_the_exponent_of_time_alone() -> None:
    fit = one(rows(lambda t, m, seed: t**2.0, tasks=(5,)))
    assert fit.time.point == pytest.approx(2.0)
    assert np.isnan(fit.tasks.point)


def test_regret_after_j_cycles_is_that_of_a_run_of_j_cycles() -> None:
    def regret(cycles: int) -> pd.Series:
        arguments = {"num_tasks": 4, "cycles": cycles, "order": "reshuffled"}
        table = scaling_table([play(BLIND, "history-aware", [3], arguments=arguments)])
        return table.set_index("cycles")["regret"]

    # A stream's first cycles do not depend on how many there are.
    long, short = regret(7), regret(4)
    np.testing.assert_allclose(long[short.index], short)


def test_an_agent_that_never_finishes_is_reported() -> None:
    found = scaling_table([play(RECOVERY, "pin", [0], arguments={"num_tasks": 3, "cycles": 2})])
    assert found["regret"].isna().all()
    assert "did not finish" in one(found, horizon="visits").note


def test_a_table_of_fits_has_one_row_each() -> None:
    frame = exponent_frame(fit_exponents(rows(lambda t, m, seed: 1.0 * t * (m - 1))))
    assert frame.loc[0, ["agent", "runs", "note"]].tolist() == ["a", 4, ""]
    assert frame.loc[0, ["time", "tasks_low", "tasks_high"]].tolist() == pytest.approx([1, 1, 1])


def test_bad_input_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="later cycles"):
        fit_exponents(rows(lambda t, m, seed: 1.0), horizon="cycle")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="at least 2"):
        fit_exponents(rows(lambda t, m, seed: 1.0, tasks=(1, 3)))
    with pytest.raises(InvalidValueError, match="at least one table"):
        scaling_table([])


def test_a_study_plays_every_number_of_tasks_once_and_goes_on_where_it_was(
    tmp_path: Path,
) -> None:
    planned = scaling_comparisons(
        BLIND, agents=["pin"], seeds=[0, 1], tasks=[5, 3], cycles=3, arguments={"gap": 0.25}
    )
    assert list(planned) == [3, 5]
    cells: list[int] = []

    def study() -> pd.DataFrame:
        def count(visits: int, finished: int) -> None:
            cells.append(visits)

        return scaling_study(planned, tmp_path, workers=1, progress=count)

    first = study()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["M3", "M5"]
    assert first[first["cycles"] == 3].groupby("num_tasks")["regret"].mean().to_dict() == {
        3: 0.25 * 3 * 2,
        5: 0.25 * 3 * 4,
    }
    assert sum(cells) == 2 * 3 * (3 + 5)
    cells.clear()
    pd.testing.assert_frame_equal(study(), first)
    assert sum(cells) == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tasks": [1, 3]}, "at least 2"),
        ({"tasks": [3, 3]}, "each once"),
        ({"arguments": {"obs": "classes:4"}}, "classes:4"),
        ({"agents": ["pin", "clock"], "arguments": {"order": "iid"}}, "order"),
    ],
)
def test_a_study_that_cannot_be_played_is_refused_before_it_begins(
    change: dict[str, Any], text: str
) -> None:
    with pytest.raises(InvalidValueError, match=text):
        scaling_comparisons(BLIND, **({"agents": ["pin"], "seeds": [0], "tasks": [5, 3]} | change))


def test_what_time_counts_follows_the_reading() -> None:
    assert default_horizon(BLIND, "A") == "cycles"
    assert default_horizon(RECOVERY, "C") == "visits"
    assert default_horizon(PAGING, "B") == "later cycles"
    assert default_horizon("NSR/CyclicDigits-v0") == "later cycles"
