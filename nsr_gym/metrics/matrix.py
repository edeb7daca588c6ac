"""Every convention of accuracy, transfer and forgetting on one accuracy matrix.

A stream that visits `T` tasks once each gives a square matrix `R`: `R[t, i]` is the accuracy
on task `i` after the `t`-th task was learned, in [0, 1]. The literature computes quantities
of the same name from it in different ways, so each convention is a function with its own name
and a result must say which it is. A quantity that needs a second task is `nan` at `T = 1`:
a zero would claim that nothing was forgotten. Recurring streams need `metrics.visits`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsr_gym.errors import InvalidValueError

Floats = NDArray[np.float64]


def accuracies(values: ArrayLike, name: str, ndim: int) -> Floats:
    """Return accuracies as a float64 array, or say what is wrong with them.

    Args:
        values: accuracies in [0, 1].
        name: what the values are, for the message.
        ndim: how many dimensions they must have.

    Raises:
        InvalidValueError: another number of dimensions, no values, NaN, or outside [0, 1].
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or array.size == 0:
        raise InvalidValueError(
            f"{name} must be a non-empty array with {ndim} dimension(s), got shape {array.shape}."
        )
    if np.isnan(array).any():
        raise InvalidValueError(
            f"{name} has {int(np.isnan(array).sum())} NaN value(s); every accuracy must be "
            "measured. Leave the run out instead."
        )
    if array.min() < 0 or array.max() > 1:
        raise InvalidValueError(
            f"{name} must lie in [0, 1], got values from {array.min():g} to {array.max():g}. "
            "Divide percentages by 100."
        )
    return array


def accuracy_matrix(matrix: ArrayLike) -> Floats:
    """Return a checked `(T, T)` accuracy matrix.

    Raises:
        InvalidValueError: not square, empty, NaN, or outside [0, 1].
    """
    array = accuracies(matrix, "An accuracy matrix", 2)
    if array.shape[0] != array.shape[1]:
        raise InvalidValueError(
            f"An accuracy matrix must be square (steps x tasks), got shape {array.shape}. "
            "Streams that revisit tasks are measured by nsr_gym.metrics.visits."
        )
    return array


def acc(matrix: ArrayLike) -> float:
    """Average accuracy after the last task: `mean_i R[T, i]` (GEM, arXiv 1706.08840)."""
    return float(accuracy_matrix(matrix)[-1].mean())


def aia(matrix: ArrayLike) -> float:
    """Average incremental accuracy: `mean_t mean_{i<=t} R[t, i]` (iCaRL lineage, PILOT)."""
    r = accuracy_matrix(matrix)
    return float(np.mean([r[t, : t + 1].mean() for t in range(len(r))]))


def accuracy_diaz(matrix: ArrayLike) -> float:
    """Diaz-Rodriguez accuracy A: the mean of the lower triangle with its diagonal (Continuum)."""
    r = accuracy_matrix(matrix)
    return float(r[np.tril_indices(len(r))].mean())


def learning_accuracy(matrix: ArrayLike) -> float:
    """Accuracy on each task right after it was learned: `mean_i R[i, i]` (L2P)."""
    return float(np.diag(accuracy_matrix(matrix)).mean())


def bwt_gem(matrix: ArrayLike) -> float:
    """Backward transfer: `sum_{i<T} (R[T, i] - R[i, i]) / (T - 1)` (GEM, arXiv 1706.08840)."""
    r = accuracy_matrix(matrix)
    return _mean(r[-1, :-1] - np.diag(r)[:-1])


def bwt_ucb(matrix: ArrayLike) -> float:
    """Backward transfer with the sum of `bwt_gem` divided by `T` (UCB, ACL)."""
    r = accuracy_matrix(matrix)
    return bwt_gem(r) * (len(r) - 1) / len(r)


def bwt_diaz(matrix: ArrayLike) -> float:
    """Backward transfer over all later steps: the mean of `R[t, j] - R[j, j]`, `j < t`.

    Source: Diaz-Rodriguez et al.; Continuum's `backward_transfer`.
    """
    r = accuracy_matrix(matrix)
    return _mean((r - np.diag(r))[np.tril_indices(len(r), -1)])


def fwt_gem(matrix: ArrayLike, baseline: ArrayLike) -> float:
    """Forward transfer: `sum_{i>=2} (R[i-1, i] - b[i]) / (T - 1)` (GEM, arXiv 1706.08840).

    Args:
        matrix: `(T, T)` accuracies.
        baseline: `(T,)` accuracy on every task before any training.

    Raises:
        InvalidValueError: `baseline` is no valid accuracy vector of length `T`.
    """
    r = accuracy_matrix(matrix)
    b = accuracies(baseline, "A baseline", 1)
    if len(b) != len(r):
        raise InvalidValueError(f"The baseline must have {len(r)} values, got {len(b)}.")
    return _mean(np.diag(r, 1) - b[1:])


def fwt_continuum(matrix: ArrayLike) -> float:
    """Forward transfer without a baseline: `sum_{i>=2} R[i-1, i] / (T - 1)` (Continuum)."""
    return _mean(np.diag(accuracy_matrix(matrix), 1))


def forgetting_chaudhry(matrix: ArrayLike) -> float:
    """Forgetting against the best accuracy *before* the last step; can be negative.

    `mean_{j<T} ( max_{j<=l<=T-1} R[l, j] - R[T, j] )` (RWalk, Chaudhry et al., eq. 3).
    """
    r = accuracy_matrix(matrix)
    return _mean(np.array([r[j:-1, j].max() - r[-1, j] for j in range(len(r) - 1)]))


def forgetting_max(matrix: ArrayLike) -> float:
    """Forgetting against the best accuracy at any step, the last included; never negative.

    `mean_{j<T} ( max_{j<=l<=T} R[l, j] - R[T, j] )` (Mammoth, PILOT, L2P).
    """
    r = accuracy_matrix(matrix)
    return _mean(np.array([r[j:, j].max() - r[-1, j] for j in range(len(r) - 1)]))


def forgetting_first_peak(matrix: ArrayLike) -> float:
    """Forgetting against the accuracy when just learned: `-bwt_gem` (Avalanche)."""
    return -bwt_gem(matrix)


def forgetting_coda(matrix: ArrayLike) -> float:
    """Mean one-step loss: `mean_{t>=2} mean_{i<t} (R[t-1, i] - R[t, i])` (CODA-Prompt).

    About `T / 2` times smaller than the other conventions; never compare it with them.
    """
    r = accuracy_matrix(matrix)
    return _mean(np.array([(r[t - 1, :t] - r[t, :t]).mean() for t in range(1, len(r))]))


MATRIX_METRICS: dict[str, Callable[[Any], float]] = {
    "acc": acc,
    "aia": aia,
    "accuracy_diaz": accuracy_diaz,
    "learning_accuracy": learning_accuracy,
    "bwt_gem": bwt_gem,
    "bwt_ucb": bwt_ucb,
    "bwt_diaz": bwt_diaz,
    "fwt_continuum": fwt_continuum,
    "forgetting_chaudhry": forgetting_chaudhry,
    "forgetting_max": forgetting_max,
    "forgetting_first_peak": forgetting_first_peak,
    "forgetting_coda": forgetting_coda,
}
"""Every metric that needs the matrix alone, by the name it has in result files."""


def matrix_metrics(matrix: ArrayLike, baseline: ArrayLike | None = None) -> dict[str, float]:
    """Compute every convention at once.

    Args:
        matrix: `(T, T)` accuracies in [0, 1].
        baseline: `(T,)` accuracies before any training, for `fwt_gem`.

    Returns:
        One value per name of `MATRIX_METRICS` plus `fwt_gem` (`nan` without a baseline).

    Raises:
        InvalidValueError: the matrix or the baseline is not valid.
    """
    r = accuracy_matrix(matrix)
    values = {name: metric(r) for name, metric in MATRIX_METRICS.items()}
    values["fwt_gem"] = float("nan") if baseline is None else fwt_gem(r, baseline)
    return values


def _mean(values: Floats) -> float:
    """Mean, or `nan` of nothing (without NumPy's warning)."""
    return float(values.mean()) if values.size else float("nan")
