"""Accuracy, transfer and forgetting on recurring streams, indexed by visit instead of task.

On a stream such as A, B, A, B the usual definitions break: "just learned" happens more than
once, and the task being trained must not count as forgotten. Here a *visit* is one contiguous
block of training on one task, and the inputs are those of one episode:

- `tasks` `(V,)`: the task of every visit, an index in `0..M-1`;
- `curves` `(V, L+1)`: accuracy on the visited task before the first and after every learning
  step;
- `retention` `(V, M)`: accuracy on every task after each visit, of the model as it would be used
  for that task (the entry recalled for it, or the active adapter);
- `baseline` `(M,)`: accuracy of the bare backbone.

What a visit *reached* can be read in two ways. `level="visit"` is `curves[v, -1]`, the accuracy
the visit ended with; a result that is then discarded counts as lost. `level="retained"` is
`retention[v, tasks[v]]`, what was kept of it. They agree wherever the result is kept whole;
with `"retained"` and every task visited once, BWT, ACC, AIA and FWT are those of GEM and
`metrics.matrix`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsr_gym.errors import InvalidValueError
from nsr_gym.metrics.matrix import accuracies

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Level = Literal["visit", "retained"]


def acc(tasks: ArrayLike, retention: ArrayLike) -> float:
    """Final accuracy: the mean of `retention[V-1, k]` over the tasks the stream visited."""
    k, r = _stream(tasks, retention)
    return float(r[-1, np.unique(k)].mean())


def aia(tasks: ArrayLike, retention: ArrayLike) -> float:
    """Average incremental accuracy: the mean over visits of the mean over tasks seen so far."""
    k, r = _stream(tasks, retention)
    return float(np.mean([r[v, np.unique(k[: v + 1])].mean() for v in range(len(k))]))


def fwt(tasks: ArrayLike, retention: ArrayLike, baseline: ArrayLike) -> float:
    """Forward transfer to first visits: the mean of `retention[f_k - 1, k] - baseline[k]`.

    `f_k` is the first visit of task `k`; the task of visit 0 has no value before it and is left
    out (GEM's FWT where every task is visited once). `nan` with one task.
    """
    k, r = _stream(tasks, retention)
    b = accuracies(baseline, "The baseline", 1)
    if len(b) != r.shape[1]:
        raise InvalidValueError(f"The baseline must have {r.shape[1]} values, got {len(b)}.")
    names, first = np.unique(k, return_index=True)
    later = first > 0
    return _mean(r[first[later] - 1, names[later]] - b[names[later]])


def bwt(
    tasks: ArrayLike,
    curves: ArrayLike,
    retention: ArrayLike,
    *,
    since: Literal["last", "first"] = "last",
    level: Level = "visit",
) -> float:
    """Backward transfer on a recurring stream.

    `mean_k ( retention[V-1, k] - reached(v_k) )` over every visited task except the one visited
    last, where `v_k` is the *last* visit of task `k`. The last visit is the default because
    later visits refresh a task: against its first visit (`since="first"`) a policy that forgets
    everything between visits but has seen the task again can look as if it forgot nothing.

    Args:
        tasks: `(V,)` task of every visit.
        curves: `(V, L+1)` accuracy curves.
        retention: `(V, M)` accuracies after every visit.
        since: the visit that the end of the stream is compared with.
        level: what a visit reached, see the module's text.

    Returns:
        Backward transfer in accuracy, `nan` with fewer than two visited tasks.
    """
    k, r = _stream(tasks, retention)
    reached = _reached(k, curves, r, level)
    visit = {int(task): v for v, task in _in_order(k, since)}
    rest = [task for task in visit if task != k[-1]]
    return _mean(np.array([r[-1, task] - reached[visit[task]] for task in rest]))


def forgetting_by_visit(
    tasks: ArrayLike, curves: ArrayLike, retention: ArrayLike, *, level: Level = "visit"
) -> Floats:
    """Visit-aware forgetting after every visit, shape `(V,)`.

    After visit `v`: the mean, over tasks seen so far *other than the one just trained*, of the
    best value any visit of the task reached so far minus `retention[v, k]`. `nan` while no other
    task has been seen.
    """
    k, r = _stream(tasks, retention)
    reached = _reached(k, curves, r, level)
    peak = np.full(r.shape[1], -np.inf)
    values = np.full(len(k), np.nan)
    for v, task in enumerate(k):
        peak[task] = max(peak[task], reached[v])
        others = np.isfinite(peak)
        others[task] = False
        if others.any():
            values[v] = (peak[others] - r[v, others]).mean()
    return values


def forgetting(
    tasks: ArrayLike, curves: ArrayLike, retention: ArrayLike, *, level: Level = "visit"
) -> float:
    """Visit-aware forgetting after the last visit; `nan` with one task."""
    return float(forgetting_by_visit(tasks, curves, retention, level=level)[-1])


def is_return(tasks: ArrayLike) -> NDArray[np.bool_]:
    """Whether each visit's task was visited before, shape `(V,)`."""
    k = _tasks(tasks)
    returns = np.ones(len(k), dtype=np.bool_)
    returns[np.unique(k, return_index=True)[1]] = False
    return returns


def previous_visit(tasks: ArrayLike) -> Ints:
    """Index of the previous visit of the same task, -1 at first visits, shape `(V,)`."""
    latest: dict[int, int] = {}
    previous = []
    for v, task in enumerate(_tasks(tasks).tolist()):
        previous.append(latest.get(task, -1))
        latest[task] = v
    return np.array(previous, dtype=np.int64)


def reentry_accuracy(tasks: ArrayLike, curves: ArrayLike) -> float:
    """Mean accuracy at the first instant of a return, before any update; `nan` with no return."""
    c = accuracies(curves, "Accuracy curves", 2)
    return _mean(c[is_return(tasks), 0])


def visit_metrics(
    tasks: ArrayLike, curves: ArrayLike, retention: ArrayLike, baseline: ArrayLike
) -> dict[str, float]:
    """Compute every metric of this module on one episode.

    Returns:
        `acc`, `aia`, `fwt`, `bwt` (since the last visit, level `"visit"`), `bwt_retained`,
        `bwt_since_first`, `forgetting`, `forgetting_retained`, `reentry_accuracy`.

    Raises:
        InvalidValueError: shapes that do not fit, NaN, or values outside [0, 1].
    """
    return {
        "acc": acc(tasks, retention),
        "aia": aia(tasks, retention),
        "fwt": fwt(tasks, retention, baseline),
        "bwt": bwt(tasks, curves, retention),
        "bwt_retained": bwt(tasks, curves, retention, level="retained"),
        "bwt_since_first": bwt(tasks, curves, retention, since="first"),
        "forgetting": forgetting(tasks, curves, retention),
        "forgetting_retained": forgetting(tasks, curves, retention, level="retained"),
        "reentry_accuracy": reentry_accuracy(tasks, curves),
    }


def _tasks(tasks: ArrayLike) -> Ints:
    k = np.asarray(tasks)
    if k.ndim != 1 or k.size == 0 or not np.issubdtype(k.dtype, np.integer) or k.min() < 0:
        raise InvalidValueError(
            "tasks must be a non-empty 1-d array of task indices from 0, got shape "
            f"{k.shape} of type {k.dtype}."
        )
    return k.astype(np.int64)


def _stream(tasks: ArrayLike, retention: ArrayLike) -> tuple[Ints, Floats]:
    k, r = _tasks(tasks), accuracies(retention, "Retention", 2)
    if len(k) != len(r) or k.max() >= r.shape[1]:
        raise InvalidValueError(
            f"Retention must have one row per visit and one column per task: {len(k)} visits of "
            f"tasks up to {k.max()} came with retention of shape {r.shape}."
        )
    return k, r


def _reached(k: Ints, curves: ArrayLike, r: Floats, level: Level) -> Floats:
    if level == "retained":
        return r[np.arange(len(k)), k]
    if level != "visit":
        raise InvalidValueError(f"level must be 'visit' or 'retained', got {level!r}.")
    c = accuracies(curves, "Accuracy curves", 2)
    if len(c) != len(k):
        raise InvalidValueError(f"There are {len(k)} visits but {len(c)} accuracy curves.")
    return c[:, -1]


def _in_order(k: Ints, since: str) -> list[tuple[int, int]]:
    """Visits ordered so that a dict keeps the wanted one of every task (the last written)."""
    if since not in ("first", "last"):
        raise InvalidValueError(f"since must be 'last' or 'first', got {since!r}.")
    visits = list(enumerate(k.tolist()))
    return visits if since == "last" else visits[::-1]


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else float("nan")
