"""The summary as tables for a terminal of 120 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

ACCESS_ORDER = ("bank", "memoryless", "visit")


def render_summary(summary: pd.DataFrame) -> Group:
    """Build what `rich.console.Console.print` shows for a summary.

    Args:
        summary: what `nsr_gym.report.summary.summarise` returns.

    Returns:
        Per environment: a line with T, M, L, Delta_switch and the number of runs, a table of
        rewards and regret, a table of recovery and retention, and what they mean.
    """
    parts: list[RenderableType] = []
    for _, block in summary.groupby("environment", sort=False):
        rows: list[dict[str, Any]] = block.to_dict("records")  # type: ignore[assignment]
        parts += [*_headline(rows), _reward_table(rows), _recovery_table(rows), *_footer(rows)]
    return Group(*parts)


def number_range(low: int, high: int) -> str:
    """Return `10`, or `4 to 12` where two numbers differ."""
    return f"{low}" if low == high else f"{low} to {high}"


def runs_label(counts: list[int]) -> str:
    """Return `10 runs`, or `8 to 10 runs` where agents differ."""
    low, high = min(counts), max(counts)
    return f"{number_range(low, high)} run{'s' if high > 1 else ''}"


def _headline(rows: list[dict[str, Any]]) -> list[Text]:
    first = rows[0]
    source = {
        "fresh": "reference minus fresh on returns",
        "first-visits": "reference's returns minus its first visits",
    }.get(first["delta_estimator"], "")
    delta = f"Delta_switch ({_kind(first['reward'])} reward) {_interval(first, 'delta_switch')}"
    if source:
        delta += f", {source}; minimum over tasks {_number(first['delta_minimum'])}"
    return [
        Text(
            f"{first['environment']}, {first['split']} split, "
            f"{runs_label([row['runs'] for row in rows])} per agent",
            style="bold",
        ),
        Text(
            f"T = {first['cycles']:g} cycles, "
            f"M = {number_range(first['fewest_tasks'], first['num_tasks'])} tasks, "
            f"L = {first['learning_steps']} learning steps; reference: {first['reference']}"
        ),
        Text(delta),
    ]


def _reward_table(rows: list[dict[str, Any]]) -> Table:
    first = rows[0]
    title = "Reward per visit (IQM over runs) and regret (mean over runs), 95 % intervals"
    table = plain_table(title, gap=2)
    table.add_column("agent", no_wrap=True)
    for header in (
        "\nonline reward",
        "\npost-task",
        f"minus {escape(str(first['reference']))},\npaired ({_kind(first['reward'])})",
        "\ntotal regret",
        "ratio to\nT(M-1)Delta_switch",
    ):
        table.add_column(header, justify="right", no_wrap=True)

    def cells(row: Mapping[str, Any]) -> Iterable[str]:
        yield _interval(row, "online")
        yield _number(row["post_task"])
        if row["agent"] == row["reference"]:
            yield from ("reference", "reference", "reference")
        else:
            yield _interval(row, "difference")
            yield _interval(row, "regret", 2)
            yield _interval(row, "ratio", 2)

    fill_by_access(table, rows, cells)
    return table


def _recovery_table(rows: list[dict[str, Any]]) -> Table:
    table = plain_table("Recovery on returns, retention (IQM over runs) and memory", gap=1)
    table.add_column("agent", no_wrap=True)
    for header in (
        "re-entry\naccuracy",
        "median\nsteps",
        "cen-\nsored",
        "mean\ntries",
        "(own)\nsteps",
        "(own)\ncens.",
        "(own)\ntries",
        "\nBWT",
        "forget-\nting",
        "\nFWT",
        "bytes\nper task",
    ):
        table.add_column(header, justify="right", no_wrap=True)

    def cells(row: Mapping[str, Any]) -> Iterable[str]:
        yield _number(row["reentry_accuracy"])
        yield from _recovery(row, "")
        yield from _recovery(row, "own_")
        yield _interval(row, "bwt")
        yield _number(row["forgetting"])
        yield _number(row["fwt"])
        yield "-" if np.isnan(row["bytes_per_task"]) else f"{row['bytes_per_task']:,.0f}"

    fill_by_access(table, rows, cells)
    return table


def _footer(rows: list[dict[str, Any]]) -> list[Text]:
    first = rows[0]
    limit = first["learning_steps"] + 1
    lines = [
        f"Recovery: first learning step at 0.95 of what {first['reference']} ended its previous "
        "visit of the task with; (own): of what the agent itself ended it with. Tries = steps + 1; "
        f"a visit that never gets there (censored) counts as L + 1 = {limit}, the least it can be.",
        "BWT: accuracy at the end of the stream minus at the end of the task's own last visit.",
    ]
    if not np.isnan(first["expected_best_bank_free"]):
        lines.append(
            f"Ratio expected with one solution held: {first['expected_best_bank_free']:.3f} for "
            f"the best policy without a bank, {first['expected_forced_reload']:.3f} where every "
            "visit must be trained on (by construction: fresh, and greedy, which trains alike)."
        )
    lines += _bwt_ratios(rows)
    if len({row["runs"] for row in rows}) > 1:
        lines.append("Runs: " + ", ".join(f"{row['agent']} {row['runs']}" for row in rows) + ".")
    lines += [line for line in str(first["notes"]).split("\n") if line]
    return [Text(), *(Text(line, style="dim") for line in lines), Text()]


def _bwt_ratios(rows: list[dict[str, Any]]) -> list[str]:
    reference = rows[0]["reference"]
    base = [row["bwt"] for row in rows if row["agent"] == reference]
    if not base:
        return []
    if base[0] == 0:
        return [f"The BWT of {reference} is exactly 0: values are given and no ratio."]
    ratios = [
        f"{row['agent']} {row['bwt_ratio']:.1f}"
        for row in rows
        if row["agent"] != reference and not np.isnan(row["bwt_ratio"])
    ]
    return [f"|BWT| over that of {reference}: {', '.join(ratios)}."] if ratios else []


def plain_table(title: str, *, gap: int) -> Table:
    """Return an empty table without lines; `gap` is the room between its columns."""
    # No box: its column dividers are what would push the second table beyond 120 columns.
    return Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="italic",
        box=None,
        padding=(0, gap, 0, 0),
        pad_edge=False,
    )


def fill_by_access(
    table: Table,
    rows: list[dict[str, Any]],
    cells: Callable[[Mapping[str, Any]], Iterable[str]],
) -> None:
    """Add the rows by access, an empty line in between; within one they keep their order."""
    groups = sorted({str(row["access"]) for row in rows}, key=_rank)
    for access in groups:
        if access != groups[0]:
            table.add_row()
        for row in rows:
            if row["access"] == access:
                table.add_row(escape(str(row["agent"])), *cells(row))


def _rank(access: str) -> int:
    return ACCESS_ORDER.index(access) if access in ACCESS_ORDER else len(ACCESS_ORDER)


def _recovery(row: Mapping[str, Any], prefix: str) -> tuple[str, str, str]:
    median, censored = row[f"{prefix}recovery_median"], row[f"{prefix}recovery_censored"]
    mean_tries = row[f"{prefix}recovery_tries"]
    if np.isnan(censored):
        return "-", "-", "-"
    steps = f"> {row['learning_steps']}" if np.isinf(median) else f"{median:g}"
    return steps, f"{100 * censored:.0f} %", f"{mean_tries:.2f}"


def _interval(row: Mapping[str, Any], name: str, digits: int = 3) -> str:
    point, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if np.isnan(point):
        return "-"
    if np.isnan(low):
        return f"{point:.{digits}f} (no interval)"
    return f"{point:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _kind(reward: str) -> str:
    return reward.replace("_", "-")
