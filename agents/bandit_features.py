"""What a bandit sees of a choice: an entry to start from (or none) and a rank to grant."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.envs.layout import GLOBAL_FIELDS, ObservationLayout

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

_ENTRY = (
    "warm", "similarity", "closeness", "stored_rank", "accuracy", "age", "recalls", "trial_loss",
    "trial_loss^2", "gain", "harm", "most similar", "lowest loss",
)  # fmt: skip
_WITH_RANK = ("1", "warm", "bare_loss", "trial_loss", "stored_rank")


def feature_names(ranks: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names of the d features of a choice.

    Those of the entry are 0 for a fresh start (`warm` is 0 there); `closeness` spreads similarities
    close to 1; `gain` and `harm` are how far the trial loss lies below and above the bare loss.
    Each rank has indicators of its own, alone and times four of the others.
    """
    by_rank = (f"rank {rank} * {name}" for name in _WITH_RANK for rank in ranks)
    return (*_ENTRY, *GLOBAL_FIELDS, *by_rank)


def choice_features(layout: ObservationLayout, observation: NDArray[Any]) -> tuple[Floats, Bools]:
    """Return the features of every choice of an entry and a rank.

    Args:
        layout: of the observations.
        observation: (n, size).

    Returns:
        (n, S + 1, Q, d) features, the fresh start first, and (n, S + 1) which entries there are.
    """
    n, view, ranks = len(observation), layout.sizes["stored_rank"], len(layout.ranks)

    def read(name: str) -> Floats:
        return np.asarray(layout.read(observation, name), dtype=np.float64)

    held = read("stored_rank") > 0
    loss, bare, similarity = read("trial_loss"), read("bare_loss"), read("similarity")
    columns = {name: read(name) for name in ("similarity", "stored_rank", "accuracy", "age")}
    columns |= {
        "warm": np.ones_like(loss),
        "recalls": read("recalls"),
        "closeness": -np.log10(np.maximum(1.0 - similarity, 1e-4)) / 4.0,
        "trial_loss": loss,
        "trial_loss^2": loss**2,
        "gain": np.maximum(bare - loss, 0.0),
        "harm": np.maximum(loss - bare, 0.0),
        "most similar": np.arange(view) == np.zeros((n, 1)),
        "lowest loss": np.arange(view) == np.where(held, loss, np.inf).argmin(axis=1)[:, None],
    }
    entry = np.zeros((n, view + 1, len(_ENTRY)))
    entry[:, 1:] = np.stack([columns[name] for name in _ENTRY], axis=2) * held[:, :, None]
    everywhere = np.stack([read(name)[:, 0] for name in GLOBAL_FIELDS], axis=1)
    alone = {"1": np.ones((n, view + 1)), "bare_loss": np.broadcast_to(bare, (n, view + 1))}
    shared = alone | {name: entry[:, :, i] for i, name in enumerate(_ENTRY)}
    interacting = np.stack([shared[name] for name in _WITH_RANK], axis=2)
    by_rank = interacting[:, :, None, :, None] * np.eye(ranks)[None, None, :, None, :]
    shape = (n, view + 1, ranks)
    phi = np.concatenate(
        [
            np.broadcast_to(entry[:, :, None], (*shape, len(_ENTRY))),
            np.broadcast_to(everywhere[:, None, None], (*shape, len(GLOBAL_FIELDS))),
            by_rank.reshape(*shape, -1),
        ],
        axis=3,
    )
    return phi, np.concatenate([np.ones((n, 1), dtype=bool), held], axis=1)
