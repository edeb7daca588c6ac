"""Which environments tests can play here, and the arguments of tiny episodes of each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium as gym

from nsr_gym.datasets.sources import VARIABLE
from nsr_gym.learning.kinds import learner_class
from nsr_gym.outcomes import shipped_tables
from nsr_gym.registration import ENVIRONMENTS, environment_family

TINY: dict[str, Any] = {"num_tasks": 3, "cycles": 2, "learning_steps": 2, "updates": 1}
"""An episode of six visits that takes a tenth of a second."""

TINY_RECORDED: dict[str, Any] = {"num_tasks": 3, "cycles": 2}
"""Of the recorded environments, whose visits are as long as they were recorded."""

TINY_EXACT: dict[str, Any] = {"num_tasks": 3, "cycles": 2}
"""Of the exact environments, which have no learning steps."""

TINY_IMAGES: dict[str, Any] = {
    **TINY,
    "batch_size": 4,
    "support_size": 8,
    "train_per_class": 2,
    "test_per_class": 1,
    "weights": None,
    "cache": False,
}
"""Of the environments on images: few of them, and a network that nobody has to have trained."""

_DATA: dict[str, tuple[str, dict[str, Any]]] = {
    "NSR/SplitCIFAR100-v0": ("cifar-100-python/train", {}),
    "NSR/FiveDatasets-v0": ("five_datasets_small.npz", {"manifest": "offline5"}),
}
"""Environment that needs data -> a file that tells whether it is there, what plays on it."""

_TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "NSR/SplitCIFAR100Recorded-v0": ("split-cifar100-10", {"division": 10}),
    "NSR/FiveDatasetsRecorded-v0": ("offline5", {}),
}
"""Recorded environment on images -> the pool whose tables it plays, what keeps to it."""


def tiny_arguments(env_id: str) -> dict[str, Any]:
    """Return the arguments of a tiny episode of an environment."""
    if environment_family(env_id) != "live":
        return dict(TINY_EXACT)
    if env_id in _DATA:
        return TINY_IMAGES | _DATA[env_id][1]
    if env_id in _TABLES:
        return TINY_RECORDED | _TABLES[env_id][1]
    recorded = gym.spec(env_id).kwargs.get("dynamics") == "recorded"
    return dict(TINY_RECORDED if recorded else TINY)


def playable_ids(family: str | None = None) -> list[str]:
    """Return the environments (of a family) that can be played with tiny arguments.

    Those that need data are among them where NSR_GYM_DATA names a folder that holds it, recorded
    ones where their tables ship.
    """
    tables = set(shipped_tables())
    root = Path(os.environ.get(VARIABLE) or "/nowhere").expanduser()
    return [
        env_id
        for env_id, spec in ENVIRONMENTS.items()
        if family in (None, spec.family)
        and (not spec.needs_data or (root / _DATA[env_id][0]).exists())
        and (
            env_id not in _TABLES
            or {f"{_TABLES[env_id][0]}-{split}" for split in ("train", "test")} <= tables
        )
    ]


def bank_for(learner: str) -> str:
    """Return the bank that a learner takes."""
    kind = learner_class(learner)
    return "additive" if kind.sums else "shared_basis" if kind.needs_basis else "per_task"
