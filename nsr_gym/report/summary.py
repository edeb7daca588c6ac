"""One row per environment and agent, computed from the long table alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from nsr_gym.metrics.episodes import (
    REWARD_KINDS,
    Episode,
    Episodes,
    RewardKind,
    common_seeds,
    environments,
    read_episodes,
)
from nsr_gym.metrics.recovery import (
    minimum_accuracy,
    previous_end,
    recovery_steps,
    savings,
    shortfall,
    summarise_recovery,
    tries,
)
from nsr_gym.metrics.visits import visit_metrics
from nsr_gym.regret.measured import MeasuredRegret, measured_regret
from nsr_gym.stats import Interval, bootstrap_interval, iqm, mean, paired_difference

_NAN = float("nan")
_PLAIN = (
    "aia",
    "fwt",
    "bwt_retained",
    "bwt_since_first",
    "forgetting_retained",
    "reentry_accuracy",
)
_SPREAD = ("acc", "bwt", "forgetting")


def summarise(
    table: pd.DataFrame, *, reference: str = "oracle", reward: RewardKind = "online"
) -> pd.DataFrame:
    """Summarise a long table, one row per environment and agent.

    `x`, `x_low` and `x_high` are a value and its 95 % bootstrap interval over runs. Values are
    IQMs over runs, regret and its ratio means over runs, recovery is pooled over all returns.

    Columns, besides `environment`, `agent`, `access`, `split`, `runs`:

    - `online`, `post_task`: mean reward per visit, each with interval;
    - `difference`: paired difference to the reference in `reward`, with interval, over
      `paired_runs` common seeds;
    - `recovery_median` (`inf`: later than L), `recovery_censored` (share), `recovery_tries` (with
      interval), `shortfall` (accuracy x learning steps) against the reference agent's accuracies,
      and the same names with `own_` in front against the agent's own;
    - `savings`, `minimum_accuracy`, `reentry_accuracy`, `aia`, `fwt`, `bwt_retained`,
      `bwt_since_first`, `forgetting_retained`, and with interval `acc`, `bwt`, `forgetting`: see
      `nsr_gym.metrics`;
    - `bwt_ratio`: |BWT| over the reference's |BWT|, `nan` where either is exactly 0;
    - `bytes_per_task`: bytes that survive the last visit, over M;
    - `regret`, `ratio`: total regret and its ratio to T(M-1)Delta_switch, each with interval;
    - per environment: `num_tasks` (M, the largest where episodes differ) and `fewest_tasks`,
      `cycles` (T), `learning_steps` (L), `delta_switch` (with interval), `delta_minimum`,
      `delta_estimator`, `expected_best_bank_free`, `expected_forced_reload`, `reference`, `reward`,
      `notes` (one per line).

    Args:
        table: the long table, any number of environments, agents and seeds.
        reference: the history-aware reference agent; where it is missing everything relative to
            it is `nan` and a note says so.
        reward: which reward differences and regret are in.

    Returns:
        The summary, agents sorted by `reward` within their environment, best first.

    Raises:
        DataError: the table is not a valid long table.
    """
    rows: list[dict[str, Any]] = []
    for environment in environments(table):
        episodes = read_episodes(table, environment)
        regret = (
            measured_regret(table, environment=environment, reference=reference, reward=reward)
            if reference in episodes
            else None
        )
        shared = _environment_columns(episodes, regret, reference, reward)
        block = [_agent_row(agent, episodes, regret, reference, reward) for agent in episodes]
        _add_bwt_ratio(block, reference)
        block.sort(key=lambda row: -row[reward])
        rows += [{"environment": environment, **row, **shared} for row in block]
    return pd.DataFrame(rows)


def _agent_row(
    agent: str,
    episodes: Episodes,
    regret: MeasuredRegret | None,
    reference: str,
    reward: RewardKind,
) -> dict[str, Any]:
    own = episodes[agent]
    runs = list(own.values())
    references = episodes.get(reference, {})
    seeds = common_seeds(own, references) if references else ()
    means = {
        kind: {s: float(e.rewards[kind].mean()) for s, e in own.items()} for kind in REWARD_KINDS
    }
    difference = (
        paired_difference(
            [means[reward][s] for s in seeds],
            [float(references[s].rewards[reward].mean()) for s in seeds],
        )
        if seeds
        else _undefined(0)
    )
    metrics = [visit_metrics(e.tasks, e.curves, e.retention, e.baseline) for e in runs]
    measured = regret.agents.get(agent) if regret is not None else None
    return {
        "agent": agent,
        "access": runs[0].access,
        "split": ", ".join(sorted({e.split for e in runs})),
        "runs": len(runs),
        "paired_runs": len(seeds),
        **_spread("online", _over_runs(list(means["online"].values()))),
        **_spread("post_task", _over_runs(list(means["post_task"].values()))),
        **_spread("difference", difference),
        **_recovery_columns("", [(own[s], references[s]) for s in seeds]),
        **_recovery_columns("own_", [(e, e) for e in runs]),
        "savings": _point([savings(e.tasks, e.curves) for e in runs]),
        "minimum_accuracy": _point([float(minimum_accuracy(e.curves).mean()) for e in runs]),
        **{name: _point([m[name] for m in metrics]) for name in _PLAIN},
        **{
            column: value
            for name in _SPREAD
            for column, value in _spread(name, _over_runs([m[name] for m in metrics])).items()
        },
        "bytes_per_task": _point([float(e.nbytes[-1]) / e.num_tasks for e in runs]),
        **_spread("regret", measured.total if measured else _undefined(0)),
        **_spread("ratio", measured.ratio if measured else _undefined(0)),
    }


def _recovery_columns(prefix: str, pairs: list[tuple[Episode, Episode]]) -> dict[str, float]:
    """Recovery of the first agent of each pair against the second's previous accuracies."""
    steps, per_run, area = [], [], []
    last = pairs[0][0].learning_steps if pairs else 0
    for episode, other in pairs:
        ends = previous_end(other.tasks, other.curves)
        returns = ~np.isnan(ends)
        if returns.any():
            steps.append(recovery_steps(episode.curves, ends)[returns])
            per_run.append(float(tries(steps[-1], last).mean()))
            area.append(float(shortfall(episode.curves, ends)[returns].mean()))
    pooled = summarise_recovery(np.concatenate(steps) if steps else [], last)
    return {
        f"{prefix}recovery_median": pooled.median_steps,
        f"{prefix}recovery_censored": pooled.censored,
        **_spread(f"{prefix}recovery_tries", _over_runs(per_run, mean)),
        f"{prefix}shortfall": _point(area),
    }


def _environment_columns(
    episodes: Episodes, regret: MeasuredRegret | None, reference: str, reward: RewardKind
) -> dict[str, Any]:
    example = next(iter(next(iter(episodes.values())).values()))
    numbers = [e.num_tasks for by_seed in episodes.values() for e in by_seed.values()]
    notes = (
        list(regret.notes)
        if regret is not None
        else [
            f"The reference agent {reference!r} is not in the table: differences, recovery against "
            "it and regret cannot be given. Run it on the same seeds."
        ]
    )
    delta = regret.delta if regret is not None else None
    expected = regret.expected if regret is not None and len(set(numbers)) == 1 else None
    return {
        "num_tasks": max(numbers),
        "fewest_tasks": min(numbers),
        "cycles": example.num_visits / example.num_tasks,
        "learning_steps": example.learning_steps,
        **_spread("delta_switch", delta.mean if delta else _undefined(0)),
        "delta_minimum": delta.minimum.point if delta else _NAN,
        "delta_estimator": delta.estimator if delta else "",
        "expected_best_bank_free": expected.best_bank_free if expected else _NAN,
        "expected_forced_reload": expected.forced_reload if expected else _NAN,
        "reference": reference,
        "reward": reward,
        "notes": "\n".join(notes),
    }


def _add_bwt_ratio(block: list[dict[str, Any]], reference: str) -> None:
    of_reference = next((row["bwt"] for row in block if row["agent"] == reference), _NAN)
    for row in block:
        # At exactly 0 a ratio is infinite or 0 by accident of the other agent; none is given.
        defined = row["bwt"] != 0 and of_reference != 0
        row["bwt_ratio"] = abs(row["bwt"] / of_reference) if defined else _NAN


def _over_runs(values: list[float], statistic: Callable[..., Any] = iqm) -> Interval:
    """Interval over runs, undefined where a run's value is (one task, no return)."""
    if not values or np.isnan(values).any():
        return _undefined(len(values))
    return bootstrap_interval(values, statistic=statistic)


def _point(values: list[float]) -> float:
    return _NAN if not values or np.isnan(values).any() else float(iqm(values))


def _spread(name: str, interval: Interval) -> Mapping[str, float]:
    return {name: interval.point, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _undefined(runs: int) -> Interval:
    return Interval(_NAN, _NAN, _NAN, runs)
