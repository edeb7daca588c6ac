"""Regret against bound and optimum as a table for a terminal of 120 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from nsr_gym.report.terminal import fill_by_access, plain_table, runs_label

COLUMNS = 120
"""What a table has to fit into."""
_GAP = 2


def render_regret(summary: pd.DataFrame) -> Group:
    """Build the terminal table, of 120 columns, of what `summarise_exact` returns.

    Args:
        summary: rows of any number of environments.
    """
    parts: list[RenderableType] = []
    for _, block in summary.groupby("environment", sort=False):
        rows: list[dict[str, Any]] = block.to_dict("records")  # type: ignore[assignment]
        parts += [*_headline(rows), *_tables(rows), *_footer(rows)]
    return Group(*parts)


def spread_text(row: Mapping[str, Any], name: str, digits: int = 2) -> str:
    """Return a value with its interval; a dash for NaN, no interval where it has no width.

    Args:
        row: of a summary.
        name: of the value; its interval is `name_low` and `name_high`.
        digits: decimals; none from 1,000 on where there is an interval.
    """
    point, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if np.isnan(point):
        return "-"
    if np.isnan(low) or high - low <= 1e-9 * max(1.0, abs(point)):
        return number_text(point, digits)
    # From 1,000 on no interval over runs is sure of a decimal.
    digits = 0 if max(abs(point), abs(low), abs(high)) >= 1_000 else digits
    return f"{point:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"


def number_text(value: float, digits: int) -> str:
    """Return a number with `digits` decimals, no more than six digits in all where it is large."""
    if np.isnan(value):
        return "-"
    whole = len(f"{abs(value):.0f}")
    return f"{value:,.{max(0, min(digits, 6 - whole))}f}"


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


def _tables(rows: list[dict[str, Any]]) -> list[RenderableType]:
    first = rows[0]
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
    texts = {name: [_cell(row, name) for row in rows] for name in shown}
    tables: list[RenderableType] = []
    names = max(len("agent"), *(len(str(row["agent"])) for row in rows))
    for part in _pages(texts, columns, COLUMNS - names):
        title = "Means over runs, total regret with 95 % intervals"
        table = plain_table("The same, continued" if tables else title, gap=_GAP)
        table.add_column("agent", no_wrap=True)
        for name in part:
            table.add_column(columns[name], justify="right", no_wrap=True)
        fill_by_access(table, rows, partial(_cells, part))
        tables.append(table)
    return tables


def _pages(
    texts: Mapping[str, list[str]], headers: Mapping[str, str], room: int
) -> list[list[str]]:
    """Divide columns into tables that fit into `room`; large numbers take more than one."""
    pages: list[list[str]] = [[]]
    left = room
    for name, cells in texts.items():
        width = _GAP + max(map(len, [*cells, *headers[name].split("\n")]))
        if width > left and pages[-1]:
            pages.append([])
            left = room
        pages[-1].append(name)
        left -= width
    return pages


def _cells(names: Sequence[str], row: Mapping[str, Any]) -> list[str]:
    return [_cell(row, name) for name in names]


def _cell(row: Mapping[str, Any], name: str) -> str:
    if np.isnan(row[name]):
        return "-"
    # Of an episode that was cut off, regret is known from below.
    least = "≥ " if row["finished"] < 1 and name in ("regret", "relative", "ratio") else ""
    if name == "regret":
        return least + spread_text(row, name)
    return least + number_text(row[name], 2 if name in ("relative", "expected") else 3)


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
