"""The bank of InfLoRA: every entry is in use at once, and the model is their sum."""

from __future__ import annotations

from typing import ClassVar

from nsr_gym.bank.per_entry import PerEntryFactors
from nsr_gym.bank.store import Ints, Weights


class AdditiveFactors(PerEntryFactors):
    """A store whose entries act together: the model in use is `W0 + sum_j U_j D_j`.

    Entries lie as in `PerEntryFactors`; what differs is that a write, a removal and a change of
    scale concern every task at once, so `coupled` is set, and that `scale` multiplies updates in
    place. The sum itself is `TaskKnowledgeBank.delta`; a part of it with weights in {-1, 0, 1} is
    the reference model of LoRA subtraction (seed-systems.md 4.2).

    Source: InfLoRA, seed-systems.md 5.2.
    """

    kind: ClassVar[str] = "additive"
    coupled: ClassVar[bool] = True

    def scale(self, rows: Ints, factors: Weights) -> None:
        """Multiply the updates of entries, site by site, as a learner that re-weights them does.

        The square root goes to each factor, so canonical entries stay canonical up to sign.

        Args:
            rows: (n,) distinct banks.
            factors: (n, K, sites) in the order of the sites; 1 leaves an entry bit for bit as it
                is.
        """
        at, f = self._index(rows), self._weights(factors).to(self._torch_dtype)
        root = f.abs().sqrt()
        flat = self._rows["factors"][at]
        for i, (up, down) in enumerate(self._split(flat).values()):
            up *= (root * f.sign())[:, :, i, None, None]
            down *= root[:, :, i, None, None]
        self._rows["factors"][at] = flat
        values = self._rows["singular_values"][at].unflatten(2, (len(self.sites), -1))
        self._rows["singular_values"][at] = (values * f.abs()[..., None]).flatten(2)
