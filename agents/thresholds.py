"""Thresholds of the rules, calibrated on train-split streams by `nsr-gym calibrate`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

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
    """Return the thresholds calibrated for an environment, else those of the first on file."""
    spec = getattr(env.unwrapped, "spec", None)
    table = _table()
    return table.get(getattr(spec, "id", ""), next(iter(table.values())))


@cache
def _table() -> dict[str, Thresholds]:
    text = (resources.files("nsr_gym.agents") / THRESHOLDS_FILE).read_text()
    return {
        env: Thresholds(entry["similarity"], entry["trial_loss"])
        for env, entry in json.loads(text).items()
    }
