"""The comparison of systems in a figure: accuracy with the task known and without."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nsr_gym.files import write_whole
from nsr_gym.report.style import PALETTE, REFERENCE_COLOUR, VISIT_COLOUR

_SHOWN = {"task known": ("o", 0), "one model": ("s", 2), "rls": ("D", 1), "one for all": ("s", 2)}
"""Answers that are drawn -> marker and colour; the other routers stand in the table."""


def systems_figure(summary: pd.DataFrame) -> Figure:
    """Draw a panel for each environment, points with intervals for each system.

    Args:
        summary: what `nsr_gym.report.systems.summarise_systems` returns.
    """
    environments = list(dict.fromkeys(summary["environment"]))
    names = list(dict.fromkeys(summary["system"]))[::-1]
    figure = Figure(figsize=(2.2 + 3.6 * len(environments), 1.3 + 0.26 * len(names)),
                    layout="constrained")  # fmt: skip
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(environments), sharey=True, squeeze=False).ravel()
    for axes, environment in zip(panels, environments, strict=True):
        part = summary[summary["environment"] == environment]
        for answer, (marker, colour) in _SHOWN.items():
            rows = part[part["answer"] == answer]
            places = [names.index(name) for name in rows["system"]]
            axes.hlines(
                places, rows["accuracy_low"], rows["accuracy_high"], color=PALETTE[colour],
                linewidth=1.6,
            )  # fmt: skip
            axes.plot(
                rows["accuracy"], places, marker, color=PALETTE[colour], markersize=5,
                markeredgecolor=REFERENCE_COLOUR, markeredgewidth=0.4,
            )  # fmt: skip
        for knowledge, style in (("task known", "-"), ("one for all", ":")):
            floors = part[
                (part["answer"] == knowledge) & part["system"].str.startswith("random projection")
            ]
            if len(floors):
                axes.axvline(
                    floors["accuracy"].max(), color=VISIT_COLOUR, linestyle=style, linewidth=1.2
                )
        axes.set_title(environment.removeprefix("NSR/"), fontsize=10, loc="left")
        axes.set_xlim(0, 1)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    runs = int(summary["runs"].min())
    figure.supxlabel(
        f"accuracy after the last visit, mean of {runs} streams with 95 % interval; circles: task "
        "known, diamonds: routed by RLS, squares: one model for all\ngrey lines: ridge on frozen "
        "features without an adapter, task known (solid) and one for all (dotted)",
        fontsize=8,
    )
    return figure


def draw_systems(summary: pd.DataFrame, path: Path) -> Path:
    """Write the figure whole or not at all; return its path."""
    figure = systems_figure(summary)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=150))
    return path
