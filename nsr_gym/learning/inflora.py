"""InfLoRA: adapters whose inputs are chosen, before they are trained, away from old tasks'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsr_gym.learning.adapters import Adapters
from nsr_gym.learning.checks import check_count, check_positive
from nsr_gym.learning.covariance import Seen, covariances, seen
from nsr_gym.learning.data import Images, TaskData
from nsr_gym.learning.dualgpm import DualGPM, Protection
from nsr_gym.learning.learner import Ints, LearnerConfig, LoRALearner
from nsr_gym.learning.pending import episodes, positions
from nsr_gym.learning.run import Gradient, Run
from nsr_gym.learning.visit import Visit

if TYPE_CHECKING:
    from nsr_gym.backbones.base import Backbone
    from nsr_gym.bank.bank import TaskKnowledgeBank


class UpRun(Run):
    """Trains the up factors alone; the down factors stay as the visit starts with them.

    A gradient step on U then changes the weights by -eta G D^T D, the step on the full weights
    projected on the span of D's rows.
    """

    def free(self) -> list[Tensor]:
        """Return which numbers of every leaf may change: none of the down factors."""
        fixed = {id(down) for _, down in self._pairs.values()}
        return [
            torch.zeros_like(free) if id(part) in fixed else free
            for part, free in zip(self.leaves, super().free(), strict=True)
        ]

    def gradients(self, images: Images, gradient: Gradient) -> list[Tensor]:
        """Return the gradients of the leaves, zero where nothing may change."""
        found = super().gradients(images, gradient)
        return [part * free for part, free in zip(found, self.free(), strict=True)]


class InfLoRALearner(LoRALearner):
    """InfLoRA (Liang and Li, CVPR 2024, arXiv 2404.00228) for E episodes.

    The model is W0 + sum_j U_j D_j over all entries of an additive bank. Before a visit trains,
    every site's D (the down factor; B in the paper) is set to the leading left singular vectors
    of H = C - P C, where C is the covariance of the site's inputs on the visit's images under
    the model so far, and P projects on what DualGPM protects. Only U (A in the paper) is
    trained, from zero. As D P = 0, the outputs for inputs in the protected space stay as they
    are. After the visit C is measured anew, and if the result is reserved, DualGPM takes it in.

    Where ours departs:

    - Each site has a D of its own (key and value of the paper's transformer share one).
    - The head is frozen and shared, unless the environment gives adapters heads.
    - A recalled entry keeps its own down factors, frozen, for the directions that it brings;
      only the fresh directions of the granted rank are designed. What it brings lies in the
      space that it had protected itself, so that training it further changes the outputs of
      every task that shares this space: the guarantee holds for fresh directions alone.
    - D is scaled by `down_scale`. The paper's 1/sqrt(3), which is the scale of Kaiming-uniform
      initialisation, divides the effective step of plain gradient descent by 3; Adam hides most
      of it.
    - Protection is not undone when the bank evicts an entry.
    - `eps` is 0.999 and constant. The paper's 0.98 to 1.0 along the tasks is for a transformer
      with layer norms; behind ReLU inputs are far from centred, one direction holds most of the
      energy, and at 0.98 so few were protected that the first tasks were forgotten (measured on
      permuted digits: 0.14 of the first of six tasks left, where "activations" left 0.74).

    A fresh direction beyond the free dimension d - dim P of a site is denied: it is zero there
    and never trained.

    Attributes:
        memories: site -> what is protected there.
        clipped: (n,) int64, by how many directions the last visit's request was cut at the site
            with the least room. `Visit.ranks`, as prepared, is what the site with the most room
            was given.
    """

    name: ClassVar[str] = "inflora"
    sums: ClassVar[bool] = True
    run_class: ClassVar[type[Run]] = UpRun
    defaults: ClassVar[Mapping[str, Any]] = {
        "energy": "covariance",
        "eps": 0.999,
        "lame": None,
        "horizon": None,
        "down_scale": 3**-0.5,
        "samples": 256,
    }

    def __init__(self, backbone: Backbone, config: LearnerConfig, **options: Any) -> None:
        """Prepare for episodes.

        Args:
            backbone: the frozen network.
            config: how a visit trains.
            **options: those of `LoRALearner`; `energy`, `eps`, `lame` and `horizon` of
                `DualGPM` (a horizon of None is the number of tasks of the pool); `down_scale`,
                of the rows of D; `samples`, of a visit's distinct images that covariances are
                measured on at most.

        Raises:
            UnknownNameError: an unknown option or convention.
            InvalidValueError: an option out of range.
        """
        super().__init__(backbone, config, **options)
        chosen = self.options
        horizon = self.num_tasks if chosen["horizon"] is None else chosen["horizon"]
        self._scale = check_positive("down_scale", chosen["down_scale"])
        self._samples = check_count("samples", chosen["samples"])
        self.memories = {
            site.name: DualGPM(
                num_episodes=self.num_episodes,
                dimension=site.d_in,
                energy=chosen["energy"],
                eps=chosen["eps"],
                lame=chosen["lame"],
                horizon=horizon,
                device=backbone.device,
            )
            for site in backbone.sites
        }
        self.clipped = torch.zeros(0, dtype=torch.int64)
        self._denied = np.zeros(0, dtype=np.int64)
        self._seen: Seen | None = None
        self._pending: tuple[Ints, dict[str, Protection]] | None = None

    def begin(self, rows: Ints) -> None:
        """Protect nothing in episodes that start anew."""
        for memory in self.memories.values():
            memory.begin(self._index(rows))

    def denied(self, n: int) -> Ints:
        """Return by how many directions the last visit's request was cut everywhere, (n,)."""
        return self._denied

    def prepare(self, data: TaskData, visit: Visit) -> Visit:
        """Design the fresh directions of every site, and put the other entries under them."""
        visit = super().prepare(data, visit)
        rows = self._index(episodes(visit))
        self._seen = seen(data, visit, self._samples)
        found = covariances(self, self._seen, visit.start, visit.base)
        fresh = fresh_directions(visit)
        wanted = fresh.sum(dim=1)
        factors, given = {}, []
        for site, (up, down) in visit.start.factors.items():
            designed = self.design(site, found[site], rows, wanted, down.shape[1]) * self._scale
            given.append(designed.any(dim=2).sum(dim=1))
            factors[site] = up, placed(designed.to(down), fresh, down)
        room = torch.stack(given)
        self.clipped = wanted - room.amin(dim=0)
        denied = wanted - room.amax(dim=0)
        self._denied = denied.cpu().numpy()
        ranks = None if visit.ranks is None else visit.ranks - denied
        start = replace(visit.start, factors=factors)
        return replace(visit, start=start, ranks=ranks)

    def design(
        self, site: str, covariance: Tensor, rows: Tensor, wanted: Tensor, width: int
    ) -> Tensor:
        """Return the input directions of a new adapter at a site.

        Args:
            site: its name.
            covariance: (n, d_in, d_in) float64 of its inputs.
            rows: (n,) episodes.
            wanted: (n,) int64, directions to find.
            width: R, directions to leave room for.

        Returns:
            (n, R, d_in) orthonormal rows, zero where there is nothing to be had.
        """
        return first_rows(self.memories[site].design(covariance, rows, width), wanted)

    def finish(self, data: TaskData, visit: Visit, trained: Adapters) -> None:
        """Work out what the trained model's inputs add to what is protected."""
        assert self._seen is not None
        rows = episodes(visit)
        found = covariances(self, self._seen, trained, visit.base)
        index = self._index(rows)
        self._pending = (
            rows,
            {site: memory.updated(found[site], index) for site, memory in self.memories.items()},
        )
        self._seen = None

    def commit(self, rows: Ints, slots: Ints, bank: TaskKnowledgeBank | None) -> None:
        """Protect what reserved results rely on."""
        of, updates = self._pending or (rows[:0], {})
        at = self._index(positions(rows, of))
        for site, update in updates.items():
            self.memories[site].store(self._index(rows), update[at])

    def free_capacity(self, rows: Ints) -> NDArray[np.float64]:
        """Return the share of input directions, over all sites, that nothing protects, (n,)."""
        index, memories = self._index(rows), self.memories.values()
        free = torch.stack([memory.free_dimension(index) for memory in memories]).sum(dim=0)
        share: NDArray[np.float64] = free.double().cpu().numpy()
        return share / sum(memory.dimension for memory in memories)

    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes of the stored vectors of all sites, (n,)."""
        index = self._index(rows)
        total = torch.stack([memory.nbytes(index) for memory in self.memories.values()]).sum(dim=0)
        return total.cpu().numpy()

    def _index(self, rows: Ints) -> Tensor:
        return torch.as_tensor(rows, device=self.backbone.device)


def fresh_directions(visit: Visit) -> Tensor:
    """Return which directions a visit may design, (n, R) bool.

    They are in use (down is not zero) and know nothing yet (up is zero at every site), and may
    be trained.
    """
    pairs = visit.start.factors.values()
    used = torch.stack([down.any(dim=2) for _, down in pairs]).any(dim=0)
    known = torch.stack([up.any(dim=1) for up, _ in pairs]).any(dim=0)
    fresh = used & ~known
    return fresh if visit.trainable is None else fresh & visit.trainable


def first_rows(rows: Tensor, counts: Tensor) -> Tensor:
    """Return (n, R, d) with every row from counts (n,) on set to zero."""
    beyond = torch.arange(rows.shape[1], device=rows.device) >= counts[:, None]
    return rows.masked_fill(beyond[:, :, None], 0.0)


def placed(designed: Tensor, fresh: Tensor, down: Tensor) -> Tensor:
    """Put designed rows (n, R, d), in order, where `fresh` (n, R) says; the rest is from down."""
    order = (fresh.long().cumsum(dim=1) - 1).clamp(min=0)[:, :, None].expand_as(down)
    return torch.where(fresh[:, :, None], designed.gather(1, order), down)
