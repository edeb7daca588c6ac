"""The base of stores whose entries share one basis: when it grows, and what is re-projected."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsr_gym.bank import share
from nsr_gym.bank.store import Head, Ints, SiteFactors
from nsr_gym.bank.tensors import TensorFactors
from nsr_gym.errors import InvalidValueError, unknown

UPDATES = ("merge", "project", "residual")
"""What a write does to the basis, see `BasisFactors`."""


class BasisFactors(TensorFactors, ABC):
    """A store of coefficients on bases that all entries of a bank share.

    A *block* is one basis: columns of length d, of which every entry has a few. Which blocks there
    are is up to the store. Entries are canonicalised first, because a decomposition of stacked
    factors would depend on how each adapter happened to be factored (seed-systems.md, section 1).

    What a write does to the bases goes by `update`, always for all blocks of a bank alike:

    - "merge": they are fitted anew to the entries held and the new one, and all are re-projected.
    - "project": the new entry is projected and nothing else changes, as soon as `warm` entries
      have been merged, or, for `warm=None`, every basis has all its directions; merge before.
    - "residual": it is projected where at most the share `tolerance` of its energy lies outside
      the bases; else merge.

    A dropped entry leaves the bases as they are until the next merge, which fits to what is held
    then; they are forgotten with the last entry. A bank pays for all directions of its bases from
    its first entry on, also where fewer are in use and the rest are zero: that is the constant
    size the method is meant to have, and the cost of an entry does not depend on others.

    Bases and coefficients are computed in double precision and kept in `dtype`, because merging
    repeats over a bank's life.
    """

    coupled: ClassVar[bool] = True

    def __init__(
        self,
        *,
        sites: Mapping[str, tuple[int, int]],
        max_rank: int,
        head: tuple[int, int] | None,
        dtype: str,
        device: str,
        basis_rank: int,
        update: str,
        warm: int | None,
        tolerance: float,
    ) -> None:
        """Check the options; the subclass declares the blocks by `_block`.

        Raises:
            InvalidValueError: an option out of range, or a type of half precision.
            UnknownNameError: no such update.
        """
        super().__init__(sites=sites, max_rank=max_rank, head=head, dtype=dtype, device=device)
        if dtype == "float16":
            raise InvalidValueError(
                "A shared basis needs float32 or float64; in float16 it would not stay orthonormal."
            )
        if update not in UPDATES:
            raise unknown("update of a shared basis", update, UPDATES)
        for name, value in (("basis_rank", basis_rank), ("warm", 1 if warm is None else warm)):
            check_whole(name, value)
        if isinstance(tolerance, bool) or not 0.0 <= tolerance <= 1.0:
            raise InvalidValueError(f"tolerance is a share in [0, 1], not {tolerance!r}.")
        self.basis_rank, self.update = int(basis_rank), update
        self.warm, self.tolerance = warm, float(tolerance)
        self._blocks: dict[str, tuple[int, int, int]] = {}
        self._entry_part("rank", 1, torch.int64)
        self._bank_part("merged", 1, torch.int64)
        self._bank_part("tail", 2, torch.float64)

    def shared_bytes(self, entries: Ints) -> dict[str, Ints]:
        """Bytes of the bases in banks with so many entries (any shape): 0 while there are none."""
        numbers = sum(d * k for d, k, _ in self._blocks.values())
        return {"basis": (entries > 0) * np.int64(numbers * self._item)}

    def pack(
        self,
        rank: Ints,
        factors: SiteFactors | None,
        singular_values: Tensor | None,
        head: Head | None,
    ) -> dict[str, Tensor]:
        """Check the payload of n entries and bring it into canonical form.

        Singular values are not kept: the coefficients hold them.

        Raises:
            InvalidValueError: a part is missing, has another shape, or is not finite.
        """
        ranks = torch.from_numpy(rank).to(self.device)
        pairs = self._canonical(self._pack_factors(rank, factors), ranks)
        packed = {f"{side}.{name}": part for name, pair in pairs.items()
                  for side, part in zip(("up", "down"), pair, strict=True)}  # fmt: skip
        packed |= self._pack_head(len(rank), head)
        self._check_finite(*packed.values())
        kept = torch.from_numpy(np.ascontiguousarray(self.kept_rank(rank)))
        return packed | {"rank": kept.to(self.device)[:, None]}

    def write(
        self, rows: Ints, slots: Ints, packed: dict[str, Tensor], chosen: NDArray[np.bool_]
    ) -> None:
        """Write the `chosen` ones of the packed entries to these places, in order.

        Projects or merges, bank by bank, as `update` says; the banks are distinct.
        """
        packed = self._taken(packed, chosen)
        pairs = {name: (packed[f"up.{name}"], packed[f"down.{name}"]) for name in self.sites}
        where = self._index(rows), self._index(slots)
        for block in self._blocks:
            self._rows[f"coefficients.{block}"][where] = 0.0  # the old content is not merged
        for name in ("rank", "head"):
            if name in self._rows:
                self._rows[name][where] = packed[name]
        new, merging = self._columns(pairs), self._merging(where[0], pairs)
        for takes, into in ((merging, self._merge), (~merging, self._project)):
            at = torch.nonzero(takes)[:, 0]
            if len(at):
                into(where[0][at], where[1][at], {name: c[at] for name, c in new.items()})

    def drop(self, rows: Ints, slots: Ints) -> None:
        """Forget entries; with its last one a bank forgets its bases."""
        where = self._index(rows), self._index(slots)
        for name in ("rank", *(f"coefficients.{block}" for block in self._blocks)):
            self._rows[name][where] = 0
        left = self._rows["rank"][where[0]].any(1)[:, 0]
        for part in self._banks.values():
            part[where[0][~left]] = 0

    def residual(self, rows: Ints, factors: SiteFactors) -> NDArray[np.float64]:
        """Share of incoming adapters that lies outside the bases, the novelty signal of Share.

        Args:
            rows: (n,) banks, which may repeat.
            factors: site -> (up (n, d_out, r), down (n, r, d_in)) with r up to `max_rank`, in any
                factorisation.

        Returns:
            (n,) in [0, 1]; 1 where the bank is empty, 0 for an adapter that changes nothing.
        """
        whole = np.full(len(rows), self.max_rank, dtype=np.int64)
        padded = self._pack_factors(np.ones_like(whole), factors)
        pairs = self._canonical(padded, torch.from_numpy(whole).to(self.device))
        return self._outside(self._index(rows), pairs).cpu().numpy()

    def tail_energy(self, rows: Ints, *, relative: bool = False) -> NDArray[np.float64]:
        """Energy beyond the bases that the latest merge dropped, (n,), summed over all blocks.

        It is the squared error that merge added to the factors it stacked; 0 while a bank is empty.

        Args:
            rows: (n,) banks, which may repeat.
            relative: as a share of the energy of what was stacked, in [0, 1].
        """
        tail = self._banks["tail"][self._index(rows)]
        if relative:
            return (tail[:, 0] / tail[:, 1].clamp(min=torch.finfo(tail.dtype).tiny)).cpu().numpy()
        return tail[:, 0].cpu().numpy()

    def config(self) -> dict[str, Any]:
        """The arguments that build this store anew, as plain JSON."""
        return super().config() | {
            "basis_rank": self.basis_rank,
            "update": self.update,
            "warm": self.warm,
            "tolerance": self.tolerance,
        }

    @abstractmethod
    def _columns(self, pairs: SiteFactors) -> dict[str, Tensor]:
        """Columns (n, d, c) per block of n canonical entries."""

    @abstractmethod
    def _outside(self, rows: Tensor, pairs: SiteFactors) -> Tensor:
        """Share (n,) of the energy of canonical entries outside the bases of banks `rows`."""

    @abstractmethod
    def _settle(self, coefficients: dict[str, Tensor], rank: Tensor) -> dict[str, Tensor]:
        """Bring coefficients (n, k, c) of entries of these ranks (n,) into the form to keep."""

    def _block(self, name: str, length: int, columns: int) -> None:
        """Declare a basis of columns of this length, of which every entry keeps so many."""
        k = min(self.basis_rank, length)
        self._blocks[name] = length, k, columns
        self._bank_part(f"basis.{name}", length * k)
        self._entry_part(f"coefficients.{name}", k * columns)

    def _basis(self, block: str, rows: Tensor) -> Tensor:
        """The basis (n, d, k) of one block in banks `rows`."""
        d, k, _ = self._blocks[block]
        return self._banks[f"basis.{block}"][rows].reshape(len(rows), d, k)

    def _coefficients(self, block: str, rows: Tensor, slots: Tensor) -> Tensor:
        """The coefficients (n, k, c) of entries on one block."""
        _, k, c = self._blocks[block]
        return self._rows[f"coefficients.{block}"][rows, slots].reshape(len(rows), k, c)

    def _canonical(self, pairs: SiteFactors, ranks: Tensor) -> SiteFactors:
        """Cut entries at their ranks and bring them into canonical form, in double precision."""
        beyond = torch.arange(self.max_rank, device=self.device) >= ranks[:, None]
        cut = {}
        for name, (up, down) in pairs.items():
            left = up.double().masked_fill(beyond[:, None], 0.0)
            right = down.double().masked_fill(beyond[:, :, None], 0.0)
            self._check_finite(left, right)
            cut[name] = share.canonical(left, right, ranks, self.max_rank)
        return cut

    def _merging(self, rows: Tensor, pairs: SiteFactors) -> Tensor:
        """Which banks (n,) fit their bases anew for the entries that come."""
        if self.update == "merge":
            return torch.ones(len(rows), dtype=torch.bool, device=self.device)
        if self.update == "residual":
            # Without bases there is nothing to project on, however much is tolerated.
            empty = self._banks["merged"][rows, 0] == 0
            return empty | (self._outside(rows, pairs) > self.tolerance)
        if self.warm is not None:
            return self._banks["merged"][rows, 0] < self.warm
        full = [(self._basis(block, rows) != 0).any(1).all(1) for block in self._blocks]
        return ~torch.stack(full).all(0)

    def _merge(self, rows: Tensor, slots: Tensor, new: dict[str, Tensor]) -> None:
        """Fit the bases of distinct banks to what they hold and to one new entry each."""
        held = self._rows["rank"][rows, :, 0]
        bank, slot = torch.nonzero(held, as_tuple=True)
        entries, own = {}, torch.arange(len(rows), device=self.device)
        tail = torch.zeros(len(rows), 2, dtype=torch.float64, device=self.device)
        for block, columns in new.items():
            _, k, c = self._blocks[block]
            old = self._rows[f"coefficients.{block}"][rows].double()
            old = old.reshape(len(rows), -1, k, c).transpose(1, 2).flatten(2)
            basis = self._basis(block, rows).double()
            merged = share.merge(basis, old, columns, k, precision=self._torch_dtype)
            self._banks[f"basis.{block}"][rows] = merged.basis.flatten(1).to(self._torch_dtype)
            tail += torch.stack([merged.tail, merged.energy], 1)
            # The new entry may have more columns than are kept of the old ones.
            slots_of = merged.old.reshape(len(rows), k, -1, c).transpose(1, 2)
            wide = torch.nn.functional.pad(slots_of, (0, columns.shape[-1] - c))
            wide[own, slots] = merged.new
            entries[block] = wide[bank, slot]
        self._keep(rows[bank], slot, entries)
        self._banks["tail"][rows] = tail
        self._banks["merged"][rows] += 1

    def _project(self, rows: Tensor, slots: Tensor, new: dict[str, Tensor]) -> None:
        """Express one new entry of each bank on its bases, which stay as they are."""
        entries = {
            block: share.project(self._basis(block, rows).double(), columns)
            for block, columns in new.items()
        }
        self._keep(rows, slots, entries)

    def _keep(self, rows: Tensor, slots: Tensor, entries: dict[str, Tensor]) -> None:
        for block, kept in self._settle(entries, self._rows["rank"][rows, slots, 0]).items():
            flat = kept.flatten(1).to(self._torch_dtype)
            self._rows[f"coefficients.{block}"][rows, slots] = flat


def check_whole(name: str, value: object, *, most: int | None = None) -> None:
    """Check that an option is a whole number of at least 1, and at most `most`.

    Raises:
        InvalidValueError: it is not.
    """
    wrong = isinstance(value, bool) or not isinstance(value, int) or value < 1
    if wrong or (most is not None and isinstance(value, int) and value > most):
        upper = "" if most is None else f" and at most {most}"
        raise InvalidValueError(f"{name} is a whole number of at least 1{upper}; {value!r} came.")
