"""The controlled study in a figure: what each allocation rule reaches in each environment."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nsr_gym.files import write_whole
from nsr_gym.report.style import PALETTE, REFERENCE_COLOUR, VISIT_COLOUR

_COLUMNS = 3


def study_figure(summary: pd.DataFrame, *, reward: str) -> Figure:
    """Draw a panel for each environment, a point with its interval for each agent.

    Args:
        summary: what `nsr_gym.report.study.summarise_study` returns.
        reward: for the axis.
    """
    environments = list(dict.fromkeys(summary["environment"]))
    columns = min(_COLUMNS, len(environments))
    lines = -(-len(environments) // columns)
    most = int(summary.groupby("environment").size().max())
    figure = Figure(figsize=(4.6 * columns, lines * (1.1 + 0.21 * most)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, environment in zip(panels, environments, strict=False):
        rows = summary[summary["environment"] == environment].iloc[::-1].reset_index(drop=True)
        for place, row in rows.iterrows():
            learned = row["trained"] > 0
            known = str(row["agent"]).startswith(("oracle", "holding"))
            colour = PALETTE[1] if learned else VISIT_COLOUR if known else PALETTE[0]
            axes.plot(
                [row["value_low"], row["value_high"]], [place, place], color=colour, linewidth=1.6
            )
            axes.plot(
                row["value"], place, "D" if learned else "o", color=colour, markersize=4.5,
                markeredgecolor=REFERENCE_COLOUR, markeredgewidth=0.4,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [str(agent) for agent in rows["agent"]], fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.set_title(environment.removeprefix("NSR/"), fontsize=10, loc="left")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(environments) :]:
        axes.set_visible(False)
    trained, streams = int(summary["trained"].max()), int(summary["streams"].min())
    figure.supxlabel(
        f"{reward} reward of a visit (IQM, 95 % interval); {streams} held-out streams; blue "
        f"circles: rules, grey: told the task, orange diamonds: learned, {trained} training seeds",
        fontsize=9,
    )
    return figure


def draw_study(summary: pd.DataFrame, path: Path, *, reward: str) -> Path:
    """Draw the figure into a PNG file, whole or not at all; returns the path."""
    figure = study_figure(summary, reward=reward)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=150))
    return path
