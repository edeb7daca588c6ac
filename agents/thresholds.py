"""Thresholds of the rules, calibrated on train-split streams by `nsr-gym calibrate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
        rank_cuts: (Q - 1,) losses of the bare backbone in nats, ascending: how many of them a
            task reaches is the index of the rank that it is worth. Empty where there is nothing
            to be saved.
    """

    similarity: float
    trial_loss: float
    rank_cuts: tuple[float, ...] = ()


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


def similarity_threshold(env: Any, given: float | None) -> float:
    """Return a rule's threshold of the similarity: the given one, else the calibrated.

    Raises:
        InvalidValueError: the given one is no cosine.
    """
    value = thresholds(env).similarity if given is None else given
    if not -1.0 <= value <= 1.0:
        raise InvalidValueError(f"Expected a threshold in [-1, 1]; got {given!r}.")
    return value


def loss_threshold(env: Any, given: float | None) -> float:
    """Return a rule's threshold of the trial loss in nats: the given one, else the calibrated.

    Raises:
        InvalidValueError: the given one is not a positive number.
    """
    value = thresholds(env).trial_loss if given is None else given
    if not value > 0:
        raise InvalidValueError(f"Expected a positive threshold; got {given!r}.")
    return value


def rank_cuts(env: Any, given: Sequence[float] | None) -> tuple[float, ...]:
    """Return a rule's cut points between ranks in nats: the given ones, else the calibrated.

    Raises:
        InvalidValueError: not one fewer than the environment has ranks (or none at all), not
            ascending, or negative.
    """
    values = thresholds(env).rank_cuts if given is None else tuple(given)
    ranks = env.unwrapped.engine.config.ranks
    if len(values) not in (0, len(ranks) - 1) or list(values) != sorted(values):
        raise InvalidValueError(
            f"Expected {len(ranks) - 1} ascending cut points between the ranks {list(ranks)}, or "
            f"none; got {list(values)}. Pass cuts=[...]."
        )
    if not all(value >= 0 for value in values):
        raise InvalidValueError(f"Expected cut points of at least 0 nats; got {list(values)}.")
    return values


@cache
def _table() -> dict[str, Thresholds]:
    text = (resources.files("nsr_gym.agents") / THRESHOLDS_FILE).read_text()
    return {
        pool: Thresholds(
            entry["similarity"], entry["trial_loss"], tuple(entry.get("rank_cuts", ()))
        )
        for pool, entry in json.loads(text).items()
    }
