"""Tables, verdicts and figures of exact environments: complete, in the frame, and not too much."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from rich.console import Console, RenderableType

from nsr_gym.errors import DataError
from nsr_gym.evaluation.rollout import play
from nsr_gym.regret.exact import exact_regret
from nsr_gym.regret.scaling import fit_exponents, scaling_table
from nsr_gym.regret.verdict import Verdict, judge, judge_table
from nsr_gym.report.exact import live_block, summarise_exact
from nsr_gym.report.exact_figures import (
    draw_exact_figures,
    exact_regret_figure,
    scaling_figure,
)
from nsr_gym.report.exact_terminal import render_regret
from nsr_gym.report.figures import regret_figure
from nsr_gym.report.scaling import render_exponents
from nsr_gym.report.summary import summarise
from nsr_gym.report.verdict import render_verdict, verdict_json

BLIND, PAGING, RECOVERY = "NSR/BlindAllocation-v0", "NSR/Paging-v0", "NSR/UntilRecovered-v0"
AGENTS = {
    BLIND: ("history-aware", "pin", "uniform-random", "best-memoryless", "elimination"),
    PAGING: ("history-aware", "pin", "lru"),
    RECOVERY: ("history-aware", "pin", "uniform-random"),
}
SMALL = {"num_tasks": 4, "cycles": 5, "split": "test"}


def played(environment: str, seeds: int = 5, **arguments: Any) -> pd.DataFrame:
    frames = [
        play(environment, agent, range(seeds), arguments=SMALL | arguments)
        for agent in AGENTS[environment]
    ]
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return {environment: played(environment) for environment in AGENTS}


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    return {environment: judge(environment, SMALL) for environment in AGENTS}


def text(part: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def by_agent(summary: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {str(row["agent"]): dict(row) for _, row in summary.iterrows()}


def labels(figure: Figure) -> str:
    return " ".join(t.get_text() for axes in figure.axes for t in axes.texts)


def test_one_row_for_each_environment_and_agent(tables: dict[str, pd.DataFrame]) -> None:
    summary = summarise_exact(pd.concat(tables.values(), ignore_index=True))
    found = {(row["environment"], row["agent"]) for _, row in summary.iterrows()}
    assert found == {(env, agent) for env, agents in AGENTS.items() for agent in agents}
    # Without a verdict nothing is held against a bound.
    assert (
        summary[["bound", "optimum", "ratio", "theorem_ratio", "expected"]].isna().to_numpy().all()
    )


def test_the_numbers_of_the_blind_environment(
    tables: dict[str, pd.DataFrame], verdicts: dict[str, Verdict]
) -> None:
    rows = by_agent(summarise_exact(tables[BLIND], verdicts=verdicts))
    pin = rows["pin"]
    # M = 4, C = 5, gap 0.5: 3 of 4 steps lose half.
    assert pin["regret"] == pin["bound"] == pin["optimum"] == 0.5 * 3 * 5
    assert (pin["first_cycle"], pin["last_cycle"]) == (1.5, 1.5)
    assert (pin["reward"], pin["wrong"]) == pytest.approx((1 - 0.5 * 0.75, 0.75))
    assert (pin["ratio"], pin["theorem_ratio"], pin["place"]) == (1.0, 1.0, "at bound")
    aware = rows["history-aware"]
    assert (aware["regret"], aware["last_cycle"], aware["relative"]) == (0.5 * 6, 0.0, 0.0)
    assert aware["place"] == "below bound"
    assert pin["relative"] == pytest.approx(4.5)


def test_in_reading_b_bound_and_theorem_are_two_numbers(
    tables: dict[str, pd.DataFrame], verdicts: dict[str, Verdict]
) -> None:
    rows = by_agent(summarise_exact(tables[PAGING], verdicts=verdicts))
    assert rows["pin"]["ratio"] == pytest.approx(1.0)
    assert rows["pin"]["theorem_ratio"] == pytest.approx(4 / 5)  # (C-1)/C
    assert rows["lru"]["place"] == "above"


def test_an_episode_that_was_cut_off_is_known_from_below(
    tables: dict[str, pd.DataFrame], verdicts: dict[str, Verdict]
) -> None:
    summary = summarise_exact(tables[RECOVERY], verdicts=verdicts)
    pin = by_agent(summary)["pin"]
    assert (pin["finished"], pin["place"]) == (0.0, "unfinished")
    assert np.isnan(pin["last_cycle"])
    assert summary["agent"].tolist()[-1] == "pin"
    shown = text(render_regret(summary))
    assert "≥ 9," in shown or "≥ 10,000" in shown
    assert "Cut off by the limit of steps, share that finished: pin (0 %)" in shown


def test_the_table_fits_into_120_columns_and_is_whole(
    tables: dict[str, pd.DataFrame], verdicts: dict[str, Verdict]
) -> None:
    summary = summarise_exact(pd.concat(tables.values(), ignore_index=True), verdicts=verdicts)
    shown = text(render_regret(summary))
    assert max(map(len, shown.splitlines())) <= 120
    assert "…" not in shown
    for name in ("5 runs per agent", "history-aware", "best-memoryless", "ratio to", "M = 4"):
        assert name in shown
    # What came out the same in every run is a number without an interval.
    assert "[" not in next(line for line in shown.splitlines() if line.startswith("lru"))
    assert "[" in next(line for line in shown.splitlines() if line.startswith("uniform-random"))


@pytest.mark.parametrize("size", [999.0, 12_345.0, 1e6])
def test_large_numbers_are_whole_too(
    size: float, tables: dict[str, pd.DataFrame], verdicts: dict[str, Verdict]
) -> None:
    summary = summarise_exact(tables[RECOVERY], verdicts=verdicts)
    for name in summary.select_dtypes("float").columns:
        summary[name] = size
    summary[["reward", "regret_low", "finished"]] = [-size, size - 1, 0.5]
    shown = text(render_regret(summary))
    assert max(map(len, shown.splitlines())) <= 120
    assert "…" not in shown
    for header in ("total regret", "in first", "in last", "ratio to", "history-aware", "expected"):
        assert header in shown
    # Nothing is broken over two lines: each row is whole, in as many tables as it takes.
    found = [line for line in shown.splitlines() if line.startswith("uniform-random")]
    cells = " ".join(found).replace("[", " ").replace("]", " ").split()
    assert sum(part.strip(",").startswith(f"{size:,.0f}") for part in cells) == 8
    assert f"-{size:,.0f}" in " ".join(cells)


def test_an_episode_of_forty_cycles_fits_into_one_table() -> None:
    arguments = {"num_tasks": 10, "cycles": 40}
    agents = ("best-memoryless", "history-aware", "pin")
    table = pd.concat([play(RECOVERY, agent, range(3), arguments=arguments) for agent in agents])
    verdict = judge(RECOVERY, arguments)
    shown = text(render_regret(summarise_exact(table, verdicts={RECOVERY: verdict})))
    assert max(map(len, shown.splitlines())) <= 120
    assert len([line for line in shown.splitlines() if line.startswith("best-memoryless")]) == 1
    assert "ratio to" in shown


def test_without_a_verdict_the_columns_about_it_are_left_out(
    tables: dict[str, pd.DataFrame],
) -> None:
    shown = text(render_regret(summarise_exact(tables[BLIND])))
    for name in ("bound", "expected", "optimum"):
        assert name not in shown


def test_a_verdict_in_words(tables: dict[str, pd.DataFrame], verdicts: dict[str, Verdict]) -> None:
    summary = summarise_exact(tables[PAGING], verdicts=verdicts)
    shown = " ".join(text(render_verdict(verdicts[PAGING], summary)).split())
    assert "Reading B" in shown
    assert "Bound: 12 over the whole episode" in shown
    assert "T(M-1)Delta_switch = 15" in shown
    assert "expected at 0.8000 of it" in shown
    assert "Optimum: 12" in shown
    assert "nothing gets below" in shown
    for assumption in verdicts[PAGING].assumptions:
        assert f"yes {assumption.name}" in shown
    assert "lru expected above the optimum, 1.33 times it; measured 1.333 of the bound" in shown
    assert "pin expected at the bound, which is the optimum, exactly" in shown


def test_where_the_bound_does_not_apply_none_is_printed_or_drawn() -> None:
    table, verdict = played(BLIND, obs="full"), judge(BLIND, SMALL | {"obs": "full"})
    summary = summarise_exact(table, verdicts={BLIND: verdict})
    shown = text(render_regret(summary)) + text(render_verdict(verdict, summary))
    assert f"No bound. {verdict.why}" in " ".join(shown.split())
    for forbidden in ("Bound:", "T(M-1)Delta_switch =", "of the bound", "ratio to"):
        assert forbidden not in shown
    assert "best-memoryless" in shown
    assert verdict_json(verdict, summary)["bound"] is None
    drawn = labels(exact_regret_figure(exact_regret(table), verdict))
    assert "bound" not in drawn
    assert "optimum 0" in drawn


def test_a_verdict_as_json_has_no_nan(
    tables: dict[str, pd.DataFrame], verdicts: dict[str, Verdict]
) -> None:
    for environment, table in tables.items():
        found = verdict_json(verdicts[environment], summarise_exact(table, verdicts=verdicts))
        again = json.loads(json.dumps(found, allow_nan=False))
        assert again == found
        assert set(found["agents"]) == set(AGENTS[environment])
        assert found["assumptions"][0]["holds"] is True


def test_a_figure_for_each_exact_environment(
    tables: dict[str, pd.DataFrame], verdicts: dict[str, Verdict], tmp_path: Path
) -> None:
    mixed = pd.concat(tables.values(), ignore_index=True)
    files = draw_exact_figures(mixed, tmp_path / "new", verdicts=verdicts)
    assert len(files) == 3
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_the_figure_names_runs_agents_bound_and_who_is_missing(
    tables: dict[str, pd.DataFrame], verdicts: dict[str, Verdict]
) -> None:
    figure = exact_regret_figure(exact_regret(tables[RECOVERY]), verdicts[RECOVERY])
    title = figure.axes[0].get_title(loc="left")
    assert "5 runs per agent" in title
    # The instance's first task is the one that pin has right.
    assert "pin: cut off, visit 2" in labels(figure)
    assert "bound = optimum 60" in labels(figure)  # 20 visits with M - 1 = 3 wrong tries
    figure = exact_regret_figure(exact_regret(tables[BLIND]))
    assert "pin 7.5" in labels(figure)
    assert "bound" not in labels(figure)


def test_bound_and_optimum_are_drawn_at_the_ends_of_cycles_alone(
    tables: dict[str, pd.DataFrame], verdicts: dict[str, Verdict], full_table: pd.DataFrame
) -> None:
    def steps(figure: Figure) -> list[Any]:
        return [line for line in figure.axes[0].lines if line.get_drawstyle() == "steps-post"]

    found = exact_regret(tables[PAGING])
    (bound,) = steps(exact_regret_figure(found, verdicts[PAGING]))
    assert bound.get_xdata().tolist() == [4, 8, 12, 16, 20]
    assert bound.get_ydata().tolist() == [0, 3, 6, 9, 12]
    # A policy that attains the bound is nowhere below the line, within no cycle either.
    pinned = found.agents["pin"].cumulative.mean(axis=0)
    drawn = np.concatenate([np.zeros(3), np.repeat(bound.get_ydata(), 4)[:17]])
    assert (pinned >= drawn - 1e-9).all()
    live = steps(regret_figure(full_table))
    assert len(live) == 2
    assert all((line.get_xdata() % 10 == 0).all() for line in live)


def test_where_tasks_come_in_no_cycles_only_the_end_is_drawn() -> None:
    table, verdict = played(PAGING, order="iid"), judge(PAGING, SMALL | {"order": "iid"})
    figure = exact_regret_figure(exact_regret(table), verdict)
    (line,) = (a for a in figure.axes[0].lines if a.get_drawstyle() == "steps-post")
    assert np.isnan(line.get_ydata()[:-1]).all()
    assert line.get_ydata()[-1] == verdict.optimum


def test_who_did_not_finish_a_single_visit_is_named_in_the_title() -> None:
    table = play(RECOVERY, "pin", [0], arguments=SMALL | {"num_tasks": 10})
    figure = exact_regret_figure(exact_regret(table, num_visits=50))
    assert "cut off in the first visit: pin" in figure.axes[0].get_title(loc="left")


def test_agents_that_are_orders_of_magnitude_apart_get_a_logarithmic_axis() -> None:
    arguments = {"num_tasks": 2, "cycles": 400}
    apart = pd.concat(
        [play(BLIND, agent, [0], arguments=arguments) for agent in ("pin", "history-aware")]
    )
    assert exact_regret_figure(exact_regret(apart)).axes[0].get_yscale() == "log"
    near = played(BLIND)
    assert exact_regret_figure(exact_regret(near)).axes[0].get_yscale() == "linear"


def test_the_scaling_figure_and_table_show_exponents_and_who_has_none() -> None:
    frames = [
        pd.concat(
            [play(PAGING, a, [0, 1], arguments=SMALL | {"num_tasks": m}) for a in AGENTS[PAGING]]
        )
        for m in (3, 5)
    ]
    rows = scaling_table(frames)
    fits = fit_exponents(rows, horizon="later cycles")
    figure = scaling_figure(rows, fits, horizon="later cycles")
    assert len(figure.axes) == 2
    assert all(axes.get_xscale() == axes.get_yscale() == "log" for axes in figure.axes)
    assert labels(figure).count("pin 1.00") == 2
    assert "history-aware" not in labels(figure)
    shown = text(render_exponents(fits, tasks=[5, 3], horizon="later cycles"))
    assert "M = 3, 5, 2 runs" in shown
    assert "0 throughout" in shown
    assert "T(M-1)Delta_switch has both exponents 1" in shown
    nothing = [fit for fit in fits if fit.note]
    with pytest.raises(DataError, match="0 throughout"):
        scaling_figure(rows, nothing)


def test_with_c_solutions_held_table_and_figure_name_m_minus_c() -> None:
    arguments = SMALL | {"slots": 2}
    rows = scaling_table(
        play(PAGING, "pin", [0], arguments=arguments | {"num_tasks": m}) for m in (3, 5)
    )
    fits = fit_exponents(rows, horizon="later cycles", held=2)
    shown = render_exponents(fits, tasks=[3, 5], horizon="later cycles", left_out=[2])
    for part in ("log(M-2)", "(C-1)(M-2)Delta_switch has both", "M = 2 left out"):
        assert part in " ".join(text(shown).split())
    figure = scaling_figure(rows, fits, horizon="later cycles")
    assert figure.axes[1].get_xlabel() == "M-2"
    assert figure.axes[1].lines[0].get_xdata().tolist() == [1, 3]
    assert "law (C-1)(M-2), c = 2 held" in figure.get_suptitle()


def test_a_live_agent_is_held_against_a_bound_of_its_own_seeds(
    full_table: pd.DataFrame,
) -> None:
    environment = "NSR/CyclicDigits-v0"
    verdict = judge_table(full_table, environment, {})
    rows = by_agent(live_block(full_table, environment, verdict))
    summary = by_agent(summarise(full_table))
    assert rows["oracle"]["place"] == "reference"
    for agent in ("fresh", "pin-one"):
        for end in ("", "_low", "_high"):
            assert rows[agent][f"regret{end}"] == summary[agent][f"regret{end}"]
            assert rows[agent][f"theorem_ratio{end}"] == summary[agent][f"ratio{end}"]
    # By construction (C-1)M / (C(M-1)) of T(M-1)Delta_switch on every seed, so never "at" it.
    assert rows["fresh"]["place"] == "above"
    # The bound is (C-1)(M-1) times the smallest Delta_switch.
    assert verdict.bound is not None
    expected = 10 / 9 * verdict.theorem * (5 / 6) / verdict.bound
    assert rows["fresh"]["ratio"] == pytest.approx(expected, rel=0.02)


def test_exact_rows_beside_live_ones_change_nothing(
    full_table: pd.DataFrame, tables: dict[str, pd.DataFrame]
) -> None:
    mixed = pd.concat([full_table, tables[BLIND]], ignore_index=True)
    pd.testing.assert_frame_equal(summarise_exact(mixed), summarise_exact(tables[BLIND]))
