"""LoRA subtraction: steps projected on what new inputs use once old tasks are subtracted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from nsr_gym.backbones.base import SiteMap
from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.adapters import Adapters, summed
from nsr_gym.learning.checks import (
    check_amount,
    check_choice,
    check_count,
    check_flag,
    check_share,
)
from nsr_gym.learning.covariance import Seen, covariances, seen
from nsr_gym.learning.data import Images, TaskData
from nsr_gym.learning.learner import Ints, LearnerConfig, LoRALearner
from nsr_gym.learning.pending import episodes, positions
from nsr_gym.learning.prototypes import Known, Prototypes, class_means, nearest_class
from nsr_gym.learning.run import Run
from nsr_gym.learning.site_maps import HeadedMap
from nsr_gym.learning.triplet import augmented_triplet
from nsr_gym.learning.visit import Visit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nsr_gym.backbones.base import Backbone
    from nsr_gym.bank.bank import TaskKnowledgeBank


class ProjectedRun(Run):
    """Keeps the optimiser's steps of the down factors within a subspace of the inputs.

    What is projected is the step, A <- A + step P, and not the gradient: Adam scales every
    element by itself and would leave the subspace again.
    """

    def extra_loss(self, features: Tensor, images: Images) -> Tensor | None:
        """Return the augmented triplet loss, weighted and summed over episodes."""
        loss = super().extra_loss(features, images)
        weight, margin = (self.learner.options[name] for name in ("triplet", "margin"))
        if weight == 0:
            return loss
        known = Known(**self.visit.extra["prototypes"])
        triplet: Tensor = weight * augmented_triplet(features, images.labels, margin, known).sum()
        return triplet if loss is None else loss + triplet

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Change the leaves by the optimiser's step, projected."""
        before = [
            (part, part.clone(), projector)
            for site, projector in self.visit.extra["projectors"].items()
            for part in self._projected(site)
        ]
        super().step(gradients)
        for part, old, projector in before:
            part.copy_(old + torch.bmm(part - old, projector))

    def _projected(self, site: str) -> Sequence[Tensor]:
        up_t, down = self._pairs[site]
        square = up_t.shape[2] == down.shape[2]
        return (up_t, down) if self.learner.options["project_up"] and square else (down,)


class DriftResistantLearner(LoRALearner):
    """LoRA-DRS (Liu and Chang, CVPR 2025, arXiv 2503.18985) for E episodes.

    The model is W0 + sum_j B_j A_j over all entries of an additive bank. Before a visit trains,
    its images pass once through W0 - sum_j B_j A_j, over all entries, the recalled one among
    them; at every site C = (1/m) sum x x^T = U S U^T of the inputs there, k is the smallest
    number of leading directions that hold the share `eps` of the sum of S, and P = U_k U_k^T.
    Every step of the down factor A is projected by P. While the bank is empty P = I.
    The loss is that of every learner plus `triplet` times the augmented triplet loss. When a
    result is reserved, the mean feature of each of its classes is kept with its slot.

    Answers (`classifier`): `"ncm"` says the class of the nearest prototype, on normalised
    features, over all entries of the bank. During a visit the visited task has prototypes as
    well: class means of the visit's images under the model that is being measured; after the
    last step they are what is kept. So a curve measures training as the paper's test would
    measure it at that moment. Where the episode is unknown, and where it has no prototype, and
    with `"head"`, the frozen head answers. Losses are always those of the head.

    Departures: the released code divides P by its Frobenius norm, sqrt(k), and so slows all
    steps down (`normalise`), and projects the up factor too, which an input basis fits only in
    square sites (`project_up`); it trains a head for every task, where ours is frozen and
    shared unless the environment gives adapters heads. After a recall the entry itself is
    trained further, and until the result is written over its prototypes the old ones take part
    beside the new.

    Attributes:
        dimensions: site -> (n,) int64, k of the last visit; d_in where P = I.
    """

    name: ClassVar[str] = "lora_sub_drs"
    sums: ClassVar[bool] = True
    run_class: ClassVar[type[Run]] = ProjectedRun
    defaults: ClassVar[Mapping[str, Any]] = {
        "eps": 0.99,
        "recalled_sign": -1,
        "normalise": False,
        "project_up": False,
        "triplet": 0.05,
        "margin": 1.0,
        "classifier": "ncm",
        "samples": 256,
    }

    def __init__(self, backbone: Backbone, config: LearnerConfig, **options: Any) -> None:
        """Prepare for episodes.

        Args:
            backbone: the frozen network.
            config: how a visit trains.
            **options: those of `LoRALearner`; `eps`, share of the energy that P keeps;
                `recalled_sign`, -1, 0 or 1, with which the recalled entry enters the
                subtracted model; `normalise`; `project_up`; `triplet`, the weight of that loss;
                `margin`; `classifier`; `samples`, of a visit's distinct images to use at most.

        Raises:
            UnknownNameError: an unknown option or classifier.
            InvalidValueError: an option out of range, or `project_up` without a square site.
        """
        super().__init__(backbone, config, **options)
        chosen = self.options
        check_share("eps", chosen["eps"])
        check_flag("normalise", chosen["normalise"])
        if check_flag("project_up", chosen["project_up"]) and not any(
            site.d_out == site.d_in for site in backbone.sites
        ):
            raise InvalidValueError(
                "Expected a site with as many outputs as inputs to project up factors of, got "
                f"{[(site.name, site.d_out, site.d_in) for site in backbone.sites]}; leave "
                "project_up out."
            )
        if chosen["recalled_sign"] not in (-1, 0, 1):
            raise InvalidValueError(
                f"Expected recalled_sign to be -1, 0 or 1; got {chosen['recalled_sign']!r}."
            )
        check_amount("triplet", chosen["triplet"])
        check_amount("margin", chosen["margin"])
        check_choice("classifier", chosen["classifier"], ("ncm", "head"))
        check_count("samples", chosen["samples"])
        self.prototypes = Prototypes(
            num_episodes=self.num_episodes,
            num_classes=self.num_classes,
            dimension=backbone.feature_dim,
            device=backbone.device,
        )
        self.dimensions: dict[str, Tensor] = {}
        self._current: tuple[Ints, Seen] | None = None
        self._pending: tuple[Ints, Known] | None = None

    def begin(self, rows: Ints) -> None:
        """Forget the prototypes of episodes that start anew."""
        self.prototypes.begin(self._index(rows))

    def prepare(self, data: TaskData, visit: Visit) -> Visit:
        """Find the projectors, and put the other entries under the adapters."""
        visit = super().prepare(data, visit)
        rows = episodes(visit)
        known = seen(data, visit, self.options["samples"])
        self._current = rows, known
        others, start = visit.others or {}, visit.start
        sign = self.options["recalled_sign"]
        subtracted = {s: sign * torch.bmm(up, down) for s, (up, down) in start.factors.items()}
        entries = torch.stack([up.any(dim=2).any(dim=1) for up, _ in start.factors.values()])
        first = ~entries.any(dim=0)
        for site, delta in summed(others).items():
            subtracted[site] = subtracted[site] - delta
            first &= ~others[site][0].flatten(1).any(dim=1)
        found = covariances(self, known, None, subtracted)
        projectors = {}
        for site, covariance in found.items():
            projector, k = principal(covariance, self.options["eps"])
            if self.options["normalise"]:
                projector = projector / k[:, None, None].sqrt()
            one = torch.eye(projector.shape[1], dtype=projector.dtype, device=projector.device)
            projector = torch.where(first[:, None, None], one, projector)
            projectors[site] = projector.to(start.factors[site][1])
            self.dimensions[site] = torch.where(first, projector.shape[1], k)
        earlier = self.prototypes.of(self._index(rows))
        extra = {**visit.extra, "projectors": projectors, "prototypes": vars(earlier)}
        return replace(visit, extra=extra)

    def finish(self, data: TaskData, visit: Visit, trained: Adapters) -> None:
        """Work out the prototypes of the visited task."""
        assert self._current is not None
        rows, known = self._current
        parts = [
            self._means(known.images[block], known.weights[block], site_map)
            for block, site_map in self.maps(trained, visit.base, *known.images.labels.shape)
        ]
        means = parts[0]
        if len(parts) > 1:
            means = Known(
                torch.cat([part.values for part in parts]),
                torch.cat([part.classes for part in parts]),
                torch.cat([part.valid for part in parts]),
            )
        self._pending, self._current = (rows, means), None

    def commit(self, rows: Ints, slots: Ints, bank: TaskKnowledgeBank | None) -> None:
        """Keep the prototypes of reserved results with their slots."""
        if self._pending is None:
            positions(rows, rows[:0])
            return
        of, means = self._pending
        at = self._index(positions(rows, of))
        self.prototypes.put(self._index(rows), self._index(slots), means.take(at))
        if bank is not None:
            # What was evicted for it leaves the sum, and its prototypes go with it.
            self.prototypes.keep(self._index(rows), self._index(bank.occupied[rows]))

    def answers(
        self, images: Images, site_map: SiteMap, rows: NDArray[Any] | None = None
    ) -> Tensor:
        """Return the class of the nearest prototype, (n, k), or what the head says; see above."""
        if rows is None or self.options["classifier"] == "head":
            return super().answers(images, site_map, rows)
        features = self.backbone.forward(images.prefix, site_map)
        known = self.prototypes.of(self._index(rows))
        if self._current is not None:
            of, own = self._current
            at = self._index(positions(rows, of))
            known = known.joined(self._means(own.images.take(at), own.weights[at], site_map))
        head = site_map.head if isinstance(site_map, HeadedMap) else self.backbone.head
        said = head(features).argmax(dim=-1)
        if known.values.shape[1] == 0:
            return said
        usable = known.valid.any(dim=1)
        return torch.where(usable[:, None], nearest_class(features, known), said)

    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes of the prototypes, (n,)."""
        return self.prototypes.nbytes(self._index(rows)).cpu().numpy()

    @torch.no_grad()
    def _means(self, images: Images, weights: Tensor, site_map: SiteMap) -> Known:
        features = self.backbone.forward(images.prefix, site_map)
        return class_means(features, images.labels, weights, self.num_classes)

    def _index(self, rows: NDArray[Any]) -> Tensor:
        return torch.as_tensor(rows, device=self.backbone.device)


def principal(covariance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the projectors on leading directions that hold a share of the energy.

    Args:
        covariance: (n, d, d), float64.
        eps: the share of the sum of eigenvalues, in (0, 1].

    Returns:
        P (n, d, d) and its dimension k (n,) int64, the smallest that reaches the share; at
        least 1.
    """
    values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
    values, vectors = values.clamp(min=0.0).flip(1), vectors.flip(2)
    left = values.flip(1).cumsum(1).flip(1)
    # An eigenvalue of rounding size is no energy: eps = 1 keeps what the inputs span.
    share = (1.0 - eps) + 1e-12
    k = (left > share * left[:, :1]).sum(dim=1).clamp(min=1)
    kept = torch.arange(values.shape[1], device=values.device) < k[:, None]
    chosen = vectors * kept[:, None, :]
    return chosen @ chosen.mT, k
