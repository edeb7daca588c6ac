"""How agents are drawn: colours, line styles by access, labels at the ends of lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from nsr_gym.stats import mean_band

Dashes = Literal["-"] | tuple[int, tuple[float, ...]]
"""A matplotlib line style: solid, or an offset with on and off lengths."""
# Okabe and Ito's palette, safe for the common colour-vision deficiencies; its yellow is left
# out because it does not show on white. Agents that share a colour differ in line style.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
REFERENCE_COLOUR = "#000000"
BOUND_COLOUR = "#8A6D00"
VISIT_COLOUR = "#7A7A7A"
# Solid, dashed, dotted: readable without colour, so access is never told by colour alone.
LINE_STYLES: Mapping[str, Dashes] = {
    "bank": "-",
    "memoryless": (0, (5, 2)),
    "visit": (0, (1, 1.2)),
}
OTHER_STYLE: Dashes = (0, (5, 1.5, 1, 1.5))
ACCESS_KEY = "solid: bank · dashed: memoryless · dotted: reset at every visit"


@dataclass(frozen=True)
class LineStyle:
    """How one agent's line is drawn.

    Attributes:
        colour: hex colour.
        dashes: matplotlib line style.
        access: `"bank"`, `"memoryless"` or `"visit"`.
    """

    colour: str
    dashes: Dashes
    access: str


def line_styles(access: Mapping[str, str], reference: str) -> dict[str, LineStyle]:
    """Choose one style per agent; the same agents always get the same styles.

    Args:
        access: agent -> access, of every agent in the table.
        reference: the agent drawn in black.
    """
    styles: dict[str, LineStyle] = {}
    used: dict[str, int] = {}
    for agent in sorted(access):
        kind = access[agent]
        if agent == reference:
            colour = REFERENCE_COLOUR
        elif kind == "visit" and not used.get(kind):
            colour, used[kind] = VISIT_COLOUR, 1
        else:
            colour = PALETTE[used.get(kind, 0) % len(PALETTE)]
            used[kind] = used.get(kind, 0) + 1
        styles[agent] = LineStyle(colour, LINE_STYLES.get(kind, OTHER_STYLE), kind)
    return styles


def canvas() -> tuple[Figure, Axes]:
    """Return a figure with one axes, whose right margin holds the labels at the lines' ends."""
    figure = Figure(figsize=(8.6, 5.2))
    FigureCanvasAgg(figure)
    return figure, figure.add_axes((0.08, 0.11, 0.66, 0.74))


def draw_runs(
    axes: Axes,
    x: ArrayLike,
    runs: NDArray[np.float64],
    style: LineStyle,
    *,
    width: float = 1.8,
) -> None:
    """Draw the mean over runs with its 95 % band; there is no band with one run.

    Args:
        axes: where.
        x: (points,).
        runs: (runs, points).
        style: of the line.
        width: of the line, in points.
    """
    axes.plot(x, runs.mean(axis=0), color=style.colour, linestyle=style.dashes, linewidth=width)
    if len(runs) > 1:
        low, high = mean_band(runs)
        axes.fill_between(x, low, high, color=style.colour, alpha=0.15, linewidth=0)


def mark_cycles(axes: Axes, num_visits: int, num_tasks: int, cyclic: bool) -> None:
    """Draw a faint line between cycles where there are any."""
    for visit in range(num_tasks, num_visits, num_tasks) if cyclic else ():
        axes.axvline(visit + 0.5, color="#DDDDDD", linewidth=0.7, zorder=0)


def file_slug(environment: str) -> str:
    """Return an environment's id as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", environment).strip("-")


@dataclass(frozen=True)
class EndLabel:
    """A label for a line, next to where the line ends.

    Attributes:
        text: what it says.
        value: y in data coordinates where the line ends.
        colour: of the line.
        dashes: line style of the line.
    """

    text: str
    value: float
    colour: str
    dashes: Dashes


def label_line_ends(axes: Axes, labels: Iterable[EndLabel], *, size: float = 8.5) -> None:
    """Write labels right of the axes, sorted by final value, moved apart where they collide.

    They stand in for a legend: each shows a sample of its line, and a thin leader joins it to
    the line's end. Call it after the axis limits are final.
    """
    ordered = sorted(labels, key=lambda label: label.value)
    if not ordered:
        return
    low, high = axes.get_ylim()
    scale = axes.yaxis.get_transform()  # what the axis makes of a value, such as its logarithm
    bottom, top = scale.transform([low, high])
    # Not at the spot where a line left the frame, but at the edge next to it.
    ends = scale.transform([min(max(label.value, low), high) for label in ordered])
    wanted = [float(end) for end in (ends - bottom) / (top - bottom)]
    width, height = axes.bbox.width / axes.figure.dpi, axes.bbox.height / axes.figure.dpi  # inches
    gap = 1.45 * size / 72 / height
    near, far, text = (1.0 + inches / width for inches in (0.17, 0.48, 0.54))
    for label, start, y in zip(ordered, wanted, spread(wanted, gap), strict=True):
        for xs, ys, style, width in (
            ((1.0, near), (start, y), "-", 0.5),
            ((near, far), (y, y), label.dashes, 1.8),
        ):
            line = Line2D(
                xs,
                ys,
                transform=axes.transAxes,
                color=label.colour,
                linestyle=style,
                linewidth=width,
                clip_on=False,
            )
            axes.add_artist(line)
        axes.text(text, y, label.text, transform=axes.transAxes, va="center", fontsize=size)


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Move ascending positions apart to at least `gap`, each cluster staying centred.

    Args:
        wanted: ascending positions in 0..1.
        gap: least distance between neighbours.

    Returns:
        Ascending positions at least `gap` apart, within 0..1 where they fit.
    """
    # Pool neighbours that are too close; a pool keeps the mean of what its members want.
    pools: list[list[float]] = []  # [sum of (wanted - i * gap), members]
    for position in wanted:
        pools.append([position, 1])
        while len(pools) > 1 and _bottom(pools[-2], gap) + pools[-2][1] * gap > _bottom(
            pools[-1], gap
        ):
            total, members = pools.pop()
            pools[-1][0] += total - pools[-1][1] * members * gap
            pools[-1][1] += members
    placed = np.concatenate([_bottom(pool, gap) + gap * np.arange(int(pool[1])) for pool in pools])
    # Push back what left the frame, from the top down and then from the bottom up.
    ceiling = 1.0 - gap * np.arange(len(placed))[::-1]
    floor = gap * np.arange(len(placed))
    return [float(y) for y in np.maximum(np.minimum(placed, ceiling), floor)]


def _bottom(pool: Sequence[float], gap: float) -> float:
    return pool[0] / pool[1]
