"""The TaskKnowledgeBank: reserved adapters, recalled by embedding similarity.

One object holds E banks side by side: every array has a leading bank dimension and every call
works on some banks at once, without a loop over them. The metadata is NumPy alone; the adapters
themselves lie in a store (see `nsr_gym.bank.store`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsr_gym.bank.arrays import (
    SMALL,
    Bools,
    Ints,
    Recall,
    Reserved,
    as_column,
    first,
    squeeze,
    top,
    wider,
)
from nsr_gym.bank.retention import retention_rule
from nsr_gym.bank.store import FactorStore, Head, SiteFactors
from nsr_gym.errors import DataError, InvalidValueError, StateError, unknown

if TYPE_CHECKING:
    from torch import Tensor

_FIRST_SLOTS = 16
NO_LIMIT = 2**62
"""Stands for no limit in the arrays of capacities and budgets."""


class TaskKnowledgeBank:
    """E banks of adapters with their task embeddings (NSR, arXiv 2606.30067).

    Where `num_banks` is 1, an embedding may come as (d,) and the answer has no leading dimension.

    Attributes:
        occupied: (E, K) bool, which slots hold an entry; the following hold for those only.
        embedding: (E, K, d) float32 unit vectors.
        rank: (E, K) rank of the stored adapter.
        accuracy: (E, K) accuracy when written.
        importance: (E, K) what the rule "importance" goes by.
        clock: (E,) visits so far, advanced by `tick`.
        reserved_at: (E, K) the clock at the last write.
        used_at: (E, K) the clock at the last write or recall.
        times_recalled: (E, K).
        created_order, used_order, version: (E, K) numbers of the events that created, last used
            and last wrote the entry; a version never comes twice within a bank.
        tags: name -> (E, K) int64, for whatever the caller wants to keep with entries.
        capacities, budgets: (E,) entries and bytes that each bank may hold, `NO_LIMIT` for no
            limit; see `limit`.
    """

    def __init__(
        self,
        *,
        embedding_dim: int,
        capacity: int | None = None,
        capacity_bytes: int | None = None,
        retention: str = "lru",
        num_banks: int = 1,
        store: FactorStore | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        """Make empty banks.

        Args:
            embedding_dim: d.
            capacity: entries a bank may hold; 0 refuses everything, None sets no limit. `limit`
                sets other limits for some banks.
            capacity_bytes: bytes a bank may hold; None sets no limit.
            retention: which entry goes when a bank is full, a name of
                `nsr_gym.bank.retention.RETENTION_RULES`.
            num_banks: E.
            store: where factors go; None keeps embeddings and numbers alone.
            tags: names of int64 columns to keep with entries.

        Raises:
            InvalidValueError: a size that is negative or no whole number.
            UnknownNameError: no such retention rule.
        """
        for name, value, least in (
            ("embedding_dim", embedding_dim, 1),
            ("num_banks", num_banks, 1),
            ("capacity", capacity, 0),
            ("capacity_bytes", capacity_bytes, 0),
        ):
            if value is None and name.startswith("capacity"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidValueError(
                    f"Expected {name} to be a whole number of at least {least}; got {value!r}."
                )
        self.embedding_dim, self.num_banks = embedding_dim, num_banks
        self.capacity, self.capacity_bytes = capacity, capacity_bytes
        self.capacities, self.budgets = (
            np.full(num_banks, NO_LIMIT if limit is None else limit, dtype=np.int64)
            for limit in (capacity, capacity_bytes)
        )
        self.retention, self._rule = retention, retention_rule(retention)
        self.store = store
        self.clock = np.zeros(num_banks, dtype=np.int64)
        self._events = np.zeros(num_banks, dtype=np.int64)
        self.occupied = np.zeros((num_banks, 0), dtype=bool)
        self.embedding = np.zeros((num_banks, 0, embedding_dim), dtype=np.float32)
        self.rank, self.reserved_at, self.used_at = (self._no_ints() for _ in range(3))
        self.times_recalled, self.created_order = self._no_ints(), self._no_ints()
        self.used_order, self.version, self._bytes = (self._no_ints() for _ in range(3))
        self.accuracy = np.zeros((num_banks, 0), dtype=np.float64)
        self.importance = np.zeros((num_banks, 0), dtype=np.float64)
        self.tags: dict[str, Ints] = {name: self._no_ints() for name in tags}
        self._grow(_FIRST_SLOTS)

    @property
    def slots(self) -> int:
        """K, the slots there is room for now; a bank grows as it needs them."""
        return int(self.occupied.shape[1])

    @property
    def entries(self) -> Ints:
        """Number of entries in each bank, (E,)."""
        return np.asarray(self.occupied.sum(axis=1), dtype=np.int64)

    def count(self, rows: Ints) -> Ints:
        """Number of entries in banks `rows` (n,), which may repeat."""
        return np.asarray(self.occupied[rows].sum(axis=1), dtype=np.int64)

    def limit(
        self,
        *,
        rows: ArrayLike | None = None,
        capacity: ArrayLike | None = None,
        capacity_bytes: ArrayLike | None = None,
    ) -> None:
        """Set what some banks may hold; what lies in them already stays.

        Args:
            rows: (n,) distinct banks; None means all.
            capacity: (n,) entries, -1 for no limit; None leaves the limits as they are.
            capacity_bytes: (n,) bytes, -1 for no limit; None leaves the limits as they are.

        Raises:
            InvalidValueError: a limit that is no whole number or below -1.
        """
        chosen = self._rows(rows)
        for name, value, limits in (
            ("capacity", capacity, self.capacities),
            ("capacity_bytes", capacity_bytes, self.budgets),
        ):
            if value is None:
                continue
            column = as_column(name, value, len(chosen), np.int64)
            if (column < -1).any():
                raise InvalidValueError(
                    f"Expected {name} of at least 0, or -1 for no limit; got {column.min()}."
                )
            limits[chosen] = np.where(column < 0, NO_LIMIT, column)

    def nbytes(self, rows: ArrayLike | None = None) -> Ints:
        """Bytes held by some banks, (n,): factors, singular values, embeddings and heads.

        Args:
            rows: (n,) banks, which may repeat; None means all.
        """
        return np.asarray(self._bytes[self._rows(rows, distinct=False)].sum(axis=1))

    def bytes_by_kind(self, rows: ArrayLike | None = None) -> dict[str, Ints]:
        """Bytes held by some banks, (n,) for each of factors, singular_values, embedding, head."""
        chosen = self._rows(rows)
        kinds = self._kinds(np.where(self.occupied, self.rank, 0)[chosen])
        kinds["embedding"] = kinds["embedding"] * self.occupied[chosen]
        return {kind: np.asarray(value.sum(axis=1)) for kind, value in kinds.items()}

    def reserve(
        self,
        *,
        embedding: ArrayLike,
        rank: ArrayLike = 1,
        accuracy: ArrayLike = 0.0,
        importance: ArrayLike | None = None,
        tags: Mapping[str, ArrayLike] | None = None,
        factors: SiteFactors | None = None,
        singular_values: Tensor | None = None,
        head: Head | None = None,
        rows: ArrayLike | None = None,
    ) -> Reserved:
        """Add one entry to each of some banks; a full bank evicts by its retention rule.

        Args:
            embedding: (n, d) task embeddings, normalised here.
            rank: (n,) ranks of the adapters.
            accuracy: (n,) accuracies to keep with them.
            importance: (n,) for the rule "importance"; None takes the accuracy.
            tags: (n,) integers by name.
            factors: site -> (up (n, d_out, r), down (n, r, d_in)), where there is a store of them.
            singular_values: (n, sites, r); None computes them from canonical factors.
            head: (weight, bias) with leading n, where the store keeps heads.
            rows: (n,) distinct banks; None means all.

        Returns:
            Where the entries lie. An entry that cannot be kept (capacity 0, more bytes than the
            whole budget, a rule that lets nothing go) is refused and changes nothing.

        Raises:
            DataError: an embedding is zero or not finite.
            InvalidValueError: shapes or ranks do not fit, or factors are not finite.
            UnknownNameError: a tag that the bank does not keep.
        """
        single = self._is_single(embedding)
        chosen = self._rows(rows)
        content = self._content(
            len(chosen), embedding, rank, accuracy, importance, tags, factors, singular_values, head
        )
        kept = self.capacities[chosen] > 0
        kept, evicted = self._make_room(chosen, content["bytes"], kept, adding=True)
        free = ~self.occupied[chosen]
        if bool((kept & ~free.any(axis=1)).any()):
            self._grow(max(_FIRST_SLOTS, 2 * self.slots))
            free = ~self.occupied[chosen]
        slot = np.where(kept, free.argmax(axis=1), -1)
        self._write(chosen, slot, kept, content, created=True)
        return squeeze(Reserved(slot, evicted), single)

    def replace(
        self,
        slot: ArrayLike,
        *,
        embedding: ArrayLike,
        rank: ArrayLike = 1,
        accuracy: ArrayLike = 0.0,
        importance: ArrayLike | None = None,
        tags: Mapping[str, ArrayLike] | None = None,
        factors: SiteFactors | None = None,
        singular_values: Tensor | None = None,
        head: Head | None = None,
        rows: ArrayLike | None = None,
    ) -> Reserved:
        """Write one entry of each of some banks anew.

        Counters of recalls and the place in the order of creation stay. Where a byte budget is
        exceeded, other entries go by the retention rule; if that cannot help, the new content is
        refused (slot -1) and the old entry stays as it was.

        Args:
            slot: (n,) occupied slots.
            embedding: as for `reserve`, and so are the following.
            rank: (n,).
            accuracy: (n,).
            importance: (n,).
            tags: (n,) integers by name; those left out stay.
            factors: by site.
            singular_values: (n, sites, r).
            head: (weight, bias).
            rows: (n,) distinct banks; None means all.

        Returns:
            The slots, -1 where the content was refused, and the evictions.

        Raises:
            InvalidValueError: a slot is empty, or as for `reserve`.
        """
        single = self._is_single(embedding)
        chosen = self._rows(rows)
        slots = self._slots(slot, chosen)
        content = self._content(
            len(chosen), embedding, rank, accuracy, importance, tags, factors, singular_values, head
        )
        growth = content["bytes"] - self._bytes[chosen, slots]
        kept, evicted = self._make_room(
            chosen, growth, np.ones(len(chosen), dtype=bool), adding=False, keep=slots
        )
        slots = np.where(kept, slots, -1)
        self._write(chosen, slots, kept, content, created=False)
        return squeeze(Reserved(slots, evicted), single)

    def recall(
        self,
        embedding: ArrayLike,
        *,
        top_n: int = 1,
        threshold: float | None = None,
        rows: ArrayLike | None = None,
    ) -> Recall:
        """Find the most similar entries of some banks; nothing is counted as used.

        Args:
            embedding: (n, d) queries, normalised here.
            top_n: how many to return.
            threshold: least cosine similarity of a valid one; None takes any.
            rows: (n,) banks, which may repeat; None means all.

        Returns:
            (n, top_n) slots and similarities, best first; equal ones in the order of slots.

        Raises:
            DataError: a query is zero or not finite.
            InvalidValueError: another shape, or top_n below 1.
        """
        if isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1:
            raise InvalidValueError(
                f"Expected top_n as a whole number of at least 1; got {top_n!r}."
            )
        single = self._is_single(embedding)
        chosen = self._rows(rows, distinct=False)
        query = self._unit(embedding, len(chosen))
        n, k = len(chosen), self.slots
        if n == 1:
            stored = self.embedding[chosen[0], None]
        else:
            everything = n == self.num_banks and bool((chosen == np.arange(n)).all())
            stored = self.embedding if everything else self.embedding[chosen]
        if k <= SMALL:
            scores = np.einsum("nkd,nd->nk", stored, query)
        else:
            scores = np.matmul(stored, query[:, :, None])[:, :, 0]
        scores = np.where(self.occupied[chosen], scores, np.float32(-np.inf))
        best = top(scores, min(top_n, k))
        values = scores[np.arange(n)[:, None], best]
        there = values > -np.inf
        width = best.shape[1]
        slot = np.full((n, top_n), -1, dtype=np.int64)
        similarity = np.full((n, top_n), -1.0, dtype=np.float32)
        valid = np.zeros((n, top_n), dtype=bool)
        slot[:, :width] = np.where(there, best, -1)
        similarity[:, :width] = np.where(there, values, np.float32(-1.0))
        valid[:, :width] = there if threshold is None else there & (values >= threshold)
        return squeeze(Recall(slot, similarity, valid), single)

    def mark_recalled(self, slot: ArrayLike, *, rows: ArrayLike | None = None) -> None:
        """Count a recall of one entry, (n,), in each of some banks.

        Raises:
            InvalidValueError: a slot is empty.
        """
        chosen = self._rows(rows)
        slots = self._slots(slot, chosen)
        self.times_recalled[chosen, slots] += 1
        self.used_at[chosen, slots] = self.clock[chosen]
        self.used_order[chosen, slots] = self._event(chosen)

    def factors(
        self, slot: ArrayLike, *, rows: ArrayLike | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the factors of one entry, (n,), in each of some banks (which may repeat).

        Returns:
            Site -> (up (n, d_out, R), down (n, R, d_in)), copies, zero beyond each entry's rank.

        Raises:
            InvalidValueError: a slot is empty.
            StateError: the bank keeps no factors.
        """
        if self.store is None:
            raise StateError("This bank keeps no factors; build it with a store of them.")
        chosen = self._rows(rows, distinct=False)
        return self.store.read(chosen, self._slots(slot, chosen))

    def remove(self, slot: ArrayLike, *, rows: ArrayLike | None = None) -> None:
        """Remove one entry, (n,), from each of some banks.

        Raises:
            InvalidValueError: a slot is empty.
        """
        chosen = self._rows(rows)
        self._drop(chosen, self._slots(slot, chosen))

    def clear(self, *, rows: ArrayLike | None = None) -> None:
        """Empty some banks and start their clocks anew; versions go on, so none comes twice."""
        chosen = self._rows(rows)
        self.occupied[chosen] = False
        self.rank[chosen] = 0
        self._bytes[chosen] = 0
        self.clock[chosen] = 0

    def tick(self, *, rows: ArrayLike | None = None) -> None:
        """Advance the clock of some banks by one visit."""
        self.clock[self._rows(rows)] += 1

    def _content(
        self,
        n: int,
        embedding: ArrayLike,
        rank: ArrayLike,
        accuracy: ArrayLike,
        importance: ArrayLike | None,
        tags: Mapping[str, ArrayLike] | None,
        factors: SiteFactors | None,
        singular_values: Tensor | None,
        head: Head | None,
    ) -> dict[str, Any]:
        """Check everything before anything is changed."""
        ranks = as_column("rank", rank, n, np.int64)
        most = np.inf if self.store is None else self.store.max_rank
        if (ranks < 1).any() or (ranks > most).any():
            raise InvalidValueError(
                f"Expected ranks between 1 and {most:g}; got {ranks.min()} to {ranks.max()}."
            )
        columns = {
            name: as_column(f"tag {name!r}", v, n, np.int64) for name, v in (tags or {}).items()
        }
        for name in columns:
            if name not in self.tags:
                raise unknown("tag of this bank", name, self.tags)
        accuracies = as_column("accuracy", accuracy, n, np.float64)
        packed = None
        if self.store is not None:
            packed = self.store.pack(ranks, factors, singular_values, head)
        elif factors is not None or singular_values is not None or head is not None:
            raise InvalidValueError("This bank keeps no factors; build it with a store of them.")
        return {
            "embedding": self._unit(embedding, n),
            "rank": ranks,
            "accuracy": accuracies,
            "importance": accuracies
            if importance is None
            else as_column("importance", importance, n, np.float64),
            "tags": columns,
            "packed": packed,
            "bytes": sum(self._kinds(ranks).values()),
        }

    def _make_room(
        self, rows: Ints, growth: Ints, kept: Bools, *, adding: bool, keep: Ints | None = None
    ) -> tuple[Bools, Ints]:
        """Evict until the new content fits; return which rows keep it, and the evictions."""
        evicted = np.zeros(len(rows), dtype=np.int64)
        capacity, budget = self.capacities[rows], self.budgets[rows]
        slots_left = bytes_left = None
        if adding and bool((capacity < NO_LIMIT).any()):
            slots_left = capacity - 1 - self.occupied[rows].sum(axis=1)
        if bool((budget < NO_LIMIT).any()):
            alone = growth if keep is None else growth + self._bytes[rows, keep]
            kept = kept & (alone <= budget)
            bytes_left = budget - growth - self._bytes[rows].sum(axis=1)
        while True:
            short = np.zeros(len(rows), dtype=bool)
            for left in (slots_left, bytes_left):
                if left is not None:
                    short |= left < 0
            need = np.flatnonzero(short & kept)
            if not len(need):
                return kept, evicted
            allowed = self.occupied[rows[need]]
            if keep is not None:
                allowed[np.arange(len(need)), keep[need]] = False
            victim = first(self._rule(self, rows[need]), allowed)
            kept[need[victim < 0]] = False
            goes, victim = need[victim >= 0], victim[victim >= 0]
            if slots_left is not None:
                slots_left[goes] += 1
            if bytes_left is not None:
                bytes_left[goes] += self._bytes[rows[goes], victim]
            self._drop(rows[goes], victim)
            evicted[goes] += 1

    def _write(
        self, rows: Ints, slots: Ints, kept: Bools, content: dict[str, Any], *, created: bool
    ) -> None:
        taken: Bools | slice = slice(None) if kept.all() else kept  # a slice copies nothing
        where = rows[taken], slots[taken]
        events = self._event(where[0])
        self.occupied[where] = True
        for name in ("embedding", "rank", "accuracy", "importance"):
            getattr(self, name)[where] = content[name][taken]
        self._bytes[where] = content["bytes"][taken]
        self.reserved_at[where] = self.used_at[where] = self.clock[where[0]]
        self.version[where] = self.used_order[where] = events
        if created:
            self.created_order[where] = events
            self.times_recalled[where] = 0
        for name, column in self.tags.items():
            if name in content["tags"]:
                column[where] = content["tags"][name][taken]
            elif created:
                column[where] = 0
        if self.store is not None and len(where[0]):
            self.store.write(*where, content["packed"], kept)

    def _kinds(self, rank: Ints) -> dict[str, Ints]:
        kinds = {"factors": 0 * rank, "singular_values": 0 * rank, "head": 0 * rank}
        if self.store is not None:
            kinds |= self.store.entry_bytes(rank)
        item = self.embedding.itemsize
        return kinds | {"embedding": np.full(rank.shape, self.embedding_dim * item, dtype=np.int64)}

    def _drop(self, rows: Ints, slots: Ints) -> None:
        self.occupied[rows, slots] = False
        self.rank[rows, slots] = 0
        self._bytes[rows, slots] = 0

    def _event(self, rows: Ints) -> Ints:
        self._events[rows] += 1
        return np.asarray(self._events[rows])

    def _grow(self, slots: int) -> None:
        # A slot even where nothing may be held: no empty arrays.
        self._widen(min(slots, max(1, int(self.capacities.max()))))

    def _widen(self, slots: int) -> None:
        more = slots - self.slots
        if more <= 0:
            return
        for name in (
            "occupied", "embedding", "rank", "reserved_at", "used_at", "times_recalled",
            "created_order", "used_order", "version", "_bytes", "accuracy", "importance",
        ):  # fmt: skip
            setattr(self, name, wider(getattr(self, name), more))
        self.tags = {name: wider(column, more) for name, column in self.tags.items()}
        if self.store is not None:
            self.store.allocate(self.num_banks, slots)

    def _no_ints(self) -> Ints:
        return np.zeros((self.num_banks, 0), dtype=np.int64)

    def _is_single(self, embedding: ArrayLike) -> bool:
        return self.num_banks == 1 and np.ndim(embedding) == 1

    def _rows(self, rows: ArrayLike | None, *, distinct: bool = True) -> Ints:
        if rows is None:
            return np.arange(self.num_banks)
        array = np.atleast_1d(np.asarray(rows))
        wrong = array.ndim != 1 or (array.size and array.dtype.kind not in "iu")
        if wrong or (array.size and (array.min() < 0 or array.max() >= self.num_banks)):
            raise InvalidValueError(
                f"Expected rows as bank numbers from 0 to {self.num_banks - 1}; got {rows!r}."
            )
        array = array.astype(np.int64)
        if distinct and array.size and np.bincount(array).max() > 1:
            raise InvalidValueError(f"Expected distinct banks; got {array.tolist()}.")
        return array

    def _slots(self, slot: ArrayLike, rows: Ints) -> Ints:
        slots = as_column("slot", slot, len(rows), np.int64)
        inside = (slots >= 0) & (slots < self.slots)
        if not inside.all() or not self.occupied[rows, slots].all():
            raise InvalidValueError(
                f"Expected slots that hold an entry; got {slots.tolist()} in banks {rows.tolist()}."
            )
        return slots

    def _unit(self, embedding: ArrayLike, n: int) -> NDArray[np.float32]:
        # Summed in double precision, where no float32 number's square over- or underflows, and in
        # one memory layout, so that a row's rounding does not depend on the others.
        array = np.asarray(embedding)
        if array.dtype.kind not in "iuf":
            raise InvalidValueError(f"Expected embeddings as numbers; got {array.dtype}.")
        array = np.ascontiguousarray(array, dtype=np.float64)
        if array.ndim == 1 and n == 1:
            array = array[None]
        if array.shape != (n, self.embedding_dim):
            raise InvalidValueError(
                f"Expected embeddings of shape ({n}, {self.embedding_dim}); got {array.shape}."
            )
        length = np.sqrt(np.einsum("nd,nd->n", array, array))[:, None]
        if not np.isfinite(length).all() or (length == 0).any():
            raise DataError(
                "An embedding is zero or not finite; check the images it was computed from."
            )
        return np.asarray(array / length, dtype=np.float32)
