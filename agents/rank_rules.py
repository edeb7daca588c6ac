"""Policies of other systems for the granted rank: by energy, and by a shrinking budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.agents.bank_rules import Floats, SimilarityAgent
from nsr_gym.agents.base import Ints, State
from nsr_gym.agents.thresholds import share
from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.adalora import budget


class EnergyRanksAgent(SimilarityAgent):
    """Grant the least rank that keeps enough of the first gradient's energy (InfLoRA, DyRA).

    InfLoRA (arXiv 2404.00228) protects as many directions of a task's inputs as carry a share eps
    of their energy; DyRA, on top of it, gives a task those of its own that exceed a threshold.
    Here the energy is that of the task's first gradient on the frozen model, the field `energy`,
    and one rank is granted to all sites, since an action has one. What is recalled is what the
    similarity rule recalls. A returning task keeps at least the rank of its entry: neither system
    cuts what it has learned. Needs `observe_signals=True`.
    """

    def __init__(
        self,
        env: Any,
        *,
        eps: float = 0.9,
        threshold: float | None = None,
        keep: bool = False,
    ) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            eps: share of the energy that the granted rank is to keep; where no rank does, the
                largest is granted.
            threshold: as for `SimilarityAgent`.
            keep: as for `BankRule`.

        Raises:
            InvalidValueError: `eps` outside [0, 1], or as for `SimilarityAgent`.
        """
        super().__init__(env, threshold=threshold, keep=keep)
        self.eps = share("eps", eps)

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state.

        Raises:
            AccessError: the environment does not show its signals.
        """
        own = self.find(observation)
        enough = self.layout.read(observation, "energy") >= self.eps
        rank = np.where(enough.any(axis=1), enough.argmax(axis=1), self.rank)
        stored = self.layout.read(observation, "stored_rank")[:, 0] * self.config.max_rank
        # The least rank that holds the entry whole.
        whole = np.searchsorted(np.array(self.config.ranks), np.rint(stored))
        rank = np.where(own > 0, np.maximum(rank, whole), rank)
        return self.decide(observation, own, rank=rank), state


class AdaLoRABudgetAgent(SimilarityAgent):
    """Spend a rank budget that shrinks over the stream on the arrivals that matter (AdaLoRA).

    AdaLoRA (arXiv 2303.10512) prunes the directions of one adapter during one training run: their
    number follows a cubic schedule, and those stay whose importance is largest, the product of
    the running means of the sensitivity |w g| and of its deviation from its own mean (0.85, 0.85).
    That is the learners' modifier `rank_gates` with `prune="adalora"`. This is the same rule one
    level up, where an action grants one rank to one arrival:

        budget  b = target + (R - target) (1 - p)^3, p the stream's progress
        level   m <- 0.85 m + 0.15 l,           l the scaled loss before training
        spread  u <- 0.85 u + 0.15 |l - m|,     importance s = m u
        wanted  b s / s', at most R, with s' the importance before this arrival (R while b is R),
                plus what earlier arrivals left of their budgets

    and the largest grantable rank that is not above what is wanted. l stands for the sensitivity,
    which no policy can see: the loss of the entry that is recalled, of the backbone where none is.
    What is unusual counts as uncertain, whichever way, as in AdaLoRA. Three more departures:
    arrivals compete over time, not directions at one step, so that an arrival is held against
    those before it; for the same reason both running means are divided by 1 - 0.85^t, or their
    start from zero would show; and the budget is met on average over the arrivals (the sum of
    granted ranks stays within 2 R of the sum of budgets), not at every step. What is recalled is
    what the similarity rule recalls, and a returning task's entry may be cut.
    """

    def __init__(
        self,
        env: Any,
        *,
        target: float | None = None,
        warm: float = 0.1,
        cool: float = 0.3,
        smoothing: float = 0.85,
        threshold: float | None = None,
        keep: bool = False,
    ) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            target: mean rank that the budget falls to, from the least grantable rank to R; None
                takes 2/3 R, in the proportion of AdaLoRA's 12 and 8.
            warm: share of the stream before the budget begins to fall.
            cool: share of the stream after it has fallen.
            smoothing: of both running means, in [0, 1).
            threshold: as for `SimilarityAgent`.
            keep: as for `BankRule`.

        Raises:
            InvalidValueError: a value out of range, or as for `SimilarityAgent`.
        """
        super().__init__(env, threshold=threshold, keep=keep)
        least, most = self.config.ranks[0], self.config.max_rank
        self.target = max(least, most * 2 / 3) if target is None else target
        if not least <= self.target <= most:
            raise InvalidValueError(
                f"Expected target from {least} to {most}, the ranks that can be granted; got "
                f"{target!r}."
            )
        self.warm, self.cool = share("warm", warm), share("cool", cool)
        if warm + cool > 1.0:
            raise InvalidValueError(
                f"Expected warm + cool to be at most 1; got {warm!r} and {cool!r}."
            )
        if not 0.0 <= smoothing < 1.0:
            raise InvalidValueError(f"Expected smoothing in [0, 1); got {smoothing!r}.")
        self.smoothing = smoothing

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        own = self.find(observation)
        level, spread, arrivals, left = state or self._start(len(observation))
        loss = np.where(
            own > 0,
            self.layout.read(observation, "trial_loss")[:, 0],
            self.layout.read(observation, "bare_loss")[:, 0],
        ).astype(np.float64)
        old, arrivals = self.smoothing, arrivals + 1.0
        before = level * spread / np.maximum(1.0 - old ** (arrivals - 1.0), _ROUNDING) ** 2
        unbiased = 1.0 - old**arrivals
        level = old * level + (1.0 - old) * loss
        spread = old * spread + (1.0 - old) * np.abs(loss - level / unbiased)
        importance = level * spread / unbiased**2
        # While nothing has deviated yet, there is nothing to be held against.
        relative = np.divide(importance, before, out=np.ones_like(before), where=before > _ROUNDING)

        progress = 1.0 - self.layout.read(observation, "visits_left")[:, 0].astype(np.float64)
        most = self.config.max_rank
        allowed = budget(progress, 1.0, most, self.target, self.warm, self.cool)
        # A whole budget leaves nothing to compete for.
        wanted = np.where(allowed < most - _ROUNDING, np.minimum(allowed * relative, most), most)
        # Sums of thirds and the like must not fall below the rank that they stand for.
        rank = self.rank_index(wanted + left + _ROUNDING)
        left = left + allowed - np.array(self.config.ranks)[rank]
        actions = self.decide(observation, own, rank=rank)
        return actions, (level, spread, arrivals, left)

    def initial_state(self, seeds: Sequence[int]) -> State:
        """Return the state to begin n episodes with: level, spread, arrivals, left."""
        return self._start(len(seeds))

    @staticmethod
    def _start(n: int) -> tuple[Floats, ...]:
        return tuple(np.zeros(n) for _ in range(4))


_ROUNDING = 1e-9
"""Of a rank or of a share; far below any difference that matters."""
