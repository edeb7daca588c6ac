"""Regret against bound and optimum as a table for a terminal of 120 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from nsr_gym.report.terminal import fill_by_access, plain_table, runs_label


def render_regret(summary: pd.DataFrame) -> Group:
    """Build the terminal table, of 120 columns, of what `summarise_exact` returns.

    Args:
        summary: rows of any number of environments.
    """
    parts: list[RenderableType] = []
    for _, block in summary.groupby("environment", sort=False):
        rows: list[dict[str, Any]] = block.to_dict("records")  # type: ignore[assignment]
        parts += [*_headline(rows), _table(rows), *_footer(rows)]
    return Group(*parts)


def spread_text(row: Mapping[str, Any], name: str, digits: int = 2) -> str:
    """Return a value with its interval; a dash for NaN, no interval where it has no width."""
    point, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if np.isnan(point):
        return "-"
    text = f"{point:,.{digits}f}"
    if np.isnan(low) or high - low <= 1e-9 * max(1.0, abs(point)):
        return text
    return f"{text} [{low:,.{digits}f}, {high:,.{digits}f}]"


def _headline(rows: list[dict[str, Any]]) -> list[Text]:
    first = rows[0]
    against = "the oracle" if first["per"] == "step" else first["reference"]
    lines = [
        f"M = {first['num_tasks']} tasks, C = {first['cycles']:g} cycles; regret: reward of "
        f"{against} minus the agent's, summed over the episode"
    ]
    known = [
        f"{name} {first[name]:,.6g}" for name in ("bound", "optimum") if not np.isnan(first[name])
    ]
    lines += [", ".join(known)] if known else []
    runs = runs_label([row["runs"] for row in rows])
    head = f"{first['environment']}, {first['split']} split, {runs} per agent"
    return [Text(head, style="bold"), *map(Text, lines)]


def _table(rows: list[dict[str, Any]]) -> RenderableType:
    first = rows[0]
    table = plain_table("Means over runs, total regret with 95 % intervals", gap=2)
    table.add_column("agent", no_wrap=True)
    columns = {
        "reward": f"reward\nper {first['per']}",
        "wrong": "wrong\nper visit",
        "regret": "\ntotal regret",
        "expected": "expected\nregret",
        "first_cycle": "in first\ncycle",
        "last_cycle": "in last\ncycle",
        "relative": f"minus\n{escape(str(first['reference']))}",
        "ratio": "ratio to\nbound",
    }
    # What no agent has (a ratio where there is no bound) is left out.
    shown = [name for name in columns if not all(np.isnan(row[name]) for row in rows)]
    for name in shown:
        table.add_column(columns[name], justify="right", no_wrap=True)

    def cells(row: Mapping[str, Any]) -> Iterable[str]:
        # Of an episode that was cut off, regret is known from below.
        least = "≥ " if row["finished"] < 1 else ""
        for name in shown:
            if np.isnan(row[name]):
                yield "-"
            elif name == "regret":
                yield least + spread_text(row, name)
            else:
                digits = 2 if name in ("relative", "expected") else 3
                yield least * (name in ("relative", "ratio")) + f"{row[name]:,.{digits}f}"

    fill_by_access(table, rows, cells)
    return table


def _footer(rows: list[dict[str, Any]]) -> list[Text]:
    lines = []
    if any(row["runs"] > 1 and _exact(row) for row in rows):
        lines.append("A regret without an interval came out the same in every run.")
    if any(row["runs"] == 1 for row in rows):
        lines.append("With one run there are no intervals.")
    cut = [f"{row['agent']} ({100 * row['finished']:.0f} %)" for row in rows if row["finished"] < 1]
    if cut:
        lines.append("Cut off by the limit of steps, share that finished: " + ", ".join(cut) + ".")
    if len({row["runs"] for row in rows}) > 1:
        lines.append("Runs: " + ", ".join(f"{row['agent']} {row['runs']}" for row in rows) + ".")
    return [Text(), *(Text(line, style="dim") for line in lines), Text()]


def _exact(row: Mapping[str, Any]) -> bool:
    return bool(row["regret_high"] - row["regret_low"] <= 1e-9 * max(1.0, abs(row["regret"])))
