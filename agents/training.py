"""Training of controllers: the folder of a run, and going on with one that was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from nsr_gym.agents.algorithms import algorithm_spec, build_model
from nsr_gym.agents.checkpoint import save_controller
from nsr_gym.agents.imitation import check_imitates, demonstrate, imitate
from nsr_gym.agents.training_config import TrainingConfig
from nsr_gym.agents.training_log import RUN, Row, TensorBoard, read_run, write_run
from nsr_gym.agents.training_run import STATE, Plan, Segments, Standing
from nsr_gym.agents.training_state import own_generators
from nsr_gym.agents.training_validation import Validation
from nsr_gym.envs import make_sb3_env
from nsr_gym.envs.build import open_device
from nsr_gym.errors import NsrGymError, StateError
from nsr_gym.evaluation.cells import ResultFolder
from nsr_gym.evaluation.compare import installation

BEST, LAST = "best", "last"
_FORMAT = 1
_PACKAGES = ("stable-baselines3",)

Progress = Callable[[int, int, Mapping[str, float] | None], None]
"""Called after every rollout with the steps made, those of the run, and a score where evaluated."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """A finished run.

    Attributes:
        folder: with the controllers `best/` and `last/`, `run.json` and `progress.csv`.
        scores: on the validation streams, of `"best"` and `"last"`: `steps`, `return`,
            `per_visit`, `episodes`.
        trained: steps made by this call; 0 where the run was finished before.
    """

    folder: Path
    scores: dict[str, dict[str, float]]
    trained: int


def train(
    config: TrainingConfig, folder: Path, *, progress: Progress | None = None
) -> TrainingResult:
    """Train a controller into a folder, or go on where a run of the same configuration stopped.

    On a CPU, with the same versions, a run that was stopped at any time and begun again ends with
    bit for bit the parameters of one that was not: learning uses one thread.

    Args:
        config: the run.
        folder: of this run alone.
        progress: see `Progress`.

    Raises:
        StateError: the folder holds something else, another run, one begun with another
            installation, or another process is working in it.
        InvalidValueError: the environment refuses its arguments, or there is no such device.
        FileFormatError: a file in the folder is damaged.
        MissingDependencyError: the algorithm needs sb3-contrib, which is not installed.
    """
    finished = _finished(folder, config)
    if finished is not None:
        return finished
    foreign = folder.exists() and not (folder / RUN).exists()
    if foreign and any(file.name[0] != "." for file in folder.iterdir()):
        raise StateError(f"{folder} is not empty and holds no training run; choose another name.")
    open_device(config.device)
    with own_generators():
        arguments = config.environment_arguments()
        flat = algorithm_spec(config.algorithm).flat_actions
        # Wrong arguments are to be found before anything is written.
        env = make_sb3_env(config.environment, config.envs, flat_actions=flat, **arguments)
        try:
            model = build_model(
                config.algorithm,
                env,
                network=config.network,
                seed=config.seed,
                device=config.device,
                **config.hyperparameters,
            )
            folder.mkdir(parents=True, exist_ok=True)
            results = ResultFolder(folder)
            with results.lock():
                # Another process may have finished the run while this one made ready.
                finished = _finished(folder, config)
                if finished is not None:
                    return finished
                for part in (folder, folder / BEST, folder / LAST):
                    ResultFolder(part).remove_leftovers()
                return _train(config, folder, model, progress or (lambda *_: None))
        finally:
            env.close()


def train_on_the_spot(
    environment: str,
    arguments: Mapping[str, Any],
    folder: Path,
    *,
    algorithm: str = "ppo",
    progress: Progress | None = None,
) -> Path:
    """Train a controller for a comparison that has none for its environment.

    It is trained in the recorded environment of the same name where there is one that takes the
    arguments, as it shows and takes the same and is much faster, otherwise in the environment.

    Args:
        environment: id of what is compared.
        arguments: of it; the split is replaced by the train split.
        folder: of the run; a finished one there is not repeated.
        algorithm: which.
        progress: see `Progress`.

    Returns:
        The folder of the best controller.
    """
    chosen = {name: value for name, value in arguments.items() if name != "split"}
    config = TrainingConfig.from_files(
        recorded_twin(environment, chosen), algorithm=algorithm, arguments=chosen
    )
    return train(config, folder, progress=progress).folder / BEST


def recorded_twin(environment: str, arguments: Mapping[str, Any]) -> str:
    """Return the recorded environment that stands for a live one, the same id where none does.

    Args:
        environment: id, `NSR/<Name>-v0`.
        arguments: that it has to take.
    """
    name, dash, version = environment.rpartition("-")
    twin = f"{name}Recorded{dash}{version}"
    if twin not in gym.registry:
        return environment
    try:
        gym.make_vec(twin, 1, vectorization_mode="vector_entry_point", **arguments).close()
    except NsrGymError:
        return environment
    return twin


def _train(config: TrainingConfig, folder: Path, model: Any, progress: Progress) -> TrainingResult:
    run = _claim(folder, config)
    plan = Plan.of(model, steps=config.steps, eval_every=config.eval_every)
    arguments, values = config.environment_arguments(), config.complete_hyperparameters()
    validation = Validation(
        config.environment, arguments, algorithm=config.algorithm, episodes=config.eval_episodes
    )

    def keep(name: str, score: Mapping[str, float]) -> None:
        save_controller(
            model,
            folder / name,
            algorithm=config.algorithm,
            network=config.network,
            hyperparameters=values,
            environment=config.environment,
            arguments=arguments,
            split="train",
            scores={"validation": dict(score)},
            extra={"training": config.plain()},
        )

    def ended(standing: Standing, rows: list[Row]) -> None:
        board.write(rows)
        write_run(folder, run | _facts(standing, arguments, values, finished=False))

    segments = Segments(
        plan=plan,
        seed=config.seed,
        folder=folder,
        score=validation.score,
        keep=keep,
        ended=ended,
        progress=lambda steps, score: progress(steps, plan.steps, score),
    )
    try:
        segments.resume(model)
        begun = model.num_timesteps
        if begun == 0 and config.imitate is not None:
            _imitate(config, model, values["gamma"])
        board = TensorBoard(folder, begun)
        try:
            progress(begun, plan.steps, None)
            if begun < plan.steps:
                model.learn(
                    plan.steps - begun,
                    callback=segments,
                    log_interval=None,
                    reset_num_timesteps=False,
                )
        finally:
            board.close()
    finally:
        validation.close()
    facts = _facts(segments.standing, arguments, values, finished=True)
    write_run(folder, run | facts)
    # What it takes to go on is of no use any more, and large for an off-policy learner.
    (folder / STATE).unlink()
    return TrainingResult(folder=folder, scores=facts["scores"], trained=plan.steps - begun)


def _imitate(config: TrainingConfig, model: Any, gamma: float) -> None:
    check_imitates(model)
    shown = demonstrate(
        str(config.imitate),
        config.environment,
        config.environment_arguments(),
        episodes=config.imitation_episodes,
        gamma=gamma,
    )
    imitate(model, shown, seed=config.seed)


def _facts(
    standing: Standing, arguments: dict[str, Any], values: dict[str, Any], *, finished: bool
) -> dict[str, Any]:
    """Return what `run.json` says beside the configuration."""
    assert standing.last is not None
    assert standing.best is not None
    return {
        "finished": finished,
        "environment_arguments": arguments,
        "hyperparameters": values,
        "scores": {BEST: standing.best, LAST: standing.last},
        "seconds": standing.seconds,
        "steps_per_second": standing.last["steps"] / standing.seconds,
    }


def _claim(folder: Path, config: TrainingConfig) -> dict[str, Any]:
    """Return the start of `run.json`, written anew or of the run that is gone on with."""
    wanted: dict[str, Any] = {
        "format": _FORMAT,
        "config": config.plain(),
        "installation": _installation(config),
    }
    found = read_run(folder)
    if found is None or not (folder / STATE).exists():
        # A run without a state has nothing that could be gone on with.
        write_run(folder, wanted | {"finished": False})
        return wanted
    _check_same(folder, found, config)
    other = _differences(found["installation"], wanted["installation"])
    if other:
        raise StateError(
            f"{folder} holds a run that was begun with another installation ({other}), with which "
            "it would not go on exactly. Choose another name or move the folder away."
        )
    return wanted


def _installation(config: TrainingConfig) -> dict[str, str]:
    contrib = ("sb3-contrib",) if "contrib" in algorithm_spec(config.algorithm).module else ()
    return installation(*_PACKAGES, *contrib)


def _finished(folder: Path, config: TrainingConfig) -> TrainingResult | None:
    """Return what a finished run in the folder came to, None where there is something to do.

    Raises:
        StateError: the run there is another one.
    """
    found = read_run(folder)
    if found is None or not (found["finished"] or (folder / STATE).exists()):
        return None
    _check_same(folder, found, config)
    if not found["finished"]:
        return None
    return TrainingResult(folder=folder, scores=found["scores"], trained=0)


def _check_same(folder: Path, found: Mapping[str, Any], config: TrainingConfig) -> None:
    other = _differences(found["config"], config.plain())
    if other:
        raise StateError(
            f"{folder} holds another run ({other}). Choose another name or move the folder away; "
            "nothing was overwritten."
        )


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = dict.fromkeys([*now, *there])
    return "; ".join(
        f"{name}: {there.get(name)!r} there, {now.get(name)!r} now"
        for name in names
        if there.get(name) != now.get(name)
    )


__all__ = [
    "BEST",
    "LAST",
    "Progress",
    "TrainingConfig",
    "TrainingResult",
    "recorded_twin",
    "train",
    "train_on_the_spot",
]
