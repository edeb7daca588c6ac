"""Regret in exact environments: against the oracle's known rewards, visit by visit.

Read from the long table (one row per visit that was begun) that `nsr-gym compare` writes. No agent
has to stand in for the optimum here: every row carries what the best allocation, or holding
everything ever seen, would have earned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import DataError, InvalidValueError
from nsr_gym.stats import Interval, bootstrap_interval, mean

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
COLUMNS = (
    "environment", "agent", "access", "seed", "split", "stream_hash", "num_tasks", "visit",
    "cycle", "task", "steps", "wrong", "reward", "oracle_reward", "finished",
)  # fmt: skip
"""The columns of an exact environment's rows that regret and reports read."""
_VALUES = ("reward", "oracle_reward", "steps", "wrong")


@dataclass(frozen=True, eq=False)
class ExactAgent:
    """One agent's regret against the oracle; S seeds, V visits.

    Attributes:
        agent: agent name.
        access: `"bank"`, `"memoryless"` or `"visit"`.
        seeds: (S,) of the episodes.
        per_visit: (S, V) oracle's reward minus the agent's, summed over the visit's steps; NaN
            where a visit was never begun.
        reward: (S, V) the agent's own reward, NaN as above.
        steps: (S, V) steps of the visit, NaN as above.
        wrong: (S, V) steps that were not right, or 1 for a miss; NaN as above.
        finished: (S,) whether the episode came to its end. Otherwise a limit of steps cut it
            off, and its total is no more than a lower bound.
        total: mean over seeds of the regret of the episode.
        relative: mean over common seeds of the regret minus the reference's; NaN where the
            reference is not in the table or did not finish.
    """

    agent: str
    access: str
    seeds: tuple[int, ...]
    per_visit: Floats
    reward: Floats
    steps: Floats
    wrong: Floats
    finished: NDArray[np.bool_]
    total: Interval
    relative: Interval

    @property
    def totals(self) -> Floats:
        """(S,) regret of each episode, of what was played of it where it was cut off."""
        return np.asarray(np.nansum(self.per_visit, axis=1))

    @property
    def cumulative(self) -> Floats:
        """(S, V) regret up to and with every visit; NaN from a visit on that did not end."""
        ended = self.per_visit.copy()
        for row in np.flatnonzero(~self.finished):
            # Only the last visit that was begun can have been cut off.
            ended[row, np.count_nonzero(~np.isnan(ended[row])) - 1] = np.nan
        return np.asarray(np.cumsum(ended, axis=1))


@dataclass(frozen=True, eq=False)
class ExactRegret:
    """Regret of every agent in one exact environment.

    Attributes:
        environment: environment id.
        split: set of instances.
        num_tasks: M.
        num_visits: V.
        cyclic: whether no task comes twice within a cycle.
        reference: the agent that `relative` is against.
        agents: by name, sorted.
    """

    environment: str
    split: str
    num_tasks: int
    num_visits: int
    cyclic: bool
    reference: str
    agents: Mapping[str, ExactAgent]

    @property
    def cycles(self) -> float:
        """C = V/M."""
        return self.num_visits / self.num_tasks


def is_exact(table: pd.DataFrame, environment: str) -> bool:
    """Whether a table's rows of an environment carry the oracle's reward.

    Args:
        table: the long table, with live and exact environments in any mixture.
        environment: id.

    Raises:
        DataError: the table has no column that names environments.
        InvalidValueError: the environment is not in the table.
    """
    known = _environments(table)
    if environment not in known:
        raise InvalidValueError(f"There is no {environment!r} in the table, only {known}.")
    return _marks(table)[(table["environment"] == environment).to_numpy()].all().item()


def divide(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of live and of exact environments; either may be empty."""
    marks = _marks(table)
    return table[~marks], table[marks]


def exact_environments(table: pd.DataFrame) -> list[str]:
    """Return the exact environments of a table, sorted."""
    return _environments(divide(table)[1])


def exact_regret(
    table: pd.DataFrame,
    environment: str | None = None,
    *,
    reference: str = "history-aware",
    num_visits: int | None = None,
    replicates: int = 10_000,
    rng: np.random.Generator | int = 0,
) -> ExactRegret:
    """Read every agent's regret in one exact environment.

    Args:
        table: the long table, rows in any order.
        environment: which one; may be left out where the table holds one exact environment.
        reference: agent that regret is also given relative to; it may be missing.
        num_visits: V; None takes it from the column `num_visits`, or where the table has none
            from the longest episode, filled up to whole cycles (a limit of steps can cut it off).
        replicates: bootstrap resamples.
        rng: generator, or a seed for one.

    Returns:
        The regret of every agent in that environment.

    Raises:
        DataError: missing columns or rows, the same visit twice, a gap between visits, or
            streams of one seed that differ between an agent and the reference.
        InvalidValueError: the environment is not in the table, is a live one, has to be
            named, or has more visits than V.
    """
    rows = _rows(table, environment)
    m = int(rows["num_tasks"].iloc[0])
    longest = int(rows["visit"].max()) + 1
    told = rows["num_visits"].max() if "num_visits" in rows.columns else np.nan
    filled = -(-longest // m) * m if np.isnan(told) else int(told)
    v = filled if num_visits is None else num_visits
    if longest > v:
        raise InvalidValueError(
            f"Expected num_visits to be at least {longest}, the longest episode; got {v}."
        )
    values = {str(agent): _arrays(found, v) for agent, found in rows.groupby("agent")}
    hashes = rows.drop_duplicates(["agent", "seed"]).set_index(["agent", "seed"])["stream_hash"]
    agents = {}
    for agent, arrays in sorted(values.items()):
        found = rows[rows["agent"] == agent]
        lost = arrays["oracle_reward"] - arrays["reward"]
        agents[agent] = ExactAgent(
            agent=agent,
            access=str(found["access"].iloc[0]),
            seeds=tuple(arrays["seeds"].tolist()),
            per_visit=lost,
            reward=arrays["reward"],
            steps=arrays["steps"],
            wrong=arrays["wrong"],
            finished=arrays["finished"].astype(bool),
            total=_interval(np.nansum(lost, axis=1), replicates, rng),
            relative=_relative(agent, reference, values, hashes, replicates, rng),
        )
    repeated = rows.duplicated(["agent", "seed", "cycle", "task"]).any()
    return ExactRegret(
        environment=str(rows["environment"].iloc[0]),
        split=", ".join(sorted(map(str, rows["split"].unique()))),
        num_tasks=m,
        num_visits=v,
        cyclic=not repeated,
        reference=reference,
        agents=agents,
    )


def _rows(table: pd.DataFrame, environment: str | None) -> pd.DataFrame:
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise DataError(
            f"The result table has no column(s) {', '.join(missing)}; it must hold an exact "
            "environment, as `nsr-gym compare --env NSR/BlindAllocation-v0` writes it."
        )
    known = exact_environments(table)
    if environment is None and len(known) != 1:
        raise InvalidValueError(
            f"The table holds {len(known)} exact environments ({', '.join(known)}); name one."
        )
    name = known[0] if environment is None else environment
    if not is_exact(table, name):
        raise InvalidValueError(
            f"{name} is a live environment: its oracle's reward is not known. Use "
            "nsr_gym.regret.measured_regret, which measures against a reference agent."
        )
    rows = table[table["environment"] == name].sort_values(["agent", "seed", "visit"])
    runs = rows.groupby(["agent", "seed"])["visit"]
    # In order, visits 0, 1, 2, ... are what every run has to consist of.
    if (rows["visit"] != runs.cumcount()).any():
        raise DataError(
            f"The visits of {name} are not 0, 1, 2, ... each once for every agent and seed; the "
            "table has duplicate or missing rows. If it joins several runs, keep one per seed."
        )
    for column, what in (("num_tasks", "tasks"), ("num_visits", "visits")):
        if column in rows.columns and rows[column].nunique() > 1:
            raise DataError(
                f"The episodes of {name} differ in the number of {what}: "
                f"{sorted(rows[column].unique().tolist())}. Runs of different configurations need "
                "tables of their own."
            )
    return rows


def _arrays(rows: pd.DataFrame, num_visits: int) -> dict[str, NDArray[Any]]:
    """Return the seeds, (S, V) arrays of the values and whether each episode finished."""
    seeds, run = np.unique(rows["seed"].to_numpy(), return_inverse=True)
    cell = run, rows["visit"].to_numpy(dtype=np.int64)
    arrays: dict[str, NDArray[Any]] = {"seeds": seeds.astype(np.int64)}
    for name in _VALUES:
        values = np.full((len(seeds), num_visits), np.nan)
        values[cell] = rows[name].to_numpy(dtype=np.float64)
        arrays[name] = values
    ended = np.zeros((len(seeds), num_visits), dtype=bool)
    ended[cell] = rows["finished"].to_numpy(dtype=bool)
    return arrays | {"finished": ended[:, -1]}


def _relative(
    agent: str,
    reference: str,
    values: Mapping[str, dict[str, NDArray[Any]]],
    hashes: pd.Series,
    replicates: int,
    rng: np.random.Generator | int,
) -> Interval:
    if reference not in values:
        return _undefined()
    own, other = values[agent], values[reference]
    seeds, here, there = np.intersect1d(own["seeds"], other["seeds"], return_indices=True)
    for seed in seeds.tolist():
        if hashes[agent, seed] != hashes[reference, seed]:
            raise DataError(
                f"Seed {seed} has different streams for {agent} and {reference}; agents can only "
                "be compared on the same streams. Run them again with the same configuration."
            )
    if not len(seeds) or not other["finished"][there].all():
        return _undefined()
    totals = [
        np.nansum(arrays["oracle_reward"] - arrays["reward"], axis=1)[rows]
        for arrays, rows in ((own, here), (other, there))
    ]
    return _interval(totals[0] - totals[1], replicates, rng)


def _interval(values: Floats, replicates: int, rng: np.random.Generator | int) -> Interval:
    return bootstrap_interval(values, statistic=mean, replicates=replicates, rng=rng)


def _undefined() -> Interval:
    return Interval(float("nan"), float("nan"), float("nan"), 0)


def _marks(table: pd.DataFrame) -> NDArray[np.bool_]:
    if "oracle_reward" not in table.columns:
        return np.zeros(len(table), dtype=bool)
    return np.asarray(table["oracle_reward"].notna().to_numpy())


def _environments(table: pd.DataFrame) -> list[str]:
    if "environment" not in table.columns:
        raise DataError(
            "The result table has no column environment; it must be a long table with one row "
            "per visit, as `nsr-gym compare` writes it."
        )
    return sorted(str(name) for name in table["environment"].unique())
