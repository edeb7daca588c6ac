"""The controlled study in a table: means of held-out streams with intervals over both seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nsr_gym.errors import DataError
from nsr_gym.stats import Statistic, iqm, mean, percentiles, probability_of_improvement, resamples

Floats = NDArray[np.float64]
_REPLICATES = 4_000


def summarise_study(
    episodes: pd.DataFrame, *, baseline: str = "similarity", references: tuple[str, ...] = ()
) -> pd.DataFrame:
    """Summarise what `nsr_gym.agents.study.run_study` returns.

    Args:
        episodes: a row for each environment, agent, training seed and stream, with `value`.
        baseline: the rule that differences are taken to.
        references: agents whose share is given, such as the oracle; those missing in an
            environment are `nan` there.

    Returns:
        A row for each environment and agent: `value` (IQM over training seeds and streams, as
        `value_low` and `value_high` are the ends of its 95 % interval), `difference` (mean paired
        difference to the baseline, with interval), `improvement` (probability that its episode
        beats one of the baseline), `share_of_<reference>` (mean over mean), `trained` and
        `streams` (how many of each). Both training seeds and streams are resampled, streams the
        same for all agents.

    Raises:
        DataError: an agent lacks a stream, or an environment the baseline.
    """
    rows = []
    for environment, part in episodes.groupby("environment", sort=False):
        scores = {
            str(agent): _matrix(environment, agent, one)
            for agent, one in part.groupby("agent", sort=False)
        }
        if baseline not in scores:
            raise DataError(f"The study of {environment} lacks {baseline!r}, the baseline.")
        streams = {str(agent): set(one["seed"]) for agent, one in part.groupby("agent", sort=False)}
        for agent, played in streams.items():
            if played != streams[baseline]:
                raise DataError(
                    f"{agent} and {baseline} have not played the same streams of {environment}; "
                    "run the study on."
                )
        base = scores[baseline].mean(axis=0)
        for agent, matrix in scores.items():
            row: dict[str, Any] = {
                "environment": environment, "agent": agent,
                "trained": len(matrix) if _trained(part, agent) else 0, "streams": matrix.shape[1],
            }  # fmt: skip
            for name, values, statistic in (
                ("value", matrix, iqm), ("difference", matrix - base, mean),
            ):  # fmt: skip
                low, high = _interval(values, statistic)
                row |= {
                    name: float(statistic(values.ravel(), 0)),
                    f"{name}_low": low,
                    f"{name}_high": high,
                }
            row["improvement"] = probability_of_improvement(matrix.ravel(), base)
            for reference in references:
                there = scores.get(reference)
                share = np.nan if there is None else matrix.mean() / there.mean()
                row[f"share_of_{reference}"] = float(share)
            rows.append(row)
    table = pd.DataFrame(rows)
    order = {name: i for i, name in enumerate(dict.fromkeys(table["environment"]))}
    table["_order"] = table["environment"].map(order)
    table = table.sort_values(["_order", "value"], ascending=[True, False], ignore_index=True)
    return table.drop(columns="_order")


def _trained(part: pd.DataFrame, agent: str) -> bool:
    return bool((part.loc[part["agent"] == agent, "trained"] >= 0).any())


def _matrix(environment: Any, agent: Any, rows: pd.DataFrame) -> Floats:
    """Return the values (training seeds, streams)."""
    table = rows.pivot(index="trained", columns="seed", values="value").sort_index(axis=1)
    if table.isna().to_numpy().any():
        raise DataError(f"{agent} has not played all streams of {environment}; run the study on.")
    return table.to_numpy(dtype=np.float64)


def _interval(values: Floats, statistic: Statistic) -> tuple[float, float]:
    """Return the ends of the bootstrap interval over training seeds (rows) and streams."""
    seeds, streams = values.shape
    if streams < 2:
        return float("nan"), float("nan")
    which = resamples(streams, _REPLICATES, 0)
    trained = resamples(seeds, _REPLICATES, 1)
    drawn = values[trained[:, :, None], which[:, None, :]]  # (replicates, seeds, streams)
    low, high = percentiles(statistic(drawn.reshape(_REPLICATES, -1), 1), 0.95)
    return float(low), float(high)
