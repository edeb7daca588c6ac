"""The command line: `nsr-gym compare`, `regret`, `train`, `record`, `report`, `envs`, ..."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from nsr_gym.cli_bank import bank
from nsr_gym.cli_controllers import controllers_for, saved_controllers
from nsr_gym.cli_pretrain import pretrain
from nsr_gym.cli_recorded import fidelity, record
from nsr_gym.cli_regret import regret
from nsr_gym.cli_reproduce import reproduce
from nsr_gym.cli_shared import (
    DEFAULT_ENVIRONMENT,
    EXACT_REFERENCE,
    LIVE_REFERENCE,
    check_name,
    check_reference,
    check_reward,
    console,
    default_agents,
    errors,
    parse_settings,
    progress_bars,
    reference_in,
    seed_range,
)
from nsr_gym.cli_study import study
from nsr_gym.cli_systems import systems
from nsr_gym.cli_train import train
from nsr_gym.errors import InvalidValueError, NsrGymError
from nsr_gym.registration import ENVIRONMENTS
from nsr_gym.registry import agent_specs

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    name="nsr-gym",
    help="Continual-learning episodes as Gymnasium environments.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for _command in (regret, train, study, systems, reproduce, record, fidelity, pretrain):
    app.command()(_command)
app.add_typer(bank)
_STOPPED = 130
_REFERENCES = f"{LIVE_REFERENCE}; {EXACT_REFERENCE} in exact environments"


def main() -> None:
    """Run the command line; an expected error is one clear message and exit status 2."""
    try:
        app()
    except (NsrGymError, OSError) as error:
        message = escape(str(error))
        errors.print(f"[bold red]error:[/] {message}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as end:
        # Typer answers Ctrl-C with this status itself.
        if isinstance(end, SystemExit) and end.code != _STOPPED:
            raise
        errors.print("stopped; the same command goes on where it was.", highlight=False)
        sys.exit(_STOPPED)


@app.command()
def envs() -> None:
    """List the environments."""
    rows = []
    for name, spec in ENVIRONMENTS.items():
        needed = f" [needs {', '.join(spec.data)}]" if spec.needs_data else ""
        rows.append((name, spec.summary + needed))
    _list("environment", rows)


@app.command()
def agents() -> None:
    """List the agents and the access level each is run with."""
    _list("agent", [(s.name, f"{s.summary} [{s.access} access]") for s in agent_specs()])


@app.command()
def compare(
    name: Annotated[str, typer.Option(help="Results go to RUNS/NAME.")] = "compare",
    env: Annotated[
        list[str] | None, typer.Option(help=f"Environment id; repeatable. ({DEFAULT_ENVIRONMENT})")
    ] = None,
    agent: Annotated[
        list[str] | None, typer.Option(help="Agent; repeatable. (all that play it)")
    ] = None,
    controller: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a saved controller that plays too; repeatable."),
    ] = None,
    trust_pickle: Annotated[
        bool,
        typer.Option(
            "--trust-pickle",
            help="Let --controller be a zip of Stable-Baselines3, which may run any code.",
        ),
    ] = False,
    seeds: Annotated[int, typer.Option(help="Number of episodes (seeds) for each agent.")] = 10,
    first_seed: Annotated[
        int, typer.Option(help="The seeds are FIRST_SEED, FIRST_SEED+1, ...")
    ] = 0,
    split: Annotated[str, typer.Option(help="Task pool: train or test.")] = "test",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Environment argument NAME=VALUE (JSON value); repeatable."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help=f"The reference agent of differences and regret. ({_REFERENCES})"),
    ] = None,
    reward: Annotated[str, typer.Option(help="Reward of regret: online or post_task.")] = "online",
    workers: Annotated[int | None, typer.Option(help="Processes. (one for each core)")] = None,
    block: Annotated[int, typer.Option(help="Seeds played side by side in one cell.")] = 10,
    runs: Annotated[Path, typer.Option(help="Folder of all results.")] = Path("runs"),
) -> None:
    """Compare agents on the same streams with the same random numbers.

    The same command again goes on where it was stopped, or shows the finished result.
    """
    from nsr_gym.evaluation.compare import Comparison, check_environment, run

    chosen_seeds = seed_range(first_seed, seeds)
    check_reward(reward)
    check_name(name)
    environments = tuple(env or [DEFAULT_ENVIRONMENT])
    for environment in environments:
        check_environment(environment)
    arguments = {"split": split} | parse_settings(set_ or [])
    saved = saved_controllers(controller or [], trust_pickle=trust_pickle)
    agents = (*(agent or default_agents(environments, arguments)), *saved)
    chosen = Comparison(
        environments=environments,
        agents=agents,
        seeds=chosen_seeds,
        arguments=arguments,
        block=block,
    )
    check_reference(reference, chosen.agents)
    trained = controllers_for(environments, agents, arguments, runs)
    chosen = replace(chosen, agent_arguments=trained | saved)
    folder = runs / name
    with progress_bars(len(chosen.cells())) as advance:
        table = run(chosen, folder, workers=workers, progress=advance)
    _report(table, folder, reference, reward)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder that `nsr-gym compare` wrote.")],
    reference: Annotated[
        str | None, typer.Option(help=f"The reference agent. ({_REFERENCES})")
    ] = None,
    reward: Annotated[str, typer.Option(help="Reward of regret: online or post_task.")] = "online",
) -> None:
    """Show the table of a finished comparison and draw its figures again."""
    from nsr_gym.evaluation.compare import load

    check_reward(reward)
    table = load(folder)
    check_reference(reference, set(table["agent"]))
    _report(table, folder, reference, reward)


@app.command()
def calibrate(
    env: Annotated[str, typer.Argument(help="Environment id.")] = DEFAULT_ENVIRONMENT,
    seeds: Annotated[int, typer.Option(help="Number of train-split episodes.")] = 40,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Environment argument NAME=VALUE (JSON value); repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="JSON file whose entry for the pool is replaced. (print only)"),
    ] = None,
) -> None:
    """Choose the rules' thresholds on train-split streams."""
    from nsr_gym.evaluation.calibrate import calibrate as run_calibration
    from nsr_gym.evaluation.calibrate import update_file
    from nsr_gym.evaluation.compare import check_environment

    check_environment(env)
    if output is not None and not output.parent.is_dir():
        raise InvalidValueError(f"Expected --output in a folder that exists; got {output}.")
    pool, found = run_calibration(env, seeds=range(seeds), arguments=parse_settings(set_ or []))
    console.print_json(json.dumps({pool: found}))
    if output is not None:
        update_file(output, pool, found)
        console.print(f"written to {output}")


def _report(table: pd.DataFrame, folder: Path, reference: str | None, reward: Any) -> None:
    from nsr_gym.metrics.conventions import conventions
    from nsr_gym.regret.exact import divide
    from nsr_gym.report.exact import summarise_exact
    from nsr_gym.report.exact_figures import draw_exact_figures
    from nsr_gym.report.exact_terminal import render_regret
    from nsr_gym.report.figures import draw_figures
    from nsr_gym.report.summary import summarise
    from nsr_gym.report.terminal import render_summary

    files, figures = [folder / "visits.parquet"], []
    live, exact = divide(table)
    if len(live) or not len(exact):  # without any rows the summary says what is missing
        against = reference_in(live, reference, LIVE_REFERENCE)
        summary = summarise(live, reference=against, reward=reward)
        console.print(render_summary(summary))
        for name, rows in (("summary.csv", summary), ("conventions.csv", conventions(live))):
            rows.to_csv(folder / name, index=False)
            files.append(folder / name)
        figures += draw_figures(live, folder / "figures", reference=against, reward=reward)
    if len(exact):
        against = reference_in(exact, reference, EXACT_REFERENCE)
        summary = summarise_exact(exact, reference=against)
        console.print(render_regret(summary))
        summary.to_csv(folder / "exact.csv", index=False)
        files.append(folder / "exact.csv")
        figures += draw_exact_figures(exact, folder / "figures", reference=against)
    for path in (*files, *figures):
        console.print(f"  {path}", highlight=False, soft_wrap=True)


def _list(title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column(title, no_wrap=True)
    table.add_column("")
    for name, text in rows:
        table.add_row(name, text.replace("[", r"\["))
    console.print(table)
