"""Policies of other systems: whom a router names, when to reuse, when something is new."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nsr_gym.agents.bank_rules import BankRule, SimilarityAgent, most_similar
from nsr_gym.agents.base import Ints, State
from nsr_gym.agents.thresholds import score_threshold
from nsr_gym.errors import InvalidValueError


class RouterRule(BankRule):
    """Recall and update the entry that a router scores highest, if it scores high enough.

    The view is sorted by the router, and the field `similarity` holds its score of the support
    images as one set, in [0, 1]. Scores of different routers are not comparable, so that each rule
    has a threshold for its own router alone.

    Attributes:
        router: whose scores the rule's own threshold is meant for.
        default: the threshold where none was calibrated for the environment's tasks.
        threshold: score from which an entry counts as holding the arrived task.
    """

    router: ClassVar[str]
    default: ClassVar[float]

    def __init__(
        self,
        env: Any,
        *,
        threshold: float | None = None,
        rank: int | None = None,
        keep: bool = False,
    ) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            threshold: score in [0, 1] from which an entry counts as holding the arrived task; None
                takes the value calibrated on train-split streams, or `default`.
            rank: as for `BankRule`.
            keep: as for `BankRule`.

        Raises:
            InvalidValueError: a threshold outside [0, 1], none where the environment sorts its
                view by another router, or as for `BankRule`.
        """
        super().__init__(env, rank=rank, keep=keep)
        if threshold is None and self.config.router != self.router:
            raise InvalidValueError(
                f"Expected an environment with router={self.router!r}, whose scores the threshold "
                f"of {type(self).__name__} is meant for; got {self.config.router!r}. Pass "
                "threshold=..., or make the environment with that router."
            )
        self.threshold = score_threshold(env, self.router, threshold, self.default)

    def find(self, observation: NDArray[Any]) -> Ints:
        """Return which viewed entry is the task's own, (n,) in 1..S, or 0 for none."""
        return most_similar(self, observation, self.threshold)


class AnalyticRouterAgent(RouterRule):
    """Recall what the analytic router names (ASR / Any-SSR, arXiv 2503.13575).

    The router is a ridge regression on a random ReLU expansion, with one-hot targets. The first
    viewed entry is recalled and updated if its mean output is larger than that of class 0, "the
    backbone alone", and reaches a threshold; else the task is learned afresh and added. ASR itself
    trains one adapter for each task of a known list and never asks whether an arriving task is
    new. The threshold is ours: a regression that has seen one entry alone answers everything with
    it. The default lies halfway between the targets 0 and 1.
    """

    router = "rls"
    default = 0.5

    def find(self, observation: NDArray[Any]) -> Ints:
        """Return which viewed entry is the task's own, (n,) in 1..S, or 0 for none.

        Raises:
            AccessError: the environment's router has no score for the backbone alone.
        """
        score = self.layout.read(observation, "similarity")[:, 0]
        backbone = self.layout.read(observation, "route_backbone")[:, 0]
        return np.where(score > backbone, super().find(observation), 0)


class ArrowAgent(RouterRule):
    """Recall by prototypes that are read from the factors alone (Arrow, arXiv 2405.11157).

    An entry's prototype on a site is the direction of the input that its adapter amplifies most;
    an input scores by the share of its length along it. Arrow routes every token of every input
    and has no notion of a new task; the threshold is ours.
    """

    router = "arrow"
    default = 0.25


class TreeBanditAgent(RouterRule):
    """Recall what a bandit on a tree over the bank finds similar (TreeLoRA, arXiv 2506.10355).

    The router groups entries by the directions of their down factors and samples branches by
    lower confidence bounds of their distance. TreeLoRA pulls a new adapter towards the most
    similar old one by a penalty; here the old one is the start, and the task's own from a
    threshold on, which is ours.
    """

    router = "tree"
    default = 0.25


class LoraHubAgent(RouterRule):
    """Start from a blend of the whole bank, found without gradients (LoraHub, arXiv 2307.13269).

    With the environment's `warm_start="mixture"` a recall starts from the blend, whichever entry
    is named; the named one is what an update overwrites. So something is recalled wherever
    anything is held: updated from the threshold on, added as a new entry below. The score of an
    entry is the size of its weight over the bound 1.5; the default asks for half the weight 1
    that the entry would have alone. LoraHub ends with the blend: it neither trains it further
    nor stores it, and has no threshold.
    """

    router = "lorahub"
    default = 1.0 / 3.0

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        blend = self.held(observation)[:, 0].astype(np.int64)
        return self.decide(observation, blend, own=self.find(observation) > 0), state


class ReuseOrExpandAgent(SimilarityAgent):
    """Reuse an entry that is similar enough, else expand; a full bank reuses the nearest.

    The rule of the large continual instruction assistant (arXiv 2410.10868), which reuses an
    adapter from a mean TF-IDF cosine of its instructions of 0.90 (0.30 for diverse ones), and of
    SEMA (arXiv 2403.18886), which adds one where even the smallest z-score of its autoencoders is
    above 2. Here the similarity is the cosine of task embeddings, on which 0.90 says little: the
    default threshold is the calibrated one, and 0.90 can be asked for. Both systems may grow
    without end. Where the bank may not, the nearest entry is trained on, and nothing is evicted.
    """

    def __init__(
        self, env: Any, *, threshold: float | None = None, rank: int | None = None
    ) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            threshold: similarity from which an entry is reused; None takes the cosine calibrated
                on train-split streams.
            rank: as for `BankRule`.

        Raises:
            InvalidValueError: a threshold outside [-1, 1], or as for `BankRule`.
        """
        super().__init__(env, threshold=threshold, rank=rank, keep=True)

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        nearest = self.held(observation)[:, 0].astype(np.int64)
        full = ~self.room(observation, np.full(len(observation), self.rank))
        return self.decide(observation, np.where(full, nearest, self.find(observation))), state


class ResidualThresholdAgent(BankRule):
    """Add an entry where the arriving task lies outside what the bank spans, else refine (Share).

    Share (`ankit-vaidya19/Share`) keeps one basis for all tasks; the residual of a new task's
    projection onto it says whether to adapt the basis or to project. Here it is the field
    `novelty`, the share of the task's first gradient outside the bases of a `shared_basis` bank,
    in other banks outside the viewed entry that holds most of it. Above the threshold the task is
    learned afresh and added; else the nearest entry is recalled and updated. Needs
    `observe_signals=True`.
    """

    def __init__(
        self,
        env: Any,
        *,
        threshold: float | None = None,
        rank: int | None = None,
        keep: bool = False,
    ) -> None:
        """Fit the rule to an environment.

        Args:
            env: the environment.
            threshold: share of the gradient above which a task is new; None takes the value
                calibrated on train-split streams for the tasks and the kind of bank, or 0.4, what
                is left of the 60 % of variance by which Share is said to choose its basis. That
                is little for a gradient: it takes almost every task for new.
            rank: as for `BankRule`.
            keep: as for `BankRule`.

        Raises:
            InvalidValueError: a threshold outside [0, 1], or as for `BankRule`.
        """
        super().__init__(env, rank=rank, keep=keep)
        self.threshold = score_threshold(env, f"novelty/{self.config.bank}", threshold, 0.4)

    def find(self, observation: NDArray[Any]) -> Ints:
        """Return which viewed entry is the task's own, (n,) in 1..S, or 0 for none.

        Raises:
            AccessError: the environment does not show its signals.
        """
        known = self.layout.read(observation, "novelty")[:, 0] <= self.threshold
        return (self.held(observation)[:, 0] & known).astype(np.int64)
