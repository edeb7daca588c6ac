"""The command line: `nsr-gym compare`, `envs`, `agents`, `report`, `calibrate`, `pretrain`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nsr_gym.errors import InvalidValueError, NsrGymError, unknown
from nsr_gym.registration import ENVIRONMENTS
from nsr_gym.registry import agent_spec, agent_specs

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    name="nsr-gym",
    help="Continual-learning episodes as Gymnasium environments.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
# Where output is piped, the tables get the room that they are made for.
console = Console(width=None if sys.stdout.isatty() else 120)
errors = Console(stderr=True)

DEFAULT_ENVIRONMENT = "NSR/CyclicDigits-v0"
REFERENCE = "oracle"


def main() -> None:
    """Run the command line; an expected error is one clear message and exit status 2."""
    try:
        app()
    except (NsrGymError, OSError) as error:
        message = escape(str(error))
        errors.print(f"[bold red]error:[/] {message}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on where it was.", highlight=False)
        sys.exit(130)


@app.command()
def envs() -> None:
    """List the environments."""
    _list("environment", [(name, text) for name, (_, _, text) in ENVIRONMENTS.items()])


@app.command()
def agents() -> None:
    """List the agents and the access level each is run with."""
    _list("agent", [(s.name, f"{s.summary} [{s.access} access]") for s in agent_specs()])


@app.command()
def compare(
    name: Annotated[str, typer.Option(help="Results go to RUNS/NAME.")] = "compare",
    env: Annotated[
        list[str] | None, typer.Option(help=f"Environment id; repeatable. [{DEFAULT_ENVIRONMENT}]")
    ] = None,
    agent: Annotated[
        list[str] | None, typer.Option(help="Agent; repeatable. [all registered]")
    ] = None,
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
        str, typer.Option(help="The history-aware reference agent of differences and regret.")
    ] = REFERENCE,
    reward: Annotated[str, typer.Option(help="Reward of regret: online or post_task.")] = "online",
    workers: Annotated[int | None, typer.Option(help="Processes. [one for each core]")] = None,
    block: Annotated[int, typer.Option(help="Seeds played side by side in one cell.")] = 10,
    runs: Annotated[Path, typer.Option(help="Folder of all results.")] = Path("runs"),
) -> None:
    """Compare agents on the same streams with the same random numbers.

    The same command again goes on where it was stopped, or shows the finished result.
    """
    from nsr_gym.evaluation.compare import Comparison, run

    if seeds < 1:
        raise InvalidValueError(f"Expected --seeds of at least 1; got {seeds}.")
    _check_reward(reward)
    _check_name(name)
    chosen = Comparison(
        environments=tuple(env or [DEFAULT_ENVIRONMENT]),
        agents=tuple(agent or [spec.name for spec in agent_specs()]),
        seeds=tuple(range(first_seed, first_seed + seeds)),
        arguments={"split": split} | _parse(set_ or []),
        block=block,
    )
    if agent_spec(reference).name != REFERENCE and reference not in chosen.agents:
        raise unknown("compared agent to be the reference", reference, chosen.agents)
    folder = runs / name
    with _progress(chosen) as advance:
        table = run(chosen, folder, workers=workers, progress=advance)
    _report(table, folder, reference, reward)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder that `nsr-gym compare` wrote.")],
    reference: Annotated[str, typer.Option(help="The reference agent.")] = REFERENCE,
    reward: Annotated[str, typer.Option(help="Reward of regret: online or post_task.")] = "online",
) -> None:
    """Show the table of a finished comparison and draw its figures again."""
    from nsr_gym.evaluation.compare import load

    _check_reward(reward)
    table = load(folder)
    if reference != REFERENCE and reference not in set(table["agent"]):
        raise unknown("agent in this comparison", reference, set(table["agent"]))
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
        typer.Option(help="JSON file whose entry for the pool is replaced. [print only]"),
    ] = None,
) -> None:
    """Choose the rules' thresholds on train-split streams."""
    from nsr_gym.evaluation.calibrate import calibrate as run_calibration
    from nsr_gym.evaluation.calibrate import update_file
    from nsr_gym.evaluation.compare import check_environment

    check_environment(env)
    if output is not None and not output.parent.is_dir():
        raise InvalidValueError(f"Expected --output in a folder that exists; got {output}.")
    pool, found = run_calibration(env, seeds=range(seeds), arguments=_parse(set_ or []))
    console.print_json(json.dumps({pool: found}))
    if output is not None:
        update_file(output, pool, found)
        console.print(f"written to {output}")


@app.command()
def pretrain(
    what: Annotated[str, typer.Argument(help="Which backbone: digits.")] = "digits",
    output: Annotated[Path, typer.Option(help="Folder for weights and card.")] = Path("weights"),
) -> None:
    """Pretrain a backbone that ships with the package, exactly as it was made."""
    from nsr_gym.backbones.pretrain import digits_backbone, pretrain_digits

    if what != "digits":
        raise unknown("backbone recipe", what, ["digits"])
    card = pretrain_digits(output, lambda epoch, loss: console.print(f"epoch {epoch}: {loss:.3f}"))
    console.print_json(json.dumps(card))
    same = card["fingerprint"] == digits_backbone().fingerprint
    console.print(f"{'equal to' if same else 'not bit by bit equal to'} the shipped weights")


def _report(table: pd.DataFrame, folder: Path, reference: str, reward: Any) -> None:
    from nsr_gym.metrics.conventions import conventions
    from nsr_gym.report.figures import draw_figures
    from nsr_gym.report.summary import summarise
    from nsr_gym.report.terminal import render_summary

    summary = summarise(table, reference=reference, reward=reward)
    summary.to_csv(folder / "summary.csv", index=False)
    conventions(table).to_csv(folder / "conventions.csv", index=False)
    console.print(render_summary(summary))
    figures = draw_figures(table, folder / "figures", reference=reference, reward=reward)
    tables = ("visits.parquet", "summary.csv", "conventions.csv")
    for path in (*(folder / name for name in tables), *figures):
        console.print(f"  {path}", highlight=False, soft_wrap=True)


def _progress(comparison: Any) -> Any:
    from contextlib import contextmanager

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    @contextmanager
    def bars() -> Any:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=errors, transient=True) as progress:
            cells = progress.add_task("cells", total=len(comparison.cells()))
            visits = progress.add_task("visits", total=None)

            def advance(new_visits: int, finished: int) -> None:
                progress.advance(visits, new_visits)
                progress.advance(cells, finished)

            yield advance

    return bars()


def _list(title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column(title, no_wrap=True)
    table.add_column("")
    for name, text in rows:
        table.add_row(name, text.replace("[", r"\["))
    console.print(table)


def _parse(settings: list[str]) -> dict[str, Any]:
    parsed = {}
    for setting in settings:
        name, sign, value = setting.partition("=")
        if not sign or not name:
            raise InvalidValueError(f"Expected --set NAME=VALUE; got {setting!r}.")
        try:
            parsed[name] = json.loads(value)
        except ValueError:
            parsed[name] = value
    return parsed


def _check_reward(reward: str) -> None:
    if reward not in ("online", "post_task"):
        raise unknown("reward", reward, ["online", "post_task"])


def _check_name(name: str) -> None:
    if not name or Path(name).name != name or name in (".", ".."):
        raise InvalidValueError(f"Expected --name to be a plain folder name; got {name!r}.")
