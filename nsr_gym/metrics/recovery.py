"""Recovery on returns: steps with censoring, tries, savings, shortfall.

All of them hold an accuracy curve (`(V, L+1)`: before the first and after every learning step)
against a reference accuracy of the same visit `(V,)`, `nan` where there is none (first visits).
Two references are used: what the agent itself ended its previous visit of the task with
(`previous_end` of its own curves), and what a reference agent ended it with on the same stream
(`previous_end` of that agent's curves). The second is the primary one: an agent that never
learns recovers "at once" by its own standard.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsr_gym.errors import InvalidValueError
from nsr_gym.metrics.matrix import accuracies
from nsr_gym.metrics.visits import is_return, previous_visit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NO_REFERENCE = -1
"""Recovery steps of a visit that has no reference (a first visit)."""
CENSORED = -2
"""Recovery steps of a visit that never reached its threshold."""
SHARE = 0.95
"""Threshold as a share of the reference accuracy."""
# Accuracies are ratios of counts, often kept in float32: 0.95 * 0.8 must not miss 0.76 by a
# rounding error, and no two distinct accuracies are this close.
_TOLERANCE = 1e-6


def previous_end(tasks: ArrayLike, curves: ArrayLike) -> Floats:
    """Accuracy at the end of the previous visit of the same task, `nan` at first visits, `(V,)`."""
    previous, c = previous_visit(tasks), _curves(curves)
    if len(c) != len(previous):
        raise InvalidValueError(f"There are {len(previous)} visits but {len(c)} accuracy curves.")
    return np.where(previous >= 0, c[previous, -1], np.nan)


def recovery_steps(curves: ArrayLike, reference: ArrayLike, *, share: float = SHARE) -> Ints:
    """First learning step at which a curve is at or above `share` x reference, shape `(V,)`.

    Args:
        curves: `(V, L+1)` accuracy curves.
        reference: `(V,)` reference accuracies, `nan` for "no reference".
        share: threshold as a share of the reference, in (0, 1].

    Returns:
        Steps in `0..L` (0: before any update), `CENSORED` where the threshold is never reached
        within the visit, `NO_REFERENCE` where there is no reference.

    Raises:
        InvalidValueError: shapes that do not fit, a curve that is no accuracy, a bad share.
    """
    if not 0 < share <= 1:
        raise InvalidValueError(f"share must lie in (0, 1], got {share!r}.")
    c, ref = _pair(curves, reference)
    above = c >= (share * ref - _TOLERANCE)[:, None]
    steps = np.where(above.any(axis=1), above.argmax(axis=1), CENSORED)
    return np.where(np.isnan(ref), NO_REFERENCE, steps)


def tries(steps: ArrayLike, learning_steps: int) -> Floats:
    """Tries until recovery, `min(steps, L) + 1`, `nan` where there is no reference.

    A censored visit counts as `L + 1` tries, which is the least it can have needed: a mean of
    these is a restricted mean, a lower bound that depends on `L`, and is to be given together
    with `L` and the censored share.
    """
    s = np.asarray(steps, dtype=np.float64)
    values = np.where(s == CENSORED, float(learning_steps), np.minimum(s, learning_steps)) + 1
    return np.where(s == NO_REFERENCE, np.nan, values)


@dataclass(frozen=True)
class Recovery:
    """Recovery over a number of returns.

    Attributes:
        returns: how many visits had a reference.
        median_steps: median steps, a censored visit taken as later than any step; `inf` says
            that the median itself is censored ("> L"), `nan` that there was no return.
        censored: share of the returns that never recovered within their visit.
        mean_tries: restricted mean of tries, see `tries`.
    """

    returns: int
    median_steps: float
    censored: float
    mean_tries: float


def summarise_recovery(steps: ArrayLike, learning_steps: int) -> Recovery:
    """Summarise the steps of any number of visits; visits without reference are left out."""
    s = np.asarray(steps, dtype=np.float64).ravel()
    s = s[s != NO_REFERENCE]
    if not s.size:
        nan = float("nan")
        return Recovery(returns=0, median_steps=nan, censored=nan, mean_tries=nan)
    lost = s == CENSORED
    return Recovery(
        returns=int(s.size),
        median_steps=_median(np.where(lost, np.inf, s)),
        censored=float(lost.mean()),
        mean_tries=float(tries(s, learning_steps).mean()),
    )


def savings(tasks: ArrayLike, curves: ArrayLike, *, share: float = SHARE) -> float:
    """Savings in relearning: tries of the first visit over tries of a return.

    Every return sets a threshold, `share` x what the agent's previous visit of the task ended
    with; the tries (`steps + 1`) that the task's *first* visit needed to that threshold are
    summed over returns and divided by the summed tries of the returns. Tries instead of steps,
    because a recall that needs 0 steps would make the ratio infinite. 1 means nothing was
    saved, `L + 1` is the largest value. Censored visits count as `L + 1` tries. `nan` where
    nothing returns.
    """
    c, returns = _curves(curves), is_return(tasks)
    if not returns.any():
        return float("nan")
    names, first = np.unique(np.asarray(tasks), return_index=True)
    first_visit = first[np.searchsorted(names, np.asarray(tasks))]
    reference = previous_end(tasks, c)[returns]
    last = c.shape[1] - 1
    before = tries(recovery_steps(c[first_visit[returns]], reference, share=share), last)
    after = tries(recovery_steps(c[returns], reference, share=share), last)
    return float(before.sum() / after.sum())


def shortfall(curves: ArrayLike, reference: ArrayLike) -> Floats:
    """Area between the reference and the accuracy curve, `(V,)`, in accuracy x learning steps.

    `sum_{u=1..L} max(0, reference - curve[u])`; the accuracy before the first update (`u = 0`) is
    left out, because no learning step has passed by then (re-entry accuracy measures it).
    Divided by `L` it is in units of the online reward. `nan` where there is no reference.
    """
    c, ref = _pair(curves, reference)
    return np.asarray(np.maximum(0.0, ref[:, None] - c[:, 1:]).sum(axis=1), dtype=np.float64)


def minimum_accuracy(curves: ArrayLike) -> Floats:
    """Lowest accuracy on the visited task within each visit, `(V,)` (arXiv 2205.13452)."""
    return np.asarray(_curves(curves).min(axis=1), dtype=np.float64)


def _curves(curves: ArrayLike) -> Floats:
    return accuracies(curves, "Accuracy curves", 2)


def _pair(curves: ArrayLike, reference: ArrayLike) -> tuple[Floats, Floats]:
    c, ref = _curves(curves), np.asarray(reference, dtype=np.float64)
    if ref.shape != c.shape[:1]:
        raise InvalidValueError(
            f"There must be one reference per curve: {len(c)} curves, reference {ref.shape}."
        )
    return c, ref


def _median(values: Floats) -> float:
    """Median with `inf` for "later than observed": the mean of 3 and `inf` is `inf`."""
    ordered = np.sort(values)
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)
