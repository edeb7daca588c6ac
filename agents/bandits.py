"""Bandits for readings A and C: one for each observed symbol, or one that generalises over them.

A bandit takes the reward for a draw that depends on the symbol and the allocation alone. With
i.i.d. tasks that is what it is, and the bandit approaches the best memoryless policy; in a fixed
order rewards depend on when an allocation is played, and a bandit may come out above or below.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from nsr_gym.agents.allocation_learners import AllocationLearner, tally
from nsr_gym.agents.base import Ints, RandomState, State
from nsr_gym.envs.arguments import check_number
from nsr_gym.regret.problems import Floats


class BanditAgent(AllocationLearner):
    """Plays the allocation with the highest index; equal ones in ascending order.

    Rewards are scaled to [0, 1] by the environment.
    """

    draws = False
    """Whether the index is random."""

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n,) for observations (n, size), and the next state."""
        n = len(observation)
        state = self.initial_state(range(n)) if state is None else state
        counts, earned = tally(
            state[4], state[5], state[2], state[3], self.last_reward(observation), state[1] > 0
        )
        numbers, drawn = RandomState.draw(state, n, self.num_allocations if self.draws else 1)
        assert drawn is not None
        symbol = self.symbol(observation)
        action = self.index(counts, earned, symbol, numbers).argmax(axis=1)
        return action, (*drawn, symbol, action, counts, earned)

    def initial_state(self, seeds: Sequence[int]) -> tuple[NDArray[Any], ...]:
        """Return the state to begin n episodes with.

        Random numbers, symbol and action of the last step, and how often each allocation was
        played and what it earned under each symbol, (n, O, A).
        """
        n = len(seeds)
        numbers = [np.zeros(n, dtype=np.int64) for _ in range(2)]
        tables = [np.zeros((n, self.num_symbols, self.num_allocations)) for _ in range(2)]
        return *RandomState.start(seeds), *numbers, *tables

    @abc.abstractmethod
    def index(self, counts: Floats, earned: Floats, symbol: Ints, numbers: Floats) -> Floats:
        """Return the index (n, A) of each allocation.

        Args:
            counts: (n, O, A) how often it was played.
            earned: (n, O, A) the sum of what it earned.
            symbol: (n,) observed now.
            numbers: (n, A) uniform in [0, 1) where `draws`; else to be ignored.
        """


class UCBAgent(BanditAgent):
    """UCB1 (Auer, Cesa-Bianchi and Fischer 2002), for each symbol on its own.

    The index is mean + exploration sqrt(ln t / count) after t steps with the symbol; each
    allocation is tried once first.
    """

    def __init__(self, env: Any, *, exploration: float = 2.0**0.5) -> None:
        """Fit the bandit to an environment.

        Args:
            env: the environment.
            exploration: factor of the confidence width, at least 0.

        Raises:
            InvalidValueError: a factor out of range, or the last reward is withheld.
        """
        super().__init__(env)
        check_number("exploration", exploration, low=0.0)
        self.exploration = float(exploration)

    def index(self, counts: Floats, earned: Floats, symbol: Ints, numbers: Floats) -> Floats:
        """Return the index (n, A) of each allocation."""
        rows = np.arange(len(symbol))
        played, sums = counts[rows, symbol], earned[rows, symbol]
        total = np.log(np.maximum(played.sum(axis=1, keepdims=True), 1.0))
        known = np.maximum(played, 1.0)
        index = sums / known + self.exploration * np.sqrt(total / known)
        return np.asarray(np.where(played > 0, index, np.inf))


class ThompsonAgent(BanditAgent):
    """Thompson sampling with Gaussian posteriors (Agrawal and Goyal 2013), symbol by symbol.

    The index is drawn from N(sum / (count + 1), 1 / (count + 1)), the posterior of a mean
    reward under a standard normal prior and noise of unit variance.
    """

    draws = True

    def index(self, counts: Floats, earned: Floats, symbol: Ints, numbers: Floats) -> Floats:
        """Return the index (n, A) of each allocation."""
        rows = np.arange(len(symbol))
        known = counts[rows, symbol] + 1.0
        return np.asarray(earned[rows, symbol] / known + ndtri(numbers) / np.sqrt(known))


class LinUCBAgent(BanditAgent):
    r"""LinUCB with disjoint models (Li, Chu, Langford and Schapire 2010, algorithm 1).

    The features x are the one-hot symbol and a constant, so that symbols share what an allocation
    earns in general. The index is theta_a . x + alpha sqrt(x A_a^-1 x), with A_a = I + sum x x^T.

    A_a is a diagonal 1 + n_o bordered by the counts n_o, and its inverse is known: with
    s = 1 + sum_o n_o / (1 + n_o) and S_o what was earned,

        intercept = (1 / s) sum_o S_o / (1 + n_o)
        theta . x = (S_o + intercept) / (1 + n_o)
        x A^-1 x  = 1 / (1 + n_o) + 1 / (s (1 + n_o)^2).
    """

    def __init__(self, env: Any, *, alpha: float = 1.0) -> None:
        """Fit the bandit to an environment.

        Args:
            env: the environment.
            alpha: factor of the confidence width, at least 0.

        Raises:
            InvalidValueError: a factor out of range, or the last reward is withheld.
        """
        super().__init__(env)
        check_number("alpha", alpha, low=0.0)
        self.alpha = float(alpha)

    def index(self, counts: Floats, earned: Floats, symbol: Ints, numbers: Floats) -> Floats:
        """Return the index (n, A) of each allocation."""
        rows, shrink = np.arange(len(symbol)), 1.0 / (1.0 + counts)
        spread = 1.0 + (counts * shrink).sum(axis=1)  # s, (n, A)
        intercept = (earned * shrink).sum(axis=1) / spread
        own = shrink[rows, symbol]
        mean = (earned[rows, symbol] + intercept) * own
        return np.asarray(mean + self.alpha * np.sqrt(own + own**2 / spread))
