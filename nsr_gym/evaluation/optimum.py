"""The exact optimum of holding entries where outcomes are recorded: what to keep, at which rank.

With recorded dynamics an episode's outcomes are known once its seed is. Holding an entry of a task
from one of its visits to a later one is a *run*: a fresh start at some rank, then returns from the
entry, each updating it or leaving it as it is. The best choice of runs under the bank's capacity
and byte budget is an integer programme, solved to proven optimality.

It is the optimum of a class that knows the whole stream and every outcome beforehand, may drop any
entry at any time, and recalls an entry that it holds at every visit to its task, at the entry's own
rank. What it leaves out is a warm start from another task, a fresh start while an entry of the
task is kept, and a recall at another rank whose result is discarded. No rule or controller within
the class gets more; the environment's retention rule may keep it from getting as much.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import InvalidValueError, StateError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Run:
    """Visits of one task (positions in the stream), its bytes, and what it gains."""

    visits: Ints
    nbytes: int
    gain: float


def holding_optimum(
    environment: str, seeds: Sequence[int], *, arguments: Mapping[str, Any] | None = None
) -> tuple[Floats, Ints]:
    """Return the largest return of each episode within the class described above.

    Args:
        environment: id of an environment with recorded dynamics.
        seeds: of the episodes.
        arguments: of the environment; `split` is `"test"` where they do not say.

    Returns:
        (n,) returns in the environment's `reward`, and (n,) numbers of visits.

    Raises:
        InvalidValueError: live dynamics, another access than to the bank, or a rank cost.
        StateError: the solver did not prove an optimum.
    """
    asked = {"split": "test", **(arguments or {})}
    env: Any = gym.make_vec(environment, num_envs=len(seeds), vectorization_mode=None, **asked)
    try:
        engine = env.unwrapped.engine
        recorded = hasattr(engine.dynamics, "table")
        if not recorded or engine.config.access != "bank" or engine.config.rank_cost:
            raise InvalidValueError(
                "Expected recorded dynamics, access to the bank and no rank cost; the optimum of "
                f"{environment} with {asked} is not known."
            )
        env.reset(seed=[int(seed) for seed in seeds])
        returns = np.array([_episode(engine, row) for row in range(len(seeds))])
        return returns, engine.num_visits.copy()
    finally:
        env.close()


def _episode(engine: Any, row: int) -> float:
    dynamics, plan = engine.dynamics, engine.plans[row]
    table, stream = dynamics.table, plan.stream
    tasks = stream.pool_indices(table.pool)[np.asarray(stream.visits)]
    chains = dynamics.fresh_chain(np.full(len(tasks), row), np.arange(len(tasks)))
    ranks = np.array([table.ranks.index(rank) for rank in engine.config.ranks])
    curve_value = _online if engine.config.reward == "online" else _post_task
    fresh = curve_value(table.fresh[tasks[:, None], ranks, chains[:, None]])  # (V, Q)
    baseline = fresh.max(axis=1)
    store = dynamics.store()
    sizes = sum(store.entry_bytes(np.array(engine.config.ranks)).values())
    sizes = sizes + 4 * dynamics.embedding_dim
    runs = []
    for task in np.unique(tasks):
        at = np.flatnonzero(tasks == task)
        for q, r in enumerate(ranks):
            # (K, C) value of a return from the entry at its own rank
            back = curve_value(table.own[task, r, :, :, r])
            for begin in range(len(at) - 1):
                begun = fresh[at[begin], q] - baseline[at[begin]]
                for end, gain in _returns(back[:, chains[at[begin]]], baseline[at[begin + 1 :]]):
                    visits = at[begin : begin + end + 2]
                    runs.append(_Run(visits, int(sizes[q]), float(begun + gain)))
    runs = [run for run in runs if run.gain > 0]
    capacity, budget = plan.capacity, plan.capacity_bytes
    return float(baseline.sum()) + _choose(runs, len(tasks), capacity, budget)


def _returns(back: Floats, baseline: Floats) -> Iterator[tuple[int, float]]:
    """Yield (number of the last return, total gain) for runs that end there.

    At every return the entry is updated, which takes it to the next level, or left as it is: the
    best sequence of levels, by dynamic programming.

    Args:
        back: (K,) value of a return from each level.
        baseline: (n,) value of the same visits without the entry.
    """
    levels = len(back)
    best = np.full(levels, -np.inf)
    best[0] = 0.0
    for number, without in enumerate(baseline):
        gained = best + back - without
        yield number, float(gained.max())
        updated = np.full(levels, -np.inf)
        updated[1:] = gained[:-1]
        updated[-1] = max(updated[-1], gained[-1])
        best = np.maximum(gained, updated)


def _choose(
    runs: Sequence[_Run], num_visits: int, capacity: int | None, budget: int | None
) -> float:
    """Return the largest total gain of runs that fit together.

    A visit belongs to one run at most; between two visits the entries held fit the bank.
    """
    if not runs:
        return 0.0
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    covers = np.zeros((num_visits, len(runs)))
    held = np.zeros((num_visits, len(runs)))
    for j, run in enumerate(runs):
        covers[run.visits, j] = 1.0
        held[run.visits[0] : run.visits[-1], j] = 1.0
    constraints = [LinearConstraint(csr_array(covers), ub=1.0)]
    if capacity is not None:
        constraints.append(LinearConstraint(csr_array(held), ub=float(capacity)))
    if budget is not None:
        sizes = np.array([run.nbytes for run in runs]) / max(1, budget)
        constraints.append(LinearConstraint(csr_array(held * sizes), ub=1.0))
    gains = np.array([run.gain for run in runs])
    found = milp(
        -gains,
        integrality=np.ones(len(runs)),
        bounds=Bounds(0.0, 1.0),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},  # by default a ten-thousandth counts as proven
    )
    if found.status != 0:
        raise StateError(f"The optimum of an episode was not proven: {found.message}")
    return float(-found.fun)


def _online(curves: NDArray[np.float32]) -> Floats:
    return np.asarray(curves[..., 1:].astype(np.float64).mean(axis=-1))


def _post_task(curves: NDArray[np.float32]) -> Floats:
    return np.asarray(curves[..., -1].astype(np.float64))
