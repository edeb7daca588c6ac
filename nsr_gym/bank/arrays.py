"""What the bank answers with, and its work on arrays with a leading bank dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsr_gym.errors import DataError, InvalidValueError

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
NO_LIMIT = 2**62
"""Stands for no limit in the arrays of capacities and budgets."""
_Result = TypeVar("_Result", "Reserved", "Recall")
SMALL = 256
"""Up to so many slots a full sort is as fast as selecting first, and similarities come from a sum
whose rounding does not depend on how many banks, slots or threads there are, as that of a BLAS
product does; so a bank among many answers bit for bit as it does alone."""


@dataclass(frozen=True)
class Reserved:
    """What became of entries offered to a bank.

    Attributes:
        slot: (n,) where each one lies, -1 where it was refused.
        evicted: (n,) how many entries had to go for it.
    """

    slot: Ints
    evicted: Ints


@dataclass(frozen=True)
class Recall:
    """The entries most similar to an embedding, best first.

    Attributes:
        slot: (n, top_n), -1 where there are fewer entries.
        similarity: (n, top_n) cosines, -1 where there are fewer entries.
        valid: (n, top_n), whether an entry is there and reaches the threshold.
    """

    slot: Ints
    similarity: NDArray[np.float32]
    valid: Bools


def top(scores: NDArray[np.float32], count: int) -> Ints:
    """Return the columns of the largest scores of each row, best first, ties by column."""
    n, k = scores.shape
    if count == 1:
        return np.asarray(scores.argmax(axis=1))[:, None]
    if k <= SMALL:
        return np.argsort(-scores, axis=1, kind="stable")[:, :count]
    best = np.empty((n, count), dtype=np.int64)
    for i, row in enumerate(scores):
        least = np.partition(row, k - count)[k - count]
        near = np.flatnonzero(row >= least)
        best[i] = near[np.argsort(-row[near], kind="stable")[:count]]
    return best


def first(keys: tuple[NDArray[Any], ...], allowed: Bools) -> Ints:
    """Return the slot with the smallest keys of each row, -1 where none may go."""
    candidates = allowed
    for key in keys:
        values = np.where(candidates, key, np.inf)
        least = values.min(axis=1, keepdims=True)
        candidates = candidates & (values == least) & np.isfinite(least)
    return np.where(candidates.any(axis=1), candidates.argmax(axis=1), -1)


def as_column(name: str, value: ArrayLike, n: int, dtype: Any) -> NDArray[Any]:
    """Return a number for each of n banks, (n,); one number stands for all.

    Raises:
        InvalidValueError: another shape or type.
        DataError: a number that is not finite.
    """
    array = np.asarray(value)
    whole = np.issubdtype(dtype, np.integer)
    allowed = "iu" if whole else "iuf"
    if array.shape not in ((), (1,), (n,)) or (array.size and array.dtype.kind not in allowed):
        kind = "whole numbers" if whole else "numbers"
        raise InvalidValueError(
            f"Expected {name} as {n} {kind}; got shape {array.shape} of type {array.dtype}."
        )
    full = array.shape == (n,)
    column = array.astype(dtype) if full else np.full(n, array.item(), dtype=dtype)
    if not whole and not np.isfinite(column).all():
        raise DataError(f"Expected {name} to be finite; got {value!r}.")
    return column


def wider(array: NDArray[Any], more: int) -> NDArray[Any]:
    """Return an array with zeros for more slots, its second dimension."""
    room = [(0, 0)] * array.ndim
    room[1] = (0, more)
    return np.pad(array, room)


def squeeze(result: _Result, single: bool) -> _Result:
    """Drop the leading dimension of every part of a result."""
    if not single:
        return result
    return type(result)(*(value[0] for value in vars(result).values()))
