"""The paper's comparisons as commands: what is played, and the tables that come of it.

The abstract of NSR (arXiv 2606.30067) is what can be held against; the full text was not
available, so that protocols are ours where it is silent, and said here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nsr_gym.agents.reproduce_files import Tables, by_stream, joined, read_part, write_part
from nsr_gym.agents.reproduce_thresholds import Say, calibrated_thresholds, publish
from nsr_gym.agents.systems import measure_bounds
from nsr_gym.errors import InvalidValueError, unknown
from nsr_gym.evaluation.compare import Comparison, run
from nsr_gym.evaluation.floors import IMAGE_FLOORS
from nsr_gym.metrics.recovery import previous_end, recovery_steps, tries
from nsr_gym.report.summary import summarise

CIFAR, FIVE = "NSR/SplitCIFAR100-v0", "NSR/FiveDatasets-v0"
EVERY, SOME = {"test_per_class": None}, {"test_per_class": 50}
"""Test images of each class: all where the abstract's claims are tested, else half of CIFAR's."""
WITH_BANK = ("oracle", "similarity", "trial-loss")
MEMORYLESS = (
    "greedy", "uniform", "loss-proportional", "recency", "random-rank", "pin-one", "fresh",
)  # fmt: skip
"""Heuristics without a bank; `fresh` keeps nothing at all."""
FEW = ("oracle", "similarity", "greedy", "fresh")
"""Agents where only the number of tasks changes."""
CONTROLLER = "ppo"
ROUTERS = ("cosine", "ncm", "energy", "rls", "oracle")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One comparison of an experiment.

    Attributes:
        label: what sets it apart from the others, a folder name.
        environment: id.
        agents: registered names.
        arguments: of the environment.
        agent_arguments: of the agents.
        columns: label's values, columns of the summary.
        routers: that answer test images one by one after the last visit, without a task identity.
    """

    label: str
    environment: str
    agents: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    agent_arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    routers: tuple[str, ...] = ()


def _cyclic() -> list[Part]:
    """Recovery with and without the bank: does the ratio of tries track M?"""
    return [
        Part(
            label=f"tasks-{m}", environment=CIFAR, agents=agents,
            arguments={"num_tasks": m, "view_size": 20, **images}, columns={"M": m},
        )
        for m, agents, images in (
            (10, (*WITH_BANK, *MEMORYLESS), EVERY), (5, FEW, SOME), (20, FEW, SOME),
        )
    ]  # fmt: skip


def _five() -> list[Part]:
    """ACC, BWT and forgetting of NSR against every memoryless heuristic."""
    return [Part(label="five", environment=FIVE, agents=(*WITH_BANK, *MEMORYLESS), arguments=EVERY)]


def _controlled() -> list[Part]:
    """The similarity rule against a learned controller, the bank fixed.

    The ranks are those of the recorded twins, which controllers are trained on.
    """
    return [
        Part(
            label=name, environment=env, arguments={"ranks": [2, 8], **SOME},
            agents=("oracle", "similarity", "trial-loss", CONTROLLER),
        )
        for name, env in (("cifar100", CIFAR), ("five", FIVE))
    ]  # fmt: skip


def _memory() -> list[Part]:
    """Bytes against rank, and a cap on entries against recovery."""
    ranks = [
        Part(
            label=f"rank-{r}", environment=CIFAR, agents=("oracle",),
            agent_arguments={"oracle": {"rank": r}}, columns={"rank": r, "capacity": 20},
            arguments={"capacity": 20, **SOME},
        )
        for r in (1, 2, 4, 8)
    ]  # fmt: skip
    caps = [
        Part(
            label=f"capacity-{k}", environment=CIFAR, agents=("oracle", "oracle-pin"),
            arguments={"capacity": k, **SOME}, columns={"rank": 8, "capacity": k},
        )
        for k in (2, 5, 8, 10)
    ]  # fmt: skip
    return ranks + caps


def _class_incremental() -> list[Part]:
    """Test images answered one by one: a router names the entry, nothing tells the task."""
    return [
        Part(label=name, environment=env, agents=("oracle",), arguments=EVERY, routers=ROUTERS)
        for name, env in (("cifar100", CIFAR), ("five", FIVE))
    ]


EXPERIMENTS: dict[str, Callable[[], list[Part]]] = {
    "cyclic-cifar100": _cyclic,
    "five-datasets": _five,
    "controlled-study": _controlled,
    "memory-budget": _memory,
    "class-incremental": _class_incremental,
}
"""Name -> its parts."""

Note = Callable[[int, int], None]


def run_experiment(
    name: str,
    folder: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    agents: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    agent_arguments: Mapping[str, Mapping[str, Any]] | None = None,
    workers: int = 1,
    note: Note | None = None,
    say: Say | None = None,
) -> Tables:
    """Play an experiment; what is finished in the folder is not played again.

    Where no thresholds ship for an environment's tasks and network, those of the rules that ask
    for them are calibrated on the train split first and kept in the part's folder.

    Args:
        name: of `EXPERIMENTS`.
        folder: of the results.
        seeds: of the streams, the same for all agents.
        agents: play these alone, parts without any of them not at all; None: all of the
            experiment.
        only: labels of the parts to play; None: all.
        arguments: of the environments, on top of the experiment's.
        agent_arguments: of agents, on top of the experiment's.
        workers: processes.
        note: called with how many parts are done, and of how many.
        say: called with a line on what takes long and is no part: thresholds being calibrated.

    Returns:
        Of the parts that were asked for, also kept in their folders (`reproduce_files`): the
        summary, a row for each part and agent (see `nsr_gym.report.summary.summarise`; the
        part's own columns and `label` come first, then `retained` and `dropped`, mean tries of
        returns whose entry was recalled or was not, for each router `routed.<name>` and
        `right.<name>`, mean accuracy and share of images routed right after the last visit, and
        the environment's `arguments` as JSON), the bounds without an adapter, a row for each
        environment, bound, features and answer, and each stream by itself.

    Raises:
        UnknownNameError: no such experiment, or no such part or agent in it.
        InvalidValueError: none of the parts has any of the agents, or an agent that was given
            arguments is in none.
        StateError: a part's folder holds another comparison, or another process works in it.
        DataError: the data are missing; the message says how to get them.
    """
    played: list[Tables] = []
    measured: dict[tuple[str, str], pd.DataFrame] = {}
    chosen_parts = _chosen(name, agents, only, agent_arguments or {})
    for done, (part, chosen) in enumerate(chosen_parts):
        own = {**part.agent_arguments, **(agent_arguments or {})}
        settings = {**part.arguments, **(arguments or {})}
        comparison = Comparison(
            environments=(part.environment,),
            agents=chosen,
            seeds=tuple(seeds),
            arguments=settings,
            agent_arguments={a: dict(own[a]) for a in chosen if a in own},
            routers=part.routers,
        )
        place = folder / part.label
        found = calibrated_thresholds(comparison, place, say)
        given = {a: {**comparison.agent_arguments.get(a, {}), "threshold": found[a]} for a in found}
        comparison = replace(comparison, agent_arguments={**comparison.agent_arguments, **given})
        table = run(comparison, place, workers=workers)
        publish(place)
        # Bounds hold no bank: parts that differ in its capacity share them.
        data = {name: value for name, value in settings.items() if name != "capacity"}
        key = part.environment, json.dumps(data, sort_keys=True)
        tables = read_part(place)  # of this comparison: another one was refused
        if tables is None:
            if key not in measured:
                measured[key] = measure_bounds(part.environment, data, seeds, IMAGE_FLOORS)
            tables = Tables(
                _summary(part, table, settings),
                measured[key].assign(label=part.label),
                by_stream(part.label, table),
            )
            write_part(place, tables)
        measured[key] = tables.bounds
        played.append(tables)
        if note is not None:
            note(done + 1, len(chosen_parts))
    return joined(played)


def part_labels(name: str) -> list[str]:
    """Return the labels of an experiment's parts, in their order.

    Raises:
        UnknownNameError: no such experiment.
    """
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    return [part.label for part in EXPERIMENTS[name]()]


def _chosen(
    name: str, agents: Sequence[str] | None, only: Sequence[str] | None, given: Iterable[str]
) -> list[tuple[Part, tuple[str, ...]]]:
    """Return the parts that are to be played, and the agents that play each of them.

    Args:
        name: of the experiment.
        agents: as in `run_experiment`.
        only: as in `run_experiment`.
        given: agents that were given arguments.
    """
    labels = part_labels(name)
    parts = EXPERIMENTS[name]()
    for label in only or ():
        if label not in labels:
            raise unknown(f"part of {name}", label, labels)
    known = dict.fromkeys(agent for part in parts for agent in part.agents)
    for agent in (*(agents or ()), *given):
        if agent not in known:
            raise unknown(f"agent of {name}", agent, known)
    parts = [part for part in parts if only is None or part.label in only]
    found = [
        (part, chosen)
        for part in parts
        if (chosen := tuple(a for a in part.agents if agents is None or a in agents))
    ]
    if not found:
        listed = "; ".join(f"{part.label} has {', '.join(part.agents)}" for part in parts)
        raise InvalidValueError(
            f"Expected an agent of a part that is to be played ({listed or 'no part was named'}); "
            f"got {', '.join(agents or ()) or 'none'}. Name another agent or another part."
        )
    idle = [a for a in given if all(a not in chosen for _, chosen in found)]
    if idle:
        raise InvalidValueError(
            f"Expected arguments of agents that are played; got those of {', '.join(idle)}. Name "
            "these agents and a part that has them, or leave the arguments out."
        )
    return found


def _summary(part: Part, table: pd.DataFrame, settings: Mapping[str, Any]) -> pd.DataFrame:
    summary = summarise(table)
    split = {str(a): _by_recall(rows) for a, rows in table.groupby("agent")}
    summary.insert(1, "label", part.label)
    for column, value in part.columns.items():
        summary[column] = value
    summary["retained"], summary["dropped"] = zip(
        *(split[str(a)] for a in summary["agent"]), strict=True
    )
    for column in [f"{what}.{name}" for name in part.routers for what in ("routed", "right")]:
        found = table.groupby("agent")[column].mean()  # NaN before the last visit
        summary[column] = [found[agent] for agent in summary["agent"]]
    summary["arguments"] = json.dumps(settings)
    return summary


def _by_recall(table: pd.DataFrame) -> tuple[float, float]:
    """Return the mean tries of returns that recalled an entry, and of those that did not."""
    found: tuple[list[float], list[float]] = ([], [])
    for _, episode in table.groupby("seed"):
        tasks = episode["task"].to_numpy()
        curves = np.stack(episode["curve"].to_list())
        ends = previous_end(tasks, curves)
        returns = ~np.isnan(ends)
        counted = tries(recovery_steps(curves, ends)[returns], curves.shape[1] - 1)
        recalled = episode["recall"].to_numpy()[returns] > 0
        found[0].extend(counted[recalled])
        found[1].extend(counted[~recalled])
    retained, dropped = (float(np.mean(part)) if part else float("nan") for part in found)
    return retained, dropped
