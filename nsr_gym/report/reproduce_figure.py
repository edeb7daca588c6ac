"""What the paper's comparisons came to, in a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nsr_gym.files import write_whole
from nsr_gym.report.style import PALETTE, REFERENCE_COLOUR

_PANELS = (
    ("acc", "ACC after the last visit"),
    ("recovery_tries", "tries until recovery on returns"),
    ("bwt", "backward transfer"),
)


def experiment_figure(summary: pd.DataFrame) -> Figure:
    """Draw agents by accuracy, tries and backward transfer, a colour for each part.

    Args:
        summary: of `nsr_gym.agents.reproduce.run_experiment`.
    """
    agents = list(dict.fromkeys(summary["agent"]))[::-1]
    labels = list(dict.fromkeys(summary["label"]))
    figure = Figure(
        figsize=(11, 1.4 + 0.09 * len(agents) * (2 + len(labels))), layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    offsets = np.linspace(0.25, -0.25, len(labels)) if len(labels) > 1 else np.zeros(1)
    for axes, (column, title) in zip(panels, _PANELS, strict=True):
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
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    panels[0].set_yticks(range(len(agents)), agents, fontsize=8)
    if len(labels) > 1:
        panels[-1].legend(fontsize=8, frameon=False)
    figure.supxlabel(
        f"{int(summary['runs'].min())} streams of the test split, 95 % intervals; "
        f"L = {int(summary['learning_steps'].iloc[0])}, "
        f"{int(summary['cycles'].iloc[0])} cycles",
        fontsize=8,
    )
    return figure


def draw_experiment(summary: pd.DataFrame, path: Path) -> Path:
    """Write the figure whole or not at all; return its path."""
    figure = experiment_figure(summary)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=150))
    return path
