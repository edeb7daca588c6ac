"""The interface of every router, and the arrays that they keep for E banks side by side."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nsr_gym.errors import DataError, InvalidValueError
from nsr_gym.routing.arrays import check_count, longer

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Written:
    """Entries of n different banks that were just added or updated, one in each.

    Attributes:
        rows: (n,) the banks.
        slots: (n,) where the entries lie.
        features: (n, k, d) routing features of the training inputs that they were learned from.
        embedding: (n, e) unit task embeddings, as the bank keeps them.
        tasks: (n,) the true tasks; the oracle alone reads them.
        factors: site -> up (n, d_out, R) and down (n, R, d_in), as the bank keeps them; may be
            empty where the router does not read factors.
    """

    rows: Ints
    slots: Ints
    features: Tensor
    embedding: Tensor
    tasks: Ints
    factors: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Query:
    """k inputs for each of n banks; a bank may be asked several times.

    Attributes:
        rows: (n,) the banks.
        features: (n, k, d) routing features.
        tasks: (n,) the true tasks; the oracle alone reads them.
        inputs: site -> (n, k, d_in), what arrives at the sites in the frozen backbone; may be
            empty unless the router's `needs_inputs` is set.
    """

    rows: Ints
    features: Tensor
    tasks: Ints
    inputs: Mapping[str, Tensor] = field(default_factory=dict)


class Router(abc.ABC):
    """Decides for inputs which entry of their bank serves them.

    Scores and weights are decided for every input alone: they do not depend on the inputs or banks
    beside it, except for rounding in the last places of a float64. What a router knows about an
    entry it was told by `learn`; nothing else of the bank is looked at. Place 0 of every answer is
    the backbone alone, place 1 + s the entry in slot s.

    Attributes:
        name: in `nsr_gym.routing.ROUTERS`.
        soft: `weights` mixes entries (sum of `w_i B_i A_i`, the product mix) instead of choosing.
        needs_inputs: `Query.inputs` must hold what arrives at the sites.
        num_banks: E.
        feature_dim: d.
        slots: K, entries there is room for in each bank.
    """

    name: ClassVar[str]
    soft: ClassVar[bool] = False
    needs_inputs: ClassVar[bool] = False

    def __init__(
        self,
        *,
        num_banks: int,
        feature_dim: int,
        device: str = "cpu",
    ) -> None:
        """Prepare for `num_banks` empty banks without room for entries.

        Args:
            num_banks: E.
            feature_dim: d.
            device: a torch device.

        Raises:
            InvalidValueError: a number out of range.
        """
        check_count("num_banks", num_banks)
        check_count("feature_dim", feature_dim)
        self.num_banks, self.feature_dim = int(num_banks), int(feature_dim)
        self.device = torch.device(device)
        self.slots = 0
        self._keys = np.zeros((num_banks, 2), dtype=np.uint64)
        self._held = torch.zeros((num_banks, 0), dtype=torch.bool, device=self.device)
        self._parts: dict[str, Tensor] = {}

    def begin(self, rows: Ints, keys: NDArray[np.uint64]) -> None:
        """Forget everything about banks `rows`, which start anew with episode keys (n, 2)."""
        index = self._index(rows)
        self._keys[rows] = keys
        self._held[index] = False
        for part in self._parts.values():
            part[index] = 0

    def allocate(self, slots: int) -> None:
        """Make room for `slots` entries in each bank and keep what is there.

        Raises:
            InvalidValueError: fewer than there is room for already.
        """
        if slots < self.slots:
            raise InvalidValueError(
                f"Expected room for at least the {self.slots} entries there is room for; got "
                f"{slots}. Entries leave by drop."
            )
        more = slots - self.slots
        self._held = longer(self._held, more)
        self._parts = {name: longer(part, more) for name, part in self._parts.items()}
        self.slots = int(slots)

    @torch.no_grad()
    def learn(self, written: Written) -> None:
        """Learn that the inputs of these entries belong to them.

        Raises:
            InvalidValueError: shapes do not fit, a bank appears twice, or a slot lies beyond
                the room there is.
            DataError: features that are not finite.
        """
        n = len(written.rows)
        if len(np.unique(written.rows)) != n:
            raise InvalidValueError(
                "Expected entries of different banks, one in each; write those of the same bank "
                "one after the other."
            )
        self._check_slots(written.slots)
        features = self._features(written.features, n)
        rows, slots = self._index(written.rows), self._index(written.slots)
        self._learn(rows, slots, features, written)
        self._held[rows, slots] = True

    @torch.no_grad()
    def drop(self, rows: Ints, slots: Ints) -> None:
        """Forget entries that are gone; rows may repeat, unknown entries are passed over.

        Raises:
            InvalidValueError: a slot lies beyond the room there is.
        """
        pairs = np.stack([np.asarray(rows), np.asarray(slots)], 1).astype(np.int64)
        self._check_slots(pairs[:, 1])
        pairs = np.unique(pairs, axis=0)
        self._forget(self._index(pairs[:, 0]), self._index(pairs[:, 1]))

    @torch.no_grad()
    def scores(self, query: Query) -> Tensor:
        """Return how well every place fits every input, (n, k, 1 + K) float64.

        Minus infinity where there is no entry, and for the backbone where it never serves.
        """
        features, rows = self._checked(query)
        scores = self._place_scores(rows, features, query)
        return scores.masked_fill(self._vacant(rows).unsqueeze(1), -torch.inf)

    @torch.no_grad()
    def weights(self, query: Query) -> Tensor:
        """Return the share of every place in serving every input, (n, k, 1 + K) float64, sum 1.

        One place alone, that of the highest score (the first on ties), unless `soft` is set. The
        backbone serves where nothing is held.
        """
        scores = self.scores(query)
        if self.soft:
            return self._mixed(scores)
        return functional.one_hot(scores.argmax(-1), scores.shape[-1]).double()

    @torch.no_grad()
    def set_scores(self, query: Query) -> Tensor:
        """Return how well every place fits the k inputs as a set from one task, (n, 1 + K).

        float64 in [0, 1], larger is better, 0 where there is no entry and for a backbone without
        a score. This is what an observation shows and what the view is sorted by.
        """
        features, rows = self._checked(query)
        scores = self._place_set_scores(rows, features, query)
        return scores.clamp(0.0, 1.0).masked_fill(self._vacant(rows), 0.0)

    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes kept for each of n banks, (n,) int64.

        What belongs to entries that are held, in the type in which it is held. Neither what all
        banks share (a random projection) nor counters are counted, as in the bank itself.
        """
        each = sum(
            int(np.prod(part.shape[2:], dtype=np.int64)) * part.element_size()
            for name, part in self._parts.items()
            if name not in self._uncounted()
        )
        held = self._held[self._index(rows)].sum(1).cpu().numpy()
        return np.asarray(held * each, dtype=np.int64)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return everything the router knows, as arrays that `restore` takes."""
        parts = {f"part/{name}": part.cpu().numpy().copy() for name, part in self._parts.items()}
        return {"keys": self._keys.copy(), "held": self._held.cpu().numpy().copy()} | parts

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take what `state` gave, exactly.

        Raises:
            InvalidValueError: the state of another kind of router, or of another size.
        """
        missing = {"keys", "held", *(f"part/{name}" for name in self._parts)} - set(state)
        if missing:
            raise InvalidValueError(
                f"The state lacks {', '.join(sorted(missing))}; it is not one of a {self.name!r} "
                "router."
            )
        slots = state["held"].shape[1]
        parts = {k[5:]: v for k, v in state.items() if k.startswith("part/")}
        for name, array in ({"held": state["held"]} | parts).items():
            own = self._parts.get(name)
            further = array.shape[2:] if own is None else own.shape[2:]
            if array.shape != (self.num_banks, slots, *further):
                raise InvalidValueError(
                    f"{name!r} of the state has shape {array.shape}, which does not fit a "
                    f"{self.name!r} router of {self.num_banks} banks and {self.feature_dim} "
                    "features. Build it with the arguments it was saved with."
                )
        self._keys = np.array(state["keys"], dtype=np.uint64)
        self._held = torch.from_numpy(np.array(state["held"])).to(self.device)
        self._parts = {
            name: torch.from_numpy(np.array(array)).to(self.device) for name, array in parts.items()
        }
        self.slots = slots

    @abc.abstractmethod
    def _learn(self, rows: Tensor, slots: Tensor, features: Tensor, written: Written) -> None:
        """Learn entries (rows, slots) from float64 features (n, k, d)."""

    @abc.abstractmethod
    def _place_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        """Return the scores of all places, (n, k, 1 + K); those of empty slots are not read."""

    @abc.abstractmethod
    def _place_set_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        """Return the set's scores, (n, 1 + K); those of empty slots are not read."""

    def _forget(self, rows: Tensor, slots: Tensor) -> None:
        """Forget entries (rows, slots), each pair once."""
        self._held[rows, slots] = False
        for part in self._parts.values():
            part[rows, slots] = 0

    def _mixed(self, scores: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} is soft and must say how it mixes.")

    def _uncounted(self) -> set[str]:
        """Names of parts that `nbytes` leaves out."""
        return set()

    def _add_part(self, name: str, *shape: int, dtype: torch.dtype = torch.float64) -> None:
        """Keep an array (E, K, *shape), zero for every entry that is not held."""
        size = (self.num_banks, self.slots, *shape)
        self._parts[name] = torch.zeros(size, dtype=dtype, device=self.device)

    def _vacant(self, rows: Tensor) -> Tensor:
        """Return which places have no entry, (n, 1 + K); the backbone is always there."""
        return functional.pad(~self._held[rows], (1, 0), value=False)

    def _index(self, numbers: Ints) -> Tensor:
        return torch.from_numpy(np.asarray(numbers, dtype=np.int64)).to(self.device)

    def _check_slots(self, slots: Ints) -> None:
        if len(slots) and not 0 <= int(slots.min()) <= int(slots.max()) < self.slots:
            raise InvalidValueError(
                f"Expected slots between 0 and {self.slots - 1}; got {slots}. Call allocate when "
                "the bank grows."
            )

    def _checked(self, query: Query) -> tuple[Tensor, Tensor]:
        return self._features(query.features, len(query.rows)), self._index(query.rows)

    def _features(self, features: Tensor, n: int) -> Tensor:
        shape = tuple(features.shape)
        if len(shape) != 3 or shape[0] != n or shape[1] < 1 or shape[2] != self.feature_dim:
            raise InvalidValueError(
                f"Expected features of shape ({n}, k, {self.feature_dim}) with k of at least 1; "
                f"got {shape}."
            )
        double = features.detach().to(self.device, torch.float64)
        if not bool(double.isfinite().all()):
            raise DataError("Expected finite features; NaN or infinite values came.")
        return double
