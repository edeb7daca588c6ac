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
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import DataError, InvalidValueError, unknown
from nsr_gym.metrics.episodes import (
    REWARD_KINDS,
    Episode,
    Episodes,
    RewardKind,
    common_seeds,
    read_episodes,
)
from nsr_gym.metrics.visits import is_return
from nsr_gym.stats import Interval, bootstrap_interval, mean, percentiles, resamples

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Estimator = Literal["fresh", "first-visits"]


@dataclass(frozen=True, eq=False)
class DeltaSwitch:
    """Delta_switch, the cost of a return that starts without the task's knowledge, in reward.

    Attributes:
        estimator: `"fresh"`: reference minus the agent that starts every visit fresh, on the
            same visit of the same stream; `"first-visits"` (where the table has no such agent):
            the reference's return minus its own first visit of the task, which also contains
            whatever the reference still gains from visit to visit.
        reward: `"online"` or `"post_task"`.
        mean: mean over returns, then over seeds, with the interval over seeds.
        minimum: the theorem's own definition, the minimum over a stream's tasks (each averaged
            over its returns), averaged over seeds. A minimum of noisy means lies below the true
            minimum; it is a cautious value.
        by_task: mean over returns and seeds, by task name.
        by_seed: mean over returns, by seed.
    """

    estimator: Estimator
    reward: RewardKind
    mean: Interval
    minimum: Interval
    by_task: Mapping[str, float]
    by_seed: Mapping[int, float]


@dataclass(frozen=True, eq=False)
class AgentRegret:
    """Regret of one agent relative to the reference on the same streams.

    Attributes:
        agent: agent name.
        access: `"bank"`, `"memoryless"` or `"visit"`.
        seeds: seeds that both agent and reference have.
        per_visit: `(seeds, V)` reward of the reference minus reward of the agent.
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
        num_tasks: M.
        num_visits: V.
        learning_steps: L.
        cyclic: whether every stream is cyclic; the bound applies to no other.
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
    num_visits: int
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


def delta_switch(
    table: pd.DataFrame,
    *,
    environment: str | None = None,
    reference: str = "oracle",
    fresh: str = "fresh",
    reward: RewardKind = "online",
    replicates: int = 10_000,
    rng: np.random.Generator | int = 0,
) -> DeltaSwitch:
    """Measure Delta_switch on returns.

    Args:
        table: the long table.
        environment: which environment, where the table holds several.
        reference: the agent that starts returns from the task's stored solution.
        fresh: the agent that starts every visit without knowledge of the task; where it is not
            in the table the reference's own first visits stand in for it.
        reward: `"online"` or `"post_task"`.
        replicates: bootstrap resamples.
        rng: generator, or a seed for one.

    Returns:
        Delta_switch with the name of the estimator that was used.

    Raises:
        UnknownNameError: the reference agent is not in the table.
        DataError: nothing returns, or the table is not a valid long table.
    """
    episodes = read_episodes(table, environment)
    _check(episodes, reference, reward)
    return _delta(episodes, reference, fresh, reward, replicates, rng)


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
    _check(episodes, reference, reward)
    own = episodes[reference]
    example = next(iter(own.values()))
    every = [e for by_seed in episodes.values() for e in by_seed.values()]
    cyclic = all(e.is_cyclic for e in every)
    returning = all(is_return(e.tasks).any() for e in own.values())
    delta = _delta(episodes, reference, fresh, reward, replicates, rng) if returning else None
    scale = example.num_visits / example.num_tasks * (example.num_tasks - 1)
    notes = _ratio_notes(example.num_tasks, cyclic, delta)
    agents = {}
    for agent, by_seed in episodes.items():
        seeds = common_seeds(by_seed, own)
        if len(seeds) < len(own):
            notes.append(f"{agent}: {len(seeds)} of the reference's {len(own)} seeds.")
        if not seeds:
            continue
        per_visit = np.stack([own[s].rewards[reward] - by_seed[s].rewards[reward] for s in seeds])
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
        num_tasks=example.num_tasks,
        num_visits=example.num_visits,
        learning_steps=example.learning_steps,
        cyclic=cyclic,
        delta=delta,
        expected=expected_ratio(
            example.num_tasks, max(1.0, example.num_visits / example.num_tasks)
        ),
        agents=agents,
        notes=tuple(notes),
    )


def _check(episodes: Episodes, reference: str, reward: str) -> None:
    if reference not in episodes:
        raise unknown("reference agent in the table", reference, episodes)
    if reward not in REWARD_KINDS:
        raise InvalidValueError(f"reward must be one of {REWARD_KINDS}, got {reward!r}.")


def _delta(
    episodes: Episodes,
    reference: str,
    fresh: str,
    reward: RewardKind,
    replicates: int,
    rng: np.random.Generator | int,
) -> DeltaSwitch:
    own = episodes[reference]
    # Without any common seed the `fresh` agent is as good as absent.
    paired = common_seeds(own, episodes[fresh]) if fresh in episodes else ()
    gaps = {
        seed: _return_gaps(own[seed], episodes[fresh][seed] if paired else None, reward)
        for seed in paired or own
    }
    by_name: dict[str, list[float]] = {}
    by_seed, minima = {}, []
    for seed, (visits, gap) in gaps.items():
        if not len(visits):
            raise DataError(
                f"Delta_switch needs returns, but seed {seed} visits every task once. Use a "
                "schedule with at least two cycles."
            )
        episode = own[seed]
        by_seed[seed] = float(gap.mean())
        tasks = episode.tasks[visits]
        minima.append(min(float(gap[tasks == task].mean()) for task in np.unique(tasks)))
        for visit, value in zip(visits.tolist(), gap.tolist(), strict=True):
            by_name.setdefault(episode.task_names[visit], []).append(value)
    return DeltaSwitch(
        estimator="fresh" if paired else "first-visits",
        reward=reward,
        mean=bootstrap_interval(
            list(by_seed.values()), statistic=mean, replicates=replicates, rng=rng
        ),
        minimum=bootstrap_interval(minima, statistic=mean, replicates=replicates, rng=rng),
        by_task={name: float(np.mean(by_name[name])) for name in sorted(by_name)},
        by_seed=by_seed,
    )


def _return_gaps(
    own: Episode, fresh: Episode | None, reward: RewardKind
) -> tuple[NDArray[np.int64], Floats]:
    """Visits that are returns, and what lacking the task's knowledge costs at each."""
    visits = np.flatnonzero(is_return(own.tasks))
    rewards = own.rewards[reward]
    if fresh is not None:
        return visits, rewards[visits] - fresh.rewards[reward][visits]
    names, first = np.unique(own.tasks, return_index=True)
    first_visit = first[np.searchsorted(names, own.tasks[visits])]
    return visits, rewards[visits] - rewards[first_visit]


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


def _ratio_notes(num_tasks: int, cyclic: bool, delta: DeltaSwitch | None) -> list[str]:
    notes = []
    if num_tasks == 1:
        notes.append("One task: T(M-1)Delta_switch is 0 and the ratio is undefined.")
    if not cyclic:
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
