"""Routing from an adapter's factors alone: Arrow."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from nsr_gym.errors import InvalidValueError
from nsr_gym.lowrank import canonicalise_sites
from nsr_gym.routing.arrays import unit
from nsr_gym.routing.base import Query, Written
from nsr_gym.routing.entry_router import EntryRouter


class DirectionRouter(EntryRouter):
    """Keeps one input direction for each entry and site: where its update acts most.

    The direction is the top right singular vector of the site's update, so it does not depend on
    how the update was factored. Bytes: none of its own; in canonical form it is the first row of
    the entry's down factor, scaled, which is the bank's and counted there.
    """

    needs_inputs: ClassVar[bool] = True

    def _learn(self, rows: Tensor, slots: Tensor, features: Tensor, written: Written) -> None:
        if not written.factors:
            raise InvalidValueError(
                f"The router {self.name!r} reads an entry's factors; give Written.factors."
            )
        double = {
            site: (up.detach().to(self.device).double(), down.detach().to(self.device).double())
            for site, (up, down) in written.factors.items()
        }
        canonical = canonicalise_sites(double)
        names = [f"{i:04d}/{site}" for i, site in enumerate(canonical)]
        if not self._parts:
            for name, update in zip(names, canonical.values(), strict=True):
                self._add_part(name, update.down.shape[-1])
        if sorted(self._parts) != sorted(names):
            raise InvalidValueError(
                f"Expected factors of the sites {', '.join(self._sites())}, in this order, as "
                f"before; got {', '.join(canonical)}."
            )
        for name, update in zip(names, canonical.values(), strict=True):
            self._parts[name][rows, slots] = unit(update.down[:, 0])

    def _sites(self) -> dict[str, Tensor]:
        """Return site -> directions (E, K, d_in), in the order of the network."""
        # Sorted by the number in front, since a file may bring them back in another order.
        return {name.split("/", 1)[1]: self._parts[name] for name in sorted(self._parts)}

    def _similarity(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        """Return `|v.x| / |x|` for every input, site and slot, (n, k, L, K) in [0, 1]."""
        n, k = features.shape[:2]
        sites = self._sites()
        if not sites:
            return features.new_zeros(n, k, 1, self.slots)
        if missing := [site for site in sites if site not in query.inputs]:
            raise InvalidValueError(
                f"The router {self.name!r} needs the inputs of the sites {', '.join(sites)}; "
                f"those of {', '.join(missing)} are missing in Query.inputs."
            )
        parts = []
        for site, directions in sites.items():
            x = query.inputs[site].detach().to(self.device, torch.float64)
            if x.shape != (n, k, directions.shape[-1]):
                raise InvalidValueError(
                    f"Expected inputs of the site {site!r} of shape "
                    f"{(n, k, directions.shape[-1])}; got {tuple(x.shape)}."
                )
            parts.append((unit(x) @ directions[rows].mT).abs())
        return torch.stack(parts, 2)

    def _uncounted(self) -> set[str]:
        return set(self._parts)


class ArrowRouter(DirectionRouter):
    """The entry whose directions the input meets best, averaged over the sites.

    Arrow (Ostapenko et al. 2024, arXiv 2405.11157): the prototype of an adapter at a layer is the
    top right singular vector v of its update, and a token x is scored by `|v.x|`. It needs neither
    data nor training. Departures: Arrow decides for each token and layer and mixes the best few by
    softmax; here one entry serves an input at all sites, so scores are divided by `|x|` and
    averaged over the sites. A set's score is the mean over its inputs.
    """

    name: ClassVar[str] = "arrow"

    def _entry_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        return self._similarity(rows, features, query).mean(2)

    def _entry_set_scores(self, rows: Tensor, features: Tensor, query: Query) -> Tensor:
        return self._entry_scores(rows, features, query).mean(1)
