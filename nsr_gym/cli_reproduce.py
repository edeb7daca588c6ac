"""`nsr-gym reproduce`: the paper's comparisons on image streams, one command each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from nsr_gym.cli_shared import check_name, console, counting_bar, errors, parse_settings, seed_range
from nsr_gym.errors import InvalidValueError

_SHOWN = (
    ("acc", "ACC"), ("bwt", "BWT"), ("forgetting", "forgetting"), ("recovery_median", "steps"),
    ("recovery_tries", "tries"), ("shortfall", "shortfall"), ("bytes_per_task", "B/task"),
)  # fmt: skip


def reproduce(
    experiment: Annotated[
        str,
        typer.Argument(
            help="cyclic-cifar100, five-datasets, controlled-study, memory-budget or "
            "class-incremental."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Results go to RUNS/NAME. (the experiment's name)")
    ] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="A part of the experiment; repeatable. (all)")
    ] = None,
    agent: Annotated[
        list[str] | None, typer.Option(help="An agent of the experiment; repeatable. (all)")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Held-out streams.")] = 3,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Argument NAME=VALUE of the environments.")
    ] = None,
    controller: Annotated[
        Path | None, typer.Option(help="Folder of the learned controller. (the suite's own)")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    runs: Annotated[Path, typer.Option(help="Folder of all results.")] = Path("runs"),
) -> None:
    """Play one of the paper's comparisons on Split-CIFAR-100 or 5-Datasets.

    Decisions (thresholds, controllers) rest on the train split; what is printed is test accuracy.
    Thresholds that do not ship for the data and the network are calibrated first. The same
    command again goes on where it was stopped; tables and figure have all finished parts.
    """
    from nsr_gym.agents.reproduce import CONTROLLER, part_labels, run_experiment
    from nsr_gym.agents.reproduce_files import write_gathered

    chosen = name or experiment
    check_name(chosen)
    folder = runs / chosen
    if workers < 1:
        raise InvalidValueError(f"Expected --workers of at least 1; got {workers}.")
    labels = part_labels(experiment)
    own = {} if controller is None else {CONTROLLER: {"folder": str(controller)}}
    files: list[Path] = []
    with counting_bar("parts") as show:

        def note(done: int, total: int) -> None:
            files[:] = write_gathered(folder, experiment, labels)
            show(done, total)

        summary, bounds, _ = run_experiment(
            experiment,
            folder,
            seeds=seed_range(0, seeds),
            agents=agent,
            only=part,
            arguments=parse_settings(set_ or []),
            agent_arguments=own,
            workers=workers,
            note=note,
            say=lambda line: errors.print(line, highlight=False, markup=False, soft_wrap=True),
        )
    for label, rows in summary.groupby("label", sort=False):
        shown = Table(box=None, pad_edge=False, title=f"{experiment}, {label}")
        shown.add_column("agent")
        for _, heading in _SHOWN:
            shown.add_column(heading, justify="right")
        for row in rows.to_dict("records"):
            shown.add_row(str(row["agent"]), *(f"{row[column]:,.3g}" for column, _ in _SHOWN))
        console.print(shown)
        for column in [name for name in map(str, rows) if name.startswith("routed.")]:
            if rows[column].notna().any():
                right = rows[column.replace("routed", "right")].mean()
                console.print(
                    f"  {column.removeprefix('routed.')}: {rows[column].mean():.3f} without a task "
                    f"identity, {right:.2f} of images routed right", highlight=False,
                )  # fmt: skip
    console.print("Accuracies are task-incremental (labels count within the visited task), but for "
                  "those without a task identity and those of one classifier for all.")  # fmt: skip
    for key, rows in bounds.groupby(["label", "system", "answer"]):
        value = rows["accuracy"].mean()
        console.print(f"{', '.join(map(str, key))}: {value:.3f}", highlight=False)  # type: ignore[arg-type, unused-ignore]
    for path in files:
        console.print(f"  {path}", highlight=False, soft_wrap=True)
