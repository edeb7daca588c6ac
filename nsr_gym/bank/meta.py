"""Entries with a summary beside them: one adapter that stands for the whole bank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsr_gym.bank import share
from nsr_gym.bank.basis import check_whole
from nsr_gym.bank.per_entry import PerEntryFactors
from nsr_gym.bank.store import Head, Ints, SiteFactors


class MetaFactors(PerEntryFactors):
    """A store that keeps a summary adapter of each bank beside its entries.

    The summary is the best approximation, at rank `summary_rank`, of the mean update of the
    entries held: `SVD_r(1/N sum_j dW_j)`, from the factors laid side by side, never dense. It is
    what a task unlike all others can start from. It always stands for what is held now; after a
    write or a removal it is computed when it is next asked for.

    Source: LoRA Recycle (arXiv 2412.02220, CVPR 2025), of which this is the cheap kernel
    (seed-systems.md, section 6). There a meta-LoRA is fitted to prototype episodes made of images
    that were inverted from each adapter, thousands of optimisation steps for each; that is too slow
    for a step of an environment, which may keep features instead. Only the SVD is offered here.

    Args:
        sites: per site (d_out, d_in).
        max_rank: highest rank of an entry; reads are padded to it.
        head: (classes, features) where an entry has a linear head of its own.
        dtype: "float16", "float32" or "float64".
        device: a torch device, such as "cpu" or "cuda".
        summary_rank: rank of the summary, at most `max_rank`; None takes `max_rank`.

    Raises:
        InvalidValueError: a summary rank out of range, or as in `CountedFactors`.
    """

    kind: ClassVar[str] = "meta"

    def __init__(
        self,
        *,
        sites: Mapping[str, tuple[int, int]],
        max_rank: int,
        head: tuple[int, int] | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        summary_rank: int | None = None,
    ) -> None:
        super().__init__(sites=sites, max_rank=max_rank, head=head, dtype=dtype, device=device)
        if summary_rank is not None:
            check_whole("summary_rank", summary_rank, most=max_rank)
        self.summary_rank = summary_rank or max_rank
        self._entry_part("rank", 1, torch.int64)
        self._bank_part("summary", self._rows["factors"].shape[2])
        self._stale = np.zeros(0, dtype=bool)

    def allocate(self, num_banks: int, slots: int) -> None:
        """Make room for `slots` entries in each bank and keep what is there."""
        super().allocate(num_banks, slots)
        if len(self._stale) != num_banks:
            self._stale = np.zeros(num_banks, dtype=bool)

    def shared_bytes(self, entries: Ints) -> dict[str, Ints]:
        """Bytes of the summaries of banks with so many entries (any shape): 0 for none."""
        sides = sum(d_out + d_in for d_out, d_in in self.sites.values())
        return {"summary": (entries > 0) * np.int64(self.summary_rank * sides * self._item)}

    def pack(
        self,
        rank: Ints,
        factors: SiteFactors | None,
        singular_values: Tensor | None,
        head: Head | None,
    ) -> dict[str, Tensor]:
        """Check the payload of n entries and lay it out in rows, as `PerEntryFactors` does.

        Raises:
            InvalidValueError: a part is missing, has another shape, or is not finite.
        """
        packed = super().pack(rank, factors, singular_values, head)
        return packed | {"rank": torch.from_numpy(rank).to(self.device)[:, None]}

    def write(
        self, rows: Ints, slots: Ints, packed: dict[str, Tensor], chosen: NDArray[np.bool_]
    ) -> None:
        """Write the `chosen` ones of the packed entries to these places, in order."""
        super().write(rows, slots, packed, chosen)
        self._stale[rows] = True

    def drop(self, rows: Ints, slots: Ints) -> None:
        """Forget entries, also in the summary."""
        self._rows["rank"][self._index(rows), self._index(slots)] = 0
        self._stale[rows] = True

    def summary(self, rows: Ints) -> dict[str, tuple[Tensor, Tensor]]:
        """The summaries of banks (n,), which may repeat.

        Returns:
            Site -> (up (n, d_out, max_rank), down (n, max_rank, d_in)), copies, canonical, zero
            from `summary_rank` on and altogether where a bank is empty.
        """
        self._summarise(np.unique(rows[self._stale[rows]]))
        return self._split(self._banks["summary"][self._index(rows)])

    def state(self, slots: int) -> dict[str, NDArray[Any]]:
        """The payload of the first `slots` entries of each bank, and the summaries, as arrays."""
        self._summarise(np.flatnonzero(self._stale))
        return super().state(slots)

    def config(self) -> dict[str, Any]:
        """The arguments that build this store anew, as plain JSON."""
        return super().config() | {"summary_rank": self.summary_rank}

    def _summarise(self, rows: Ints) -> None:
        """Compute the summaries of distinct banks anew."""
        if not len(rows):
            return
        at = self._index(rows)
        held = (self._rows["rank"][at] > 0).to(self._wide)[..., None]
        weight = held / held.sum(1, keepdim=True).clamp(min=1.0)
        rank = torch.full((len(rows),), self.summary_rank, device=self.device)
        parts: list[Tensor] = []
        for up, down in self._split(self._rows["factors"][at]).values():
            ups = (up.to(self._wide) * weight).transpose(1, 2).flatten(2)
            downs = (down.to(self._wide) * held).flatten(1, 2)
            parts += share.canonical(ups, downs, rank, self.max_rank)
        flat = torch.cat([part.flatten(1) for part in parts], 1)
        self._banks["summary"][at] = flat.to(self._torch_dtype)
        self._stale[rows] = False
