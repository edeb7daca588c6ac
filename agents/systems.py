"""The comparison of systems: learners x banks x routers on the same streams, with their bounds.

While training, the task is known to every system (the agent `oracle` recalls a task's own entry),
as it is in the papers. At the end every test image is answered twice: with the task known, and
with an entry that a router names for the image alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd

from nsr_gym.errors import unknown
from nsr_gym.evaluation.compare import Comparison, run
from nsr_gym.evaluation.floors import FLOORS, TASK_KNOWN, Floor, measure_floors
from nsr_gym.learning.kinds import learner_class
from nsr_gym.metrics.visits import forgetting
from nsr_gym.routing import ROUTERS

AGENT = "oracle"
WHOLE = "one model"
"""The answer of systems whose model is the same for every input: nothing is routed."""


@dataclass(frozen=True, kw_only=True)
class System:
    """How visits train and where results go.

    Attributes:
        name: in tables.
        learner: of `nsr_gym.learning.kinds.LEARNERS`.
        bank: of `nsr_gym.bank.kinds.BANKS`.
        arguments: further ones of the environment, plain JSON.
    """

    name: str
    learner: str = "lora"
    bank: str = "per_task"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether one model answers everything."""
        return self.bank == "additive" or learner_class(self.learner).keeps_own


SEQUENTIAL = "sequential"
SYSTEMS = (
    System(name="lora"),
    System(name="lora, meta bank", bank="meta"),
    System(name="lora, shared basis", bank="shared_basis"),
    System(name="lora, flattened basis", bank="flattened_basis"),
    System(name="coef_only", learner="coef_only", bank="shared_basis"),
    System(name="lora, additive bank", bank="additive"),
    System(name="inflora", learner="inflora", bank="additive"),
    System(name="lora_sub_drs", learner="lora_sub_drs", bank="additive"),
    System(name="dual", learner="dual", bank="additive"),
    System(name="olora", learner="olora", bank="additive"),
    System(name="sdlora", learner="sdlora", bank="additive"),
    System(name=SEQUENTIAL, learner="sequential"),
    System(name="sequential + ema_merge", learner="sequential",
           arguments={"modifiers": {"ema_merge": {}}}),
    System(name="sequential + badam", learner="sequential",
           arguments={"modifiers": {"badam": {}}}),
    System(name="lora + rank_gates", arguments={"modifiers": {"rank_gates": {}}}),
    System(name="joint", learner="joint"),
)  # fmt: skip
FAMILIES = ("Cyclic", "Related", "Aliased")
NAMES = tuple(system.name for system in SYSTEMS)
TESTED = tuple(ROUTERS)
"""Routers that name entries for single images; `"lorahub"` weighs a task's support as a whole."""

Note = Callable[[int, int], None]


def run_systems(
    folder: Path,
    *,
    families: Sequence[str] = FAMILIES,
    systems: Sequence[str] = NAMES,
    routers: Sequence[str] = TESTED,
    seeds: Sequence[int] = tuple(range(10)),
    arguments: Mapping[str, Any] | None = None,
    workers: int = 1,
    note: Note | None = None,
) -> pd.DataFrame:
    """Train, route and measure; what is finished in the folder is not done again.

    Args:
        folder: of everything.
        families: of `FAMILIES`.
        systems: names of `SYSTEMS`.
        routers: of `nsr_gym.routing.ROUTERS`.
        seeds: of the streams, the same for all.
        arguments: of the environments; two cycles of ten tasks where they do not say.
        workers: processes.
        note: called with how many parts are done, and of how many.

    Returns:
        A row for each environment, system, answer and seed: `accuracy` (mean over the stream's
        tasks after the last visit), `right` (share of images routed to their own task's entry, NaN
        where nothing is routed), `forgetting` (visit-aware, with the task known; NaN for
        floors), `bytes` (per task, all that survives a switch), `online` (mean online reward; NaN
        for floors). `answer` is `"task known"`, `"one for all"`, `"one model"` or a router.

    Raises:
        UnknownNameError: a family, system or router that does not exist.
    """
    for what, names, known in (
        ("family", families, FAMILIES), ("system", systems, NAMES), ("router", routers, TESTED),
    ):  # fmt: skip
        for name in names:
            if name not in known:
                raise unknown(what, name, known)
    chosen = [system for system in SYSTEMS if system.name in systems]
    settings = {"num_tasks": 10, "cycles": 2, **(arguments or {})}
    say, done, frames = note or (lambda done, total: None), 0, []
    for family in families:
        environment = f"NSR/{family}Digits-v0"
        frames.append(measure_bounds(environment, settings, seeds))
        for system in chosen:
            asked = () if system.whole else tuple(routers)
            comparison = Comparison(
                environments=(environment,),
                agents=(AGENT,),
                seeds=tuple(seeds),
                arguments={
                    "learner": system.learner,
                    "bank": system.bank,
                    **settings,
                    **system.arguments,
                },
                routers=asked,
                block=5,
            )
            table = run(comparison, folder / family / _slug(system.name), workers=workers)
            frames.append(_rows(table, environment, system, asked))
            done += 1
            say(done, len(families) * len(chosen))
    return pd.concat(frames, ignore_index=True)


def _rows(
    table: pd.DataFrame, environment: str, system: System, routers: Sequence[str]
) -> pd.DataFrame:
    rows = []
    for _, episode in table.groupby("seed"):
        last = episode.iloc[-1]
        retention = np.stack(episode["retention"].to_list())
        curves = np.stack(episode["curve"].to_list())
        common = {
            "environment": environment,
            "system": system.name,
            "seed": int(last["seed"]),
            "forgetting": forgetting(episode["task"].to_numpy(), curves, retention),
            "bytes": float(last["bytes"]) / int(last["num_tasks"]),
            "online": float(episode["reward_online"].mean()),
        }
        known = WHOLE if system.whole else TASK_KNOWN
        rows.append(
            common | {"answer": known, "accuracy": float(retention[-1].mean()), "right": np.nan}
        )
        rows += [
            common
            | {
                "answer": name,
                "accuracy": float(last[f"routed.{name}"]),
                "right": float(last[f"right.{name}"]),
            }
            for name in routers
        ]
    return pd.DataFrame(rows)


def measure_bounds(
    environment: str,
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    floors: Sequence[Floor] = FLOORS,
) -> pd.DataFrame:
    """Measure what needs no adapter on the streams of an environment.

    Args:
        environment: id of a live one.
        settings: its arguments; `split` is `"test"` where they do not say.
        seeds: of the streams.
        floors: classifiers on frozen features.

    Returns:
        A row for each seed, bound and answer, with the columns of `run_systems`.
    """
    chosen = {"split": "test", **settings}
    env: Any = gym.make_vec(environment, num_envs=len(seeds), vectorization_mode=None, **chosen)
    try:
        env.reset(seed=list(seeds))
        engine = env.unwrapped.engine
        rows = np.arange(len(seeds))
        bare = np.nanmean(engine.baseline(rows), axis=1)
        learner = engine.dynamics.learner
        table = measure_floors(engine.dynamics.data, learner.backbone, engine.members, floors)
    finally:
        env.close()
    found = pd.DataFrame(
        {
            "environment": environment,
            "system": table["floor"] + ", " + table["features"] + " features",
            "answer": table["answer"],
            "seed": np.array(seeds)[table["stream"]],
            "accuracy": table["accuracy"],
            "bytes": table["bytes"] / engine.members.shape[1],
        }
    )
    frozen = pd.DataFrame(
        {
            "environment": environment,
            "system": "frozen backbone",
            "answer": WHOLE,
            "seed": list(seeds),
            "accuracy": bare,
            "bytes": 0.0,
        }
    )
    return pd.concat([frozen, found], ignore_index=True)


def _slug(name: str) -> str:
    return name.replace(" + ", "-").replace(", ", "-").replace(" ", "-")
