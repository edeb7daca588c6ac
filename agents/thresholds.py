"""Thresholds of the rules, calibrated on train-split streams by `nsr-gym calibrate`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from nsr_gym.errors import InvalidValueError, StateError

THRESHOLDS_FILE = "thresholds.json"


@dataclass(frozen=True)
class Thresholds:
    """When an entry counts as holding the arrived task.

    Attributes:
        similarity: cosine similarity from which it does.
        trial_loss: loss in nats below which it does.
    """

    similarity: float
    trial_loss: float


def thresholds(env: Any) -> Thresholds:
    """Return the thresholds calibrated on the train split of an environment's pool of tasks.

    Raises:
        StateError: none were calibrated.
    """
    pool, table = env.unwrapped.engine.pool_name, _table()
    if pool not in table:
        raise StateError(
            f"No thresholds were calibrated for the tasks {pool!r}, only for {', '.join(table)}; "
            "pass threshold=..., or find one with nsr_gym.evaluation.calibrate."
        )
    return table[pool]


def loss_threshold(env: Any, given: float | None) -> float:
    """Return a rule's threshold of the trial loss in nats: the given one, else the calibrated.

    Raises:
        InvalidValueError: the given one is not a positive number.
    """
    value = thresholds(env).trial_loss if given is None else given
    if not value > 0:
        raise InvalidValueError(f"Expected a positive threshold; got {given!r}.")
    return value


@cache
def _table() -> dict[str, Thresholds]:
    text = (resources.files("nsr_gym.agents") / THRESHOLDS_FILE).read_text()
    return {
        pool: Thresholds(entry["similarity"], entry["trial_loss"])
        for pool, entry in json.loads(text).items()
    }
