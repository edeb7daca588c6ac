r"""How regret grows with the number of cycles T and of tasks M: fitted exponents.

The form T(M-1)Delta_switch of Neural Subspace Reallocation (arXiv 2606.30067, abstract) says that
log regret is a line of slope 1 in log T and of slope 1 in log(M-1). What T counts differs between
our readings: cycles in A; in B, and wherever regret is relative to a reference agent, cycles after
the first, in which nobody has knowledge to lose; visits in C, "run until recovered". Where c
solutions can be held at once (reading B), M-c takes the place of M-1: the law is (C-1)(M-c).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nsr_gym.errors import InvalidValueError, unknown
from nsr_gym.metrics.episodes import RewardKind
from nsr_gym.regret.exact import exact_regret, is_exact
from nsr_gym.regret.measured import measured_regret
from nsr_gym.stats import Interval, percentiles, resamples

Floats = NDArray[np.float64]
Horizon = Literal["cycles", "later cycles", "visits"]
"""What T counts."""
ROWS = ("environment", "agent", "access", "num_tasks", "cycles", "seed", "regret")
_NAN = float("nan")


def scaling_table(
    tables: Iterable[pd.DataFrame],
    *,
    environment: str | None = None,
    reference: str | None = None,
    reward: RewardKind = "online",
) -> pd.DataFrame:
    """Read regret after every cycle from comparisons that differ in the number of tasks.

    The first j cycles of an episode are an episode of j cycles, for a fixed, a reshuffled and an
    i.i.d. order alike; so one run with C cycles gives T = 1 to C. (An agent that plans for
    the end of the episode is taken as it goes for C.)

    Args:
        tables: long tables, each with one number of tasks.
        environment: which one, where a table holds several.
        reference: reference agent; None for `"history-aware"` in exact environments, where it
            does not enter regret, and `"oracle"` in live ones, where regret is relative to it.
        reward: of live environments.

    Returns:
        One row per agent, number of tasks (`num_tasks`), number of cycles (`cycles`) and `seed`:
        `regret` up to there, NaN beyond the cycle that an episode was cut off in.

    Raises:
        InvalidValueError: streams that are not cyclic in a live environment, where cycles have
            no ends, or no table.
        DataError: a table is not a valid long table.
    """
    frames = [_read(table, environment, reference, reward) for table in tables]
    if not frames:
        raise InvalidValueError("Expected at least one table; got none.")
    return pd.concat(frames, ignore_index=True)[list(ROWS)]


@dataclass(frozen=True)
class Exponents:
    """The fit log regret = a + b_T log T + b_M log(M-c) of one agent in one environment.

    Attributes:
        environment: environment id.
        agent: agent name.
        access: `"bank"`, `"memoryless"` or `"visit"`.
        time: b_T with its interval over seeds; NaN where there is no fit.
        tasks: b_M with its interval over seeds; NaN where there is no fit, or one M only.
        explained: share of the variance of log regret that the plane explains; NaN without fit.
        note: why there is no fit, such as `"0 throughout"`; empty where there is one.
        held: c, how many solutions can be held; 1 outside of reading B.
    """

    environment: str
    agent: str
    access: str
    time: Interval
    tasks: Interval
    explained: float
    note: str
    held: int = 1


def fit_exponents(
    rows: pd.DataFrame,
    *,
    horizon: Horizon = "cycles",
    held: int = 1,
    replicates: int = 2_000,
    rng: np.random.Generator | int = 0,
) -> list[Exponents]:
    """Fit exponents by least squares on means over seeds, with bootstrap intervals over seeds.

    Args:
        rows: as `scaling_table` returns them.
        horizon: what T counts: `"cycles"`, `"later cycles"` (the first is left out) or `"visits"`.
        held: c, how many solutions the policies of the law can hold; regret is fitted to M-c.
        replicates: bootstrap resamples; the same seeds are drawn for every T and M.
        rng: generator, or a seed for one.

    Returns:
        One fit per environment and agent, in the order of the rows. An agent with a regret that
        is not positive somewhere, or that did not finish, has none, and its note says so.

    Raises:
        UnknownNameError: no such horizon.
        InvalidValueError: c < 1, or a number of tasks of c or fewer, where there is no law to fit.
    """
    if horizon not in get_args(Horizon):
        raise unknown("horizon", horizon, get_args(Horizon))
    fewest = int(rows["num_tasks"].min())
    if not 1 <= held < fewest:
        raise InvalidValueError(
            f"Expected at least 2 tasks, and more than held, everywhere: log(M-{held}) is wanted; "
            f"got M = {fewest}."
        )
    return [
        _fit(str(environment), str(agent), found, horizon, held, replicates, rng)
        for (environment, agent), found in rows.groupby(["environment", "agent"], sort=False)
    ]


def exponent_frame(fits: Iterable[Exponents]) -> pd.DataFrame:
    """Return fits as a table: `time` and `tasks` with their intervals, `held` and more."""
    rows = [
        {
            "environment": fit.environment,
            "agent": fit.agent,
            "access": fit.access,
            "runs": fit.time.runs,
            "time": fit.time.point, "time_low": fit.time.low, "time_high": fit.time.high,
            "tasks": fit.tasks.point, "tasks_low": fit.tasks.low, "tasks_high": fit.tasks.high,
            "explained": fit.explained,
            "held": fit.held,
            "note": fit.note,
        }
        for fit in fits
    ]  # fmt: skip
    return pd.DataFrame(rows)


def horizon_values(rows: pd.DataFrame, horizon: Horizon) -> Floats:
    """Return T of every row; 0 for the first cycle where only later ones count."""
    cycles = rows["cycles"].to_numpy(dtype=np.float64)
    if horizon == "visits":
        return np.asarray(cycles * rows["num_tasks"].to_numpy(dtype=np.float64))
    return cycles - 1.0 if horizon == "later cycles" else cycles


def _read(
    table: pd.DataFrame, environment: str | None, reference: str | None, reward: RewardKind
) -> pd.DataFrame:
    names = sorted(map(str, table["environment"].unique()))
    if environment is None and len(names) != 1:
        raise InvalidValueError(
            f"A table holds {len(names)} environments ({', '.join(names)}); name one."
        )
    name = names[0] if environment is None else environment
    if is_exact(table, name):
        exact = exact_regret(table, name, reference=reference or "history-aware", replicates=1)
        m, runs = exact.num_tasks, exact.agents.values()
        curves = [(a.agent, a.access, a.seeds, a.cumulative) for a in runs]
    else:
        live = table[table["environment"] == name]
        measured = measured_regret(
            live, environment=name, reference=reference or "oracle", reward=reward, replicates=1
        )
        if not measured.cyclic:
            raise InvalidValueError(
                f"Expected cyclic streams, whose cycles have ends to count T by; those of {name} "
                "are not. Use a cyclic or reshuffled schedule."
            )
        m = measured.num_tasks
        curves = [(a.agent, a.access, a.seeds, a.cumulative) for a in measured.agents.values()]
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "environment": name,
                    "agent": agent,
                    "access": access,
                    "num_tasks": m,
                    "cycles": np.tile(np.arange(1, cumulative.shape[1] // m + 1), len(seeds)),
                    "seed": np.repeat(seeds, cumulative.shape[1] // m),
                    "regret": cumulative[:, m - 1 :: m].ravel(),
                }
            )
            for agent, access, seeds, cumulative in curves
        ],
        ignore_index=True,
    )


def _fit(
    environment: str,
    agent: str,
    rows: pd.DataFrame,
    horizon: Horizon,
    held: int,
    replicates: int,
    rng: np.random.Generator | int,
) -> Exponents:
    access = str(rows["access"].iloc[0])
    counted = rows.assign(T=horizon_values(rows, horizon))
    counted = counted[counted["T"] > 0]
    # One row for each (M, T), one column for each seed that has them all.
    grid = counted.set_index(["num_tasks", "T", "seed"])["regret"].unstack("seed")
    note = _why_no_fit(grid, horizon)
    if note:
        none = Interval(_NAN, _NAN, _NAN, grid.shape[1])
        return Exponents(environment, agent, access, none, none, _NAN, note, held)
    values = grid.to_numpy()
    m, t = (grid.index.get_level_values(name).to_numpy(dtype=float) for name in ("num_tasks", "T"))
    columns = [np.ones(len(m)), np.log(t)]
    several = len(np.unique(m)) > 1
    design = np.stack([*columns, np.log(m - held)] if several else columns, axis=1)
    solve = np.linalg.pinv(design)
    logs = np.log(values.mean(axis=1))
    point = solve @ logs
    drawn = resamples(values.shape[1], replicates, rng)
    means = values[:, drawn].mean(axis=2)  # (cells, replicates)
    draws = solve @ np.log(means) if (means > 0).all() else None
    around = logs - logs.mean()
    left = logs - design @ point
    spread = float(around @ around)
    return Exponents(
        environment=environment,
        agent=agent,
        access=access,
        time=_exponent(1, point, draws, values.shape[1]),
        tasks=_exponent(2, point, draws, values.shape[1]),
        explained=1.0 - float(left @ left) / spread if spread > 0 else 1.0,
        note="",
        held=held,
    )


def _why_no_fit(grid: pd.DataFrame, horizon: Horizon) -> str:
    values = grid.to_numpy()
    if np.isnan(values).any():
        tasks = sorted({int(m) for m, _ in grid.index[np.isnan(values).any(axis=1)]})
        return "did not finish, or lacks seeds, at M = " + ", ".join(map(str, tasks))
    if grid.index.get_level_values("T").nunique() < 2:
        return f"fewer than two numbers of {horizon}"
    means = values.mean(axis=1)
    if (values == 0).all():
        return "0 throughout"
    if (means <= 0).any():
        first = {int(m): float(t) for m, t in reversed(grid.index[means <= 0].tolist())}
        where = ", ".join(f"M = {m} (T = {t:g})" for m, t in sorted(first.items()))
        return f"not positive at {where}"
    return ""


def _exponent(column: int, point: Floats, draws: Floats | None, runs: int) -> Interval:
    if column >= len(point):
        return Interval(_NAN, _NAN, _NAN, runs)
    if draws is None or runs < 2:
        return Interval(float(point[column]), _NAN, _NAN, runs)
    low, high = percentiles(draws[column], 0.95)
    return Interval(float(point[column]), float(low), float(high), runs)
