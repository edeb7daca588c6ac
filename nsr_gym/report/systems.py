"""The comparison of systems in a table, held against the bounds without an adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nsr_gym.errors import DataError
from nsr_gym.stats import Interval, bootstrap_interval, mean, paired_difference

_RIDGE = "random projection + ridge"
_SEQUENTIAL = "sequential"


def summarise_systems(rows: pd.DataFrame) -> pd.DataFrame:
    """Summarise what `nsr_gym.agents.systems.run_systems` returns.

    Args:
        rows: a row for each environment, system, answer and seed.

    Returns:
        A row for each environment, system and answer: means over seeds of `accuracy`,
        `forgetting`, `right`, `bytes` and `online`, 95 % bootstrap intervals (`_low`, `_high`) of
        the first two, `floor` (the stronger ridge classifier on frozen features with the same
        knowledge of the task), `to_floor` (mean paired difference in accuracy to it, with
        interval), `verdict` (`"above"`, `"below"` or `"open"`), `to_final` and `verdict_final`
        (the same against ridge on the final features), `less_forgetting` (mean paired
        difference of forgetting, sequential minus this one, with interval) and `runs`.

    Raises:
        DataError: a floor is missing, or systems differ in their seeds.
    """
    found = []
    for environment, part in rows.groupby("environment", sort=False):
        scores = {
            (str(system), str(answer)): one.set_index("seed").sort_index()
            for (system, answer), one in part.groupby(["system", "answer"], sort=False)
        }
        seeds = next(iter(scores.values())).index
        for key, one in scores.items():
            if not one.index.equals(seeds):
                raise DataError(f"{key[0]} has not played all streams of {environment}; run it on.")
        sequential = next((one for (name, _), one in scores.items() if name == _SEQUENTIAL), None)
        for (system, answer), one in scores.items():
            row: dict[str, Any] = {"environment": environment, "system": system, "answer": answer}
            row["runs"] = len(one)
            row |= _with_interval("accuracy", one["accuracy"].to_numpy())
            for column in ("right", "bytes", "online"):
                row[column] = _mean(one, column)
            row["forgetting"] = row["forgetting_low"] = row["forgetting_high"] = np.nan
            names = ("less_forgetting", "less_forgetting_low", "less_forgetting_high")
            row |= dict.fromkeys(names, np.nan)
            if "forgetting" in one and one["forgetting"].notna().all():
                row |= _with_interval("forgetting", one["forgetting"].to_numpy())
                if sequential is not None:
                    less = paired_difference(
                        sequential["forgetting"].to_numpy(), one["forgetting"].to_numpy(),
                        statistic=mean,
                    )  # fmt: skip
                    row |= _parts("less_forgetting", less)
            row |= _against_floor(str(environment), answer, one, scores)
            found.append(row)
    return pd.DataFrame(found)


def _against_floor(
    environment: str, answer: str, one: pd.DataFrame, scores: dict[tuple[str, str], pd.DataFrame]
) -> dict[str, Any]:
    knowledge = "task known" if answer in ("task known", "oracle") else "one for all"
    floors = {
        name: floor["accuracy"].to_numpy()
        for (name, known), floor in scores.items()
        if name.startswith(_RIDGE) and known == knowledge
    }
    if not floors:
        raise DataError(f"The bounds of {environment} are missing; run the comparison on.")
    best = max(floors, key=lambda name: floors[name].mean())
    found: dict[str, Any] = {"floor": best}
    for name, floor in (("floor", best), ("final", f"{_RIDGE}, final features")):
        if floor in floors:
            values = one["accuracy"].to_numpy()
            difference = paired_difference(values, floors[floor], statistic=mean)
            found |= _parts(f"to_{name}", difference)
            found["verdict" if name == "floor" else "verdict_final"] = (
                "above" if difference.low > 0 else "below" if difference.high < 0 else "open"
            )
    return found


def _with_interval(name: str, values: np.ndarray) -> dict[str, float]:
    return _parts(name, bootstrap_interval(values, statistic=mean))


def _parts(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.point, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _mean(one: pd.DataFrame, column: str) -> float:
    return float(one[column].mean()) if column in one else float("nan")
