"""`nsr-gym record` and `nsr-gym fidelity`: make tables of recorded visits, and check them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from nsr_gym.cli_shared import (
    DEFAULT_ENVIRONMENT,
    LIVE_REFERENCE,
    console,
    counting_bar,
    parse_settings,
    seed_range,
)
from nsr_gym.errors import InvalidValueError, StateError
from nsr_gym.files import write_whole

_AGENTS = ("oracle", "trial-loss", "similarity", "nearest", "random", "fresh")


def record(
    env: Annotated[str, typer.Argument(help="Id of a live environment.")] = DEFAULT_ENVIRONMENT,
    output: Annotated[
        Path, typer.Option(help="Folder of the table; parts lie in OUTPUT.parts meanwhile.")
    ] = Path("table"),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Environment argument NAME=VALUE (JSON value); repeatable."),
    ] = None,
    fresh_chains: Annotated[int, typer.Option(help="Draws of a fresh start.")] = 4,
    foreign_chains: Annotated[int, typer.Option(help="Draws that start from other tasks.")] = 2,
    levels: Annotated[int, typer.Option(help="Visits that an entry is followed for.")] = 6,
    branch: Annotated[
        list[int] | None,
        typer.Option(
            help="Level from which other ranks than an entry's own are granted too; repeatable. "
            "(first, middle and last)"
        ),
    ] = None,
    sources: Annotated[int, typer.Option(help="Other tasks tried as warm starts.")] = 8,
    supports: Annotated[int, typer.Option(help="Samples of support images of a task.")] = 12,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    batch: Annotated[int, typer.Option(help="Visits trained at once.")] = 400,
) -> None:
    """Record live visits of every task of a pool into a table, for `dynamics="recorded"`.

    The same command again goes on where it was stopped.
    """
    import gymnasium as gym

    from nsr_gym.envs.recording import Recorder
    from nsr_gym.envs.recording_plan import RecordingPlan
    from nsr_gym.evaluation.compare import check_environment, installation
    from nsr_gym.outcome_files import CARD, save_table

    check_environment(env)
    if (output / CARD).exists():
        raise StateError(f"{output} holds a table already; choose another --output.")
    branches = tuple(sorted(set(branch or (0, (levels - 1) // 2, levels - 1))))
    plan = RecordingPlan(
        fresh_chains=fresh_chains, foreign_chains=foreign_chains, levels=levels,
        branches=branches, sources=sources, supports=supports, seed=seed,
    )  # fmt: skip
    settings = parse_settings(set_ or [])
    if batch < 1:
        raise InvalidValueError(f"Expected --batch of at least 1; got {batch}.")
    made: Any = gym.make_vec(env, num_envs=batch, vectorization_mode=None, **settings)
    try:
        with counting_bar("visits") as show:
            parts = output.with_name(output.name + ".parts")
            recorder = Recorder(made.unwrapped.engine, plan, parts, show)
            origin = {"environment": env, "arguments": settings, "versions": installation()}
            table = recorder.record(origin | getattr(made.unwrapped, "origin", dict)())
        save_table(table, output)
    finally:
        made.close()
    recorder.remove_parts()
    size = sum(file.stat().st_size for file in output.iterdir())
    console.print(
        f"{output}: {recorder.total:,} visits of {len(table.pool)} tasks, {size / 1e6:.2f} MB",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def fidelity(
    env: Annotated[
        str, typer.Argument(help="Id of an environment that is both live and recorded.")
    ] = DEFAULT_ENVIRONMENT,
    agent: Annotated[
        list[str] | None, typer.Option(help=f"Agent; repeatable. ({', '.join(_AGENTS)})")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of episodes of each agent.")] = 10,
    first_seed: Annotated[int, typer.Option(help="The seeds begin here.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Environment argument NAME=VALUE (JSON value); repeatable."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="CSV file of the agents' rows.")] = None,
) -> None:
    """Compare recorded with live dynamics: the same agents, streams and seeds."""
    from nsr_gym.evaluation.compare import check_environment
    from nsr_gym.evaluation.fidelity import QUANTITIES, measure_fidelity

    check_environment(env)
    names = tuple(agent or _AGENTS)
    if output is not None:
        # Now, not after all has been played.
        output.parent.mkdir(parents=True, exist_ok=True)
    with counting_bar("visits") as show:
        done = 0

        def advance(visits: int) -> None:
            nonlocal done
            done += visits
            show(done, None)

        found, _ = measure_fidelity(
            env, names, seed_range(first_seed, seeds), arguments=parse_settings(set_ or []),
            reference=LIVE_REFERENCE if LIVE_REFERENCE in names else names[0], progress=advance,
        )  # fmt: skip
    table = Table(box=None, pad_edge=False, title=f"{env}: recorded against live")
    table.add_column("agent")
    for name in QUANTITIES:
        table.add_column(f"{name}\nlive", justify="right")
        table.add_column("\nrecorded", justify="right")
    for row in found.agents.to_dict("records"):
        cells = [f"{row[f'{name}_{kind}']:.3f}" for name in QUANTITIES for kind in _KINDS]
        table.add_row(str(row["agent"]), *cells)
    console.print(table)
    for kind, value in found.rank_correlation.items():
        console.print(
            f"{kind}: rank correlation of {len(found.agents)} agents' returns {value:.3f}, of all "
            f"{len(found.agents) * found.episodes} episodes' {found.episode_correlation[kind]:.3f}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    worst = ", ".join(f"{name} {value:.3f}" for name, value in found.worst.items())
    console.print(f"largest error of an agent: {worst}", highlight=False, soft_wrap=True)
    if output is not None:
        write_whole(output, lambda file: found.agents.to_csv(file, index=False))


_KINDS = ("live", "recorded")
