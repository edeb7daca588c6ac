"""Fitted exponents of a scaling study as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Group
from rich.markup import escape
from rich.text import Text

from nsr_gym.regret.scaling import Exponents, Horizon
from nsr_gym.report.terminal import plain_table, runs_label
from nsr_gym.stats import Interval

_HORIZONS = {
    "cycles": "T counts cycles",
    "later cycles": "T counts cycles after the first, in which nobody has knowledge to lose",
    "visits": "T counts visits",
}


def render_exponents(
    fits: Sequence[Exponents],
    *,
    tasks: Sequence[int],
    horizon: Horizon,
    left_out: Sequence[int] = (),
) -> Group:
    """Build the table of one environment's exponents.

    Args:
        fits: by agent, at least one.
        tasks: the numbers of tasks that were played.
        horizon: what T counts.
        left_out: numbers of tasks that were asked for and can all be held, so were not played.
    """
    played, held = ", ".join(map(str, sorted(tasks))), fits[0].held
    table = plain_table(f"log regret = a + b_T log T + b_M log(M-{held}), 95 % intervals", gap=2)
    table.add_column("agent", no_wrap=True)
    for header in ("b_T", "b_M", "variance\nexplained"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("")
    for fit in fits:
        explained = "-" if np.isnan(fit.explained) else f"{fit.explained:.3f}"
        cells = (exponent_text(fit.time), exponent_text(fit.tasks), explained, escape(fit.note))
        table.add_row(escape(fit.agent), *cells)
    head = f"Scaling of {fits[0].environment}, M = {played}, "
    law = "T(M-1)Delta_switch has both exponents 1"
    if held > 1:
        law = f"c = {held} solutions can be held: (C-1)(M-{held})Delta_switch has both exponents 1"
    lines = [f"{_HORIZONS[horizon]}; {law}."]
    if left_out:
        missing = ", ".join(map(str, left_out))
        lines.append(f"M = {missing} left out: all solutions can be held, and there is no bound.")
    return Group(
        Text(head + runs_label([fit.time.runs for fit in fits]), style="bold"),
        *map(Text, lines),
        table,
        Text(),
    )


def exponent_text(interval: Interval) -> str:
    """Return an exponent with its interval; a dash for NaN, no interval where it has no width."""
    if np.isnan(interval.point):
        return "-"
    text = f"{interval.point:.3f}"
    if np.isnan(interval.low) or interval.high - interval.low < 5e-4:
        return text
    return f"{text} [{interval.low:.3f}, {interval.high:.3f}]"
