"""The TaskKnowledgeBank: reserved adapters, recalled by embedding similarity.

One object holds E banks side by side: every array has a leading bank dimension and every call
works on some banks at once, without a loop over them. The metadata is NumPy alone; the adapters
themselves lie in a store (see `nsr_gym.bank.store`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from nsr_gym.bank.arrays import (
    NO_LIMIT,
    SMALL,
    Bools,
    Ints,
    Recall,
    Reserved,
    squeeze,
    top,
)
from nsr_gym.bank.content import Content, check_content, check_weights, unit
from nsr_gym.bank.room import make_room
from nsr_gym.bank.state import FIRST_SLOTS, BankState
from nsr_gym.bank.store import FactorStore, Head, SiteFactors, Weights
from nsr_gym.errors import InvalidValueError, StateError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NO_LIMIT", "TaskKnowledgeBank"]


class TaskKnowledgeBank(BankState):
    """E banks of adapters with their task embeddings (NSR, arXiv 2606.30067).

    Where `num_banks` is 1, an embedding may come as (d,) and the answer has no leading dimension.

    What it remembers of its entries are the attributes of `BankState`.
    """

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
            len(chosen), embedding=embedding, rank=rank, accuracy=accuracy, importance=importance,
            tags=tags, factors=factors, singular_values=singular_values, head=head,
        )  # fmt: skip
        kept = self.capacities[chosen] > 0
        kept, evicted = make_room(self, chosen, content.bytes, kept)
        free = ~self.occupied[chosen]
        if bool((kept & ~free.any(axis=1)).any()):
            self._grow(max(FIRST_SLOTS, 2 * self.slots))
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
            len(chosen), embedding=embedding, rank=rank, accuracy=accuracy, importance=importance,
            tags=tags, factors=factors, singular_values=singular_values, head=head,
        )  # fmt: skip
        growth = content.bytes - self._bytes[chosen, slots]
        kept, evicted = make_room(
            self, chosen, growth, np.ones(len(chosen), dtype=bool), keep=slots
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
        query = unit(embedding, len(chosen), self.embedding_dim)
        occupied = self.occupied[chosen]
        # Slots fill from the first on, so those behind the last entry hold nothing to look at.
        k = 1 + int(np.flatnonzero(occupied.any(axis=0)).max(initial=0))
        n, occupied = len(chosen), occupied[:, :k]
        if n == 1:
            stored = self.embedding[chosen[0], None, :k]
        else:
            everything = n == self.num_banks and bool((chosen == np.arange(n)).all())
            stored = self.embedding[:, :k] if everything else self.embedding[chosen, :k]
        if self.slots <= SMALL:
            scores = np.einsum("nkd,nd->nk", stored, query)
        else:
            scores = np.matmul(stored, query[:, :, None])[:, :, 0]
        scores = np.where(occupied, scores, np.float32(-np.inf))
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
        store, chosen = self._held_store(), self._rows(rows, distinct=False)
        return store.read(chosen, self._slots(slot, chosen))

    def delta(
        self, weights: Weights | None = None, *, rows: ArrayLike | None = None
    ) -> dict[str, Tensor]:
        """Add up the updates of entries with weights of any sign, `sum_j w_j dW_j`.

        This is the one place where an update is dense: it is meant to be added to a frozen weight.
        With all weights 1 it is the model of an additive bank, with -1 the reference model of
        LoRA subtraction.

        Args:
            weights: (n, K), 0 where a slot holds no entry; None: 1 for every entry.
            rows: (n,) banks, which may repeat; None means all.

        Returns:
            Site -> (n, d_out, d_in), new tensors.

        Raises:
            DataError: a weight is not finite.
            InvalidValueError: another shape, or an empty slot has a weight other than 0.
            StateError: the bank keeps no factors.
        """
        chosen = self._rows(rows, distinct=False)
        occupied = self.occupied[chosen]
        if weights is None:
            weights = occupied.astype(np.float64)
        check_weights("weights", weights, occupied)
        return self._held_store().delta(chosen, weights)

    def scale(self, factors: Weights, *, rows: ArrayLike | None = None) -> None:
        """Multiply updates in place, as a learner of an additive bank does with earlier entries.

        Args:
            factors: (n, K, sites) in the order of the store's sites, of no effect where a slot
                holds no entry; 1 leaves an entry as it is.
            rows: (n,) distinct banks; None means all.

        Raises:
            DataError: a factor is not finite.
            InvalidValueError: another shape.
            StateError: the store cannot; that of an additive bank can.
        """
        store = self._held_store()
        scale, sites = getattr(store, "scale", None), getattr(store, "sites", {})
        if scale is None:
            raise StateError(
                "Only an additive bank scales its entries; make its store with "
                "make_store('additive', ...)."
            )
        chosen = self._rows(rows)
        check_weights("factors", factors, self.occupied[chosen], sites=len(sites))
        scale(chosen, factors)
        self._renew(chosen)

    def remove(self, slot: ArrayLike, *, rows: ArrayLike | None = None) -> None:
        """Remove one entry, (n,), from each of some banks.

        Raises:
            InvalidValueError: a slot is empty.
        """
        chosen = self._rows(rows)
        self._drop(chosen, self._slots(slot, chosen))
        self._renew(chosen)

    def _content(self, n: int, **content: Any) -> Content:
        return check_content(
            n=n, embedding_dim=self.embedding_dim, store=self.store, known_tags=self.tags, **content
        )

    def _write(
        self, rows: Ints, slots: Ints, kept: Bools, content: Content, *, created: bool
    ) -> None:
        taken: Bools | slice = slice(None) if kept.all() else kept  # a slice copies nothing
        where = rows[taken], slots[taken]
        events = self._event(where[0])
        self.occupied[where] = True
        for name in ("embedding", "rank", "accuracy", "importance"):
            getattr(self, name)[where] = getattr(content, name)[taken]
        self._bytes[where] = content.bytes[taken]
        self.reserved_at[where] = self.used_at[where] = self.clock[where[0]]
        self.version[where] = self.used_order[where] = events
        if created:
            self.created_order[where] = events
            self.times_recalled[where] = 0
        for name, column in self.tags.items():
            if name in content.tags:
                column[where] = content.tags[name][taken]
            elif created:
                column[where] = 0
        if self.store is not None and len(where[0]):
            self.store.write(*where, content.packed, kept)
            self._renew(where[0])

    def _held_store(self) -> FactorStore:
        if self.store is None:
            raise StateError("This bank keeps no factors; build it with a store of them.")
        return self.store

    def _is_single(self, embedding: ArrayLike) -> bool:
        return self.num_banks == 1 and np.ndim(embedding) == 1
