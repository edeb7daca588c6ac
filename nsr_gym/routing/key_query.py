"""Routing by learned keys, as prompts are retrieved in L2P."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from nsr_gym.noise import normal
from nsr_gym.routing.arrays import check_count, check_positive, unit
from nsr_gym.routing.base import Query, Written
from nsr_gym.routing.entry_router import EntryRouter

_PURPOSE = np.uint64(0x6B657973 << 32)
"""Sets the first keys apart from other numbers that follow from an episode's key."""


class KeyQueryRouter(EntryRouter):
    """One learned key for each entry; the entry whose key has the largest cosine serves.

    L2P (Wang et al. 2022, arXiv 2112.08654) pulls the chosen keys towards the queries by a term
    `pull (1 - cos(key, query))` beside the task's loss. Here every entry has one key and the term
    is all that trains it: a fixed number of gradient steps over the entry's own features when it
    is written. Departures: adapters instead of prompts, one key for each instead of a pool of ten
    with the top five, plain gradient steps instead of Adam, and the key of the entry that was
    written is trained, whichever key is nearest.

    The first key of an entry is drawn from the episode's key, so it is the same in whatever company
    the episode runs; an update continues from the key there is. Scores are cosines; a set is
    scored by the mean of its cosines, negative ones counting 0.

    Bytes: one float64 vector of d numbers for each entry.
    """

    name: ClassVar[str] = "key_query"

    def __init__(
        self,
        *,
        num_banks: int,
        feature_dim: int,
        device: str = "cpu",
        threshold: float | None = None,
        steps: int = 50,
        learning_rate: float = 1.0,
        pull: float = 0.1,
    ) -> None:
        """Prepare for `num_banks` empty banks.

        Args:
            num_banks: E.
            feature_dim: d.
            device: a torch device.
            threshold: cosine up to which the backbone serves an input; None = never while an
                entry is held.
            steps: gradient steps for each entry that is written.
            learning_rate: of a step.
            pull: weight of the term, 0.1 in L2P; a step is `learning_rate * pull * gradient`.

        Raises:
            InvalidValueError: a number out of range.
        """
        super().__init__(
            num_banks=num_banks, feature_dim=feature_dim, device=device, threshold=threshold
        )
        check_count("steps", steps)
        check_positive("learning_rate", learning_rate)
        check_positive("pull", pull)
        self._steps, self._rate = steps, learning_rate * pull
        self._add_part("key", feature_dim)

    def _learn(self, rows: Tensor, slots: Tensor, features: Tensor, written: Written) -> None:
        d = self.feature_dim
        seeds = self._keys[written.rows, 1, None] ^ _PURPOSE
        drawn = normal(seeds, np.asarray(written.slots)[:, None] * d + np.arange(d))
        first = unit(torch.from_numpy(drawn).to(self.device))
        known = self._held[rows, slots].unsqueeze(-1)
        key = torch.where(known, self._parts["key"][rows, slots], first)
        # The term is linear in the normalised queries, so their mean holds all there is to learn.
        pulled_to = unit(features).mean(1)
        for _ in range(self._steps):
            length = key.norm(dim=-1, keepdim=True)
            towards = key / length
            along = (towards * pulled_to).sum(-1, keepdim=True)
            key = key + self._rate * (pulled_to - along * towards) / length
        self._parts["key"][rows, slots] = key

    def _entry_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        return unit(features) @ unit(self._parts["key"][rows]).mT

    def _entry_set_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        return self._entry_scores(rows, features, query).mean(1)
