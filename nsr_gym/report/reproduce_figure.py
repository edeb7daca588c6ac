"""What the paper's comparisons came to, in a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nsr_gym.files import write_whole
from nsr_gym.report.style import PALETTE, REFERENCE_COLOUR, VISIT_COLOUR

_PANELS = (
    ("acc", "ACC after the last visit"),
    ("recovery_tries", "tries until recovery on returns"),
    ("bwt", "backward transfer"),
)


def experiment_figure(summary: pd.DataFrame) -> Figure:
    """Draw what an experiment came to.

    Agents by accuracy, tries and backward transfer, a colour for each part; beside them, where
    the number of tasks varies, how many times faster recovery with the bank is. Where rank and
    capacity vary, bytes and accuracy by rank, and tries by capacity.

    Args:
        summary: of `nsr_gym.agents.reproduce.run_experiment`.
    """
    if {"rank", "capacity"} <= set(summary):
        return _memory(summary)
    agents = list(dict.fromkeys(summary["agent"]))[::-1]
    labels = list(dict.fromkeys(summary["label"]))
    oracle = summary[summary["agent"] == "oracle"]
    by_tasks = "M" in summary and oracle["M"].nunique() > 1
    count = len(_PANELS) + by_tasks
    height = 1.4 + 0.09 * len(agents) * (2 + len(labels))
    figure = Figure(figsize=(3.6 * count, max(2.6, height)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(1, count, place + 1) for place in range(count)]
    offsets = np.linspace(0.25, -0.25, len(labels)) if len(labels) > 1 else np.zeros(1)
    for axes, (column, title) in zip(panels, _PANELS, strict=False):
        for label, offset, colour in zip(labels, offsets, PALETTE * 3, strict=False):
            rows = summary[summary["label"] == label]
            places = [agents.index(name) + offset for name in rows["agent"]]
            if f"{column}_low" in rows:
                axes.hlines(
                    places, rows[f"{column}_low"], rows[f"{column}_high"], color=colour,
                    linewidth=1.4,
                )  # fmt: skip
            axes.plot(
                rows[column], places, "o", color=colour, markersize=4.5, label=label,
                markeredgecolor=REFERENCE_COLOUR, markeredgewidth=0.4,
            )  # fmt: skip
        axes.set_ylim(-0.6, len(agents) - 0.4)
        axes.set_yticks(range(len(agents)), agents if axes is panels[0] else [""] * len(agents))
        _style(axes, title, "x")
    if len(labels) > 1:
        shown, named = panels[0].get_legend_handles_labels()
        figure.legend(shown, named, loc="outside upper right", ncols=9, fontsize=8, frameon=False)
    if by_tasks:
        _ratios(panels[-1], summary)
    figure.supxlabel(_caption(summary), fontsize=8)
    return figure


def _ratios(axes: Axes, summary: pd.DataFrame) -> None:
    """Draw tries without the bank over the oracle's, by the number of tasks."""
    oracle = summary[summary["agent"] == "oracle"].set_index("M")["recovery_tries"]
    without = summary[summary["access"] != "bank"]
    for (agent, rows), colour in zip(without.groupby("agent", sort=False), PALETTE, strict=False):
        rows = rows[rows["M"].isin(oracle.index)].sort_values("M")
        if len(rows) < 2:
            continue
        values = rows["recovery_tries"].to_numpy() / oracle[rows["M"]].to_numpy()
        axes.plot(rows["M"], values, "o-", color=colour, markersize=4, label=agent)
    tasks = np.array(sorted(oracle.index), dtype=float)
    axes.plot(tasks, tasks, ":", color=VISIT_COLOUR, label="M")
    axes.set_xticks(tasks)
    axes.set_xlabel("M, tasks", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)
    _style(axes, "times more tries than the oracle", "y")


def _memory(summary: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(10.8, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    memory, ranked, capped = figure.subplots(1, 3)
    ranks = summary[summary["label"].str.startswith("rank")].sort_values("rank")
    memory.plot(ranks["rank"], ranks["bytes_per_task"] / 1e3, "o-", color=PALETTE[0])
    memory.set_ylim(bottom=0)
    _style(memory, "kilobytes a task", "y")
    ranked.errorbar(
        ranks["rank"], ranks["post_task"],
        yerr=[ranks["post_task"] - ranks["post_task_low"],
              ranks["post_task_high"] - ranks["post_task"]],
        fmt="o-", color=PALETTE[0], capsize=2,
    )  # fmt: skip
    _style(ranked, "accuracy after a visit", "y")
    for axes in (memory, ranked) if len(ranks) else ():
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks["rank"], [str(rank) for rank in ranks["rank"]])
        axes.set_xlabel("rank", fontsize=8)
    caps = summary[summary["label"].str.startswith("capacity")]
    for (agent, rows), colour in zip(caps.groupby("agent", sort=False), PALETTE, strict=False):
        rows = rows.sort_values("capacity")
        for column, line in (("retained", "o-"), ("dropped", "o:")):
            capped.plot(rows["capacity"], rows[column], line, color=colour, markersize=4,
                        label=f"{agent}, {column}")  # fmt: skip
    capped.set_xticks(sorted(caps["capacity"].unique()))
    capped.set_xlabel("entries that the bank holds", fontsize=8)
    capped.set_ylim(bottom=0)
    if len(caps):
        capped.legend(fontsize=8, frameon=False)
    _style(capped, "tries until recovery", "y")
    figure.supxlabel(_caption(summary), fontsize=8)
    return figure


def _style(axes: Axes, title: str, grid: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis=grid, alpha=0.3)  # type: ignore[arg-type]
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _caption(summary: pd.DataFrame) -> str:
    return (
        f"{int(summary['runs'].min())} streams of the test split, 95 % intervals; "
        f"L = {int(summary['learning_steps'].iloc[0])}, {int(summary['cycles'].iloc[0])} cycles"
    )


def draw_experiment(summary: pd.DataFrame, path: Path) -> Path:
    """Write the figure whole or not at all; return its path."""
    figure = experiment_figure(summary)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=150))
    return path
