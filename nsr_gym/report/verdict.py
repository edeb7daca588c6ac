"""A verdict in plain words and as JSON: assumptions, bound, optimum, where each agent lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nsr_gym.report.exact_terminal import spread_text

if TYPE_CHECKING:
    from nsr_gym.regret.solution import Certificate
    from nsr_gym.regret.verdict import Verdict

READINGS = {
    "A": "blind identification: which allocation, where the task is not shown",
    "B": "relearning under fixed capacity: what to hold, where not all can be held",
    "C": "run until recovered: a visit lasts until the right allocation was tried",
}
_ANSWERS = {True: ("yes", "green"), False: ("no", "red"), None: ("unknown", "yellow")}


def render_verdict(verdict: Verdict, summary: pd.DataFrame) -> Group:
    """Build what the terminal shows of a verdict.

    Args:
        verdict: on one environment.
        summary: rows of that environment, with this verdict, as
            `nsr_gym.report.exact.exact_block` and `live_block` return them.

    Returns:
        The assumptions with their answers, the bound (none where it does not apply, and why),
        the optimum with its certificate, and where each agent lies.
    """
    parts: list[RenderableType] = [
        Text(f"Verdict on {verdict.environment}", style="bold"),
        Text(f"Reading {verdict.reading}, {READINGS[verdict.reading]}."),
        Text(f"Regret ({verdict.unit}) is relative to {verdict.comparator}."),
        Text("\nAssumptions", style="italic"),
        _assumptions(verdict),
        Text(f"\nBound and optimum, for {verdict.policies}", style="italic"),
    ]
    parts += [Padding(Text(line), (0, 0, 0, 2)) for line in (*_bound(verdict), *_optimum(verdict))]
    parts += [Text("\nWhere each agent lies", style="italic"), _agents(summary)]
    if verdict.notes:
        parts.append(Text("\nNotes", style="italic"))
        parts += [Padding(Text(note), (0, 0, 0, 2)) for note in verdict.notes]
    return Group(*parts, Text())


def verdict_json(verdict: Verdict, summary: pd.DataFrame) -> dict[str, Any]:
    """Return a verdict and where each agent lies as plain JSON values; NaN and inf become null.

    Args: as in `render_verdict`.
    """
    names = ("regret", "regret_low", "regret_high", "finished", "ratio", "place", "standing")
    agents = {row["agent"]: {name: row[name] for name in names} for _, row in summary.iterrows()}
    return dict(_plain(verdict.as_dict() | {"agents": agents}))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    # JSON has no word for them.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _assumptions(verdict: Verdict) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for assumption in verdict.assumptions:
        answer, colour = _ANSWERS[assumption.holds]
        cells = (f"  [{colour}]{answer}[/]", escape(assumption.name), escape(assumption.detail))
        table.add_row(*cells)
    return table


def _bound(verdict: Verdict) -> list[str]:
    if not verdict.applies:
        return [f"No bound. {verdict.why}"]
    lines = [f"Bound: {verdict.bound:,.6g} over the whole episode, {verdict.formula}."]
    if verdict.why:
        lines.append(verdict.why)
    theorem = f"T(M-1)Delta_switch = {verdict.theorem:,.6g} ({verdict.theorem_text})"
    if verdict.expected_ratio is not None:
        theorem += f"; the best policy is expected at {verdict.expected_ratio:.4f} of it"
    return [*lines, f"{theorem}."]


def _optimum(verdict: Verdict) -> list[str]:
    if verdict.optimum is None:
        return ["Optimum: not known exactly."]
    lines = [f"Optimum: {verdict.optimum:,.6g}"]
    certificate = verdict.certificate
    if certificate is not None:
        same = math.isclose(certificate.value, verdict.optimum)
        lines += _certificate(certificate, "" if same else ", as the solver counts it")
    return lines


def _certificate(certificate: Certificate, unit: str) -> list[str]:
    lines = [
        f"- found by {certificate.method}; value {certificate.value:,.6g}{unit}",
        f"- nothing gets below {certificate.bound:,.6g}{unit}. {certificate.proof}",
    ]
    if certificate.checks:
        same = ", ".join(f"{name} {value:,.6g}" for name, value in certificate.checks.items())
        lines.append(f"- checked by other methods: {same}")
    return lines


def _agents(summary: pd.DataFrame) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for _, found in summary.iterrows():
        row: dict[Any, Any] = found.to_dict()
        text = str(row["standing"])
        if not np.isnan(row["ratio"]) and row["finished"] == 1 and row["place"] != "reference":
            text += f"; measured {spread_text(row, 'ratio', 3)} of the bound"
            if not math.isclose(row["theorem"], row["bound"]):
                text += f", {row['theorem_ratio']:.3f} of T(M-1)Delta_switch"
        table.add_row(f"  {escape(str(row['agent']))}", escape(text))
    return table
