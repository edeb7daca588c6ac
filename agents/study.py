"""The controlled study: the bank fixed, only the allocation rule varies.

Controllers are trained on the train split, several seeds each, and play the same held-out streams
as the rules. Everything lies in one folder and goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from nsr_gym.agents.algorithm_specs import ALGORITHMS, NETWORKS
from nsr_gym.agents.card import read_card
from nsr_gym.agents.training import BEST, TrainingConfig, recorded_twin, train
from nsr_gym.errors import InvalidValueError, unknown
from nsr_gym.evaluation.compare import Comparison, run
from nsr_gym.evaluation.optimum import holding_optimum
from nsr_gym.registration import DIGITS
from nsr_gym.registry import register_controller

OPTIMUM = "holding optimum"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A kind of controller.

    Attributes:
        algorithm: a name of `nsr_gym.agents.algorithms.ALGORITHMS`.
        network: a name of `nsr_gym.agents.algorithms.NETWORKS`.
        environment: what it is trained in; None for the environment that it plays.
        steps: environment steps; None for what the hyper-parameter files say.
    """

    algorithm: str = "ppo"
    network: str = "pointer"
    environment: str | None = None
    steps: int | None = None

    @property
    def name(self) -> str:
        """What it is called in tables."""
        trained_in = f" ({_short(self.environment)})" if self.environment else ""
        return f"{self.algorithm} {self.network}{trained_in}"


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared.

    Attributes:
        environments: ids, live or recorded.
        rules: registered agents.
        controllers: kinds of controllers.
        training_seeds: of each kind.
        seeds: of the held-out streams, the same for all.
        reward: `"online"` or `"post_task"`.
        arguments: of all environments, plain JSON.
        optimum: environments whose exact optimum is computed (recorded ones).
        block: episodes that are played side by side.
    """

    environments: tuple[str, ...]
    rules: tuple[str, ...]
    controllers: tuple[Trained, ...] = ()
    training_seeds: tuple[int, ...] = (0, 1, 2)
    seeds: tuple[int, ...] = tuple(range(10))
    reward: str = "online"
    arguments: dict[str, Any] = field(default_factory=dict)
    optimum: tuple[str, ...] = ()
    block: int = 10

    def __post_init__(self) -> None:
        """Check what nothing else checks.

        Raises:
            InvalidValueError: an optimum is asked for where nothing is compared, or an argument
                that the study sets itself.
        """
        own = sorted({"split", "reward"} & self.arguments.keys())
        if own:
            raise InvalidValueError(
                f"A study sets {' and '.join(own)} itself, so that streams are held out and all "
                "compare one reward; leave it out of the arguments (the reward is the study's own)."
            )
        for name in self.optimum:
            if name not in self.environments:
                raise InvalidValueError(
                    f"Expected the optimum of one of the environments {self.environments}; got "
                    f"{name!r}."
                )


RULES = (
    "similarity", "trial-loss", "random", "oracle", "similarity-pin", "trial-loss-pin",
    "oracle-pin", "nearest", "trial-loss-nearest", "thrifty", "versatile", "oracle-thrifty",
    "bank-linucb", "bank-thompson", "bank-epsilon-greedy",
)  # fmt: skip
CONTROLLERS = (
    Trained(algorithm="ppo", network="mlp"),
    Trained(algorithm="ppo", network="pointer"),
    Trained(algorithm="maskable-ppo", network="pointer"),
    Trained(algorithm="recurrent-ppo", network="mlp"),
)
FAMILIES = tuple(DIGITS)
_WITH_OPTIMUM = ("Capped", "Budget")
"""Families where what to hold is most of what there is to decide. The optimum leaves warm starts
from other tasks out, so that whoever finds good ones can lie above it."""


def controlled_study(
    *,
    families: Sequence[str] | None = None,
    dynamics: str = "recorded",
    seeds: tuple[int, ...] = tuple(range(20)),
    training_seeds: tuple[int, ...] = (0, 1, 2),
    steps: int | None = None,
    reward: str = "online",
    controllers: Sequence[Trained] = CONTROLLERS,
    arguments: Mapping[str, Any] | None = None,
) -> Study:
    """Return the study of the suite: all rules, bandits and controllers in all families.

    Args:
        families: of `FAMILIES`; None for all.
        dynamics: what is played, `"recorded"` or `"live"`; training is on recorded dynamics.
        seeds: of the held-out streams.
        training_seeds: of each kind of controller.
        steps: of training; None for what the hyper-parameter files say.
        reward: that is trained for and compared.
        controllers: kinds of controllers.
        arguments: of the environments that are played, such as more tasks than were trained on.

    Raises:
        UnknownNameError: no such family.
    """
    chosen = FAMILIES if families is None else tuple(families)
    for name in chosen:
        if name not in FAMILIES:
            raise unknown("family of the study", name, FAMILIES)
    suffix = "Recorded" if dynamics == "recorded" else ""
    return Study(
        environments=tuple(f"NSR/{name}Digits{suffix}-v0" for name in chosen),
        rules=RULES,
        controllers=tuple(replace(kind, steps=steps or kind.steps) for kind in controllers),
        arguments=dict(arguments or {}),
        training_seeds=training_seeds,
        seeds=seeds,
        reward=reward,
        optimum=tuple(
            f"NSR/{name}DigitsRecorded-v0" for name in chosen if name in _WITH_OPTIMUM and suffix
        ),
    )


Note = Callable[[str, int, int], None]
"""Called with a stage and how much of it is done."""


def run_study(
    study: Study, folder: Path, *, workers: int = 1, note: Note | None = None
) -> pd.DataFrame:
    """Train, play and gather.

    Args:
        study: what is compared.
        folder: of everything; what is finished there is not done again.
        workers: processes.
        note: see `Note`.

    Returns:
        A row for each environment, agent, training seed (-1 for rules) and stream: `value` (mean
        reward of a visit) and the columns `environment`, `agent`, `access`, `trained`, `seed`.
    """
    say = note or (lambda stage, done, total: None)
    runs = {
        (kind, environment, seed): folder
        / "controllers"
        / _slug(kind, environment)
        / f"seed-{seed}"
        for kind in study.controllers
        for environment in (
            (kind.environment,) if kind.environment else map(_trained_in, study.environments)
        )
        for seed in study.training_seeds
    }
    configs = [
        (_config(study, kind, environment, seed), path)
        for (kind, environment, seed), path in runs.items()
    ]
    _train_all(configs, workers, say)
    frames = []
    for number, environment in enumerate(study.environments):
        names = {rule: (rule, -1) for rule in study.rules}
        arguments: dict[str, dict[str, Any]] = {}
        for kind in study.controllers:
            for seed in study.training_seeds:
                path = runs[kind, kind.environment or _trained_in(environment), seed]
                # By content: what another controller has played is never taken for this one's.
                content = read_card(path / BEST).sha256[:8]
                name = f"{_slug(kind, kind.environment or environment)}.{seed}.{content}"
                register_controller(name, summary=kind.name)
                names[name] = kind.name, seed
                arguments[name] = {"folder": str(path / BEST)}
        comparison = Comparison(
            environments=(environment,),
            agents=tuple(names),
            seeds=study.seeds,
            arguments={"split": "test", "reward": study.reward, **study.arguments},
            agent_arguments=arguments,
            block=study.block,
        )
        played = folder / f"{_short(environment)}{settings_suffix(study.arguments)}"
        table = run(comparison, played, workers=workers)
        say("played", number + 1, len(study.environments))
        frames.append(_episodes(table, study.reward, names))
        if environment in study.optimum:
            frames.append(_optimum(study, environment))
    return pd.concat(frames, ignore_index=True)


def _trained_in(environment: str) -> str:
    """Return where controllers for an environment are trained, live and recorded ones the same."""
    return recorded_twin(environment, {})


def parse_controller(text: str) -> Trained:
    """Read `ALGORITHM:NETWORK`, or `ALGORITHM:NETWORK:FAMILY` for one trained in another family.

    Raises:
        InvalidValueError: another form.
        UnknownNameError: an algorithm, network or family that does not exist.
    """
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise InvalidValueError(
            f"Expected a controller as ALGORITHM:NETWORK or ALGORITHM:NETWORK:FAMILY; got {text!r}."
        )
    for kind, name, known in zip(
        ("algorithm", "network", "family of the study"), parts, (ALGORITHMS, NETWORKS, FAMILIES),
        strict=False,
    ):  # fmt: skip
        if name not in known:
            raise unknown(kind, name, known)
    trained_in = f"NSR/{parts[2]}DigitsRecorded-v0" if len(parts) == 3 else None
    return Trained(algorithm=parts[0], network=parts[1], environment=trained_in)


def settings_suffix(arguments: Mapping[str, Any]) -> str:
    """Return what tells results with these arguments of the environments from others."""
    if not arguments:
        return ""
    text = json.dumps(dict(arguments), sort_keys=True)
    return f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _config(study: Study, kind: Trained, environment: str, seed: int) -> TrainingConfig:
    return TrainingConfig.from_files(
        environment,
        algorithm=kind.algorithm,
        network=kind.network,
        seed=seed,
        steps=kind.steps,
        arguments={"reward": study.reward},
    )


def _optimum(study: Study, environment: str) -> pd.DataFrame:
    arguments = {"split": "test", "reward": study.reward, **study.arguments}
    returns, visits = holding_optimum(environment, study.seeds, arguments=arguments)
    return pd.DataFrame(
        {
            "environment": environment, "agent": OPTIMUM, "access": "bank", "trained": -1,
            "seed": study.seeds, "value": returns / visits,
        }
    )  # fmt: skip


def _episodes(
    table: pd.DataFrame, reward: str, names: Mapping[str, tuple[str, int]]
) -> pd.DataFrame:
    grouped = table.groupby(["environment", "agent", "access", "seed"], as_index=False)
    rows = grouped[[f"reward_{reward}"]].mean().rename(columns={f"reward_{reward}": "value"})
    rows["trained"] = [names[agent][1] for agent in rows["agent"]]
    rows["agent"] = [names[agent][0] for agent in rows["agent"]]
    return rows


def _train_all(configs: Sequence[tuple[TrainingConfig, Path]], workers: int, say: Note) -> None:
    total = len(configs)
    if workers == 1 or total <= 1:
        for done, (config, path) in enumerate(configs):
            train(config, path)
            say("trained", done + 1, total)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = [pool.submit(train, config, path) for config, path in configs]
        try:
            for done, job in enumerate(as_completed(jobs)):
                job.result()
                say("trained", done + 1, total)
        except BaseException:
            # Those that wait would be trained before the error is told.
            pool.shutdown(cancel_futures=True)
            raise


def _slug(kind: Trained, environment: str) -> str:
    return f"{_short(environment)}.{kind.algorithm}.{kind.network}"


def _short(environment: str | None) -> str:
    return (environment or "").rpartition("/")[2].rpartition("-")[0]
