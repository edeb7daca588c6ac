"""Where each observed quantity lies in the flat observation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from nsr_gym.errors import AccessError

Floats = NDArray[np.float32]

VIEW_FIELDS = ("similarity", "stored_rank", "accuracy", "age", "recalls", "trial_loss")
"""Per viewed entry: cosine similarity; rank / R; accuracy when reserved; visits since, and times
recalled, over the stream's visits; scaled loss of a trial load. An absent entry has rank 0."""

GLOBAL_FIELDS = ("occupancy", "budget_left", "visits_left", "bare_loss")
"""Entries over capacity; share of the byte budget left; share of the visits left; scaled loss of
the bare backbone on the visited task."""

SIGNAL_FIELDS = ("energy", "novelty", "free_capacity")
"""With `observe_signals`: per grantable rank, the share of the arriving task's first gradient that
its leading directions keep; the share of it outside what the bank holds; room for directions."""

TASK_FIELDS = ("same_task", "task")
"""With `observe_task_id`: which viewed entries were last trained on the visited task; its index
over M - 1."""


@dataclass(frozen=True)
class Layout:
    """Names and sizes of the observed fields, in order.

    Attributes:
        sizes: field name -> number of values.
    """

    sizes: Mapping[str, int]

    @property
    def size(self) -> int:
        """Number of values of one flat observation."""
        return sum(self.sizes.values())

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Field name -> its place in the flat observation."""
        ends = np.cumsum(list(self.sizes.values()))
        return {
            name: slice(int(end) - size, int(end))
            for (name, size), end in zip(self.sizes.items(), ends, strict=True)
        }

    def space(self, kind: str) -> spaces.Space[Any]:
        """Return the observation space, `"flat"` or `"dict"`; all values lie in [0, 1]."""
        if kind == "flat":
            return spaces.Box(0.0, 1.0, (self.size,), np.float32)
        return spaces.Dict(
            {name: spaces.Box(0.0, 1.0, (size,), np.float32) for name, size in self.sizes.items()}
        )

    def encode(self, n: int, values: Mapping[str, NDArray[Any]]) -> Floats:
        """Lay n observations' fields side by side, (n, size) float32."""
        flat = np.zeros((n, self.size), dtype=np.float32)
        for name, place in self.slices.items():
            flat[:, place] = np.clip(values[name].reshape(n, -1), 0.0, 1.0)
        return flat

    def as_dict(self, flat: Floats) -> dict[str, Floats]:
        """Return the same values by name; `flat` is (..., size)."""
        return {name: flat[..., place].copy() for name, place in self.slices.items()}

    def read(self, observation: NDArray[Any] | Mapping[str, NDArray[Any]], name: str) -> Floats:
        """Return a field of flat or dict observations, (..., size of the field).

        Raises:
            AccessError: the environment withholds the field.
        """
        if name not in self.sizes:
            raise AccessError(
                f"This environment withholds {name!r}; it shows {', '.join(self.sizes)}."
            )
        if isinstance(observation, Mapping):
            return np.asarray(observation[name])
        return np.asarray(observation)[..., self.slices[name]]


@dataclass(frozen=True)
class ObservationLayout(Layout):
    """The fields of a live environment, and the scale of their losses.

    Attributes:
        sizes: field name -> number of values.
        num_classes: classes of a task; a loss is scaled by that of guessing among them.
        ranks: the ranks that can be granted.
    """

    num_classes: int
    ranks: tuple[int, ...]

    def scale_loss(self, loss: NDArray[Any]) -> NDArray[Any]:
        """Map a cross-entropy in nats to [0, 1]: loss / (loss + log C), 0.5 for guessing.

        The loss of a model that has diverged is 1.
        """
        guess = math.log(max(2, self.num_classes))
        return np.where(np.isfinite(loss), 1.0 - guess / (loss + guess), 1.0)

    def unscale_loss(self, value: NDArray[Any]) -> NDArray[Any]:
        """Map an observed loss back to nats."""
        value = np.minimum(np.asarray(value, dtype=np.float64), 1.0 - 1e-7)
        return np.asarray(value / (1.0 - value) * math.log(max(2, self.num_classes)))
