"""Figures of a result table as PNG files, drawn without pyplot and its global state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nsr_gym.errors import DataError
from nsr_gym.metrics.episodes import (
    Episode,
    Episodes,
    RewardKind,
    environments,
    read_episodes,
)
from nsr_gym.metrics.recovery import SHARE, previous_end
from nsr_gym.metrics.visits import is_return
from nsr_gym.regret.measured import cumulative_bounds, measured_regret
from nsr_gym.report.exact_figures import draw_at_cycle_ends
from nsr_gym.report.style import (
    ACCESS_KEY,
    BOUND_COLOUR,
    OTHER_STYLE,
    Dashes,
    EndLabel,
    LineStyle,
    canvas,
    draw_runs,
    file_slug,
    label_line_ends,
    line_styles,
    mark_cycles,
)
from nsr_gym.report.terminal import number_range, runs_label

Floats = NDArray[np.float64]


def draw_figures(
    table: pd.DataFrame,
    folder: Path,
    *,
    reference: str = "oracle",
    reward: RewardKind = "online",
) -> list[Path]:
    """Draw every figure of every environment of a table.

    Args:
        table: the long table.
        folder: where the PNG files go; made where it is missing.
        reference: the history-aware reference; without it the regret figure is left out.
        reward: which reward regret is in.

    Returns:
        The files: `<environment>-regret.png`, `-accuracy.png` and `-recovery.png`, the last only
        where tasks return.

    Raises:
        DataError: the table is not a valid long table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for environment in environments(table):
        episodes = read_episodes(table, environment)
        figures = {"accuracy": accuracy_figure(episodes, reference=reference)}
        if reference in episodes:
            figures["regret"] = regret_figure(
                table, environment=environment, reference=reference, reward=reward
            )
        if any(is_return(e.tasks).any() for e in _all(episodes)):
            figures["recovery"] = recovery_figure(episodes, reference=reference)
        for name, figure in sorted(figures.items()):
            files.append(folder / f"{file_slug(environment)}-{name}.png")
            figure.savefig(files[-1], dpi=150)
    return files


def regret_figure(
    table: pd.DataFrame,
    *,
    environment: str | None = None,
    reference: str = "oracle",
    reward: RewardKind = "online",
    bounds: bool = True,
) -> Figure:
    """Cumulative regret per agent with 95 % bands, and T(M-1)Delta_switch at the ends of cycles.

    Args:
        table: the long table.
        environment: which environment, where the table holds several.
        reference: the agent that regret is relative to.
        reward: `"online"` or `"post_task"`.
        bounds: whether T(M-1)Delta_switch is drawn; False where it does not apply.

    Raises:
        UnknownNameError: the reference is not in the table.
    """
    regret = measured_regret(table, environment=environment, reference=reference, reward=reward)
    styles = line_styles({a: r.access for a, r in regret.agents.items()}, reference)
    figure, axes = canvas()
    visits = np.arange(1, regret.num_visits + 1)
    labels = []
    for agent, measured in regret.agents.items():
        curve = measured.cumulative
        draw_runs(axes, visits, curve, styles[agent])
        labels.append(_label(agent, float(curve[:, -1].mean()), styles[agent]))
    if bounds and regret.delta is not None and regret.cyclic and regret.num_tasks > 1:
        drawn = cumulative_bounds(regret.num_tasks, regret.num_visits, regret.delta.mean.point)
        kinds: tuple[tuple[str, Dashes], ...] = (("T(M-1)Δ", "-"), ("(T-1)(M-1)Δ", OTHER_STYLE))
        for bound, (name, dashes) in zip(drawn, kinds, strict=True):
            at_ends = bound[regret.num_tasks - 1 :: regret.num_tasks]
            draw_at_cycle_ends(axes, regret.num_tasks, at_ends, BOUND_COLOUR, dashes)
            labels.append(EndLabel(f"{name} = {bound[-1]:.2f}", bound[-1], BOUND_COLOUR, dashes))
    mark_cycles(axes, regret.num_visits, regret.num_tasks, regret.cyclic)
    axes.set_xlim(0, regret.num_visits)
    axes.set_xlabel("visit")
    axes.set_ylabel(f"cumulative regret to {reference} ({reward.replace('_', '-')} reward)")
    counts = [len(r.seeds) for r in regret.agents.values()]
    tasks = number_range(regret.fewest_tasks, regret.num_tasks)
    detail = f"T = {regret.cycles:g}, M = {tasks}, L = {regret.learning_steps}"
    if regret.delta is not None:
        detail += f", Δ_switch = {regret.delta.mean} ({regret.delta.estimator})"
    _title(axes, regret.environment, regret.split, counts, f"{detail}\n{ACCESS_KEY}")
    label_line_ends(axes, labels)
    return figure


def accuracy_figure(episodes: Episodes, *, reference: str = "oracle") -> Figure:
    """Accuracy before and after every visit, one small panel per agent.

    Where episodes differ in length, the visits that all of them have are shown.

    Args:
        episodes: episodes of one environment, as `read_episodes` returns them.
        reference: its accuracy after the visit is repeated in grey in every panel.

    Raises:
        DataError: there are no episodes.
    """
    if not episodes:
        raise DataError("There are no episodes to draw.")
    styles = line_styles(_access(episodes), reference)
    shortest = min(e.num_visits for e in _all(episodes))
    after, before = (
        {a: np.stack([e.curves[:shortest, i] for e in s.values()]) for a, s in episodes.items()}
        for i in (-1, 0)
    )
    order = sorted(episodes, key=lambda agent: -float(after[agent].mean()))
    columns = min(4, len(order))
    rows = -(-len(order) // columns)
    figure = Figure(figsize=(max(6.0, 2.75 * columns), 1.3 + 1.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    example = next(_all(episodes))
    visits = np.arange(1, shortest + 1)
    lengths = {e.num_tasks for e in _all(episodes)}
    cyclic = len(lengths) == 1 and all(e.is_cyclic for e in _all(episodes))
    for axes, agent in zip(panels, order, strict=False):
        if reference in after and agent != reference:
            axes.plot(visits, after[reference].mean(axis=0), color="#BBBBBB", linewidth=1)
        solid = LineStyle(styles[agent].colour, "-", styles[agent].access)
        draw_runs(axes, visits, after[agent], solid, width=1.4)
        dotted = LineStyle(styles[agent].colour, (0, (1, 1)), styles[agent].access)
        draw_runs(axes, visits, before[agent], dotted, width=1.4)
        mark_cycles(axes, shortest, example.num_tasks, cyclic)
        runs = runs_label([len(episodes[agent])])
        axes.set_title(f"{agent} ({styles[agent].access}, {runs})", fontsize=9)
        axes.set_ylim(0, 1)
        axes.tick_params(labelsize=8)
    for axes in panels[len(order) :]:
        axes.set_axis_off()
    for axes in panels[max(0, len(order) - columns) : len(order)]:
        axes.tick_params(labelbottom=True)  # the last panel of a column, not only of the grid
    text = f"{example.environment} · {_splits(episodes)} split · {_runs(episodes)} per agent"
    grey = f" · grey: {reference} after" if reference in after else ""
    figure.suptitle(
        f"{text}\naccuracy on the visited task, solid: after, dotted: before the visit{grey}",
        fontsize=10,
    )
    figure.supxlabel("visit", fontsize=9)
    figure.supylabel("accuracy (mean, 95 % band)", fontsize=9)
    return figure


def recovery_figure(episodes: Episodes, *, reference: str = "oracle") -> Figure:
    """Mean accuracy within returns against learning steps, with the recovery threshold.

    Args:
        episodes: episodes of one environment, as `read_episodes` returns them.
        reference: the threshold is 0.95 of what this agent ended its previous visit with.

    Raises:
        DataError: no task returns.
    """
    curves = {
        agent: np.stack(
            [e.curves[r].mean(axis=0) for e in s.values() if (r := is_return(e.tasks)).any()]
            or [np.full(1, np.nan)]
        )
        for agent, s in episodes.items()
    }
    curves = {agent: c for agent, c in curves.items() if not np.isnan(c).any()}
    if not curves:
        raise DataError("No task returns in these episodes: there is no recovery to draw.")
    styles = line_styles(_access(episodes), reference)
    figure, axes = canvas()
    steps = np.arange(next(iter(curves.values())).shape[1])
    labels = []
    for agent, values in curves.items():
        draw_runs(axes, steps, values, styles[agent])
        labels.append(_label(agent, float(values[:, -1].mean()), styles[agent]))
    if reference in episodes:
        ends = [previous_end(e.tasks, e.curves) for e in episodes[reference].values()]
        threshold = SHARE * float(np.mean([np.nanmean(end) for end in ends]))
        axes.axhline(threshold, color=BOUND_COLOUR, linewidth=3, alpha=0.45)
        labels.append(EndLabel(f"{SHARE} of {reference}", threshold, BOUND_COLOUR, "-"))
    axes.set_xlim(0, steps[-1])
    axes.set_ylim(0, 1)
    axes.set_xlabel("learning step of a return (0: before any update)")
    axes.set_ylabel("accuracy on the returning task")
    axes.grid(alpha=0.25, linewidth=0.5)
    example = next(_all(episodes))
    counts = [len(s) for s in episodes.values()]
    _title(axes, example.environment, _splits(episodes), counts, ACCESS_KEY)
    label_line_ends(axes, labels)
    return figure


def _label(agent: str, value: float, style: LineStyle) -> EndLabel:
    return EndLabel(agent, value, style.colour, style.dashes)


def _title(axes: Axes, environment: str, split: str, counts: list[int], detail: str) -> None:
    head = f"{environment} · {split} split · {runs_label(counts)} per agent, mean and 95 % band"
    axes.set_title(f"{head}\n{detail}", fontsize=9.5, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _all(episodes: Episodes) -> Iterator[Episode]:
    return (episode for by_seed in episodes.values() for episode in by_seed.values())


def _access(episodes: Episodes) -> dict[str, str]:
    return {agent: next(iter(s.values())).access for agent, s in episodes.items()}


def _splits(episodes: Episodes) -> str:
    return ", ".join(sorted({e.split for e in _all(episodes)}))


def _runs(episodes: Episodes) -> str:
    return runs_label([len(s) for s in episodes.values()])
