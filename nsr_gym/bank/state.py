"""What a bank remembers about its entries: arrays with a leading bank dimension, and limits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from nsr_gym.bank.arrays import NO_LIMIT, Ints, as_column, wider
from nsr_gym.bank.content import bytes_of, check_rows, check_sizes, check_slots
from nsr_gym.bank.retention import retention_rule
from nsr_gym.bank.store import FactorStore
from nsr_gym.errors import InvalidValueError

FIRST_SLOTS = 16
ENTRY_ARRAYS = (
    "occupied", "embedding", "rank", "reserved_at", "used_at", "times_recalled", "created_order",
    "used_order", "version", "accuracy", "importance", "_bytes",
)  # fmt: skip
"""The arrays with a slot dimension, tags aside."""


class BankState:
    """E banks side by side, without the calls that fill and ask them.

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
        check_sizes(embedding_dim=(embedding_dim, 1), num_banks=(num_banks, 1))
        for name, limit in (("capacity", capacity), ("capacity_bytes", capacity_bytes)):
            if limit is not None:
                check_sizes(**{name: (limit, 0)})
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
        self._grow(FIRST_SLOTS)

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
        """Bytes held by some banks, (n,): those of the entries, and what entries share.

        Args:
            rows: (n,) banks, which may repeat; None means all.
        """
        chosen = self._rows(rows, distinct=False)
        total = self._bytes[chosen].sum(axis=1)
        return np.asarray(sum(self._shared(self.count(chosen)).values(), start=total))

    def bytes_by_kind(self, rows: ArrayLike | None = None) -> dict[str, Ints]:
        """Bytes held by some banks, (n,) for each kind.

        The kinds are factors, singular_values, embedding and head, and what entries share where
        the store keeps something in common: basis, summary.
        """
        chosen = self._rows(rows)
        rank = np.where(self.occupied, self.rank, 0)[chosen]
        kinds = bytes_of(self.store, self.embedding_dim, rank)
        kinds["embedding"] = kinds["embedding"] * self.occupied[chosen]
        sums = {kind: np.asarray(value.sum(axis=1)) for kind, value in kinds.items()}
        return sums | self._shared(self.count(chosen))

    def clear(self, *, rows: ArrayLike | None = None) -> None:
        """Empty some banks and start their clocks anew; versions go on, so none comes twice."""
        chosen = self._rows(rows)
        bank, slots = np.nonzero(self.occupied[chosen])
        self._drop(chosen[bank], slots)
        self.clock[chosen] = 0

    def tick(self, *, rows: ArrayLike | None = None) -> None:
        """Advance the clock of some banks by one visit."""
        self.clock[self._rows(rows)] += 1

    def _renew(self, rows: Ints) -> None:
        """Give all entries of distinct banks new versions where a change concerned all of them.

        They keep their order, by which the rule "oldest-accuracy" goes.
        """
        if self.store is None or not self.store.coupled:
            return
        held, version = self.occupied[rows], self.version[rows]
        order = np.where(held, version, NO_LIMIT).argsort(axis=1, kind="stable").argsort(axis=1)
        self.version[rows] = np.where(held, self._events[rows, None] + 1 + order, version)
        self._events[rows] += held.sum(axis=1)

    def _shared(self, entries: Ints) -> dict[str, Ints]:
        """Bytes by kind of what banks with so many entries hold beside them."""
        return {} if self.store is None else self.store.shared_bytes(entries)

    def _drop(self, rows: Ints, slots: Ints) -> None:
        self.occupied[rows, slots] = False
        self.rank[rows, slots] = 0
        self._bytes[rows, slots] = 0
        if self.store is not None and len(rows):
            self.store.drop(rows, slots)

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
        for name in ENTRY_ARRAYS:
            setattr(self, name, wider(getattr(self, name), more))
        self.tags = {name: wider(column, more) for name, column in self.tags.items()}
        if self.store is not None:
            self.store.allocate(self.num_banks, slots)

    def _no_ints(self) -> Ints:
        return np.zeros((self.num_banks, 0), dtype=np.int64)

    def _rows(self, rows: ArrayLike | None, *, distinct: bool = True) -> Ints:
        return check_rows(rows, self.num_banks, distinct=distinct)

    def _slots(self, slot: ArrayLike, rows: Ints) -> Ints:
        return check_slots(slot, rows, self.occupied)
