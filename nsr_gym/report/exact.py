"""One row of regret per environment and agent, held against bound and optimum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nsr_gym.metrics.episodes import RewardKind
from nsr_gym.registration import environment_family
from nsr_gym.registry import agent_specs
from nsr_gym.regret.exact import ExactAgent, ExactRegret, exact_environments, exact_regret
from nsr_gym.regret.measured import AgentRegret, MeasuredRegret, measured_regret
from nsr_gym.regret.standing import standing
from nsr_gym.stats import Interval, bootstrap_interval, mean

if TYPE_CHECKING:
    from nsr_gym.regret.verdict import Verdict

Floats = NDArray[np.float64]
_NAN = float("nan")


def summarise_exact(
    table: pd.DataFrame,
    *,
    reference: str = "history-aware",
    verdicts: Mapping[str, Verdict] | None = None,
    num_visits: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """Summarise the exact environments of a table, one row per environment and agent.

    `x`, `x_low` and `x_high` are a mean over runs and its 95 % bootstrap interval. Columns:

    - `environment`, `agent`, `access`, `split`, `runs`, `num_tasks` (M), `cycles` (C);
    - `reward` per step, with interval; `wrong` steps (or misses) per visit;
    - `regret` of the episode against the oracle, with interval; `first_cycle`, `last_cycle`:
      regret in these alone, NaN where an episode did not get to their end;
    - `relative`: regret minus the `reference`'s on the same seeds, with interval;
    - `finished`: share of episodes that came to their end; regret of others is at least as given;
    - `bound`, `optimum`, `ratio` (regret over bound, with interval), `theorem` (T(M-1)Delta_switch)
      and `theorem_ratio` (with interval; NaN where there is no bound), `expected` (exact expected
      regret of the agent), `place` and `standing` (where it lies): from a verdict, else NaN.

    Args:
        table: the long table; rows of live environments are passed over.
        reference: the agent that relative regret is against.
        verdicts: by environment.
        num_visits: V by environment, where the table does not say; see `exact_regret`.

    Returns:
        The summary, agents sorted by regret within their environment.

    Raises:
        DataError: the table is not a valid long table.
    """
    blocks = []
    for environment in exact_environments(table):
        regret = exact_regret(
            table, environment, reference=reference, num_visits=(num_visits or {}).get(environment)
        )
        blocks.append(exact_block(regret, (verdicts or {}).get(environment)))
    return pd.concat(blocks, ignore_index=True) if blocks else pd.DataFrame()


def exact_block(regret: ExactRegret, verdict: Verdict | None) -> pd.DataFrame:
    """Return the rows of one exact environment; see `summarise_exact`."""
    shared = {
        "environment": regret.environment,
        "split": regret.split,
        "num_tasks": regret.num_tasks,
        "cycles": regret.cycles,
        "reference": regret.reference,
        "per": "step",
    }
    rows = []
    for agent in regret.agents.values():
        steps = np.nansum(agent.steps, axis=1)
        begun = np.count_nonzero(~np.isnan(agent.steps), axis=1)
        reward = _over_runs(np.nansum(agent.reward, axis=1) / steps)
        wrong = float((np.nansum(agent.wrong, axis=1) / begun).mean())
        rows.append(_row(agent, reward, wrong, shared, verdict))
    return _sorted(rows)


def live_block(
    table: pd.DataFrame,
    environment: str,
    verdict: Verdict | None,
    *,
    reference: str = "oracle",
    reward: RewardKind = "online",
) -> pd.DataFrame:
    """Return the same rows for a live environment, whose regret is relative to a reference.

    Args:
        table: the long table.
        environment: id of a live environment.
        verdict: on it, if there is one.
        reference: the history-aware reference agent.
        reward: `"online"` or `"post_task"`; `reward` is per visit here.

    Raises:
        UnknownNameError: the reference is not in the table.
        DataError: the table is not a valid long table.
    """
    rows_of = table[table["environment"] == environment]
    measured = measured_regret(rows_of, environment=environment, reference=reference, reward=reward)
    shared = {
        "environment": environment,
        "split": measured.split,
        "num_tasks": measured.num_tasks,
        "cycles": measured.cycles,
        "reference": reference,
        "per": "visit",
    }
    means = rows_of.groupby(["agent", "seed"])[f"reward_{reward}"].mean()
    rows = []
    for name, agent in measured.agents.items():
        unknown = np.full(agent.per_visit.shape, _NAN)
        known = ExactAgent(
            agent=name,
            access=agent.access,
            seeds=agent.seeds,
            per_visit=agent.per_visit,
            reward=unknown,
            steps=unknown,
            wrong=unknown,
            finished=np.ones(len(agent.seeds), dtype=bool),
            total=agent.total,
            relative=_undefined(),
        )
        online = _over_runs(means[name][list(agent.seeds)].to_numpy())
        rows.append(_row(known, online, _NAN, shared, verdict))
        if verdict is not None and verdict.bound is not None:
            rows[-1] |= _paired_columns(agent, measured, verdict.bound, verdict.theorem)
        if name == reference:
            rows[-1] |= {"place": "reference", "standing": "the reference"}
    return _sorted(rows)


def _row(
    agent: ExactAgent,
    reward: Interval,
    wrong: float,
    shared: Mapping[str, Any],
    verdict: Verdict | None,
) -> dict[str, Any]:
    return {
        **shared,
        "agent": agent.agent,
        "access": agent.access,
        "runs": len(agent.seeds),
        **_spread("reward", reward),
        "wrong": wrong,
        **_spread("regret", agent.total),
        **_cycle_columns(agent.cumulative, shared["num_tasks"]),
        **_spread("relative", agent.relative),
        "finished": float(agent.finished.mean()),
        **_verdict_columns(agent, shared["environment"], verdict),
    }


def _cycle_columns(cumulative: Floats, num_tasks: int) -> dict[str, float]:
    before_last = cumulative[:, -num_tasks - 1] if cumulative.shape[1] > num_tasks else 0.0
    return {
        "first_cycle": float(cumulative[:, num_tasks - 1].mean()),
        "last_cycle": float((cumulative[:, -1] - before_last).mean()),
    }


def _verdict_columns(
    agent: ExactAgent, environment: str, verdict: Verdict | None
) -> dict[str, Any]:
    if verdict is None:
        nothing = dict.fromkeys(("bound", "optimum", "theorem", "expected"), _NAN)
        ratios = {**_spread("ratio", _undefined()), **_spread("theorem_ratio", _undefined())}
        return nothing | ratios | {"place": "", "standing": ""}
    bound = verdict.bound if verdict.applies else None
    where = standing(
        agent.totals,
        access=agent.access,
        finished=agent.finished,
        expected=verdict.expected.get(agent.agent),
        bound=bound,
        optimum=verdict.optimum,
        sees_its_actions=_sees_its_actions(agent.agent, environment),
        holds_more=verdict.reading == "B" and agent.access == "bank",
    )
    # T(M-1)Delta_switch is no yardstick where the assumptions behind it do not hold.
    theorem = _NAN if bound is None else verdict.theorem
    return {
        "bound": _NAN if bound is None else bound,
        "optimum": _NAN if verdict.optimum is None else verdict.optimum,
        "theorem": theorem,
        **_spread("ratio", _over(agent.total, bound)),
        **_spread("theorem_ratio", _over(agent.total, theorem)),
        "expected": verdict.expected.get(agent.agent, _NAN),
        "place": where.place,
        "standing": where.text,
    }


def _paired_columns(
    agent: AgentRegret, measured: MeasuredRegret, bound: float, theorem: float
) -> dict[str, Any]:
    """Ratios and standing where Delta_switch is measured on the seeds that regret is from."""
    delta = measured.delta
    seeds = [s for s in agent.seeds if s in delta.by_seed] if delta is not None else []
    if delta is None or not seeds:
        return {}
    # Of each seed, regret against its own bound: what both have in common cancels.
    own = np.array([delta.by_seed[seed] for seed in seeds]) / delta.mean.point
    totals = agent.cumulative[[agent.seeds.index(seed) for seed in seeds], -1]
    where = standing(totals - bound * (own - 1.0), access=agent.access, bound=bound)
    return {
        **_spread("ratio", _over(agent.ratio, bound / theorem)),
        **_spread("theorem_ratio", agent.ratio),
        "place": where.place,
        "standing": where.text,
    }


def _over(total: Interval, scale: float | None) -> Interval:
    if scale is None or not scale > 0:
        return _undefined()
    return Interval(total.point / scale, total.low / scale, total.high / scale, total.runs)


def _sees_its_actions(agent: str, environment: str) -> bool:
    family = environment_family(environment)
    given = [spec.plays.get(family, {}) for spec in agent_specs() if spec.name == agent]
    return any(arguments.get("feedback", "none") != "none" for arguments in given)


def _sorted(rows: list[dict[str, Any]]) -> pd.DataFrame:
    rows.sort(key=lambda row: (row["finished"] < 1, row["regret"]))
    return pd.DataFrame(rows)


def _over_runs(values: Floats) -> Interval:
    return bootstrap_interval(values, statistic=mean)


def _spread(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.point, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _undefined() -> Interval:
    return Interval(_NAN, _NAN, _NAN, 0)
