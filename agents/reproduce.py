"""The paper's comparisons as commands: what is played, and the tables that come of it.

The abstract of NSR (arXiv 2606.30067) is what can be held against; the full text was not
available, so that protocols are ours where it is silent, and said here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nsr_gym.agents.systems import measure_bounds
from nsr_gym.errors import unknown
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
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Play an experiment; what is finished in the folder is not played again.

    Args:
        name: of `EXPERIMENTS`.
        folder: of the results.
        seeds: of the streams, the same for all agents.
        agents: play these alone; None: all of the experiment.
        only: labels of the parts to play; None: all.
        arguments: of the environments, on top of the experiment's.
        agent_arguments: of agents, on top of the experiment's.
        workers: processes.
        note: called with how many parts are done, and of how many.

    Returns:
        The summary, a row for each part and agent (see `nsr_gym.report.summary.summarise`; the
        part's own columns and `label` come first, then `retained` and `dropped`, mean tries of
        returns whose entry was recalled or was not, and for each router `routed.<name>` and
        `right.<name>`, mean accuracy and share of images routed right after the last visit), and
        the bounds without an adapter, a row for each environment, bound, features and answer.

    Raises:
        UnknownNameError: no such experiment or part.
        DataError: the data are missing; the message says how to get them.
    """
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    parts = EXPERIMENTS[name]()
    labels = [part.label for part in parts]
    for label in only or ():
        if label not in labels:
            raise unknown(f"part of {name}", label, labels)
    parts = [part for part in parts if only is None or part.label in only]
    summaries, bounds = [], []
    measured: dict[tuple[str, str], pd.DataFrame] = {}
    for done, part in enumerate(parts):
        chosen = tuple(a for a in part.agents if agents is None or a in agents)
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
        table = run(comparison, folder / part.label, workers=workers)
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
        summaries.append(summary)
        # Bounds hold no bank: parts that differ in its capacity share them.
        data = {name: value for name, value in settings.items() if name != "capacity"}
        key = part.environment, json.dumps(data, sort_keys=True)
        if key not in measured:
            measured[key] = measure_bounds(part.environment, data, seeds, IMAGE_FLOORS)
        bounds.append(measured[key].assign(label=part.label))
        if note is not None:
            note(done + 1, len(parts))
    return pd.concat(summaries, ignore_index=True), pd.concat(bounds, ignore_index=True)


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
