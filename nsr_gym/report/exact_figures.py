"""Figures of exact environments and of scaling studies as PNG files, drawn without pyplot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter
from numpy.typing import NDArray

from nsr_gym.errors import DataError
from nsr_gym.regret.exact import ExactRegret, exact_environments, exact_regret
from nsr_gym.regret.scaling import Exponents, Horizon, horizon_values
from nsr_gym.report.style import (
    ACCESS_KEY,
    BOUND_COLOUR,
    Dashes,
    EndLabel,
    canvas,
    draw_runs,
    file_slug,
    label_line_ends,
    line_styles,
    mark_cycles,
)
from nsr_gym.report.terminal import runs_label
from nsr_gym.stats import Interval

if TYPE_CHECKING:
    from nsr_gym.regret.verdict import Verdict

Floats = NDArray[np.float64]
OPTIMUM_COLOUR = "#9A9A9A"
_APART = 100.0
"""Ratio of final regrets from which on a logarithmic axis is the readable one."""
_MANY_CYCLES = 20
"""Number of cycles beyond which their ends are neither ruled off nor marked."""


def draw_exact_figures(
    table: pd.DataFrame,
    folder: Path,
    *,
    reference: str = "history-aware",
    verdicts: Mapping[str, Verdict] | None = None,
    num_visits: Mapping[str, int] | None = None,
) -> list[Path]:
    """Draw the regret of every exact environment of a table.

    Args:
        table: the long table; rows of live environments are passed over.
        folder: where the PNG files go; made where it is missing.
        reference: drawn in black.
        verdicts: by environment; bound and optimum are drawn where there is one.
        num_visits: V by environment, see `exact_regret`.

    Returns:
        The files, `<environment>-regret.png`.

    Raises:
        DataError: the table is not a valid long table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for environment in exact_environments(table):
        regret = exact_regret(
            table, environment, reference=reference, num_visits=(num_visits or {}).get(environment)
        )
        figure = exact_regret_figure(regret, (verdicts or {}).get(environment))
        files.append(folder / f"{file_slug(environment)}-regret.png")
        figure.savefig(files[-1], dpi=150)
    return files


def exact_regret_figure(regret: ExactRegret, verdict: Verdict | None = None) -> Figure:
    """Cumulative regret per agent with 95 % bands; bound and optimum at the ends of cycles.

    Within a cycle they say nothing: an agent may lose what a cycle costs in any of its visits.
    Where tasks come in no cycles they are drawn at the end of the episode only. The axis is
    logarithmic where agents end orders of magnitude apart. An agent that did not finish is drawn
    as far as all of its episodes got.

    Args:
        regret: of one environment.
        verdict: on it, if there is one.
    """
    styles = line_styles({name: a.access for name, a in regret.agents.items()}, regret.reference)
    figure, axes = canvas()
    visits = np.arange(1, regret.num_visits + 1)
    labels, ends, missing = [], [], []
    for name, agent in regret.agents.items():
        drawn = int((~np.isnan(agent.cumulative)).all(axis=0).sum())
        if not drawn:
            missing.append(name)
            continue
        draw_runs(axes, visits[:drawn], agent.cumulative[:, :drawn], styles[name])
        last = float(agent.cumulative[:, drawn - 1].mean())
        cut = drawn < regret.num_visits
        text = f"{name}: cut off, visit {drawn + 1}" if cut else f"{name} {last:,.4g}"
        ends.append(last)
        labels.append(EndLabel(text, last, styles[name].colour, styles[name].dashes))
    for label, at_ends in _verdict_lines(regret, verdict):
        draw_at_cycle_ends(axes, regret.num_tasks, at_ends, label.colour)
        ends.append(label.value)
        labels.append(label)
    ruled = regret.cyclic and regret.cycles <= _MANY_CYCLES
    mark_cycles(axes, regret.num_visits, regret.num_tasks, ruled)
    axes.set_xlim(0, regret.num_visits)
    logarithmic = _use_logarithm(axes, ends)
    axes.set_xlabel("visit")
    axes.set_ylabel("cumulative regret to the oracle" + " (log)" * logarithmic)
    axes.spines[["top", "right"]].set_visible(False)
    runs = runs_label([len(agent.seeds) for agent in regret.agents.values()])
    lines = [
        f"{regret.environment} · {regret.split} split · {runs} per agent, mean and 95 % band",
        f"C = {regret.cycles:g} cycles of M = {regret.num_tasks} tasks",
        ACCESS_KEY,
    ]
    if missing:
        lines[1] += f" · not drawn, cut off in the first visit: {', '.join(missing)}"
    axes.set_title("\n".join(lines), fontsize=9.5, loc="left")
    label_line_ends(axes, labels)
    return figure


def scaling_figure(
    rows: pd.DataFrame, fits: Sequence[Exponents], *, horizon: Horizon = "cycles"
) -> Figure:
    """Regret against T at the largest M and against M-c at the largest T, both axes logarithmic.

    Args:
        rows: of one environment, as `nsr_gym.regret.scaling.scaling_table` returns them.
        fits: exponents by agent of the same rows; the labels show them with their intervals. Their
            c (`held`) is 1 outside of reading B.
        horizon: what T counts.

    Raises:
        DataError: no agent has a fit, so that there is nothing to draw.
    """
    fitted = [fit for fit in fits if not fit.note]
    if not fitted:
        why = "; ".join(f"{fit.agent}: {fit.note}" for fit in fits)
        raise DataError(f"There is no exponent to draw: {why}.")
    held = fitted[0].held
    counted = rows.assign(T=horizon_values(rows, horizon), scale=rows["num_tasks"] - held)
    largest, longest = int(rows["num_tasks"].max()), int(rows["cycles"].max())
    panels = (
        ("T", counted[(counted["num_tasks"] == largest) & (counted["T"] > 0)], f"M = {largest}"),
        ("scale", counted[counted["cycles"] == longest], f"C = {longest} cycles"),
    )
    styles = line_styles({fit.agent: fit.access for fit in fits}, "history-aware")
    figure = Figure(figsize=(13.4, 5.2))
    FigureCanvasAgg(figure)
    for left, (column, found, fixed) in zip((0.05, 0.545), panels, strict=True):
        axes = figure.add_axes((left, 0.11, 0.255, 0.74))
        labels = []
        for fit in fitted:
            means = found[found["agent"] == fit.agent].groupby(column)["regret"].mean()
            style = styles[fit.agent]
            few = len(means) <= 12
            axes.plot(
                means.index, means, color=style.colour, linestyle=style.dashes, linewidth=1.8,
                marker="o" if few else "", markersize=4,
            )  # fmt: skip
            slope = fit.time if column == "T" else fit.tasks
            text = f"{fit.agent} {_slope(slope)}"
            labels.append(EndLabel(text, float(means.iloc[-1]), style.colour, style.dashes))
        axes.set_xscale("log")
        axes.set_yscale("log")
        values = sorted(found[column].unique())
        if len(values) <= 12:
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.minorticks_off()
        axes.set_xlim(values[0] * 0.97, values[-1] * 1.03)
        _label_powers(axes)
        axes.set_xlabel(f"T, {horizon}" if column == "T" else f"M-{held}")
        axes.set_ylabel("regret (mean over runs)")
        exponent = "b_T" if column == "T" else "b_M"
        axes.set_title(f"{fixed}; labels: {exponent} with 95 % interval", fontsize=9.5, loc="left")
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        label_line_ends(axes, labels, size=8)
    counts = [fit.time.runs for fit in fitted]
    head = f"{rows['environment'].iloc[0]} · {runs_label(counts)} per agent and M"
    law = f" · law (C-1)(M-{held}), c = {held} held" if held > 1 else ""
    figure.suptitle(
        f"{head} · log regret = a + b_T log T + b_M log(M-{held}){law}\n{ACCESS_KEY}",
        fontsize=9.5, x=0.05, y=0.985, ha="left",
    )  # fmt: skip
    return figure


def draw_at_cycle_ends(
    axes: Axes, num_tasks: int, values: Floats, colour: str, dashes: Dashes = "-"
) -> None:
    """Draw what holds at the ends of cycles alone: a mark at each, joined by steps.

    Until the next end the line stays where it is, since regret that is there does not go away.

    Args:
        axes: where; x counts visits.
        num_tasks: M.
        values: (cycles,) at the end of each cycle, NaN where nothing is known.
        colour: hex colour.
        dashes: matplotlib line style.
    """
    many = np.count_nonzero(~np.isnan(values)) > _MANY_CYCLES
    visits = num_tasks * np.arange(1, len(values) + 1)
    axes.plot(
        visits, values, color=colour, linestyle=dashes, drawstyle="steps-post", linewidth=1.2,
        marker="" if many else "D", markersize=5, alpha=0.55,
    )  # fmt: skip


def _verdict_lines(regret: ExactRegret, verdict: Verdict | None) -> list[tuple[EndLabel, Floats]]:
    """Bound and optimum at the ends of cycles; in reading B nothing is lost in the first."""
    if verdict is None:
        return []
    ends = np.arange(1, int(regret.cycles) + 1)
    share = ends / regret.cycles
    if verdict.reading == "B" and len(ends) > 1:
        share = (ends - 1) / (regret.cycles - 1)
    if not regret.cyclic:
        share[:-1] = np.nan
    bound, optimum = verdict.bound, verdict.optimum
    named = [(f"bound {bound:,.5g}", bound, BOUND_COLOUR)] if bound is not None else []
    if optimum is not None and bound is not None and np.isclose(optimum, bound, rtol=1e-9):
        named = [(f"bound = optimum {bound:,.5g}", bound, BOUND_COLOUR)]
    elif optimum is not None:
        named.append((f"optimum {optimum:,.5g}", optimum, OPTIMUM_COLOUR))
    return [(EndLabel(text, value, colour, "-"), value * share) for text, value, colour in named]


def _use_logarithm(axes: Axes, ends: Sequence[float]) -> bool:
    positive = [end for end in ends if end > 0]
    if not positive or max(positive) / min(positive) < _APART:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        return False
    axes.set_yscale("log")
    axes.set_ylim(min(positive) / 5, max(positive) * 1.5)
    return True


def _label_powers(axes: Axes) -> None:
    """Name 1, 2, 5 of every power on a logarithmic axis that spans few of them."""
    low, high = axes.get_ylim()
    if high / low < 300:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def _slope(interval: Interval) -> str:
    if np.isnan(interval.point):
        return "(one M)"
    # Adding 0 makes a rounded -0 a 0.
    point, low, high = (round(x, 2) + 0.0 for x in (interval.point, interval.low, interval.high))
    if np.isnan(low) or interval.high - interval.low < 5e-4:
        return f"{point:.2f}"
    return f"{point:.2f} [{low:.2f}, {high:.2f}]"
