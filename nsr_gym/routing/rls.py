"""The analytic router of ASR: recursive least squares on randomly expanded features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsr_gym.routing.base import Ints, Query, Router, Written
from nsr_gym.routing.expansion import RandomExpansion
from nsr_gym.routing.ridge import Form, RecursiveRidge, Weighting


class RLSRouter(Router):
    """One ridge regression from expanded features to one-hot entries, learned entry by entry.

    Any-SSR / ASR (arXiv 2503.13575): `k* = argmax ReLU(z Phi) W`, where W is, after any order of
    entries and any batches, the joint ridge solution on all of them. Departures from the released
    code: the ReLU (left out there), float64 throughout, lam and width as arguments, and class 0
    for the backbone, which there needs examples of general data. The scores are the logits x W;
    a set's score is the mean of its logits, cut to [0, 1], since a one-hot target is what they
    regress on.

    An entry that is updated keeps what was learned of it before. What was learned of an entry
    that is dropped goes to place 0 (`reserve_backbone`), so that inputs of an evicted task find
    no wrong entry; without it, the backbone serves only where nothing is held, and the dropped
    entry's inputs are forgotten as far as `RecursiveRidge.forget` can.

    Bytes: one Gram matrix (width x width) for each bank, and a column for each entry; as many
    Gram matrices as entries with `weighting="inverse_count"`. The projection is shared.
    """

    name: ClassVar[str] = "rls"

    def __init__(
        self,
        *,
        num_banks: int,
        feature_dim: int,
        device: str = "cpu",
        width: int = 512,
        lam: float = 1.0,
        relu: bool = True,
        normalise: bool = True,
        weighting: Weighting = "none",
        form: Form = "gram",
        reserve_backbone: bool = True,
        seed: int = 0,
    ) -> None:
        """Prepare for `num_banks` empty banks.

        Args:
            num_banks: E.
            feature_dim: d.
            device: a torch device.
            width: of the random expansion.
            lam: regulariser of the ridge regression.
            relu: whether the expansion is cut off at zero; False is the linear ablation.
            normalise: whether features are brought to length 1 before the expansion.
            weighting: "none", or "inverse_count" to let small entries weigh as much as large ones.
            form: "gram" or "recursive", see `RecursiveRidge`.
            reserve_backbone: whether place 0 takes over what dropped entries had learned.
            seed: of the random expansion, shared by all banks.

        Raises:
            InvalidValueError: a number out of range, or options that do not go together.
            UnknownNameError: a form or weighting that does not exist.
        """
        super().__init__(num_banks=num_banks, feature_dim=feature_dim, device=device)
        self.ridge = RecursiveRidge(
            num_banks=num_banks,
            width=width,
            columns=1,
            lam=lam,
            form=form,
            weighting=weighting,
            device=device,
        )
        self.expansion = RandomExpansion(
            feature_dim=feature_dim,
            width=width,
            relu=relu,
            normalise=normalise,
            seed=seed,
            device=device,
        )
        self._reserve_backbone = reserve_backbone

    def begin(self, rows: Ints, keys: NDArray[np.uint64]) -> None:
        """Forget everything about banks `rows`, which start anew with episode keys (n, 2)."""
        super().begin(rows, keys)
        self.ridge.clear(self._index(rows))

    def allocate(self, slots: int) -> None:
        """Make room for `slots` entries in each bank and keep what is there."""
        super().allocate(slots)
        self.ridge.grow(1 + slots)

    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes of Gram matrices and columns for each of n banks, (n,)."""
        return self.ridge.nbytes(self._index(rows))

    def state(self) -> dict[str, NDArray[Any]]:
        """Return everything the router knows, as arrays that `restore` takes."""
        ridge = {f"ridge/{name}": array for name, array in self.ridge.state().items()}
        return super().state() | ridge

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take what `state` gave, exactly.

        Raises:
            InvalidValueError: the state of another kind of router, or of another size.
        """
        prefix = "ridge/"
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        self.ridge.restore(own)
        super().restore(state)

    def _learn(self, rows: Tensor, slots: Tensor, features: Tensor, written: Written) -> None:
        self.ridge.update(rows, self.expansion(features), slots + 1)

    def _forget(self, rows: Tensor, slots: Tensor) -> None:
        super()._forget(rows, slots)
        if self._reserve_backbone:
            self.ridge.move(rows, slots + 1, 0)
        else:
            self.ridge.forget(rows, slots + 1)

    def _logits(self, rows: Tensor, features: Tensor) -> Tensor:
        return self.expansion(features) @ self.ridge.solution(rows)

    def _place_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        logits = self._logits(rows, features)
        if not self._reserve_backbone:
            logits[..., 0] = -torch.inf
        return logits

    def _place_set_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        # Without a column of its own the backbone's logits are 0, which is its score then.
        return self._logits(rows, features).mean(1)
