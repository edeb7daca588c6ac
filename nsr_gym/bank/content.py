"""What is offered to a bank, checked before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsr_gym.bank.arrays import Bools, Ints, as_column
from nsr_gym.bank.store import FactorStore, Head, SiteFactors
from nsr_gym.errors import DataError, InvalidValueError, unknown

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Content:
    """The checked content of n entries.

    Attributes:
        embedding: (n, d) float32 unit vectors.
        rank: (n,) ranks at which the store keeps them.
        accuracy: (n,).
        importance: (n,).
        tags: name -> (n,) int64, those that were given.
        packed: the payload in the form that the store's `write` takes; None without a store.
        bytes: (n,) what each entry takes by itself.
    """

    embedding: NDArray[np.float32]
    rank: Ints
    accuracy: NDArray[np.float64]
    importance: NDArray[np.float64]
    tags: dict[str, Ints]
    packed: Any
    bytes: Ints


def check_content(
    *,
    n: int,
    embedding_dim: int,
    store: FactorStore | None,
    known_tags: Mapping[str, Ints],
    embedding: ArrayLike,
    rank: ArrayLike,
    accuracy: ArrayLike,
    importance: ArrayLike | None,
    tags: Mapping[str, ArrayLike] | None,
    factors: SiteFactors | None,
    singular_values: Tensor | None,
    head: Head | None,
) -> Content:
    """Check the content of n entries, given as for `TaskKnowledgeBank.reserve`.

    Raises:
        DataError: an embedding is zero or not finite, or a number is not finite.
        InvalidValueError: shapes or ranks do not fit, or factors are not finite.
        UnknownNameError: a tag that the bank does not keep.
    """
    ranks = as_column("rank", rank, n, np.int64)
    most = np.inf if store is None else store.max_rank
    if (ranks < 1).any() or (ranks > most).any():
        raise InvalidValueError(
            f"Expected ranks between 1 and {most:g}; got {ranks.min()} to {ranks.max()}."
        )
    columns = {name: as_column(f"tag {name!r}", v, n, np.int64) for name, v in (tags or {}).items()}
    for name in columns:
        if name not in known_tags:
            raise unknown("tag of this bank", name, known_tags)
    accuracies = as_column("accuracy", accuracy, n, np.float64)
    packed = None
    if store is not None:
        packed = store.pack(ranks, factors, singular_values, head)
        ranks = store.kept_rank(ranks)
    elif factors is not None or singular_values is not None or head is not None:
        raise InvalidValueError("This bank keeps no factors; build it with a store of them.")
    return Content(
        embedding=unit(embedding, n, embedding_dim),
        rank=ranks,
        accuracy=accuracies,
        importance=accuracies
        if importance is None
        else as_column("importance", importance, n, np.float64),
        tags=columns,
        packed=packed,
        bytes=np.asarray(sum(bytes_of(store, embedding_dim, ranks).values())),
    )


def bytes_of(store: FactorStore | None, embedding_dim: int, rank: Ints) -> dict[str, Ints]:
    """Bytes by kind of entries of these ranks (any shape), without what a bank's entries share."""
    kinds = {"factors": 0 * rank, "singular_values": 0 * rank, "head": 0 * rank}
    if store is not None:
        kinds |= store.entry_bytes(rank)
    item = np.dtype(np.float32).itemsize
    return kinds | {"embedding": np.full(rank.shape, embedding_dim * item, dtype=np.int64)}


def check_sizes(**sizes: tuple[object, int]) -> None:
    """Check that sizes, each given with the least it may be, are whole numbers.

    Raises:
        InvalidValueError: one is not.
    """
    for name, (value, least) in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidValueError(
                f"Expected {name} to be a whole number of at least {least}; got {value!r}."
            )


def check_rows(rows: ArrayLike | None, num_banks: int, *, distinct: bool) -> Ints:
    """Bank numbers (n,); None means all.

    Raises:
        InvalidValueError: there is no such bank, or one comes twice where they must be distinct.
    """
    if rows is None:
        return np.arange(num_banks)
    array = np.atleast_1d(np.asarray(rows))
    wrong = array.ndim != 1 or (array.size and array.dtype.kind not in "iu")
    if wrong or (array.size and (array.min() < 0 or array.max() >= num_banks)):
        raise InvalidValueError(
            f"Expected rows as bank numbers from 0 to {num_banks - 1}; got {rows!r}."
        )
    array = array.astype(np.int64)
    if distinct and array.size and np.bincount(array).max() > 1:
        raise InvalidValueError(f"Expected distinct banks; got {array.tolist()}.")
    return array


def check_slots(slot: ArrayLike, rows: Ints, occupied: Bools) -> Ints:
    """Slots (n,) of banks (n,) that hold an entry.

    Raises:
        InvalidValueError: one does not.
    """
    slots = as_column("slot", slot, len(rows), np.int64)
    inside = (slots >= 0) & (slots < occupied.shape[1])
    if not inside.all() or not occupied[rows, slots].all():
        raise InvalidValueError(
            f"Expected slots that hold an entry; got {slots.tolist()} in banks {rows.tolist()}."
        )
    return slots


def check_weights(name: str, weights: Any, occupied: Bools, *, sites: int | None = None) -> None:
    """Check weights (n, K) of entries, 0 where there is none, or (n, K, sites) of any value there.

    Raises:
        InvalidValueError: another shape, or an empty slot has a weight other than 0.
        DataError: a weight is not finite.
    """
    array = np.asarray(weights.detach().cpu() if hasattr(weights, "detach") else weights)
    shape = occupied.shape if sites is None else (*occupied.shape, sites)
    if array.shape != shape or array.dtype.kind not in "iufb":
        raise InvalidValueError(
            f"Expected {name} as numbers of shape {shape}, for each slot of each bank; got shape "
            f"{array.shape} of type {array.dtype}."
        )
    if not np.isfinite(array).all():
        raise DataError(f"Expected {name} to be finite; the learner that made them has diverged.")
    if sites is None and (array[~occupied] != 0).any():
        raise InvalidValueError(
            f"Expected {name} of 0 where a slot holds no entry; multiply them by `occupied`."
        )


def unit(embedding: ArrayLike, n: int, dim: int) -> NDArray[np.float32]:
    """Embeddings (n, d) as unit vectors.

    Raises:
        InvalidValueError: another shape or type.
        DataError: an embedding is zero or not finite.
    """
    # Summed in double precision, where no float32 number's square over- or underflows, and in one
    # memory layout, so that a row's rounding does not depend on the others.
    array = np.asarray(embedding)
    if array.dtype.kind not in "iuf":
        raise InvalidValueError(f"Expected embeddings as numbers; got {array.dtype}.")
    array = np.ascontiguousarray(array, dtype=np.float64)
    if array.ndim == 1 and n == 1:
        array = array[None]
    if array.shape != (n, dim):
        raise InvalidValueError(f"Expected embeddings of shape ({n}, {dim}); got {array.shape}.")
    length = np.sqrt(np.einsum("nd,nd->n", array, array))[:, None]
    if not np.isfinite(length).all() or (length == 0).any():
        raise DataError(
            "An embedding is zero or not finite; check the images it was computed from."
        )
    return np.asarray(array / length, dtype=np.float32)
