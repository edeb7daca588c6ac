r"""Delta_switch and regret measured on the long table, and their ratio to T(M-1)Delta_switch.

Notation: M tasks, T = C = V/M cycles, V visits. The bound is that of Neural Subspace
Reallocation (arXiv 2606.30067) in the reading "relearning under fixed capacity": a policy that
holds one task's solution at a time misses at least `M + (C-1)(M-1)` of the `CM` visits, a
history-aware one only the `M` of the first cycle, and every miss costs Delta_switch. Relative to
the history-aware reference the best bank-free policy therefore pays exactly
`(C-1)(M-1)Delta_switch`, which is `(C-1)/C` of `T(M-1)Delta_switch`; where the active adapter has
to be trained on the present task, every return is a miss and the ratio is `(C-1)M / (C(M-1))`.

For the agent that starts every visit fresh the last number is no finding: Delta_switch is
measured as its loss against the reference per return, so its ratio is `(C-1)M / (C(M-1))` by
construction, up to what the two differ by in the first cycle. What the ratio tests is whether
*another* memoryless agent gets below it, and how close to `(C-1)/C`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import InvalidValueError
from nsr_gym.metrics.episodes import (
    RewardKind,
    common_seeds,
    read_episodes,
)
from nsr_gym.metrics.visits import is_return
from nsr_gym.regret.delta import DeltaSwitch, check_names, measure_delta
from nsr_gym.stats import Interval, bootstrap_interval, mean, percentiles, resamples

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AgentRegret:
    """Regret of one agent relative to the reference on the same streams.

    Attributes:
        agent: agent name.
        access: `"bank"`, `"memoryless"` or `"visit"`.
        seeds: seeds that both agent and reference have.
        per_visit: `(seeds, V)` reward of the reference minus reward of the agent; 0 beyond the end
            of an episode that is shorter than others.
        total: mean total regret with its interval over seeds, in reward x visits.
        ratio: mean total regret over T(M-1)Delta_switch, both on the seeds that also have a
            Delta_switch, which are resampled together; `nan` where undefined (see
            `MeasuredRegret.notes`). The ends are `nan` where Delta_switch is not clear of 0.
    """

    agent: str
    access: str
    seeds: tuple[int, ...]
    per_visit: Floats
    total: Interval
    ratio: Interval

    @property
    def cumulative(self) -> Floats:
        """`(seeds, V)` cumulative regret after every visit."""
        return np.cumsum(self.per_visit, axis=1)


@dataclass(frozen=True)
class ExpectedRatio:
    """Ratios that the reading "relearning under fixed capacity" gives with one solution held.

    Attributes:
        best_bank_free: `(C-1)/C`, the best policy without a bank (pin one task).
        forced_reload: `(C-1)M / (C(M-1))`, where every visit has to be trained on.
    """

    best_bank_free: float
    forced_reload: float


@dataclass(frozen=True, eq=False)
class MeasuredRegret:
    """Regret of every agent of one environment.

    Attributes:
        environment: environment id.
        split: task pool.
        reference: the history-aware reference agent.
        reward: `"online"` or `"post_task"`.
        num_tasks: M, the largest where episodes differ.
        fewest_tasks: M, the smallest where episodes differ.
        num_visits: V, the largest where episodes differ.
        returns: visits to tasks seen before, the mean over episodes.
        learning_steps: L.
        cyclic: whether every stream is cyclic, with the same M; the bound applies to no other.
        delta: Delta_switch, `None` where it cannot be estimated.
        expected: the ratios to hold the measured ones against, `nan` where undefined.
        agents: regret by agent, the reference included (it is 0).
        notes: what is undefined or rests on fewer seeds, and why.
    """

    environment: str
    split: str
    reference: str
    reward: RewardKind
    num_tasks: int
    fewest_tasks: int
    num_visits: int
    returns: float
    learning_steps: int
    cyclic: bool
    delta: DeltaSwitch | None
    expected: ExpectedRatio
    agents: Mapping[str, AgentRegret]
    notes: tuple[str, ...]

    @property
    def cycles(self) -> float:
        """T, the number of cycles V/M."""
        return self.num_visits / self.num_tasks

    @property
    def bound(self) -> float:
        """T(M-1)Delta_switch in reward x visits; `nan` where there is no Delta_switch."""
        delta = float("nan") if self.delta is None else self.delta.mean.point
        return self.cycles * (self.num_tasks - 1) * delta


def expected_ratio(num_tasks: int, cycles: float) -> ExpectedRatio:
    """Return the expected ratios; `nan` with one task, where T(M-1) is 0.

    Raises:
        InvalidValueError: fewer than one task or one cycle.
    """
    if num_tasks < 1 or cycles < 1:
        raise InvalidValueError(
            f"There must be at least one task and one cycle, got {num_tasks} and {cycles}."
        )
    if num_tasks == 1:
        return ExpectedRatio(float("nan"), float("nan"))
    later = (cycles - 1) / cycles
    return ExpectedRatio(later, later * num_tasks / (num_tasks - 1))


def cumulative_bounds(num_tasks: int, num_visits: int, delta: float) -> tuple[Floats, Floats]:
    """Both bounds spread evenly over the visits, for drawing next to cumulative regret.

    Returns:
        `(absolute, relative)`, each `(V,)` after visits 1..V: `(v/M)(M-1)Delta`, which ends at
        T(M-1)Delta, and `max(0, v/M - 1)(M-1)Delta`, which is 0 through the first cycle (where
        nobody has knowledge to lose) and ends at (C-1)(M-1)Delta.
    """
    cycles = np.arange(1, num_visits + 1) / num_tasks
    per_cycle = (num_tasks - 1) * delta
    return cycles * per_cycle, np.maximum(0.0, cycles - 1) * per_cycle


def measured_regret(
    table: pd.DataFrame,
    *,
    environment: str | None = None,
    reference: str = "oracle",
    fresh: str = "fresh",
    reward: RewardKind = "online",
    replicates: int = 10_000,
    rng: np.random.Generator | int = 0,
) -> MeasuredRegret:
    """Measure every agent's regret relative to the reference on the same streams.

    Args: as in `delta_switch`.

    Returns:
        The regret of every agent that shares a seed with the reference. Agents with fewer seeds
        are paired on what is common, and a note says so.

    Raises:
        UnknownNameError: the reference agent is not in the table.
        DataError: streams of one seed differ, or the table is not a valid long table.
    """
    episodes = read_episodes(table, environment)
    check_names(episodes, reference, reward)
    own = episodes[reference]
    example = next(iter(own.values()))
    every = [e for by_seed in episodes.values() for e in by_seed.values()]
    m, fewest = (pick(e.num_tasks for e in every) for pick in (max, min))
    v = max(e.num_visits for e in every)
    cyclic = m == fewest and all(e.is_cyclic for e in every)
    returning = all(is_return(e.tasks).any() for e in own.values())
    delta = None
    if returning:
        delta = measure_delta(episodes, reference, fresh, reward, replicates, rng)
    scale = v / m * (m - 1)
    notes = _ratio_notes(m, fewest, cyclic, delta)
    agents = {}
    for agent, by_seed in episodes.items():
        seeds = common_seeds(by_seed, own)
        if len(seeds) < len(own):
            notes.append(f"{agent}: {len(seeds)} of the reference's {len(own)} seeds.")
        if not seeds:
            continue
        per_visit = np.zeros((len(seeds), v))
        for row, s in zip(per_visit, seeds, strict=True):
            row[: own[s].num_visits] = own[s].rewards[reward] - by_seed[s].rewards[reward]
        totals = per_visit.sum(axis=1)
        paired = [] if delta is None or not cyclic else [s for s in seeds if s in delta.by_seed]
        agents[agent] = AgentRegret(
            agent=agent,
            access=by_seed[seeds[0]].access,
            seeds=seeds,
            per_visit=per_visit,
            total=bootstrap_interval(totals, statistic=mean, replicates=replicates, rng=rng),
            ratio=_ratio(
                np.array([totals[seeds.index(s)] for s in paired]),
                scale * np.array([delta.by_seed[s] for s in paired] if delta else []),
                replicates,
                rng,
            ),
        )
    return MeasuredRegret(
        environment=example.environment,
        split=", ".join(sorted({e.split for e in every})),
        reference=reference,
        reward=reward,
        num_tasks=m,
        fewest_tasks=fewest,
        num_visits=v,
        returns=float(np.mean([is_return(e.tasks).sum() for e in own.values()])),
        learning_steps=example.learning_steps,
        cyclic=cyclic,
        delta=delta,
        expected=expected_ratio(m, max(1.0, v / m)),
        agents=agents,
        notes=tuple(notes),
    )


def _ratio(
    totals: Floats, bounds: Floats, replicates: int, rng: np.random.Generator | int
) -> Interval:
    """Ratio of means over the same seeds, both resampled together."""
    nan, runs = float("nan"), len(totals)
    if not runs or bounds.mean() <= 0:
        return Interval(nan, nan, nan, runs)
    point = float(totals.mean() / bounds.mean())
    if runs < 2:
        return Interval(point, nan, nan, runs)
    drawn = resamples(runs, replicates, rng)
    below = bounds[drawn].mean(axis=1)
    if below.min() <= 0:
        return Interval(point, nan, nan, runs)
    low, high = percentiles(totals[drawn].mean(axis=1) / below, 0.95)
    return Interval(point, float(low), float(high), runs)


def _ratio_notes(
    num_tasks: int, fewest_tasks: int, cyclic: bool, delta: DeltaSwitch | None
) -> list[str]:
    notes = []
    if num_tasks == 1:
        notes.append("One task: T(M-1)Delta_switch is 0 and the ratio is undefined.")
    if fewest_tasks < num_tasks:
        notes.append(
            f"Episodes have {fewest_tasks} to {num_tasks} tasks: T(M-1)Delta_switch differs "
            "between them, no ratio."
        )
    elif not cyclic:
        notes.append("The streams are not cyclic: T(M-1)Delta_switch does not apply, no ratio.")
    if delta is None:
        notes.append("No task returns: Delta_switch cannot be estimated, no ratio.")
        return notes
    if delta.estimator == "first-visits":
        notes.append(
            "No agent that starts every visit fresh is in the table: Delta_switch is the "
            "reference's returns minus its own first visits."
        )
    if delta.mean.point <= 0:
        notes.append(
            f"Delta_switch is {delta.mean.point:.4f}, not above 0: stored knowledge does not pay "
            "here, and the ratio is undefined."
        )
    return notes
