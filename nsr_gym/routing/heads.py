"""Classifiers on frozen features: the bounds that no adapter has to be trained for.

`RidgeClassifier` is "no bank + RLS": a random expansion and a ridge regression to the classes,
updated without forgetting. `ClassMeans` is "frozen + class means". A system with adapters that
does not beat them has not earned its adapters.
"""

from __future__ import annotations

import abc
from typing import Literal, get_args

import torch
from torch import Tensor

from nsr_gym.errors import InvalidValueError, unknown
from nsr_gym.routing.arrays import check_count, unit
from nsr_gym.routing.base import Ints
from nsr_gym.routing.expansion import RandomExpansion
from nsr_gym.routing.ridge import Form, RecursiveRidge, Weighting

Metric = Literal["cosine", "euclidean"]


class FeatureClassifier(abc.ABC):
    """A classifier on frozen features for E episodes side by side.

    Attributes:
        num_classes: C.
        feature_dim: d.
    """

    def __init__(
        self, *, num_banks: int, feature_dim: int, num_classes: int, device: str = "cpu"
    ) -> None:
        """Prepare for `num_banks` episodes.

        Raises:
            InvalidValueError: a size below 1.
        """
        check_count("num_banks", num_banks)
        check_count("feature_dim", feature_dim)
        check_count("num_classes", num_classes)
        self.num_classes, self.feature_dim = num_classes, feature_dim
        self.device = torch.device(device)

    @torch.no_grad()
    def fit(self, rows: Ints, features: Tensor, labels: Tensor) -> None:
        """Forget what episodes `rows` have learned, then `update`."""
        self.begin(rows)
        self.update(rows, features, labels)

    @torch.no_grad()
    def begin(self, rows: Ints) -> None:
        """Forget everything about episodes `rows` (n,)."""
        self._clear(self._index(rows))

    @torch.no_grad()
    def update(self, rows: Ints, features: Tensor, labels: Tensor) -> None:
        """Take in k labelled examples for each of n different episodes.

        Args:
            rows: (n,) episodes, each once.
            features: (n, k, d).
            labels: (n, k) int64.

        Raises:
            InvalidValueError: shapes do not fit, an episode appears twice, or a label is out of
                range.
        """
        index = self._index(rows)
        if len(index.unique()) != len(index):
            raise InvalidValueError("Expected every episode once; some appear twice.")
        if labels.shape != features.shape[:2] or features.shape[::2] != (
            len(rows),
            self.feature_dim,
        ):
            raise InvalidValueError(
                f"Expected features ({len(rows)}, k, {self.feature_dim}) and labels "
                f"({len(rows)}, k); got {tuple(features.shape)} and {tuple(labels.shape)}."
            )
        labels = labels.to(self.device)
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise InvalidValueError(
                f"Expected labels between 0 and {self.num_classes - 1}; got {int(labels.min())} "
                f"to {int(labels.max())}."
            )
        self._update(index, features.detach().to(self.device, torch.float64), labels)

    @torch.no_grad()
    def logits(self, rows: Ints, features: Tensor) -> Tensor:
        """Return the scores of the classes, (n, k, C) float64; -inf for those never seen.

        An episode that has seen no class answers 0 for all.

        Raises:
            InvalidValueError: features of another shape.
        """
        index = self._index(rows)
        if features.ndim != 3 or features.shape[::2] != (len(index), self.feature_dim):
            raise InvalidValueError(
                f"Expected features ({len(index)}, k, {self.feature_dim}); got "
                f"{tuple(features.shape)}."
            )
        seen = self._seen(index).unsqueeze(1)
        double = features.detach().to(self.device, torch.float64)
        logits = self._logits(index, double).masked_fill(~seen, -torch.inf)
        return logits.masked_fill(~seen.any(-1, keepdim=True), 0.0)

    def predict(self, rows: Ints, features: Tensor) -> Tensor:
        """Return the class of every input, (n, k) int64; the first on ties.

        Args:
            rows: (n,) episodes; may repeat.
            features: (n, k, d).
        """
        return self.logits(rows, features).argmax(-1)

    @abc.abstractmethod
    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes kept for each of n episodes, (n,); what they share is not counted."""

    @abc.abstractmethod
    def _clear(self, rows: Tensor) -> None: ...

    @abc.abstractmethod
    def _update(self, rows: Tensor, features: Tensor, labels: Tensor) -> None: ...

    @abc.abstractmethod
    def _seen(self, rows: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _logits(self, rows: Tensor, features: Tensor) -> Tensor: ...

    def _index(self, rows: Ints) -> Tensor:
        return torch.as_tensor(rows, dtype=torch.int64, device=self.device)


class RidgeClassifier(FeatureClassifier):
    """Random expansion and ridge regression to the classes.

    ACIL (Zhuang et al. 2022) and RanPAC (McDonnell et al. 2023) without an adapter in front. RanPAC
    picks lam from 1e-8..1e8 on a held-out fifth of the data; here it is given, since a stream
    leaves no data to hold out.
    """

    def __init__(
        self,
        *,
        num_banks: int,
        feature_dim: int,
        num_classes: int,
        device: str = "cpu",
        width: int = 512,
        lam: float = 1.0,
        relu: bool = True,
        normalise: bool = True,
        weighting: Weighting = "none",
        form: Form = "gram",
        seed: int = 0,
    ) -> None:
        """Prepare for `num_banks` episodes.

        Args:
            num_banks: E.
            feature_dim: d.
            num_classes: C.
            device: a torch device.
            width: of the random expansion.
            lam: regulariser.
            relu: whether the expansion is cut off at zero.
            normalise: whether features are brought to length 1 first.
            weighting: "none" or "inverse_count", see `RecursiveRidge`.
            form: "gram" or "recursive".
            seed: of the random expansion.

        Raises:
            InvalidValueError: a number out of range.
            UnknownNameError: a form or weighting that does not exist.
        """
        super().__init__(
            num_banks=num_banks, feature_dim=feature_dim, num_classes=num_classes, device=device
        )
        self.ridge = RecursiveRidge(
            num_banks=num_banks,
            width=width,
            columns=num_classes,
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

    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes kept for each of n episodes, (n,); the projection is shared."""
        return self.ridge.nbytes(self._index(rows))

    def _clear(self, rows: Tensor) -> None:
        self.ridge.clear(rows)

    def _update(self, rows: Tensor, features: Tensor, labels: Tensor) -> None:
        self.ridge.update(rows, self.expansion(features), labels)

    def _seen(self, rows: Tensor) -> Tensor:
        return self.ridge.seen(rows)

    def _logits(self, rows: Tensor, features: Tensor) -> Tensor:
        return self.expansion(features) @ self.ridge.solution(rows)


class ClassMeans(FeatureClassifier):
    """Nearest class mean: the mean of a class's features, compared by angle or distance.

    "cosine" averages features of length 1 and compares by cosine, as LoRA-DRS and RanPAC's
    baseline do; "euclidean" averages the features as they are and compares by distance.
    """

    def __init__(
        self,
        *,
        num_banks: int,
        feature_dim: int,
        num_classes: int,
        device: str = "cpu",
        metric: Metric = "cosine",
    ) -> None:
        """Prepare for `num_banks` episodes.

        Args:
            num_banks: E.
            feature_dim: d.
            num_classes: C.
            device: a torch device.
            metric: "cosine" or "euclidean".

        Raises:
            InvalidValueError: a size below 1.
            UnknownNameError: a metric that does not exist.
        """
        super().__init__(
            num_banks=num_banks, feature_dim=feature_dim, num_classes=num_classes, device=device
        )
        if metric not in get_args(Metric):
            raise unknown("metric", metric, get_args(Metric))
        self._cosine = metric == "cosine"
        size = (num_banks, num_classes)
        self._sums = torch.zeros(*size, feature_dim, dtype=torch.float64, device=self.device)
        self._counts = torch.zeros(size, dtype=torch.float64, device=self.device)

    def nbytes(self, rows: Ints) -> Ints:
        """Return 8 bytes for each number of each class mean, (n,)."""
        seen: Ints = self._seen(self._index(rows)).sum(1).cpu().numpy()
        return seen * (8 * self.feature_dim)

    def _clear(self, rows: Tensor) -> None:
        self._sums[rows] = 0.0
        self._counts[rows] = 0.0

    def _update(self, rows: Tensor, features: Tensor, labels: Tensor) -> None:
        of_class = torch.nn.functional.one_hot(labels, self.num_classes).double()
        self._sums[rows] += of_class.mT @ (unit(features) if self._cosine else features)
        self._counts[rows] += of_class.sum(1)

    def _seen(self, rows: Tensor) -> Tensor:
        return self._counts[rows] > 0

    def _logits(self, rows: Tensor, features: Tensor) -> Tensor:
        means = self._sums[rows] / self._counts[rows].clamp(min=1.0).unsqueeze(-1)
        if self._cosine:
            return unit(features) @ unit(means).mT
        return -torch.cdist(features, means, compute_mode="donot_use_mm_for_euclid_dist")
