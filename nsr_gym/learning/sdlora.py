"""SD-LoRA: directions are kept, how far to go along each is learnt again at every visit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from nsr_gym.learning.adapters import Adapters
from nsr_gym.learning.checks import check_positive
from nsr_gym.learning.data import TaskData
from nsr_gym.learning.learner import Ints, LoRALearner
from nsr_gym.learning.pending import episodes, positions
from nsr_gym.learning.run import Run
from nsr_gym.learning.visit import Visit

if TYPE_CHECKING:
    from nsr_gym.bank.additive import AdditiveFactors
    from nsr_gym.bank.bank import TaskKnowledgeBank


class SDLoRARun(Run):
    """Training of one adapter and of the magnitudes of it and of all others.

    The visit's base holds the others as they are stored. What this run adds for entry j is its
    direction times the change of its magnitude, so that the model starts exactly where the bank
    is.
    """

    def begin(self) -> None:
        """Make leaves of the adapter's factors and of all magnitudes, one for each site."""
        super().begin()
        start, n, sites = self.visit.start, len(self.visit), len(self.visit.start.factors)
        first = self.learner.options["magnitude"]
        some = next(iter(start.factors.values()))[0]
        with torch.no_grad():
            for up_t, _ in self._pairs.values():
                up_t.div_(first)  # a recalled entry has its magnitude in its factors
        everywhere = torch.ones(n, sites, dtype=torch.bool, device=some.device)
        self._own = self.add_leaf(torch.full_like(everywhere, first, dtype=some.dtype), everywhere)
        self._directions: dict[str, tuple[Tensor, Tensor]] = {}
        others = self.visit.others
        if others is None:
            return
        known = []
        for site, (up, down) in others.items():
            up_size, down_size = up.norm(dim=(2, 3)), down.norm(dim=(2, 3))
            known.append(up_size * down_size)
            self._directions[site] = (
                _scaled(up, up_size).transpose(2, 3).contiguous(),
                _scaled(down, down_size).flatten(1, 2),
            )
        self._known = torch.stack(known, dim=2)  # (n, K, sites)
        self._others = self.add_leaf(self._known, self._known > 0)

    def factors(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return the changes of other entries, then the adapter with its magnitude."""
        branches = {}
        for i, (site, (up_t, down)) in enumerate(super().factors().items()):
            up_t = up_t * self._own[:, i, None, None]
            if site in self._directions:
                other_up_t, other_down = self._directions[site]
                change = (self._others - self._known)[:, :, i, None, None]
                up_t = torch.cat([(other_up_t * change).flatten(1, 2), up_t], 1)
                down = torch.cat([other_down, down], 1)
            branches[site] = up_t, down
        return branches

    def result(self) -> Adapters:
        """Return the adapter, its magnitude multiplied into it."""
        rank = self.visit.start.rank
        model = self.model()
        return Adapters(
            {s: (up[:, :, -rank:], down[:, -rank:]) for s, (up, down) in model.factors.items()},
            model.head,
        )

    def finish(self) -> None:
        """Hand on by what factor every other entry's magnitude has changed."""
        super().finish()
        if self._directions:
            changed = torch.where(self._known > 0, self._others.detach() / self._known, 1.0)
            self.visit.extra["factors"].copy_(changed)


class SDLoRALearner(LoRALearner):
    """SD-LoRA (Wu et al., ICLR 2025, arXiv 2501.13198).

    The model is W0 + sum_{j<t} a_j Bbar_j Abar_j + a_t B_t A_t with Bbar and Abar scaled to
    Frobenius norm 1. Directions of earlier tasks are frozen, all magnitudes a (one for each entry
    and site) are trained at every visit, the new one from 0.8.

    An additive bank keeps each entry with its magnitude multiplied in; when the result of a visit
    is reserved, the other entries are rescaled to the magnitudes that went with it, so that the
    stored sum is the model that was measured. Discarding the result discards them too. In the
    formula the current branch is not normalised and earlier ones are, so that a branch changes its
    size when its task is over; here its magnitude becomes a_t |B_t| |A_t|, and nothing jumps. The
    norms are those of the canonical factors, whose product is the entry's nuclear norm, so that
    they do not depend on how it was trained.
    A magnitude that ends at 0 leaves an entry that is zero for good. The variant with ranks that
    fall from task to task (SD-LoRA-RR) is a policy here: ranks are granted by the action.

    Options:
        magnitude: a_t at the start.
    """

    name: ClassVar[str] = "sdlora"
    sums: ClassVar[bool] = True
    run_class: ClassVar[type[Run]] = SDLoRARun
    defaults: ClassVar[Mapping[str, Any]] = {"magnitude": 0.8}

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take what `LoRALearner` takes.

        Raises:
            InvalidValueError: `magnitude` is not a finite number above 0.
        """
        super().__init__(*args, **options)
        check_positive("the magnitude of sdlora", self.options["magnitude"])
        self._last: Visit | None = None

    def prepare(self, data: TaskData, visit: Visit) -> Visit:
        """Put the other entries below, and make room for what their magnitudes become."""
        visit = super().prepare(data, visit)
        if visit.others is None:
            return visit
        up, _ = next(iter(visit.others.values()))
        factors = up.new_ones(*up.shape[:2], len(visit.others))
        return replace(visit, extra={**visit.extra, "factors": factors})

    def finish(self, data: TaskData, visit: Visit, trained: Adapters) -> None:
        """Remember the visit until its results are reserved."""
        self._last = visit

    def commit(self, rows: Ints, slots: Ints, bank: TaskKnowledgeBank | None) -> None:
        """Rescale the other entries of episodes `rows` (n,) to what their magnitudes became."""
        if self._last is None or bank is None or "factors" not in self._last.extra:
            return
        store = cast("AdditiveFactors", bank.store)
        found = self._last.extra["factors"]
        found = found[torch.as_tensor(positions(rows, episodes(self._last)), device=found.device)]
        # The bank may have grown since, and the result may lie where another entry was.
        factors = found.new_ones(len(rows), max(bank.slots, found.shape[1]), found.shape[2])
        factors[:, : found.shape[1]] = found
        factors = factors[:, : bank.slots]
        factors[np.arange(len(rows)), slots] = 1.0
        store.scale(rows, factors)


def _scaled(part: Tensor, size: Tensor) -> Tensor:
    """Scale (n, K, a, b) to norm 1; what is zero stays zero."""
    return part / size.clamp(min=torch.finfo(part.dtype).tiny)[:, :, None, None]
