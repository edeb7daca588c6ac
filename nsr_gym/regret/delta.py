"""Delta_switch: the cost of a return that starts without the task's knowledge, measured.

Two estimators on the long table, see `DeltaSwitch`; which one was used is part of the result.
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
from nsr_gym.stats import Interval, bootstrap_interval, mean

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
    check_names(episodes, reference, reward)
    return measure_delta(episodes, reference, fresh, reward, replicates, rng)


def check_names(episodes: Episodes, reference: str, reward: str) -> None:
    """Refuse a reference or reward that is not there.

    Raises:
        UnknownNameError: the reference agent is not among the episodes.
        InvalidValueError: no such reward.
    """
    if reference not in episodes:
        raise unknown("reference agent in the table", reference, episodes)
    if reward not in REWARD_KINDS:
        raise InvalidValueError(f"reward must be one of {REWARD_KINDS}, got {reward!r}.")


def measure_delta(
    episodes: Episodes,
    reference: str,
    fresh: str,
    reward: RewardKind,
    replicates: int,
    rng: np.random.Generator | int,
) -> DeltaSwitch:
    """Measure Delta_switch on episodes already read; see `delta_switch`."""
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
