"""Episodes read from the long table (one row per visit) that `nsr-gym compare` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import DataError, InvalidValueError

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
RewardKind = Literal["online", "post_task"]
REWARD_KINDS: tuple[RewardKind, ...] = ("online", "post_task")
COLUMNS = (
    "environment",
    "agent",
    "access",
    "seed",
    "split",
    "stream_hash",
    "num_tasks",
    "visit",
    "task",
    "task_name",
    "reward_post_task",
    "reward_online",
    "curve",
    "bytes",
    "retention",
    "baseline",
)
"""The columns of the long table that metrics, regret and reports read."""


@dataclass(frozen=True, eq=False)
class Episode:
    """One agent's episode on one stream, `V` visits over `M` tasks with `L` learning steps.

    Attributes:
        environment: environment id.
        agent: agent name.
        access: `"bank"`, `"memoryless"` or `"visit"`.
        seed: seed of the stream and of everything else drawn.
        split: task pool, `"train"` or `"test"`.
        stream_hash: hash of the explicit stream.
        num_tasks: M.
        tasks: `(V,)` index of each visit's task in the stream's task list.
        task_names: `(V,)` names of the same tasks.
        curves: `(V, L+1)` accuracies before the first and after every learning step.
        rewards: `(V,)` by reward kind.
        retention: `(V, M)` accuracies after each visit.
        baseline: `(M,)` accuracies of the bare backbone.
        nbytes: `(V,)` bytes of everything that survives the switch.
        family: what kind of episode it is where the environment draws one, else `""`.
    """

    environment: str
    agent: str
    access: str
    seed: int
    split: str
    stream_hash: str
    num_tasks: int
    tasks: NDArray[np.int64]
    task_names: tuple[str, ...]
    curves: Floats
    rewards: Mapping[str, Floats]
    retention: Floats
    baseline: Floats
    nbytes: Floats
    family: str = ""

    @property
    def num_visits(self) -> int:
        """V."""
        return len(self.tasks)

    @property
    def learning_steps(self) -> int:
        """L."""
        return int(self.curves.shape[1]) - 1

    @property
    def is_cyclic(self) -> bool:
        """Whether every M visits in a row, counted from the first, hold each task once."""
        if self.num_visits % self.num_tasks:
            return False
        cycles = np.sort(self.tasks.reshape(-1, self.num_tasks), axis=1)
        return bool((cycles == np.arange(self.num_tasks)).all())


Episodes = dict[str, dict[int, Episode]]
"""Episodes of one environment: agent -> seed -> episode."""


def environments(table: pd.DataFrame) -> list[str]:
    """Environments of a table, sorted.

    Raises:
        DataError: no rows or missing columns.
    """
    check_columns(table)
    return sorted(str(name) for name in table["environment"].unique())


def check_columns(table: pd.DataFrame) -> None:
    """Check that a table has rows and the columns of `COLUMNS`.

    Raises:
        DataError: it has not.
    """
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise DataError(
            f"The result table has no column(s) {', '.join(missing)}; it must be a long table "
            "with one row per visit, as `nsr-gym compare` writes it."
        )
    if not len(table):
        raise DataError("The result table has no rows; run at least one episode first.")


def read_episodes(table: pd.DataFrame, environment: str | None = None) -> Episodes:
    """Gather the rows of one environment into episodes.

    Args:
        table: the long table, rows in any order.
        environment: which environment; may be left out where the table holds only one.

    Returns:
        agent -> seed -> episode, both sorted.

    Raises:
        DataError: missing columns or rows, the same visit twice, a gap between visits, or
            episodes that differ in shape (those of one seed, where each draws its own).
        InvalidValueError: the environment is not in the table, or has to be named.
    """
    known = environments(table)
    if environment is None and len(known) > 1:
        raise InvalidValueError(
            f"The table holds {len(known)} environments ({', '.join(known)}); name one."
        )
    if environment is not None and environment not in known:
        raise InvalidValueError(f"There is no {environment!r} in the table, only {known}.")
    name = known[0] if environment is None else environment
    found: Episodes = {}
    for _, rows in table[table["environment"] == name].groupby(["agent", "seed"]):
        episode = _episode(rows.sort_values("visit"))
        found.setdefault(episode.agent, {})[episode.seed] = episode
    _check_same_shape(name, found)
    return found


def common_seeds(*agents: Mapping[int, Episode]) -> tuple[int, ...]:
    """Seeds that all of the agents have, sorted, checked to be the same streams.

    Raises:
        DataError: the streams of one seed differ, so that pairing them would mean nothing.
    """
    seeds = sorted(set(agents[0]).intersection(*agents[1:]))
    for seed in seeds:
        hashes = {episodes[seed].stream_hash for episodes in agents}
        if len(hashes) > 1:
            names = ", ".join(sorted({episodes[seed].agent for episodes in agents}))
            raise DataError(
                f"Seed {seed} has different streams for {names}; agents can only be compared on "
                "the same streams. Run them again with the same configuration."
            )
    return tuple(seeds)


def _episode(rows: pd.DataFrame) -> Episode:
    first = rows.iloc[0]
    label = f"{first['environment']}, agent {first['agent']}, seed {first['seed']}"
    if rows["visit"].tolist() != list(range(len(rows))):
        raise DataError(
            f"The visits of {label} are not 0 to {len(rows) - 1}, each once; the table has "
            "duplicate or missing rows. If it joins several runs, keep one run per seed."
        )
    return Episode(
        environment=str(first["environment"]),
        agent=str(first["agent"]),
        access=str(first["access"]),
        seed=int(first["seed"]),
        split=str(first["split"]),
        stream_hash=str(first["stream_hash"]),
        num_tasks=int(first["num_tasks"]),
        tasks=rows["task"].to_numpy(dtype=np.int64),
        task_names=tuple(str(name) for name in rows["task_name"]),
        curves=_stack(rows["curve"].tolist(), f"curve of {label}"),
        rewards={kind: rows[f"reward_{kind}"].to_numpy(dtype=np.float64) for kind in REWARD_KINDS},
        retention=_stack(rows["retention"].tolist(), f"retention of {label}"),
        baseline=np.asarray(first["baseline"], dtype=np.float64),
        nbytes=rows["bytes"].to_numpy(dtype=np.float64),
        family=str(first.get("family", "")),
    )


def _stack(values: Sequence[object], name: str) -> Floats:
    try:
        return np.stack([np.asarray(value, dtype=np.float64) for value in values])
    except (TypeError, ValueError) as error:
        raise DataError(f"The {name} must hold lists of numbers of one length: {error}.") from None


def _check_same_shape(environment: str, found: Episodes) -> None:
    """Refuse episodes that differ in shape where the environment does not draw it per episode."""
    shapes: dict[int, set[tuple[int, int, int]]] = {}
    for by_seed in found.values():
        for seed, e in by_seed.items():
            # Where each episode draws its own shape, those of one seed have the same.
            place = seed if e.family else -1
            shapes.setdefault(place, set()).add((e.num_visits, e.num_tasks, e.learning_steps))
    different = [sorted(some) for some in shapes.values() if len(some) > 1]
    if different:
        raise DataError(
            f"The episodes of {environment} differ in (visits, tasks, learning steps): "
            f"{different[0]}. Finish or leave out the shorter ones; runs of different "
            "configurations need tables of their own."
        )
    steps = {e.learning_steps for by_seed in found.values() for e in by_seed.values()}
    if len(steps) > 1:
        raise DataError(
            f"The episodes of {environment} differ in learning steps: {sorted(steps)}; runs of "
            "different configurations need tables of their own."
        )
