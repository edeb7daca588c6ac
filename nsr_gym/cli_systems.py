"""`nsr-gym systems`: learners x banks x routers on the same streams, with their bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from nsr_gym.cli_shared import (
    check_name,
    console,
    counting_bar,
    parse_settings,
    seed_range,
)
from nsr_gym.errors import InvalidValueError
from nsr_gym.files import write_whole

_SHOWN = ("task known", "one for all", "one model", "rls")
"""Answers that are printed for every system; those of all routers are for the first."""


def systems(
    name: Annotated[str, typer.Option(help="Results go to RUNS/NAME.")] = "systems",
    family: Annotated[
        list[str] | None, typer.Option(help="Cyclic, Related, Aliased; repeatable. (all)")
    ] = None,
    system: Annotated[
        list[str] | None, typer.Option(help="A system; repeatable. (all; see the docs)")
    ] = None,
    router: Annotated[
        list[str] | None, typer.Option(help="A router to test with; repeatable. (all)")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Held-out streams.")] = 10,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Argument NAME=VALUE of the environments.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    runs: Annotated[Path, typer.Option(help="Folder of all results.")] = Path("runs"),
) -> None:
    """Compare systems of continual learning: learners, banks and routers as parts.

    While training, every system knows the task; at the end every test image is answered with the
    task known, and with the entry that each router names for it. Bounds without an adapter stand
    beside them. The same command again goes on where it was stopped.
    """
    import pandas as pd

    from nsr_gym.agents.systems import FAMILIES, NAMES, TESTED, run_systems
    from nsr_gym.report.systems import summarise_systems
    from nsr_gym.report.systems_figure import draw_systems

    check_name(name)
    if workers < 1:
        raise InvalidValueError(f"Expected --workers of at least 1; got {workers}.")
    folder = runs / name
    with counting_bar("systems") as show:
        rows = run_systems(
            folder,
            families=family or FAMILIES,
            systems=system or NAMES,
            routers=router or TESTED,
            seeds=seed_range(0, seeds),
            arguments=parse_settings(set_ or []),
            workers=workers,
            note=show,
        )
    summary = summarise_systems(rows)
    files = folder / "systems.csv", folder / "episodes.csv"
    for file, table in zip(files, (summary, rows), strict=True):
        write_whole(file, lambda path, table=table: table.to_csv(path, index=False))  # type: ignore[misc]
    figure = draw_systems(summary, folder / "systems.png")
    for environment, part in summary.groupby("environment", sort=False):
        shown = Table(box=None, pad_edge=False, title=str(environment))
        for heading in (
            "system",
            "answers",
            "accuracy",
            "minus floor",
            "minus final",
            "forgetting",
            "B/task",
        ):
            shown.add_column(
                heading, justify="left" if heading in ("system", "answers") else "right"
            )
        first = next((r for r in part["system"] if r in NAMES), None)
        for row in part.to_dict("records"):
            if row["answer"] not in _SHOWN and row["system"] != first:
                continue  # the file has all routers of all systems
            forgotten = "-" if pd.isna(row["forgetting"]) else f"{row['forgetting']:.3f}"
            shown.add_row(
                str(row["system"]),
                str(row["answer"]),
                f"{row['accuracy']:.3f} [{row['accuracy_low']:.3f}, {row['accuracy_high']:.3f}]",
                f"{row['to_floor']:+.3f} ({row['verdict']})",
                f"{row['to_final']:+.3f} ({row['verdict_final']})",
                forgotten,
                f"{row['bytes']:,.0f}",
            )
        console.print(shown)
    console.print(
        "floor: ridge classifier without an adapter, same knowledge of the task, on the better of "
        f"lower and final features; final: on the final ones; {seeds} streams, 95 % intervals",
        highlight=False,
    )
    for path in (*files, figure):
        console.print(f"  {path}", highlight=False, soft_wrap=True)
