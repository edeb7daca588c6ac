"""Routers that score every entry by itself."""

from __future__ import annotations

import abc

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.errors import InvalidValueError
from nsr_gym.routing.base import Query, Router


class EntryRouter(Router):
    """A router that scores every entry by itself; the backbone has a fixed score or none."""

    def __init__(
        self,
        *,
        num_banks: int,
        feature_dim: int,
        device: str = "cpu",
        threshold: float | None = None,
    ) -> None:
        """Prepare for `num_banks` empty banks.

        Args:
            num_banks: E.
            feature_dim: d.
            device: a torch device.
            threshold: score of the backbone; an entry serves an input only if its score is
                larger. None = the backbone serves only where nothing is held.

        Raises:
            InvalidValueError: a number out of range.
        """
        super().__init__(num_banks=num_banks, feature_dim=feature_dim, device=device)
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if threshold is not None and not (number and np.isfinite(threshold)):
            raise InvalidValueError(f"Expected threshold as a finite number; got {threshold!r}.")
        self._threshold = -torch.inf if threshold is None else float(threshold)

    @abc.abstractmethod
    def _entry_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        """Return the scores of the K slots, (n, k, K); those of empty slots are not read."""

    @abc.abstractmethod
    def _entry_set_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        """Return the set's scores of the K slots, (n, K); those of empty slots are not read."""

    def _place_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        entries = self._entry_scores(rows, features, query)
        return functional.pad(entries, (1, 0), value=self._threshold)

    def _place_set_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        return functional.pad(self._entry_set_scores(rows, features, query), (1, 0))
