"""Thresholds of the rules, calibrated on train-split streams by `nsr-gym calibrate`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from nsr_gym.errors import InvalidValueError, StateError

THRESHOLDS_FILE = "thresholds.json"
_AT, _DIGITS = "@", 12


@dataclass(frozen=True)
class Thresholds:
    """When an entry counts as holding the arrived task.

    Attributes:
        similarity: cosine similarity from which it does.
        trial_loss: loss in nats below which it does.
        rank_cuts: (Q - 1,) losses of the bare backbone in nats, ascending: how many of them a
            task reaches is the index of the rank that it is worth. Empty where there is nothing
            to be saved.
        scores: the same for scores in [0, 1] of other kinds, by the name of the router, or
            `"novelty/<bank>"` for the novelty above which no entry does.
        backbone: fingerprint of the network whose features and losses they are; None: that of
            the digits.
    """

    similarity: float
    trial_loss: float
    rank_cuts: tuple[float, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    backbone: str | None = None


def thresholds(env: Any) -> Thresholds:
    """Return the thresholds calibrated on the train split of an environment's pool of tasks.

    Raises:
        StateError: none were calibrated, or with another network.
    """
    found, pool = _find(env), env.unwrapped.engine.pool_name
    if found is not None:
        return found
    pools = dict.fromkeys(key.split(_AT)[0] for key in _table())
    if pool not in pools:
        raise StateError(
            f"No thresholds were calibrated for the tasks {pool!r}, only for {', '.join(pools)}; "
            "pass threshold=..., or find one with nsr_gym.evaluation.calibrate."
        )
    networks = [str(one.backbone) for key, one in _table().items() if key.split(_AT)[0] == pool]
    raise StateError(
        f"The thresholds of the tasks {pool!r} were calibrated with another frozen network than "
        f"this one ({' or '.join(networks)}, not {backbone_of(env)}); pass threshold=..., or find "
        "one with nsr_gym.evaluation.calibrate."
    )


def entry_key(pool: str, backbone: str) -> str:
    """Return the key of a pool's thresholds with another network than those under the pool's name.

    Args:
        pool: name of the tasks.
        backbone: fingerprint of the network.
    """
    return f"{pool}{_AT}{backbone[:_DIGITS]}"


def _find(env: Any) -> Thresholds | None:
    """Return what was calibrated for an environment's pool of tasks and its network, if anything.

    Where the network is not known, or that of the thresholds is not, they are taken to fit, unless
    others are known to.
    """
    pool, own = env.unwrapped.engine.pool_name, backbone_of(env)
    table = _table()
    any_network = [pool, *(key for key in table if key.split(_AT)[0] == pool)]
    for key in any_network if own is None else (entry_key(pool, own), pool):
        found = table.get(key)
        if found is not None and (None in (found.backbone, own) or found.backbone == own):
            return found
    return None


def backbone_of(env: Any) -> str | None:
    """Return the fingerprint of an environment's frozen network, None where it is not known."""
    dynamics = env.unwrapped.engine.dynamics
    if hasattr(dynamics, "learner"):
        return str(dynamics.learner.backbone.fingerprint)
    if hasattr(dynamics, "table"):
        named = dynamics.table.provenance.get("backbone")
        return None if named is None else str(named)
    return None


def similarity_threshold(env: Any, given: float | None) -> float:
    """Return a rule's threshold of the similarity: the given one, else the calibrated.

    Raises:
        InvalidValueError: the given one is no cosine.
    """
    value = thresholds(env).similarity if given is None else given
    if not -1.0 <= value <= 1.0:
        raise InvalidValueError(f"Expected a threshold in [-1, 1]; got {given!r}.")
    return value


def score_threshold(env: Any, name: str, given: float | None, default: float) -> float:
    """Return a rule's threshold of a score: the given one, else the calibrated, else the default.

    Args:
        env: the environment.
        name: of the score, a key of `Thresholds.scores`.
        given: in [0, 1], or None.
        default: where none was calibrated for the environment's pool of tasks and its network.

    Raises:
        InvalidValueError: the given one lies outside [0, 1].
    """
    if given is not None:
        return share("threshold", given)
    found = _find(env)
    return default if found is None else found.scores.get(name, default)


def share(name: str, value: float) -> float:
    """Return the value of an argument `name` that is to be a share.

    Raises:
        InvalidValueError: it lies outside [0, 1].
    """
    if not 0.0 <= value <= 1.0:
        raise InvalidValueError(f"Expected {name} in [0, 1]; got {value!r}.")
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
            entry["similarity"],
            entry["trial_loss"],
            tuple(entry.get("rank_cuts", ())),
            {name: cut["threshold"] for name, cut in entry.get("scores", {}).items()},
            entry.get("backbone"),
        )
        for pool, entry in json.loads(text).items()
    }
