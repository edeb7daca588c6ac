"""What a learner is given to train one visit of n episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nsr_gym.errors import StateError
from nsr_gym.learning.adapters import Adapters, Deltas

Stacks = Mapping[str, tuple[Tensor, Tensor]]
"""Site name -> two tensors with leading n: factors of many entries, or bases of two sides."""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One visit of n episodes, before anything is trained.

    Attributes:
        tasks: (n,) int64, the visited task of each episode.
        start: the adapters to start from; they are not modified.
        batches: (n, L, u, batch size) int64, which training images each update sees.
        recalled: (n,) bool, which episodes distil towards their start; None: none does.
        trainable: (n, R) bool, which directions may change; None: all. Directions whose factors
            are both zero never change, so a smaller granted rank needs no mask.
        base: site -> (n, d_out, d_in), added to the frozen weights under the adapter and not
            trained; None: nothing is.
        batch_tasks: (n, L, u, batch size) int64, the task that each image belongs to where that
            is not the visited one for all; None: it is.
        ranks: (n,) int64, the granted ranks.
        occupied: (n,) int64, leading directions of `start` that hold recalled knowledge.
        rows: (n,) the episodes, for what a learner keeps of each from visit to visit.
        numbers: (n,) how many visits each episode has had before.
        keys: (n, 2) uint64, the episodes' keys, from which all their randomness follows.
        others: site -> (up (n, K, d_out, R), down (n, K, R, d_in)), every entry of an additive
            bank other than the recalled one, zero in empty slots; None: another bank.
        basis: site -> (beta (n, d_out, k), alpha (n, d_in, k)), the bases of a bank that shares
            them, zero columns where there are fewer; None: another bank.
        extra: whatever runs are handed by name, with leading n: by a learner's `prepare`, or by
            `nsr_gym.learning.validating`, which has them measure on validation images too.
    """

    tasks: Tensor
    start: Adapters
    batches: Tensor
    recalled: Tensor | None = None
    trainable: Tensor | None = None
    base: Deltas | None = None
    batch_tasks: Tensor | None = None
    ranks: Tensor | None = None
    occupied: Tensor | None = None
    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    numbers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros((0, 2), dtype=np.uint64))
    others: Stacks | None = None
    basis: Stacks | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return n."""
        return len(self.tasks)

    def __getitem__(self, rows: slice) -> Self:
        """Return the visit of some of the episodes (a view)."""
        return type(self)(**{f.name: _part(getattr(self, f.name), rows) for f in fields(self)})


def check_keys(visit: Visit) -> None:
    """Refuse a visit without what its randomness follows from.

    Raises:
        StateError: it comes without keys and numbers of its episodes.
    """
    if len(visit.keys) != len(visit) or len(visit.numbers) != len(visit):
        raise StateError(
            f"Expected keys and numbers of all {len(visit)} episodes of the visit, from which its "
            f"randomness follows; got {len(visit.keys)} and {len(visit.numbers)}. Give them to "
            "Visit."
        )


def random_of(visit: Visit, purpose: int) -> list[np.random.Generator]:
    """Return a generator for each episode, which depends on its key and number alone.

    Args:
        visit: whose numbers they are.
        purpose: what they are for; each purpose has a stream of its own.

    Raises:
        StateError: the visit comes without keys and numbers.
    """
    check_keys(visit)
    # Philox is counter based: key and counter name the stream, nothing is advanced.
    return [
        np.random.Generator(
            np.random.Philox(key=key, counter=np.array([0, 0, purpose, number], dtype=np.uint64))
        )
        for key, number in zip(visit.keys, visit.numbers, strict=True)
    ]


def _part(value: Any, rows: slice) -> Any:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {name: _part(part, rows) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_part(part, rows) for part in value)
    return value[rows]
