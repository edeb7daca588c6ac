"""A store that keeps the factors of every entry as torch tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from nsr_gym.bank.store import Head, Ints, SiteFactors, Weights
from nsr_gym.bank.tensors import TensorFactors
from nsr_gym.errors import InvalidValueError

if TYPE_CHECKING:
    from torch import Tensor


class PerEntryFactors(TensorFactors):
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
        super().__init__(sites=sites, max_rank=max_rank, head=head, dtype=dtype, device=device)
        torch = self._torch
        self._entry_part("factors", max_rank * sum(a + b for a, b in self.sites.values()))
        self._entry_part("singular_values", max_rank * len(self.sites))
        # Which direction each number of a row belongs to; those from an entry's rank on are zero.
        r = torch.arange(max_rank)
        parts = [(r.expand(a, -1).flatten(), r[:, None].expand(-1, b).flatten()) for a, b in
                 self.sites.values()]  # fmt: skip
        self._direction = {
            "factors": torch.cat([x for pair in parts for x in pair]).to(self.device),
            "singular_values": r.repeat(len(self.sites)).to(self.device),
        }

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
        torch, n, most = self._torch, len(rank), int(rank.max(initial=0))
        pairs = self._pack_factors(rank, factors).values()
        packed = {"factors": torch.cat([f.flatten(1) for pair in pairs for f in pair], 1)}
        if singular_values is None:
            values = [up.norm(dim=-2) * down.norm(dim=-1) for up, down in pairs]
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
        packed |= self._pack_head(n, head)
        self._check_finite(*packed.values())
        return packed

    def read(self, rows: Ints, slots: Ints) -> dict[str, tuple[Tensor, Tensor]]:
        """Factors per site: up (n, d_out, max_rank) and down (n, max_rank, d_in), copies."""
        return self._split(self._rows["factors"][self._index(rows), self._index(slots)])

    def read_singular_values(self, rows: Ints, slots: Ints) -> Tensor:
        """Singular values (n, sites, max_rank), zero from each entry's rank on."""
        flat = self._rows["singular_values"][self._index(rows), self._index(slots)]
        return flat.reshape(len(rows), len(self.sites), self.max_rank)

    def delta(self, rows: Ints, weights: Weights) -> dict[str, Tensor]:
        """Weighted sums of entries' updates, `sum_j w_j dW_j`.

        Args:
            rows: (n,) banks.
            weights: (n, K) of any sign, zero where a bank holds no entry; a tensor's gradient is
                kept.

        Returns:
            Per site (n, d_out, d_in), dense, as it is to be added to a frozen weight.
        """
        w = self._weights(weights)[:, :, None, None]
        parts = self._split(self._rows["factors"][self._index(rows)])
        return {
            name: (up.to(w.dtype) * w).transpose(1, 2).flatten(2) @ down.to(w.dtype).flatten(1, 2)
            for name, (up, down) in parts.items()
        }
