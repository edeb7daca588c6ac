"""Where a bank keeps the adapters themselves, and how many bytes an entry counts.

The bank's metadata is NumPy; the payload lives behind `FactorStore`. `PerEntryFactors` holds real
factors as torch tensors. `CountedFactors` holds nothing and counts the same bytes, for dynamics
that look outcomes up instead of training (it needs no torch).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Union

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import InvalidValueError, StateError, unknown

if TYPE_CHECKING:
    from torch import Tensor

SiteFactors = Mapping[str, tuple["Tensor", "Tensor"]]
Head = tuple["Tensor", "Tensor"]

Ints = NDArray[np.int64]
Weights = Union["Tensor", NDArray[Any]]

DTYPE_BYTES = {"float16": 2, "float32": 4, "float64": 8}


class FactorStore(Protocol):
    """What a bank asks of the place that holds the payload of its entries."""

    kind: ClassVar[str]
    """Its name in bank files."""
    coupled: ClassVar[bool]
    """Whether writing one entry changes the model of the others."""
    takes_device: ClassVar[bool]
    """Whether it is built with a `device`."""

    @property
    def max_rank(self) -> int:
        """Highest rank an entry may have."""
        ...

    def kept_rank(self, rank: Ints) -> Ints:
        """Ranks at which entries of these ranks (any shape) are kept; never higher."""
        ...

    def entry_bytes(self, rank: Ints) -> dict[str, Ints]:
        """Bytes by kind of entries of these ranks (any shape); rank 0 is no entry: 0 bytes."""
        ...

    def shared_bytes(self, entries: Ints) -> dict[str, Ints]:
        """Bytes by kind of what banks with so many entries (any shape) hold beside them."""
        ...

    def allocate(self, num_banks: int, slots: int) -> None:
        """Make room for `slots` entries in each bank and keep what is there."""
        ...

    def pack(
        self,
        rank: Ints,
        factors: SiteFactors | None,
        singular_values: Tensor | None,
        head: Head | None,
    ) -> Any:
        """Check the payload of n entries and bring it into the form that `write` takes."""
        ...

    def write(self, rows: Ints, slots: Ints, packed: Any, chosen: NDArray[np.bool_]) -> None:
        """Write the `chosen` ones of the packed entries to these places, in order."""
        ...

    def drop(self, rows: Ints, slots: Ints) -> None:
        """Forget the entries at these places, (n,) each; a bank may come more than once."""
        ...

    def read(self, rows: Ints, slots: Ints) -> dict[str, tuple[Tensor, Tensor]]:
        """Factors per site, with leading n, zero beyond each entry's rank."""
        ...

    def delta(self, rows: Ints, weights: Weights) -> dict[str, Tensor]:
        """Weighted sums of entries' updates, dense (n, d_out, d_in) per site; weights (n, K)."""
        ...

    def config(self) -> dict[str, Any]:
        """The arguments that build this store anew, as plain JSON."""
        ...

    def state(self, slots: int) -> dict[str, NDArray[Any]]:
        """The payload of the first `slots` entries of each bank, as arrays."""
        ...

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take the payload from what `state` gave."""
        ...


class CountedFactors:
    """A store that counts bytes and holds no factors.

    Args:
        sites: per site (d_out, d_in).
        max_rank: highest rank of an entry.
        head: (classes, features) where an entry has a linear head with a bias of its own.
        dtype: "float16", "float32" or "float64": the type the factors would have.

    Raises:
        InvalidValueError: no site, sizes below 1, a rank above the narrowest site, or an unknown
            type.
    """

    kind: ClassVar[str] = "counted"
    coupled: ClassVar[bool] = False
    takes_device: ClassVar[bool] = False

    def __init__(
        self,
        *,
        sites: Mapping[str, tuple[int, int]],
        max_rank: int,
        head: tuple[int, int] | None = None,
        dtype: str = "float32",
    ) -> None:
        if not sites:
            raise InvalidValueError("A store needs at least one site.")
        if dtype not in DTYPE_BYTES:
            raise unknown("factor type", dtype, DTYPE_BYTES)
        sizes = [*sites.values(), *([head] if head else [])]
        if any(len(size) != 2 or min(size) < 1 for size in sizes):
            raise InvalidValueError(f"Sites and head are (d_out, d_in) of at least 1: {sizes}.")
        widest = min(min(size) for size in sites.values())
        if not 1 <= max_rank <= widest:
            raise InvalidValueError(
                f"max_rank lies between 1 and {widest}, the narrowest side of the sites; "
                f"{max_rank} came."
            )
        self.sites = {name: (int(d_out), int(d_in)) for name, (d_out, d_in) in sites.items()}
        self.head_shape = (int(head[0]), int(head[1])) if head else None
        self.dtype = dtype
        self._max_rank = int(max_rank)

    @property
    def max_rank(self) -> int:
        """Highest rank an entry may have."""
        return self._max_rank

    @property
    def _item(self) -> int:
        return DTYPE_BYTES[self.dtype]

    def kept_rank(self, rank: Ints) -> Ints:
        """Ranks at which entries of these ranks (any shape) are kept: those they come with."""
        return rank

    def entry_bytes(self, rank: Ints) -> dict[str, Ints]:
        """Bytes by kind of entries of these ranks (any shape); rank 0 is no entry: 0 bytes."""
        item = self._item
        sides = sum(d_out + d_in for d_out, d_in in self.sites.values())
        return {
            "factors": rank * (sides * item),
            "singular_values": rank * (len(self.sites) * item),
            "head": self._head_bytes(rank),
        }

    def _head_bytes(self, rank: Ints) -> Ints:
        numbers = self.head_shape[0] * (self.head_shape[1] + 1) if self.head_shape else 0
        return (rank > 0) * np.int64(numbers * self._item)

    def shared_bytes(self, entries: Ints) -> dict[str, Ints]:
        """Nothing: entries have nothing in common."""
        return {}

    def allocate(self, num_banks: int, slots: int) -> None:
        """Nothing to do: nothing is held."""

    def pack(
        self,
        rank: Ints,
        factors: SiteFactors | None,
        singular_values: Tensor | None,
        head: Head | None,
    ) -> Any:
        """Refuse a payload, which would be lost.

        Raises:
            InvalidValueError: a payload came.
        """
        if factors is not None or singular_values is not None or head is not None:
            raise InvalidValueError(
                "This bank counts bytes and holds no factors; leave them out, or give the bank a "
                "PerEntryFactors store."
            )

    def write(self, rows: Ints, slots: Ints, packed: Any, chosen: NDArray[np.bool_]) -> None:
        """Nothing to do: nothing is held."""

    def drop(self, rows: Ints, slots: Ints) -> None:
        """Nothing to do: what lies there is not read again before it is written anew."""

    def read(self, rows: Ints, slots: Ints) -> dict[str, tuple[Tensor, Tensor]]:
        """Refuse: nothing is held.

        Raises:
            StateError: always.
        """
        raise StateError("This bank counts bytes and holds no factors; there are none to read.")

    def delta(self, rows: Ints, weights: Weights) -> dict[str, Tensor]:
        """Refuse: nothing is held.

        Raises:
            StateError: always.
        """
        raise StateError("This bank counts bytes and holds no factors; there are none to add up.")

    def config(self) -> dict[str, Any]:
        """The arguments that build this store anew, as plain JSON."""
        return {
            "kind": self.kind,
            "sites": {name: list(size) for name, size in self.sites.items()},
            "max_rank": self.max_rank,
            "head": list(self.head_shape) if self.head_shape else None,
            "dtype": self.dtype,
        }

    def state(self, slots: int) -> dict[str, NDArray[Any]]:
        """Nothing: nothing is held."""
        return {}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Nothing to do: nothing is held."""
