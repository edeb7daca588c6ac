"""`nsr-gym train`: trains controllers, one for each seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from nsr_gym.cli_shared import bars, check_name, console, errors, parse_settings, seed_range
from nsr_gym.errors import InvalidValueError

if TYPE_CHECKING:
    from nsr_gym.agents.training import Progress, TrainingResult

DEFAULT_TRAINING = "NSR/CyclicDigitsRecorded-v0"


def train(
    env: Annotated[str, typer.Argument(help="Environment id.")] = DEFAULT_TRAINING,
    algo: Annotated[
        str, typer.Option(help="ppo, maskable-ppo, recurrent-ppo, a2c or dqn.")
    ] = "ppo",
    network: Annotated[
        str | None, typer.Option(help="mlp or pointer. (what the hyper-parameter file says)")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Environment steps. (what the hyper-parameter file says)")
    ] = None,
    envs: Annotated[
        int | None,
        typer.Option(help="Environments side by side. (what the hyper-parameter file says)"),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seed; repeatable. (0)")] = None,
    seeds: Annotated[int | None, typer.Option(help="Train with the seeds 0, 1, ...")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Environment argument NAME=VALUE (JSON value); repeatable."),
    ] = None,
    hyper: Annotated[
        list[str] | None, typer.Option(help="Hyper-parameter NAME=VALUE; repeatable.")
    ] = None,
    hyperparameters: Annotated[
        Path | None, typer.Option(help="YAML file laid over the suite's own.")
    ] = None,
    imitate: Annotated[
        str | None, typer.Option(help="Rule that the controller begins as a copy of.")
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Steps between evaluations. (16384)")
    ] = None,
    eval_episodes: Annotated[
        int | None, typer.Option(help="Validation episodes of an evaluation. (32)")
    ] = None,
    device: Annotated[str, typer.Option(help="Device of the learner.")] = "cpu",
    name: Annotated[
        str | None, typer.Option(help="Results go to RUNS/NAME/seed-S. (train-ALGO-ENV)")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all results.")] = Path("runs"),
) -> None:
    """Train controllers on the train split, and keep the best and the last of each seed.

    The same command again goes on exactly where it was stopped, or shows the finished result.
    """
    from nsr_gym.agents.training import TrainingConfig
    from nsr_gym.agents.training import train as run_training

    chosen_seeds = _seeds(seed, seeds)
    title = f"train-{algo}-{env.rpartition('/')[2]}" if name is None else name
    check_name(title)
    configs = [
        TrainingConfig.from_files(
            env,
            algorithm=algo,
            network=network,
            file=hyperparameters,
            hyperparameters=parse_settings(hyper or [], option="--hyper"),
            arguments=parse_settings(set_ or []),
            steps=steps,
            envs=envs,
            seed=one,
            imitate=imitate,
            eval_every=eval_every,
            eval_episodes=eval_episodes,
            device=device,
        )
        for one in chosen_seeds
    ]
    results = {}
    for config in configs:
        with training_progress(f"seed {config.seed}") as progress:
            folder = runs / title / f"seed-{config.seed}"
            results[config.seed] = run_training(config, folder, progress=progress)
    _show(results, env, configs[0].environment_arguments().get("reward"))


@contextmanager
def training_progress(title: str) -> Iterator[Progress]:
    """Show how far a run is, as a bar, or as a line for each evaluation where output is piped.

    Args:
        title: of the run.

    Yields:
        What `nsr_gym.agents.training.train` takes as `progress`.
    """
    if not errors.is_terminal:
        yield lambda steps, total, score: _line(title, steps, total, score)
        return
    with bars("{task.fields[score]}") as shown:
        bar = shown.add_task(title, total=None, score="")

        def advance(steps: int, total: int, score: Mapping[str, float] | None) -> None:
            shown.update(bar, completed=steps, total=total)
            if score is not None:
                shown.update(bar, score=f"validation return {score['return']:.3f}")

        yield advance


def _line(title: str, steps: int, total: int, score: Mapping[str, float] | None) -> None:
    if score is not None:
        errors.print(
            f"{title}: {steps:,} of {total:,} steps, validation return {score['return']:.3f}",
            highlight=False,
        )


def _seeds(seed: list[int] | None, seeds: int | None) -> tuple[int, ...]:
    if seed and seeds is not None:
        raise InvalidValueError("Expected --seed or --seeds; got both. Leave one out.")
    if seeds is not None:
        return seed_range(0, seeds)
    chosen = tuple(seed or [0])
    if len(set(chosen)) < len(chosen):
        raise InvalidValueError(f"Expected each --seed once; got {list(chosen)}.")
    return chosen


def _show(results: dict[int, TrainingResult], env: str, reward: Any) -> None:
    kind = "" if reward is None else f", {reward} reward"
    table = Table(box=None, pad_edge=False)
    table.add_column("seed")
    table.add_column("controller")
    for column in ("return", "a visit", "after steps"):
        table.add_column(column, justify="right")
    for seed, result in results.items():
        for name, score in result.scores.items():
            numbers = f"{score['return']:.3f}", f"{score['per_visit']:.4f}", f"{score['steps']:,}"
            table.add_row(str(seed), name, *numbers)
    console.print(f"{env}: validation streams of the train split{kind}", highlight=False)
    console.print(table)
    before = [str(seed) for seed, result in results.items() if not result.trained]
    if before:
        console.print(f"finished before, nothing was trained: seed {', '.join(before)}")
    for result in results.values():
        console.print(f"  {result.folder}", highlight=False, soft_wrap=True)
