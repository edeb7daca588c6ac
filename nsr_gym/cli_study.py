"""`nsr-gym study`: the controlled study, trained, played and summarised by one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from nsr_gym.cli_shared import (
    check_name,
    check_reward,
    console,
    counting_bar,
    parse_settings,
    seed_range,
)
from nsr_gym.errors import InvalidValueError, unknown
from nsr_gym.files import write_whole


def study(
    name: Annotated[str, typer.Option(help="Results go to RUNS/NAME.")] = "study",
    family: Annotated[
        list[str] | None,
        typer.Option(help="Cyclic, Capped, Aliased, Budget, Related, Mixed; repeatable. (all)"),
    ] = None,
    dynamics: Annotated[str, typer.Option(help="What is played: recorded or live.")] = "recorded",
    seeds: Annotated[int, typer.Option(help="Held-out streams.")] = 20,
    training_seeds: Annotated[int, typer.Option(help="Controllers of each kind.")] = 3,
    controller: Annotated[
        list[str] | None,
        typer.Option(
            help="ALGORITHM:NETWORK, or ALGORITHM:NETWORK:FAMILY for one trained in another "
            "family; repeatable. (PPO with both networks, MaskablePPO, RecurrentPPO)"
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Argument NAME=VALUE of the environments that are played."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of training. (what the hyper-parameter files say)")
    ] = None,
    reward: Annotated[str, typer.Option(help="online or post_task.")] = "online",
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    runs: Annotated[Path, typer.Option(help="Folder of all results.")] = Path("runs"),
) -> None:
    """Compare allocation rules and learned controllers with the bank fixed.

    Controllers are trained on recorded dynamics of the train split and play streams of the
    test split. The same command again goes on where it was stopped.
    """
    from nsr_gym.agents.study import (
        CONTROLLERS,
        OPTIMUM,
        controlled_study,
        parse_controller,
        run_study,
        settings_suffix,
    )
    from nsr_gym.report.study import summarise_study
    from nsr_gym.report.study_figure import draw_study

    check_name(name)
    check_reward(reward)
    if dynamics not in ("recorded", "live"):
        raise unknown("dynamics", dynamics, ["recorded", "live"])
    if workers < 1 or training_seeds < 1:
        raise InvalidValueError(
            f"Expected --workers and --training-seeds of at least 1; got {workers} and "
            f"{training_seeds}."
        )
    arguments = parse_settings(set_ or [])
    chosen = controlled_study(
        families=family,
        dynamics=dynamics,
        seeds=seed_range(0, seeds),
        training_seeds=seed_range(0, training_seeds),
        steps=steps,
        reward=reward,
        controllers=[parse_controller(text) for text in controller or ()] or CONTROLLERS,
        arguments=arguments,
    )
    folder = runs / name
    with counting_bar("trained") as show:
        episodes = run_study(
            chosen, folder, workers=workers, note=lambda _, done, total: show(done, total)
        )
    summary = summarise_study(episodes, references=("oracle", "oracle-pin", OPTIMUM))
    names = "" if family is None else "-" + "-".join(sorted(name.lower() for name in family))
    label = f"{names}{'-live' if dynamics == 'live' else ''}{settings_suffix(arguments)}"
    files = folder / f"study{label}.csv", folder / f"episodes{label}.csv"
    for file, table in zip(files, (summary, episodes), strict=True):
        write_whole(file, lambda path, table=table: table.to_csv(path, index=False))  # type: ignore[misc]
    figure = draw_study(summary, folder / f"study{label}.png", reward=reward)
    for environment, rows in summary.groupby("environment", sort=False):
        shown = Table(box=None, pad_edge=False, title=str(environment))
        for heading in ("agent", "reward of a visit", "minus similarity", "P(better)", "seeds"):
            shown.add_column(heading, justify="left" if heading == "agent" else "right")
        for row in rows.to_dict("records"):
            shown.add_row(
                str(row["agent"]),
                f"{row['value']:.4f} [{row['value_low']:.4f}, {row['value_high']:.4f}]",
                f"{row['difference']:+.4f} "
                f"[{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]",
                f"{row['improvement']:.2f}",
                f"{row['trained'] or '-'} x {row['streams']}",
            )
        console.print(shown)
    for path in (*files, figure):
        console.print(f"  {path}", highlight=False, soft_wrap=True)
