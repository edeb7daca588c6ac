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
    check_live_reference,
    check_name,
    check_reference,
    check_reward,
    check_workers,
    console,
    default_agents,
    parse_settings,
    players_in,
    progress_bars,
    reference_in,
    seed_range,
    task_numbers,
)
from nsr_gym.errors import InvalidValueError, NsrGymError, unknown
from nsr_gym.registration import ENVIRONMENTS, environment_family
from nsr_gym.registry import agent_spec

if TYPE_CHECKING:
    from nsr_gym.evaluation.compare import Comparison
    from nsr_gym.evaluation.results import Results

EXACT_SEEDS, LIVE_SEEDS = 20, 10
TASKS = "3,5,10,20"


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
    runs: Annotated[
        Path | None, typer.Option(help="Of an id: folder of all results. (runs)")
    ] = None,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Also play several M and fit exponents of T and M-1.")
    ] = False,
    tasks: Annotated[
        str | None, typer.Option(help=f"Of --scaling: numbers of tasks. ({TASKS})")
    ] = None,
) -> None:
    """Hold every agent's regret against the theorem's bound and the exact optimum.

    Of an id the agents are played first; the same command again goes on where it was stopped.
    Writes regret.csv, verdict.json and figures into the folder of the results.
    """
    from nsr_gym.evaluation.results import read_results

    check_reward(reward)
    check_workers(workers)
    if tasks is not None and not scaling:
        raise InvalidValueError(
            f"Expected --tasks with --scaling only; got --tasks {tasks} alone. The number of tasks "
            "of an environment is --set num_tasks=NUMBER."
        )
    numbers = task_numbers(TASKS if tasks is None else tasks)
    own = {
        "--name": name, "--agent": agent, "--seeds": seeds, "--first-seed": first_seed,
        "--split": split, "--set": set_, "--runs": runs,
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
        players = players_in(results, reference)
        studies = _studies(results, players, numbers, block) if scaling else {}
    else:
        planned = _plan(target, agent, seeds, first_seed or 0, split or "test", set_ or [], block)
        check_reference(reference, planned.agents)
        if environment_family(target) == "live":
            access = {player: agent_spec(player).access for player in planned.agents}
            check_live_reference(target, reference, access)
        chosen = f"regret-{_slug(target)}" if name is None else name
        check_name(chosen)
        # What the study refuses is to be found before anything is played.
        studies = _studies(planned, {target: planned.agents}, numbers, block) if scaling else {}
        results = _play(planned, (runs or Path("runs")) / chosen, workers)
    readings = _report(results, reference, reward)
    if scaling:
        _scale(results, readings, studies, numbers, reference, reward, workers)


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
            told = "num_visits" in rows.columns
            visits = None if told else _num_visits(environment, results.played)
            found = exact_regret(rows, reference=against, num_visits=visits)
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


def _studies(
    source: Comparison | Results,
    players: Mapping[str, tuple[str, ...]],
    tasks: tuple[int, ...],
    block: int,
) -> dict[str, dict[int, Comparison]]:
    """Return each environment's comparisons by M, for the M at which not everything can be held."""
    from nsr_gym.evaluation.scaling import scaling_comparisons, scarce_tasks

    arguments = {k: v for k, v in source.arguments.items() if k != "num_tasks"}
    return {
        environment: scaling_comparisons(
            environment,
            agents=names,
            seeds=source.seeds,
            tasks=scarce_tasks(environment, tasks, arguments),
            arguments=arguments,
            agent_arguments={k: v for k, v in source.agent_arguments.items() if k in names},
            block=block,
        )
        for environment, names in players.items()
    }


def _scale(
    results: Results,
    readings: Mapping[str, str],
    studies: Mapping[str, Mapping[int, Comparison]],
    tasks: tuple[int, ...],
    reference: str | None,
    reward: Any,
    workers: int | None,
) -> None:
    import pandas as pd

    from nsr_gym.evaluation.scaling import default_horizon, scaling_study, solutions_held
    from nsr_gym.regret.exact import is_exact
    from nsr_gym.regret.scaling import exponent_frame, fit_exponents
    from nsr_gym.report.exact_figures import scaling_figure
    from nsr_gym.report.scaling import render_exponents

    rows, fits, files = [], [], []
    for environment, planned in studies.items():
        first = next(iter(planned.values()))
        default = EXACT_REFERENCE if is_exact(results.table, environment) else LIVE_REFERENCE
        against = reference if reference in first.agents else default
        with progress_bars(sum(len(one.cells()) for one in planned.values())) as advance:
            found = scaling_study(
                planned,
                results.folder / "scaling" / _slug(environment),
                reference=against,
                reward=reward,
                workers=workers,
                progress=advance,
            )
        horizon = default_horizon(environment, readings[environment])
        held = solutions_held(environment, first.arguments)
        fitted = fit_exponents(found, horizon=horizon, held=held)
        left_out = sorted(set(tasks) - set(planned))
        console.print(
            render_exponents(fitted, tasks=[*planned], horizon=horizon, left_out=left_out)
        )
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
    """Return V as the arguments have it, for tables written without the column."""
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
