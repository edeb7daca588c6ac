"""What the stores that hold torch tensors have in common: layout, input checks, heads, files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nsr_gym.bank.store import CountedFactors, Head, Ints, SiteFactors, Weights
from nsr_gym.errors import InvalidValueError, StateError

if TYPE_CHECKING:
    from torch import Tensor


class TensorFactors(CountedFactors):
    """The base of stores on a torch device; what lies in an entry is up to the store.

    A store declares its parts by `_entry_part` (E, K, size) and `_bank_part` (E, size); every part
    of an entry is one flat row, so that a write is one indexed copy and a read one gather.

    Args:
        sites: per site (d_out, d_in).
        max_rank: highest rank of an entry; reads are padded to it.
        head: (classes, features) where an entry has a linear head with a bias of its own.
        dtype: "float16", "float32" or "float64".
        device: a torch device, such as "cpu" or "cuda".

    Raises:
        InvalidValueError: as in `CountedFactors`.
    """

    takes_device: ClassVar[bool] = True

    def __init__(
        self,
        *,
        sites: Mapping[str, tuple[int, int]],
        max_rank: int,
        head: tuple[int, int] | None = None,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        super().__init__(sites=sites, max_rank=max_rank, head=head, dtype=dtype)
        import torch

        self._torch = torch
        self.device = torch.device(device)
        self._rows: dict[str, Tensor] = {}
        self._banks: dict[str, Tensor] = {}
        if self.head_shape:
            self._entry_part("head", self.head_shape[0] * (self.head_shape[1] + 1))

    def allocate(self, num_banks: int, slots: int) -> None:
        """Make room for `slots` entries in each bank and keep what is there."""
        for name, old in self._rows.items():
            if old.shape[:2] != (num_banks, slots):
                new = old.new_zeros(num_banks, slots, old.shape[2])
                new[: old.shape[0], : old.shape[1]] = old
                self._rows[name] = new
        for name, old in self._banks.items():
            if len(old) != num_banks:
                self._banks[name] = old.new_zeros(num_banks, *old.shape[1:])

    def write(
        self, rows: Ints, slots: Ints, packed: dict[str, Tensor], chosen: NDArray[np.bool_]
    ) -> None:
        """Write the `chosen` ones of the packed entries to these places, in order."""
        where = self._index(rows), self._index(slots)
        for name, part in self._taken(packed, chosen).items():
            self._rows[name][where] = part

    def read_head(self, rows: Ints, slots: Ints) -> Head:
        """Weight (n, classes, features) and bias (n, classes).

        Raises:
            StateError: the store keeps no heads.
        """
        if self.head_shape is None:
            raise StateError("This store keeps no heads; build it with head=(classes, features).")
        flat, (a, b) = self._rows["head"][self._index(rows), self._index(slots)], self.head_shape
        return flat[:, : a * b].reshape(len(rows), a, b), flat[:, a * b :]

    def state(self, slots: int) -> dict[str, NDArray[Any]]:
        """The payload of the first `slots` entries of each bank, as arrays."""
        parts = {name: part[:, :slots] for name, part in self._rows.items()} | self._banks
        return {name: part.contiguous().cpu().numpy() for name, part in parts.items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take the payload from what `state` gave."""
        for parts in (self._rows, self._banks):
            for name, part in parts.items():
                came = self._torch.from_numpy(np.array(state[name])).to(self.device)
                if parts is self._rows:
                    part[:, : came.shape[1]] = came
                else:
                    part[...] = came

    def _pack_factors(self, rank: Ints, factors: SiteFactors | None) -> SiteFactors:
        """Check the factors of n entries; per site up (n, d_out, R) and down (n, R, d_in)."""
        if factors is None or set(factors) != set(self.sites):
            came = "none" if factors is None else ", ".join(sorted(factors))
            raise InvalidValueError(
                f"An entry's factors cover the sites {', '.join(self.sites)}; {came} came."
            )
        n, most, padded = len(rank), int(rank.max(initial=0)), {}
        for name, (d_out, d_in) in self.sites.items():
            up, down = (f.detach().to(self.device, self._torch_dtype) for f in factors[name])
            if n == 1 and up.ndim == down.ndim == 2:
                up, down = up[None], down[None]
            r = up.shape[-1]
            if up.shape != (n, d_out, r) or down.shape != (n, r, d_in) or r > self.max_rank:
                raise InvalidValueError(
                    f"Site {name!r} takes up ({n}, {d_out}, r) and down ({n}, r, {d_in}) with r "
                    f"at most {self.max_rank}; shapes {tuple(up.shape)} and {tuple(down.shape)} "
                    "came."
                )
            if r < most:
                raise InvalidValueError(
                    f"Site {name!r} has {r} directions, which is less than rank {most}."
                )
            room = self.max_rank - r
            functional = self._torch.nn.functional
            padded[name] = functional.pad(up, (0, room)), functional.pad(down, (0, 0, 0, room))
        return padded

    def _pack_head(self, n: int, head: Head | None) -> dict[str, Tensor]:
        """Check the heads of n entries and lay them out; nothing where none are kept."""
        if head is None and self.head_shape is None:
            return {}
        if head is None or self.head_shape is None:
            raise InvalidValueError(
                "This store keeps a head with every entry; give head=(weight, bias)."
                if head is None
                else "This store keeps no heads; build it with head=(classes, features)."
            )
        weight, bias = (part.detach().to(self.device, self._torch_dtype) for part in head)
        if n == 1 and weight.ndim == 2:
            weight, bias = weight[None], bias[None]
        if weight.shape != (n, *self.head_shape) or bias.shape != (n, self.head_shape[0]):
            raise InvalidValueError(
                f"The head is weight {(n, *self.head_shape)} and bias {(n, self.head_shape[0])}; "
                f"shapes {tuple(weight.shape)} and {tuple(bias.shape)} came."
            )
        return {"head": self._torch.cat([weight.flatten(1), bias], 1)}

    def _split(self, flat: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Flat rows (..., size) as up (..., d_out, R) and down (..., R, d_in) per site."""
        lead, r = flat.shape[:-1], self.max_rank
        parts = flat.split([r * side for size in self.sites.values() for side in size], -1)
        return {
            name: (parts[2 * i].reshape(*lead, a, r), parts[2 * i + 1].reshape(*lead, r, b))
            for i, (name, (a, b)) in enumerate(self.sites.items())
        }

    def _check_finite(self, *parts: Tensor) -> None:
        if not all(bool(part.isfinite().all()) for part in parts):
            raise InvalidValueError(
                "The factors, singular values or head to store hold NaN or infinite values; "
                "discard the result of this visit instead of reserving it."
            )

    def _weights(self, weights: Weights) -> Tensor:
        """Weights or factors of entries as a tensor in the type of what is computed with them."""
        return self._torch.as_tensor(weights, device=self.device).to(self._wide)

    def _taken(self, packed: dict[str, Tensor], chosen: NDArray[np.bool_]) -> dict[str, Tensor]:
        """The `chosen` ones of packed entries."""
        if chosen.all():
            return packed
        keep = self._torch.from_numpy(chosen).to(self.device)
        return {name: part[keep] for name, part in packed.items()}

    def _entry_part(self, name: str, size: int, dtype: Any = None) -> None:
        self._rows[name] = self._torch.zeros(
            (0, 0, size), dtype=dtype or self._torch_dtype, device=self.device
        )

    def _bank_part(self, name: str, size: int, dtype: Any = None) -> None:
        self._banks[name] = self._torch.zeros(
            (0, size), dtype=dtype or self._torch_dtype, device=self.device
        )

    @property
    def _torch_dtype(self) -> Any:
        return getattr(self._torch, self.dtype)

    @property
    def _wide(self) -> Any:
        """The type to compute in: half precision is for keeping only."""
        return self._torch.promote_types(self._torch_dtype, self._torch.float32)

    def _index(self, numbers: Ints) -> Tensor:
        return self._torch.from_numpy(numbers).to(self.device)
