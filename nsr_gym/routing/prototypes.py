"""Routers by similarity to one vector for each entry: cosine (NSR), nearest mean, soft gate."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from nsr_gym.errors import InvalidValueError
from nsr_gym.routing.arrays import check_positive, softmax_over_held, unit
from nsr_gym.routing.base import Query, Written
from nsr_gym.routing.entry_router import EntryRouter


class CosineRouter(EntryRouter):
    """Cosine of an input's feature with the entry's task embedding (NSR, arXiv 2606.30067).

    NSR embeds a task as the mean of its inputs' normalised features, normalised. A set is embedded
    the same way, so a set's score is the similarity that the bank's own recall gives (negative
    cosines count 0); it is computed in float64 here.

    Bytes: none of its own, the embeddings are the bank's and counted there.
    """

    name: ClassVar[str] = "cosine"

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
            feature_dim: d, also the length of an embedding.
            device: a torch device.
            threshold: cosine up to which the backbone serves an input; None = never while an
                entry is held.

        Raises:
            InvalidValueError: a number out of range.
        """
        super().__init__(
            num_banks=num_banks, feature_dim=feature_dim, device=device, threshold=threshold
        )
        self._add_part("embedding", feature_dim)

    def _learn(self, rows: Tensor, slots: Tensor, features: Tensor, written: Written) -> None:
        if written.embedding.shape != (len(rows), self.feature_dim):
            raise InvalidValueError(
                f"Expected embeddings ({len(rows)}, {self.feature_dim}), as long as the routing "
                f"features; got {tuple(written.embedding.shape)}. Routers that learn from the "
                "features themselves, such as 'ncm' or 'rls', take any embedding."
            )
        embedding = written.embedding.detach().to(self.device, torch.float64)
        self._parts["embedding"][rows, slots] = unit(embedding)

    def _entry_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        return unit(features) @ self._parts["embedding"][rows].mT

    def _entry_set_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        embedding = unit(unit(features).mean(1))
        return torch.einsum("nd,nsd->ns", embedding, self._parts["embedding"][rows])

    def _uncounted(self) -> set[str]:
        return {"embedding"}


class SoftGateRouter(CosineRouter):
    """A mixture of all entries, `w = softmax(gate / temperature)` (RecLoRA, arXiv 2408.03533).

    RecLoRA learns its gate on a recommender's user embedding, which has no counterpart here.
    Departure: our gate is the cosine of the input's feature with the entry's task embedding, which
    needs no training and so cannot forget. Mixing is by product, `sum_i w_i B_i A_i`.

    Scores, set scores and bytes are those of `CosineRouter`.
    """

    name: ClassVar[str] = "soft_gate"
    soft: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_banks: int,
        feature_dim: int,
        device: str = "cpu",
        threshold: float | None = None,
        temperature: float = 0.05,
    ) -> None:
        """Prepare for `num_banks` empty banks.

        Args:
            num_banks: E.
            feature_dim: d, also the length of an embedding.
            device: a torch device.
            threshold: the backbone's part in the mixture is that of an entry with this cosine;
                None = no part while an entry is held.
            temperature: by which cosines are divided.

        Raises:
            InvalidValueError: a number out of range.
        """
        super().__init__(
            num_banks=num_banks, feature_dim=feature_dim, device=device, threshold=threshold
        )
        check_positive("temperature", temperature)
        self._temperature = float(temperature)

    def _mixed(self, scores: Tensor) -> Tensor:
        return softmax_over_held(scores, self._temperature)


class MeanRouter(EntryRouter):
    """Nearest mean: Euclidean distance of a feature to the mean of an entry's features.

    The mean runs over everything an entry was learned from, updates included. Score: minus the
    distance. A set's score compares its own mean q with the entry's mean m,
    `1 / (1 + |q - m|^2 / |q|^2)`: 1 where they agree, 1/2 where they differ by as much as q is
    long; it sorts entries by distance, whatever the scale of the features.

    Bytes: one float64 vector of d numbers for each entry.
    """

    name: ClassVar[str] = "ncm"

    def __init__(
        self,
        *,
        num_banks: int,
        feature_dim: int,
        device: str = "cpu",
        threshold: float | None = None,
        normalise: bool = False,
    ) -> None:
        """Prepare for `num_banks` empty banks.

        Args:
            num_banks: E.
            feature_dim: d.
            device: a torch device.
            threshold: minus the distance from which on the backbone serves an input; None = never
                while an entry is held.
            normalise: whether features are brought to length 1 first.

        Raises:
            InvalidValueError: a number out of range.
        """
        super().__init__(
            num_banks=num_banks, feature_dim=feature_dim, device=device, threshold=threshold
        )
        self._normalise = normalise
        self._add_part("sum", feature_dim)
        self._add_part("count")

    def _learn(self, rows: Tensor, slots: Tensor, features: Tensor, written: Written) -> None:
        self._parts["sum"][rows, slots] += self._scaled(features).sum(1)
        self._parts["count"][rows, slots] += features.shape[1]

    def _entry_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        return -_distances(self._scaled(features), self._means(rows))

    def _entry_set_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        mean = self._scaled(features).mean(1, keepdim=True)
        squares = _distances(mean, self._means(rows)).squeeze(1).square()
        length = mean.square().sum(-1).clamp(min=torch.finfo(mean.dtype).tiny)
        return 1.0 / (1.0 + squares / length)

    def _uncounted(self) -> set[str]:
        return {"count"}

    def _means(self, rows: Tensor) -> Tensor:
        counts = self._parts["count"][rows].clamp(min=1.0)
        return self._parts["sum"][rows] / counts.unsqueeze(-1)

    def _scaled(self, features: Tensor) -> Tensor:
        return unit(features) if self._normalise else features


def _distances(points: Tensor, means: Tensor) -> Tensor:
    # By differences: the usual |a|^2 - 2ab + |b|^2 loses small distances in rounding.
    return torch.cdist(points, means, compute_mode="donot_use_mm_for_euclid_dist")
