"""Share's learner: a new task trains coefficients on bases that are shared and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from nsr_gym.learning.checks import check_count
from nsr_gym.learning.data import TaskData
from nsr_gym.learning.learner import LoRALearner
from nsr_gym.learning.run import Run, leaf
from nsr_gym.learning.visit import Stacks, Visit


class CoefficientRun(Run):
    """Training of coefficients only, in episodes whose bases are ready, and of factors elsewhere.

    Every episode has leaves for both, whichever it uses, so that what happens to one does not
    depend on those beside it.
    """

    def begin(self) -> None:
        """Make leaves of the factors and of the coefficients, (n, R, k) for each side."""
        super().begin()
        self._coefficients: dict[str, tuple[Tensor, Tensor]] = {}
        if self.visit.basis is None:
            return
        for site, (up, down) in self.visit.start.factors.items():
            beta, alpha = self.visit.basis[site]
            pair = leaf(torch.bmm(up.mT, beta)), leaf(torch.bmm(down, alpha))
            self._coefficients[site] = pair
            self.leaves += pair
        self._optimiser = self.optimiser()

    def factors(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return the factors, formed from bases and coefficients where bases are ready."""
        pairs, basis = super().factors(), self.visit.basis
        if basis is None:
            return pairs
        ready, formed = self.visit.extra["ready"][:, None, None], {}
        for site, (up_t, down) in pairs.items():
            (beta, alpha), (e_beta, e_alpha) = basis[site], self._coefficients[site]
            formed[site] = (
                torch.where(ready, torch.bmm(e_beta, beta.mT), up_t),
                torch.where(ready, torch.bmm(e_alpha, alpha.mT), down),
            )
        return formed


class CoefficientLearner(LoRALearner):
    """Coefficient-only training on a `shared_basis` bank (Share).

    For each site dW = (beta e_beta)(alpha e_alpha)^T with the bank's bases beta (d_out, k) and
    alpha (d_in, k), which are frozen. Only e_beta and e_alpha, (k, p) each, are trained, p the
    granted rank. They start from the projection of the visit's start, which is exact for a
    recalled entry of such a bank; a fresh start has e_beta = 0 and for e_alpha the projection of
    random directions.

    Somebody has to fill the bases first: until they have `least` directions on every site, an
    episode trains plain factors, whose reserved results the bank makes its bases from. Share
    starts from a set of adapters that exist. With the bank's `update="project"` nothing but the
    entry of the visit changes from then on; with "merge" its bases may turn at every write. Share's
    temporary expansion (`phi` columns that are trained and merged) is what "merge" does with a
    plain visit.

    Options:
        least: directions that bases must have, where they have room for so many; None: all that
            they have room for, since bases of one or two tasks hold little of a third.
    """

    name: ClassVar[str] = "coef_only"
    needs_basis: ClassVar[bool] = True
    run_class: ClassVar[type[Run]] = CoefficientRun
    defaults: ClassVar[Mapping[str, Any]] = {"least": None}

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take what `LoRALearner` takes.

        Raises:
            InvalidValueError: `least` is neither None nor a whole number of at least 1.
        """
        super().__init__(*args, **options)
        if self.options["least"] is not None:
            check_count("least of coef_only", self.options["least"])

    def prepare(self, data: TaskData, visit: Visit) -> Visit:
        """Find the episodes whose bases are ready, and project their starts."""
        visit = super().prepare(data, visit)
        if visit.basis is None:
            return visit
        ready = filled(visit.basis, self.options["least"])
        start = {}
        for site, (up, down) in visit.start.factors.items():
            beta, alpha = visit.basis[site]
            near_up = torch.bmm(beta, torch.bmm(beta.mT, up))
            near_down = torch.bmm(torch.bmm(down, alpha), alpha.mT)
            start[site] = (
                torch.where(ready[:, None, None], near_up, up),
                torch.where(ready[:, None, None], near_down, down),
            )
        begun = replace(visit.start, factors=start)
        return replace(visit, start=begun, extra={**visit.extra, "ready": ready})


def filled(basis: Stacks, least: int | None) -> Tensor:
    """Return whose bases have `least` directions, or all where there is no room for them, (n,).

    Args:
        basis: site -> (beta (n, d_out, k), alpha (n, d_in, k)), columns not in use zero.
        least: how many are enough; None: only all are.
    """
    sides = [side for pair in basis.values() for side in pair]
    enough = [side.shape[2] if least is None else min(least, side.shape[2]) for side in sides]
    counts = [(side != 0).any(1).sum(1) for side in sides]
    return torch.stack([n >= m for n, m in zip(counts, enough, strict=True)]).all(0)
