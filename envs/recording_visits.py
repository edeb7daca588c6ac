"""Plays the visits of a recording: many at once, from given adapters, on live dynamics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nsr_gym.envs.config import VisitConfig
from nsr_gym.envs.dynamics import Ints, Visits
from nsr_gym.envs.live import LiveDynamics
from nsr_gym.envs.recording_parts import Part, pack
from nsr_gym.envs.recording_plan import RecordingPlan
from nsr_gym.learning.adapters import Adapters
from nsr_gym.learning.validating import FRONT, validated

Curves = NDArray[np.float32]


class VisitTrainer:
    """Draws support images, trains visits and measures entries, in batches."""

    def __init__(
        self,
        dynamics: LiveDynamics,
        config: VisitConfig,
        plan: RecordingPlan,
        batch: int,
        advance: Callable[[int], None],
    ) -> None:
        """Prepare.

        Args:
            dynamics: what visits are played on.
            config: of its environment.
            plan: how much is recorded.
            batch: visits that are trained at once, at most the episodes of `dynamics`.
            advance: called with the number of visits made since the last call.
        """
        self._dynamics, self._config, self._plan = dynamics, config, plan
        self._batch, self._advance = batch, advance

    def supports(self) -> Part:
        """Draw the samples of support images; losses and embeddings of the bare backbone."""
        dynamics, plan, t = self._dynamics, self._plan, len(self._dynamics.pool)
        rng = np.random.default_rng([plan.seed, 1])
        size = self._config.support_size
        index = np.stack(
            [
                [rng.permutation(n)[:size] for _ in range(plan.supports)]
                for n in dynamics.data.train_sizes
            ]
        )
        embedding = np.empty((t, plan.supports, dynamics.embedding_dim), dtype=np.float32)
        loss = np.empty((t, plan.supports), dtype=np.float32)
        tasks = dynamics.tensor(np.arange(t))
        for p in range(plan.supports):
            images = dynamics.data.train(tasks, dynamics.tensor(index[:, p]))
            embedding[:, p] = dynamics.data.embed(images)
            loss[:, p] = dynamics.learner.loss(images, dynamics.bare(t)).cpu().numpy()
        return {
            "index": index,
            "embedding": embedding,
            "bare_loss": loss,
            "bare_accuracy": dynamics.bare_accuracy(np.arange(t)).astype(np.float32),
        }

    def train(
        self, tasks: Ints, start: Adapters, r: int, g: int, recalled: bool, stage: tuple[int, ...]
    ) -> Part:
        """Train one visit of each task (n,).

        Args:
            tasks: that are visited.
            start: n adapters to start from.
            r: index of their rank.
            g: index of the granted rank.
            recalled: whether they hold knowledge, so that training distils towards them.
            stage: names the random numbers.

        Returns:
            The adapters that are stored, `"curve"` (n, L + 1): test accuracies, and `"end"` (n,):
            the last accuracy on validation images, NaN where there are none.
        """
        dynamics, n = self._dynamics, len(tasks)
        rng = np.random.default_rng([self._plan.seed, 2, *stage])
        keys = rng.integers(2**63, size=(n, 2), dtype=np.uint64)
        results, curves, ends = [], [], []
        for first in range(0, n, self._batch):
            block = slice(first, min(n, first + self._batch))
            size = block.stop - first
            rows, zeros = np.arange(size), np.zeros(size, dtype=np.int64)
            dynamics.begin(rows, keys[block])
            begin = start[dynamics.tensor(np.arange(block.start, block.stop))]  # a copy
            ranks = zeros + self._config.ranks[g]
            begin.keep(dynamics.tensor(ranks))
            measured = validated(dynamics.data, size, dynamics.device)
            trained, curve = dynamics.train(
                Visits(rows, tasks[block], zeros),
                begin,
                zeros + (self._config.ranks[r] if recalled else 0),
                ranks,
                recalled=zeros.astype(bool) | recalled,
                extra=measured,
            )
            cut = dynamics.compress(trained, ranks, energy=None)
            results.append(Adapters(cut.factors, trained.head))
            curves.append(curve.astype(np.float32))
            ends.append(measured[FRONT].cpu().numpy() if measured else empty(size))
            self._advance(size)
        return pack(Adapters.cat(results)) | {
            "curve": np.concatenate(curves),
            "end": np.concatenate(ends).astype(np.float32),
        }

    def losses(self, tasks: Ints, adapters: Adapters, index: Ints) -> NDArray[np.float32]:
        """Return the losses (n, P) of adapters on the samples of their tasks."""
        dynamics, n = self._dynamics, len(tasks)
        out = np.empty((n, self._plan.supports), dtype=np.float32)
        for first in range(0, n, self._batch):
            block = slice(first, min(n, first + self._batch))
            chosen = dynamics.tensor(tasks[block])
            for p in range(self._plan.supports):
                images = dynamics.data.train(chosen, dynamics.tensor(index[tasks[block], p]))
                out[block, p] = dynamics.learner.loss(images, adapters[block]).cpu().numpy()
        return out


def empty(*shape: int) -> Curves:
    """Return an array that says that nothing was recorded."""
    return np.full(shape, np.nan, dtype=np.float32)
