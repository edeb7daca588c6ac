"""Whose results a learner has at hand between the end of a visit and their being reserved."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import StateError
from nsr_gym.learning.visit import Visit


def episodes(visit: Visit) -> NDArray[np.int64]:
    """Return the episodes of a visit, for learners that keep something of each.

    Raises:
        StateError: the visit does not say whose it is.
    """
    if len(visit.rows) != len(visit):
        raise StateError(
            f"Expected the episodes of all {len(visit)} rows of the visit, because this learner "
            f"keeps something of each; got {len(visit.rows)}. Give Visit its rows."
        )
    return visit.rows


def positions(rows: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each of `rows` stands in `among`, (n,).

    Raises:
        StateError: one is not there.
    """
    order = np.argsort(among, kind="stable")
    at = np.searchsorted(among, rows, sorter=order)
    found = order[np.minimum(at, len(among) - 1)] if len(among) else np.zeros_like(rows)
    if len(rows) and (not len(among) or (among[found] != rows).any()):
        raise StateError(
            f"Expected episodes of the last visit ({among.tolist()}); got {rows.tolist()}. "
            "Only results of the last visit can be kept."
        )
    return found
