"""Statistics over runs: IQM, bootstrap intervals, paired differences, improvement, profiles.

The conventions are those of rliable (Agarwal et al., arXiv 2108.13264): the interquartile mean
is the 25 % trimmed mean, intervals are percentile bootstrap at 95 %, runs are resampled within
each task, tasks stay fixed. Randomness comes from a generator or seed that the caller passes, so
the same scores give the same interval. An interval needs two runs; one run gives `nan` ends,
never a zero width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as _scipy_stats

from nsr_gym.errors import InvalidValueError

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, int], Floats]
"""A reduction along one axis, called as `statistic(values, axis)`."""


@dataclass(frozen=True)
class Interval:
    """A point estimate with its bootstrap interval.

    Attributes:
        point: the statistic of the scores themselves.
        low: lower end, `nan` with fewer than two runs.
        high: upper end, `nan` with fewer than two runs.
        runs: how many runs it rests on.
        confidence: share of the bootstrap distribution between the ends.
    """

    point: float
    low: float
    high: float
    runs: int
    confidence: float = 0.95

    def __str__(self) -> str:
        """Return `0.812 [0.790, 0.835]`, or why there is no interval."""
        if np.isnan(self.low):
            reason = "1 run" if self.runs == 1 else f"{self.runs} runs"
            return f"{self.point:.3f} ({reason}: no interval)"
        return f"{self.point:.3f} [{self.low:.3f}, {self.high:.3f}]"


def iqm(scores: ArrayLike, axis: int | None = None) -> Floats:
    """Interquartile mean: the 25 % trimmed mean, over the flattened scores by default.

    Args:
        scores: any shape.
        axis: axis to reduce, `None` for all.

    Returns:
        The reduced array (0-d for `axis=None`).
    """
    return np.asarray(_scipy_stats.trim_mean(np.asarray(scores), 0.25, axis=axis), np.float64)


def mean(scores: ArrayLike, axis: int | None = None) -> Floats:
    """Plain mean in the form of a `Statistic`; regret and its ratio are sums, so they use it."""
    return np.asarray(np.mean(np.asarray(scores, dtype=np.float64), axis=axis))


def resamples(runs: int, replicates: int, rng: np.random.Generator | int) -> NDArray[np.int64]:
    """Draw bootstrap indices `(replicates, runs)`; the same for everything paired by run."""
    if replicates < 1:
        raise InvalidValueError(f"replicates must be at least 1, got {replicates}.")
    return np.random.default_rng(rng).integers(0, runs, size=(replicates, runs))


def percentiles(draws: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Return the two ends that hold the middle `confidence` of the draws along axis 0.

    Raises:
        InvalidValueError: `confidence` is not in (0, 1).
    """
    if not 0 < confidence < 1:
        raise InvalidValueError(f"confidence must lie in (0, 1), got {confidence!r}.")
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
    return low, high


def bootstrap_interval(
    scores: ArrayLike,
    *,
    statistic: Statistic = iqm,
    confidence: float = 0.95,
    replicates: int = 10_000,
    rng: np.random.Generator | int = 0,
) -> Interval:
    """Percentile bootstrap interval of a statistic over runs.

    Args:
        scores: `(runs,)`.
        statistic: reduction along an axis.
        confidence: share of the bootstrap distribution between the ends.
        replicates: number of resamples.
        rng: generator, or a seed for one.

    Returns:
        The interval; its ends are `nan` with one run.

    Raises:
        InvalidValueError: no scores, another shape, or scores that are not finite.
    """
    x = _scores(scores, 1)
    point = float(statistic(x, 0))
    if len(x) < 2:
        return Interval(point, float("nan"), float("nan"), len(x), confidence)
    draws = statistic(x[resamples(len(x), replicates, rng)], 1)
    low, high = percentiles(draws, confidence)
    return Interval(point, float(low), float(high), len(x), confidence)


def stratified_interval(
    scores: ArrayLike,
    *,
    statistic: Statistic = iqm,
    confidence: float = 0.95,
    replicates: int = 10_000,
    rng: np.random.Generator | int = 0,
) -> Interval:
    """Stratified bootstrap interval of a statistic over runs and tasks.

    Runs are resampled independently within every task and the statistic is taken over all
    `runs x tasks` scores; the tasks themselves stay fixed (rliable's convention).

    Args:
        scores: `(runs, tasks)`, normalised so that tasks can be averaged.
        statistic: reduction along an axis.
        confidence: share of the bootstrap distribution between the ends.
        replicates: number of resamples.
        rng: generator, or a seed for one.

    Raises:
        InvalidValueError: no scores, another shape, or scores that are not finite.
    """
    x = _scores(scores, 2)
    runs, tasks = x.shape
    point = float(statistic(x.ravel(), 0))
    if runs < 2:
        return Interval(point, float("nan"), float("nan"), runs, confidence)
    generator = np.random.default_rng(rng)
    draws = np.empty(replicates)
    block = max(1, 2_000_000 // x.size)  # bounds the memory of the resampled copies
    for start in range(0, replicates, block):
        n = min(block, replicates - start)
        rows = generator.integers(0, runs, size=(n, runs, tasks))
        draws[start : start + n] = statistic(x[rows, np.arange(tasks)].reshape(n, -1), 1)
    low, high = percentiles(draws, confidence)
    return Interval(point, float(low), float(high), runs, confidence)


def paired_difference(
    scores: ArrayLike,
    reference: ArrayLike,
    *,
    statistic: Statistic = iqm,
    confidence: float = 0.95,
    replicates: int = 10_000,
    rng: np.random.Generator | int = 0,
) -> Interval:
    """Statistic of `scores - reference`, run by run, with its interval.

    Both must be in the same order of runs (same seed, same stream): pairing takes the
    difference between streams out of the comparison.

    Raises:
        InvalidValueError: the two differ in length, or as in `bootstrap_interval`.
    """
    x, y = _scores(scores, 1), _scores(reference, 1)
    if x.shape != y.shape:
        raise InvalidValueError(
            f"Paired scores must have the same runs, got {len(x)} and {len(y)}. Pair on the "
            "common seeds first."
        )
    return bootstrap_interval(
        x - y, statistic=statistic, confidence=confidence, replicates=replicates, rng=rng
    )


def mean_band(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    replicates: int = 2_000,
    rng: np.random.Generator | int = 0,
) -> tuple[Floats, Floats]:
    """Pointwise bootstrap band of the mean over runs, for figures.

    Args:
        values: `(runs, points)`.
        confidence: share of the bootstrap distribution between the ends.
        replicates: number of resamples.
        rng: generator, or a seed for one.

    Returns:
        `(low, high)`, each `(points,)`; all `nan` with one run.
    """
    x = _scores(values, 2)
    runs = len(x)
    if runs < 2:
        return np.full(x.shape[1], np.nan), np.full(x.shape[1], np.nan)
    drawn = resamples(runs, replicates, rng)
    weights = (drawn[:, :, None] == np.arange(runs)).mean(axis=1)
    return percentiles(weights @ x, confidence)


def probability_of_improvement(scores: ArrayLike, reference: ArrayLike) -> float:
    """P(a run of `scores` beats a run of `reference`), Mann-Whitney, ties count one half.

    Args:
        scores: `(runs, tasks)` or `(runs,)` for one task.
        reference: `(other runs, tasks)` or `(other runs,)`.

    Returns:
        The probability, averaged over tasks.

    Raises:
        InvalidValueError: the two do not have the same number of tasks.
    """
    x, y = (_scores(s, 2) for s in (_columns(scores), _columns(reference)))
    if x.shape[1] != y.shape[1]:
        raise InvalidValueError(
            f"Both must have the same tasks, got {x.shape[1]} and {y.shape[1]} columns."
        )
    difference = x[:, None, :] - y[None, :, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Floats:
    """Share of scores above each threshold (strictly, as in rliable), shape `(thresholds,)`."""
    x = _scores(scores, np.asarray(scores).ndim)
    above = x.ravel() > np.asarray(thresholds, dtype=np.float64)[:, None]
    return np.asarray(above.mean(axis=1), dtype=np.float64)


def optimality_gap(scores: ArrayLike, *, optimum: float = 1.0) -> float:
    """How far scores fall short of the optimum: `optimum - mean(min(score, optimum))`."""
    x = _scores(scores, np.asarray(scores).ndim)
    return float(optimum - np.minimum(x, optimum).mean())


def _scores(scores: ArrayLike, ndim: int) -> Floats:
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != ndim or x.size == 0:
        raise InvalidValueError(
            f"Scores must be a non-empty array with {ndim} dimension(s), got shape {x.shape}."
        )
    if not np.isfinite(x).all():
        raise InvalidValueError(
            f"Scores must be finite, got {int((~np.isfinite(x)).sum())} value(s) that are not."
        )
    return x


def _columns(scores: ArrayLike) -> Floats:
    x = np.asarray(scores, dtype=np.float64)
    return x[:, None] if x.ndim == 1 else x
