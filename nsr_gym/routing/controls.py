"""Controls: a router that is told the task, one that guesses, and one that forgets."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nsr_gym.noise import uniform
from nsr_gym.routing.arrays import check_count, check_positive, unit
from nsr_gym.routing.base import Query, Router, Written
from nsr_gym.routing.entry_router import EntryRouter

_PURPOSE = np.uint64(0x67756573 << 32)
"""Sets guesses apart from other numbers that follow from an episode's key."""


class OracleRouter(Router):
    """Knows the task of every input: the upper bound of routing.

    Score 1 for the entry that was written last for the task, 1/2 for older ones of it, 0 for the
    others and for the backbone, which therefore serves tasks without an entry. A set is scored
    the same. Bytes: none, it is a bound and not a method.
    """

    name: ClassVar[str] = "oracle"

    def __init__(self, *, num_banks: int, feature_dim: int, device: str = "cpu") -> None:
        """Prepare for `num_banks` empty banks.

        Args:
            num_banks: E.
            feature_dim: d.
            device: a torch device.

        Raises:
            InvalidValueError: a size below 1.
        """
        super().__init__(num_banks=num_banks, feature_dim=feature_dim, device=device)
        self._add_part("task", dtype=torch.int64)
        self._add_part("written", dtype=torch.int64)

    def _learn(self, rows: Tensor, slots: Tensor, features: Tensor, written: Written) -> None:
        self._parts["task"][rows, slots] = self._index(written.tasks)
        self._parts["written"][rows, slots] = self._parts["written"][rows].amax(1) + 1

    def _place_set_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        same = self._held[rows] & (self._parts["task"][rows] == self._index(query.tasks)[:, None])
        when = self._parts["written"][rows] * same
        last = same & (when == when.amax(1, keepdim=True)) if self.slots else same
        return functional.pad((same.double() + last.double()) / 2, (1, 0))

    def _place_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        of_set = self._place_set_scores(rows, features, query).unsqueeze(1)
        return of_set.expand(-1, features.shape[1], -1)

    def _uncounted(self) -> set[str]:
        return {"task", "written"}


class RandomRouter(EntryRouter):
    """Any entry that is held, uniformly: the lower bound of routing.

    What an input gets follows from the episode's key, the bits of its features (as float32) and
    the slot, so the same input is sent the same way in any batch, and again the next time. A set
    is scored by numbers that follow from the sum of its inputs' hashes, whatever their order.
    """

    name: ClassVar[str] = "random"

    def _learn(self, rows: Tensor, slots: Tensor, features: Tensor, written: Written) -> None:
        pass

    def _entry_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        return self._guess(query, hashes(features)).double()

    def _entry_set_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        of_set = hashes(features).sum(1, dtype=np.uint64, keepdims=True)
        return self._guess(query, of_set).squeeze(1)

    def _guess(self, query: Query, hashes: NDArray[np.uint64]) -> Tensor:
        seeds = hashes ^ self._keys[query.rows, 1, None] ^ _PURPOSE
        return torch.from_numpy(uniform(seeds[..., None], np.arange(self.slots))).to(self.device)


class SGDRouter(EntryRouter):
    """A linear softmax router trained by gradient descent on the written entry's inputs only.

    The control of the analytic router: back-propagation on the current task alone, which forgets
    how earlier ones are told apart (Any-SSR reports a loss of 21.7 points of routing accuracy per
    stage for one). Features are brought to length 1; every entry that is written is trained
    for a fixed number of full-batch steps of cross-entropy over the entries that are held.

    Scores are logits; a set's score is the mean softmax probability over the entries held.
    Bytes: d + 1 float64 numbers for each entry.
    """

    name: ClassVar[str] = "sgd"

    def __init__(
        self,
        *,
        num_banks: int,
        feature_dim: int,
        device: str = "cpu",
        threshold: float | None = None,
        steps: int = 100,
        learning_rate: float = 0.5,
    ) -> None:
        """Prepare for `num_banks` empty banks.

        Args:
            num_banks: E.
            feature_dim: d.
            device: a torch device.
            threshold: logit up to which the backbone serves an input; None = never while an
                entry is held.
            steps: gradient steps for each entry that is written.
            learning_rate: of a step.

        Raises:
            InvalidValueError: a number out of range.
        """
        super().__init__(
            num_banks=num_banks, feature_dim=feature_dim, device=device, threshold=threshold
        )
        check_count("steps", steps)
        check_positive("learning_rate", learning_rate)
        self._steps, self._rate = steps, float(learning_rate)
        self._add_part("weight", feature_dim)
        self._add_part("bias")

    def _learn(self, rows: Tensor, slots: Tensor, features: Tensor, written: Written) -> None:
        z, k = unit(features), features.shape[1]
        target = functional.one_hot(slots, self.slots).double()
        vacant = ~(self._held[rows] | target.bool())
        weight, bias = self._parts["weight"][rows], self._parts["bias"][rows]
        for _ in range(self._steps):
            logits = z @ weight.mT + bias.unsqueeze(1)
            wrong = logits.masked_fill(vacant.unsqueeze(1), -torch.inf).softmax(-1)
            wrong -= target.unsqueeze(1)
            weight = weight - (self._rate / k) * (wrong.mT @ z)
            bias = bias - self._rate * wrong.mean(1)
        self._parts["weight"][rows] = weight
        self._parts["bias"][rows] = bias

    def _entry_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        logits = unit(features) @ self._parts["weight"][rows].mT
        return logits + self._parts["bias"][rows].unsqueeze(1)

    def _entry_set_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        vacant = ~self._held[rows].unsqueeze(1)
        logits = self._entry_scores(rows, features, query).masked_fill(vacant, -torch.inf)
        # A bank without entries has no probabilities; its NaN are masked as vacant places.
        return logits.softmax(-1).nan_to_num(0.0).mean(1)


def hashes(features: Tensor) -> NDArray[np.uint64]:
    """A number for each input (n, k) that follows from the bits of its features alone."""
    # Adding 0 makes a negative zero positive, so that equal features have equal bits.
    bits = (features.float().cpu().numpy() + np.float32(0.0)).view(np.uint32)
    drawn = uniform(bits, np.arange(bits.shape[-1]))
    return np.asarray((drawn * 2.0**53).astype(np.uint64).sum(-1, dtype=np.uint64))
