"""A store that keeps the factors of every entry as torch tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nsr_gym.bank.store import CountedFactors, Head, Ints, SiteFactors
from nsr_gym.errors import InvalidValueError, StateError

if TYPE_CHECKING:
    from torch import Tensor


class PerEntryFactors(CountedFactors):
    """A store that gives every entry factors of its own, as torch tensors.

    The factors of an entry lie in one flat row, all sites one after the other, so that a write is
    one indexed copy and a read one gather, whatever the number of sites.

    Args:
        sites: per site (d_out, d_in).
        max_rank: highest rank of an entry; reads are padded to it.
        head: (classes, features) where an entry has a linear head with a bias of its own.
        dtype: "float16", "float32" or "float64".
        device: a torch device, such as "cpu" or "cuda".

    Raises:
        InvalidValueError: as in `CountedFactors`.
    """

    kind: ClassVar[str] = "per-entry"

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
        sizes = {"factors": max_rank * sum(a + b for a, b in self.sites.values())}
        sizes["singular_values"] = max_rank * len(self.sites)
        if self.head_shape:
            sizes["head"] = self.head_shape[0] * (self.head_shape[1] + 1)
        self._rows = {name: self._empty(0, 0, size) for name, size in sizes.items()}
        # Which direction each number of a row belongs to; those from an entry's rank on are zero.
        r = torch.arange(max_rank)
        parts = [(r.expand(a, -1).flatten(), r[:, None].expand(-1, b).flatten()) for a, b in
                 self.sites.values()]  # fmt: skip
        self._direction = {
            "factors": torch.cat([x for pair in parts for x in pair]).to(self.device),
            "singular_values": r.repeat(len(self.sites)).to(self.device),
        }

    def allocate(self, num_banks: int, slots: int) -> None:
        """Make room for `slots` entries in each bank and keep what is there."""
        for name, old in self._rows.items():
            if old.shape[:2] != (num_banks, slots):
                new = self._empty(num_banks, slots, old.shape[2])
                new[: old.shape[0], : old.shape[1]] = old
                self._rows[name] = new

    def pack(
        self,
        rank: Ints,
        factors: SiteFactors | None,
        singular_values: Tensor | None,
        head: Head | None,
    ) -> dict[str, Tensor]:
        """Check the payload of n entries and lay it out in rows.

        Directions from an entry's rank on are not stored. Without `singular_values` they are taken
        as the products of the directions' norms, which is exact in canonical form.

        Raises:
            InvalidValueError: a part is missing, has another shape, or is not finite.
        """
        if factors is None or set(factors) != set(self.sites):
            came = "none" if factors is None else ", ".join(sorted(factors))
            raise InvalidValueError(
                f"An entry's factors cover the sites {', '.join(self.sites)}; {came} came."
            )
        torch, n, flat, values = self._torch, len(rank), [], []
        most = int(rank.max(initial=0))
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
            up = torch.nn.functional.pad(up, (0, room))
            down = torch.nn.functional.pad(down, (0, 0, 0, room))
            flat += [up.flatten(1), down.flatten(1)]
            if singular_values is None:
                values.append(up.norm(dim=-2) * down.norm(dim=-1))
        packed = {"factors": torch.cat(flat, 1)}
        if singular_values is None:
            packed["singular_values"] = torch.cat(values, 1)
        else:
            s = singular_values.detach().to(self.device, self._torch_dtype)
            s = s[None] if n == 1 and s.ndim == 2 else s
            room = self.max_rank - s.shape[-1]
            if s.shape[:-1] != (n, len(self.sites)) or room < 0 or s.shape[-1] < most:
                raise InvalidValueError(
                    f"singular_values has shape ({n}, {len(self.sites)}, r) in the order of the "
                    f"sites; {tuple(s.shape)} came."
                )
            packed["singular_values"] = torch.nn.functional.pad(s, (0, room)).flatten(1)
        limit = torch.from_numpy(rank).to(self.device)[:, None]
        for name, direction in self._direction.items():
            packed[name] = packed[name].masked_fill(direction >= limit, 0.0)
        if self.head_shape or head is not None:
            packed["head"] = self._pack_head(n, head)
        if not all(bool(part.isfinite().all()) for part in packed.values()):
            raise InvalidValueError(
                "The factors, singular values or head to store hold NaN or infinite values; "
                "discard the result of this visit instead of reserving it."
            )
        return packed

    def _pack_head(self, n: int, head: Head | None) -> Tensor:
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
        return self._torch.cat([weight.flatten(1), bias], 1)

    def write(
        self, rows: Ints, slots: Ints, packed: dict[str, Tensor], chosen: NDArray[np.bool_]
    ) -> None:
        """Write the `chosen` ones of the packed entries to these places, in order."""
        where = self._index(rows), self._index(slots)
        keep = None if chosen.all() else self._torch.from_numpy(chosen).to(self.device)
        for name, part in packed.items():
            self._rows[name][where] = part if keep is None else part[keep]

    def read(self, rows: Ints, slots: Ints) -> dict[str, tuple[Tensor, Tensor]]:
        """Factors per site: up (n, d_out, max_rank) and down (n, max_rank, d_in), copies."""
        flat = self._rows["factors"][self._index(rows), self._index(slots)]
        sizes = [self.max_rank * side for size in self.sites.values() for side in size]
        parts, n, r = flat.split(sizes, 1), len(rows), self.max_rank
        return {
            name: (parts[2 * i].reshape(n, a, r), parts[2 * i + 1].reshape(n, r, b))
            for i, (name, (a, b)) in enumerate(self.sites.items())
        }

    def read_singular_values(self, rows: Ints, slots: Ints) -> Tensor:
        """Singular values (n, sites, max_rank), zero from each entry's rank on."""
        flat = self._rows["singular_values"][self._index(rows), self._index(slots)]
        return flat.reshape(len(rows), len(self.sites), self.max_rank)

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
        return {k: v[:, :slots].contiguous().cpu().numpy() for k, v in self._rows.items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take the payload from what `state` gave."""
        for name, rows in self._rows.items():
            came = self._torch.from_numpy(np.array(state[name]))
            rows[:, : came.shape[1]] = came.to(self.device)

    @property
    def _torch_dtype(self) -> Any:
        return getattr(self._torch, self.dtype)

    def _empty(self, *shape: int) -> Tensor:
        return self._torch.zeros(shape, dtype=self._torch_dtype, device=self.device)

    def _index(self, numbers: Ints) -> Tensor:
        return self._torch.from_numpy(numbers).to(self.device)


STORES: dict[str, type[CountedFactors]] = {
    CountedFactors.kind: CountedFactors,
    PerEntryFactors.kind: PerEntryFactors,
}
