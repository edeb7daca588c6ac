"""Gradient-free search for weights over a bank's entries, after LoraHub."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsr_gym.errors import InvalidValueError
from nsr_gym.noise import normal
from nsr_gym.routing.arrays import check_count, check_positive

Floats = NDArray[np.float64]

_PURPOSE = np.uint64(0x68756273 << 32)
"""Sets the search's steps apart from other numbers that follow from the same seed."""
_GROW = 1.5
"""A success widens the step by this factor, a failure narrows it by its fourth root: it stays
where one in five succeeds (Rechenberg's rule)."""
_FIRST_STEP = 0.5


def search(
    loss: Callable[[Floats], ArrayLike],
    *,
    n: int,
    entries: int | ArrayLike,
    bound: float = 1.5,
    penalty: float = 0.05,
    evaluations: int = 40,
    seed: int | ArrayLike = 0,
) -> Floats:
    """Find weights w over K entries that make `loss(w) + penalty * mean |w|` small.

    LoraHub (arXiv 2307.13269): few-shot loss of the mixed adapters, about 40 evaluations, weights
    in [-1.5, 1.5] that start at zero. Its optimiser comes from a library; here every row runs a
    (1+1) evolution strategy with the one-fifth rule, all n rows in the same calls of `loss`. What
    the weights mean (product mix, or LoraHub's factor mix) is up to `loss`.

    Args:
        loss: weights (n, K) -> losses (n,); row i must depend on row i alone. A loss that is not
            finite counts as a failure.
        n: searches side by side.
        entries: K, or (n, K) bool, which entries exist; the others keep weight 0 and do not count
            in the mean.
        bound: weights lie between minus and plus this.
        penalty: of the mean absolute weight.
        evaluations: calls of `loss`, the first one at zero weights.
        seed: one for all rows, or (n,), non-negative; a row's search follows from its own.

    Returns:
        The best weights found, (n, K) float64; never worse than zero weights.

    Raises:
        InvalidValueError: a number out of range, or a loss of another shape.
    """
    check_count("n", n)
    check_count("evaluations", evaluations)
    check_positive("bound", bound)
    if not np.isfinite(penalty) or penalty < 0:
        raise InvalidValueError(f"Expected penalty as a number of at least 0; got {penalty!r}.")
    exists = np.asarray(entries)
    if exists.ndim == 0:
        check_count("entries", exists.item())
        exists = np.ones((n, exists.item()), dtype=bool)
    if exists.dtype != bool or exists.ndim != 2 or len(exists) != n:
        raise InvalidValueError(
            f"Expected entries as a number or as bool ({n}, K); got shape {exists.shape} of type "
            f"{exists.dtype}."
        )
    count = np.maximum(exists.sum(1), 1)

    def measure(weights: Floats) -> Floats:
        losses = np.asarray(loss(weights), dtype=np.float64)
        if losses.shape != (n,):
            raise InvalidValueError(f"Expected losses ({n},); got shape {losses.shape}.")
        total = losses + penalty * np.abs(weights).sum(1) / count
        return np.where(np.isfinite(total), total, np.inf)

    keys = np.broadcast_to(np.asarray(seed), (n,)).astype(np.uint64)[:, None] ^ _PURPOSE
    slots = np.arange(exists.shape[1])
    best = np.zeros(exists.shape)
    least, step = measure(best), np.full(n, _FIRST_STEP * bound)
    for number in range(evaluations - 1):
        # Counted by slot first, so that a row draws the same however many slots there are.
        drawn = normal(keys, slots * evaluations + number)
        tried = np.clip(best + step[:, None] * drawn, -bound, bound) * exists
        found = measure(tried)
        better = found < least
        best[better], least[better] = tried[better], found[better]
        step = np.clip(step * np.where(better, _GROW, _GROW**-0.25), 1e-3 * bound, bound)
    return best
