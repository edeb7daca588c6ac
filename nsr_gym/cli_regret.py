"""`nsr-gym regret`: an environment's bound and optimum, and where each agent lies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nsr_gym.cli_shared import (
    EXACT_REFERENCE,
    LIVE_REFERENCE,
    check_name,
    check_reference,
    check_reward,
    console,
    default_agents,
    parse_settings,
    progress_bars,
    reference_in,
    seed_range,
)
from nsr_gym.errors import InvalidValueError, NsrGymError, unknown
from nsr_gym.registration import ENVIRONMENTS, environment_family

if TYPE_CHECKING:
    from nsr_gym.evaluation.compare import Comparison
    from nsr_gym.evaluation.results import Results

EXACT_SEEDS, LIVE_SEEDS = 20, 10


def regret(
    target: Annotated[
        str, typer.Argument(help="A folder that `nsr-gym compare` wrote, or an environment id.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Of an id: results go to RUNS/NAME. (regret-<id>)")
    ] = None,
    agent: Annotated[
        list[str] | None, typer.Option(help="Of an id: agent; repeatable. (all that play it)")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            help=f"Of an id: number of episodes. ({EXACT_SEEDS}; {LIVE_SEEDS} where it is live)"
        ),
    ] = None,
    first_seed: Annotated[int | None, typer.Option(help="Of an id: the first seed. (0)")] = None,
    split: Annotated[str | None, typer.Option(help="Of an id: train or test. (test)")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Of an id: argument NAME=VALUE (JSON value); repeatable."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help=f"The reference agent. ({LIVE_REFERENCE}; {EXACT_REFERENCE} in exact environments)"
        ),
    ] = None,
    reward: Annotated[
        str, typer.Option(help="Reward of live environments: online or post_task.")
    ] = "online",
    workers: Annotated[int | None, typer.Option(help="Processes. (one for each core)")] = None,
    block: Annotated[int, typer.Option(help="Seeds played side by side in one cell.")] = 10,
    runs: Annotated[Path, typer.Option(help="Folder of all results.")] = Path("runs"),
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Also play several M and fit exponents of T and M-1.")
    ] = False,
    tasks: Annotated[str, typer.Option(help="Of --scaling: numbers of tasks.")] = "3,5,10,20",
) -> None:
    """Hold every agent's regret against the theorem's bound and the exact optimum.

    Of an id the agents are played first; the same command again goes on where it was stopped.
    Writes regret.csv, verdict.json and figures into the folder of the results.
    """
    from nsr_gym.evaluation.results import read_results

    check_reward(reward)
    numbers = _numbers(tasks)
    own = {
        "--name": name, "--agent": agent, "--seeds": seeds, "--first-seed": first_seed,
        "--split": split, "--set": set_,
    }  # fmt: skip
    if Path(target).is_dir():
        given = [option for option, value in own.items() if value is not None]
        if given:
            raise InvalidValueError(
                f"Expected {', '.join(given)} with an environment id only: {target} is a folder of "
                "results, which has its own. Leave them out, or give an id."
            )
        results = read_results(Path(target))
        check_reference(reference, results.agents)
    else:
        planned = _plan(target, agent, seeds, first_seed or 0, split or "test", set_ or [], block)
        check_reference(reference, planned.agents)
        chosen = f"regret-{_slug(target)}" if name is None else name
        check_name(chosen)
        results = _play(planned, runs / chosen, workers)
    readings = _report(results, reference, reward)
    if scaling:
        _scale(results, readings, numbers, reference, reward, workers, block)


def _plan(
    target: str,
    agents: list[str] | None,
    seeds: int | None,
    first_seed: int,
    split: str,
    settings: list[str],
    block: int,
) -> Comparison:
    from nsr_gym.evaluation.compare import Comparison, check_environment

    try:
        check_environment(target)
    except (NsrGymError, ModuleNotFoundError):
        known = [*ENVIRONMENTS]
        raise unknown("folder of results or environment of the suite", target, known) from None
    default = LIVE_SEEDS if environment_family(target) == "live" else EXACT_SEEDS
    chosen = seed_range(first_seed, default if seeds is None else seeds)
    arguments = {"split": split} | parse_settings(settings)
    return Comparison(
        environments=(target,),
        agents=tuple(agents or default_agents([target], arguments)),
        seeds=chosen,
        arguments=arguments,
        block=block,
    )


def _play(planned: Comparison, folder: Path, workers: int | None) -> Results:
    from nsr_gym.evaluation.compare import run
    from nsr_gym.evaluation.results import Results

    with progress_bars(len(planned.cells())) as advance:
        table = run(planned, folder, workers=workers, progress=advance)
    return Results.of(planned, folder, table)


def _report(results: Results, reference: str | None, reward: Any) -> dict[str, str]:
    """Print and write table, verdict and figure; return each environment's reading."""
    import pandas as pd

    from nsr_gym.regret.exact import exact_regret, is_exact
    from nsr_gym.regret.verdict import judge, judge_table
    from nsr_gym.report.exact import exact_block, live_block
    from nsr_gym.report.exact_figures import exact_regret_figure
    from nsr_gym.report.exact_terminal import render_regret
    from nsr_gym.report.figures import regret_figure
    from nsr_gym.report.verdict import render_verdict, verdict_json

    table, blocks, verdicts, files = results.table, [], {}, []
    figures = results.folder / "figures"
    figures.mkdir(exist_ok=True)
    for environment in results.environments:
        rows = table[table["environment"] == environment]
        if is_exact(table, environment):
            against = reference_in(rows, reference, EXACT_REFERENCE)
            verdict = judge(environment, results.played)
            found = exact_regret(
                rows, reference=against, num_visits=_num_visits(environment, results.played)
            )
            block, figure = exact_block(found, verdict), exact_regret_figure(found, verdict)
        else:
            against = reference_in(rows, reference, LIVE_REFERENCE)
            verdict = judge_table(
                rows, environment, results.played, reference=against, reward=reward
            )
            block = live_block(rows, environment, verdict, reference=against, reward=reward)
            figure = regret_figure(rows, reference=against, reward=reward, bounds=verdict.applies)
        console.print(render_regret(block))
        console.print(render_verdict(verdict, block))
        blocks.append(block)
        verdicts[environment] = verdict_json(verdict, block)
        files.append(figures / f"{_slug(environment)}-regret.png")
        figure.savefig(files[-1], dpi=150)
    pd.concat(blocks, ignore_index=True).to_csv(results.folder / "regret.csv", index=False)
    (results.folder / "verdict.json").write_text(json.dumps(verdicts, indent=2) + "\n")
    _name_files([results.folder / "regret.csv", results.folder / "verdict.json", *files])
    return {environment: verdict["reading"] for environment, verdict in verdicts.items()}


def _scale(
    results: Results,
    readings: Mapping[str, str],
    tasks: tuple[int, ...],
    reference: str | None,
    reward: Any,
    workers: int | None,
    block: int,
) -> None:
    import pandas as pd

    from nsr_gym.evaluation.scaling import default_horizon, scaling_comparisons, scaling_study
    from nsr_gym.regret.exact import is_exact
    from nsr_gym.regret.scaling import exponent_frame, fit_exponents
    from nsr_gym.report.exact_figures import scaling_figure
    from nsr_gym.report.scaling import render_exponents

    arguments = {k: v for k, v in results.arguments.items() if k != "num_tasks"}
    rows, fits, files = [], [], []
    for environment, reading in readings.items():
        players = sorted(
            set(results.table.loc[results.table["environment"] == environment, "agent"]),
            key=results.agents.index,
        )
        planned = scaling_comparisons(
            environment,
            agents=players,
            seeds=results.seeds,
            tasks=tasks,
            arguments=arguments,
            agent_arguments={k: v for k, v in results.agent_arguments.items() if k in players},
            block=block,
        )
        default = EXACT_REFERENCE if is_exact(results.table, environment) else LIVE_REFERENCE
        against = reference if reference in players else default
        with progress_bars(sum(len(one.cells()) for one in planned.values())) as advance:
            found = scaling_study(
                planned,
                results.folder / "scaling" / _slug(environment),
                reference=against,
                reward=reward,
                workers=workers,
                progress=advance,
            )
        horizon = default_horizon(environment, reading)
        fitted = fit_exponents(found, horizon=horizon)
        console.print(render_exponents(fitted, tasks=tasks, horizon=horizon))
        rows.append(found)
        fits.append(exponent_frame(fitted))
        if any(not fit.note for fit in fitted):
            files.append(results.folder / "figures" / f"{_slug(environment)}-scaling.png")
            scaling_figure(found, fitted, horizon=horizon).savefig(files[-1], dpi=150)
    for file, frames in (("scaling.csv", rows), ("exponents.csv", fits)):
        files.append(results.folder / file)
        pd.concat(frames, ignore_index=True).to_csv(files[-1], index=False)
    _name_files(files)


def _num_visits(environment: str, arguments: Mapping[str, Any]) -> int:
    """Return V as the arguments have it: where no agent ends an episode the table does not say."""
    import gymnasium as gym

    env: Any = gym.make_vec(environment, num_envs=1, vectorization_mode=None, **arguments)
    env.close()
    return int(env.unwrapped.engine.config.num_visits)


def _name_files(files: list[Path]) -> None:
    for path in files:
        console.print(f"  {path}", highlight=False, soft_wrap=True)


def _slug(environment: str) -> str:
    from nsr_gym.report.style import file_slug

    return file_slug(environment)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 2 or len(set(numbers)) < len(numbers):
        raise InvalidValueError(
            "Expected --tasks as numbers of tasks of at least 2, each once, such as 3,5,10; got "
            f"{text!r}."
        )
    return numbers
