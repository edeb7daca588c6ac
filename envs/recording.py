"""Records live visits into a table of outcomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nsr_gym.envs.dynamics import Ints
from nsr_gym.envs.live import LiveDynamics
from nsr_gym.envs.recording_parts import Part, RecordingParts, pack, step_name, unpack
from nsr_gym.envs.recording_plan import RecordingPlan
from nsr_gym.envs.recording_visits import Curves, VisitTrainer, empty
from nsr_gym.errors import InvalidValueError
from nsr_gym.evaluation.compare import installation
from nsr_gym.learning.adapters import Adapters
from nsr_gym.outcomes import VALIDATION, OutcomeTable
from nsr_gym.pools import PoolRecord

SETTINGS = (
    "support_size", "learning_steps", "updates", "batch_size", "learning_rate", "distillation",
    "temperature", "init_gain", "head",
)  # fmt: skip
"""Environment arguments that outcomes depend on."""

_SOURCE_LEVEL, _SOURCE_CHAIN = 1, 0
"""The entries that stand for other tasks: trained twice, of the first chain."""

Progress = Callable[[int, int], None]


class Recorder:
    """Plays visits of every task on live dynamics and writes down what came out.

    Parts that are finished lie in a folder, so that a killed recording goes on where it was.
    """

    def __init__(
        self, engine: Any, plan: RecordingPlan, parts: Path, progress: Progress | None = None
    ) -> None:
        """Prepare.

        Args:
            engine: of an environment with live dynamics; its episodes are those trained at once.
            plan: how much to record.
            parts: folder of finished parts.
            progress: called with the visits recorded so far and all that are planned.

        Raises:
            InvalidValueError: another kind of environment, too few tasks, tasks with different
                numbers of test or validation images.
            StateError: the folder holds parts of another recording.
        """
        dynamics = getattr(engine, "dynamics", None)
        if not isinstance(dynamics, LiveDynamics):
            raise InvalidValueError("Expected an environment with live dynamics to record.")
        pool = dynamics.pool
        if len(pool) <= plan.sources or plan.levels <= _SOURCE_LEVEL:
            raise InvalidValueError(
                f"Expected more than {plan.sources} tasks (sources + 1) and at least "
                f"{_SOURCE_LEVEL + 1} levels; the pool {pool.name!r} has {len(pool)} tasks, and "
                f"levels is {plan.levels}."
            )
        self.dynamics, self.config, self.plan = dynamics, engine.config, plan
        self.pool = pool
        self.images = {
            "test_images": _count("test", "test_per_class", [len(task.y_test) for task in pool])
        }
        if pool.validated:
            sizes = [len(task.y_val) for task in pool if task.y_val is not None]
            self.images["validation_images"] = _count("validation", "val_per_class", sizes)
        self.ranks = tuple(self.config.ranks)
        self._trainer = VisitTrainer(
            dynamics, self.config, plan, engine.num_episodes, self._advance
        )
        self._progress = progress or (lambda done, total: None)
        self._done = 0
        t, q, chains = len(pool), len(self.ranks), plan.fresh_chains + plan.foreign_chains
        self.total = t * q * (
            plan.fresh_chains
            + chains * (plan.levels + (q - 1) * len(plan.branches))
            + q * plan.sources
        )  # fmt: skip
        backbone = dynamics.learner.backbone
        asked = {
            "pool": pool.fingerprint,
            "backbone": backbone.fingerprint,
            "sites": [site.name for site in backbone.sites],
            "plan": self._plan(),
            "settings": self._settings(),
            "ranks": list(self.ranks),
            "installation": installation(),
        }
        self._parts = RecordingParts(parts, asked)

    def record(self, origin: Mapping[str, Any] | None = None) -> OutcomeTable:
        """Record everything that is not there yet, and put the table together.

        Args:
            origin: what else the table is to say of where it comes from, plain JSON.
        """
        plan, pool = self.plan, self.pool
        supports = self._part("supports", self._trainer.supports)
        sources = self._choose_sources(supports["embedding"])
        t, q, k = len(pool), len(self.ranks), plan.levels
        d, c = plan.fresh_chains, plan.fresh_chains + plan.foreign_chains
        steps = self.dynamics.learning_steps + 1
        fresh, fresh_end = empty(t, q, d, steps), empty(t, q, d)
        own, own_end = empty(t, q, k, c, q, steps), empty(t, q, k, c, q)
        foreign, foreign_end = empty(t, plan.sources, q, q, steps), empty(t, plan.sources, q, q)
        own_loss = empty(t, plan.supports, q, k, c)
        foreign_loss = empty(t, plan.supports, plan.sources, q)
        held: dict[int, Adapters] = {}
        for r, rank in enumerate(self.ranks):
            part = self._part(f"fresh-{rank}", partial(self._fresh, r, supports["index"]))
            fresh[:, r], fresh_end[:, r] = part["fresh"], part["fresh_end"]
            own[:, r, :, :d], own_end[:, r, :, :d] = part["own"], part["own_end"]
            own_loss[:, :, r, :, :d] = part["loss"]
            held[r] = unpack(part, self.dynamics.tensor)
            self._parts.remove_steps()
        for r, rank in enumerate(self.ranks):
            part = self._part(
                f"foreign-{rank}", partial(self._foreign, r, sources, held[r], supports["index"])
            )
            foreign[:, :, r], foreign_end[:, :, r] = part["foreign"], part["foreign_end"]
            foreign_loss[..., r] = part["foreign_loss"]
            own[:, r, :, d:], own_end[:, r, :, d:] = part["own"], part["own_end"]
            own_loss[:, :, r, :, d:] = part["loss"]
            self._parts.remove_steps()
        ends = fresh_end, own_end, foreign_end
        return OutcomeTable(
            pool=PoolRecord.of(pool),
            ranks=self.ranks,
            bare_accuracy=supports["bare_accuracy"],
            bare_loss=supports["bare_loss"],
            embedding=supports["embedding"],
            fresh=fresh,
            own=own,
            sources=sources,
            foreign=foreign,
            own_loss=own_loss,
            foreign_loss=foreign_loss,
            sites={s.name: (s.d_out, s.d_in) for s in self.dynamics.learner.backbone.sites},
            settings=self._settings(),
            provenance=dict(origin or {})
            | {
                **self.images,
                "plan": self._plan(),
                "pool_fingerprint": pool.fingerprint,
                "visits": self.total,
                "sources": sources.tolist(),
                "source_state": {"level": _SOURCE_LEVEL, "chain": _SOURCE_CHAIN},
            },
            **(dict(zip(VALIDATION, ends, strict=True)) if pool.validated else {}),
        )

    def remove_parts(self) -> None:
        """Remove the folder of finished parts, once the table is written."""
        self._parts.remove()

    def _advance(self, visits: int) -> None:
        self._done += visits
        self._progress(self._done, self.total)

    def _plan(self) -> dict[str, Any]:
        return {f.name: _plain(getattr(self.plan, f.name)) for f in fields(self.plan)}

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self.config, name) for name in SETTINGS}

    def _part(self, name: str, make: Callable[[], Part]) -> Part:
        part = self._parts.get(name, lambda: {**make(), "done": np.array([self._done])})
        self._done = max(self._done, int(part["done"][0]))
        self._progress(self._done, self.total)
        return part

    def _choose_sources(self, embedding: NDArray[np.float32]) -> Ints:
        """Return (T, G) other tasks, spread evenly from the most similar to the least."""
        mean = embedding.mean(axis=1)
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        alike = mean @ mean.T
        np.fill_diagonal(alike, np.inf)
        order = np.argsort(-alike, axis=1, kind="stable")[:, 1:]
        at = np.rint(np.linspace(0, order.shape[1] - 1, self.plan.sources)).astype(np.int64)
        return np.ascontiguousarray(order[:, at])

    def _fresh(self, r: int, index: Ints) -> Part:
        """Follow the lives that begin with fresh directions at one rank."""
        tasks = np.repeat(np.arange(len(self.pool)), self.plan.fresh_chains)
        start = self.dynamics.empty(len(tasks))
        entry, curve, end = self._train(tasks, start, 0, r, recalled=False, stage=(1, r))
        part, kept = self._follow(tasks, entry, r, index, stage=(2, r))
        shape = len(self.pool), self.plan.fresh_chains
        one = kept[torch.arange(_SOURCE_CHAIN, len(tasks), self.plan.fresh_chains)]
        return part | pack(one) | {
            "fresh": curve.reshape(*shape, -1),
            "fresh_end": end.reshape(shape),
        }  # fmt: skip

    def _foreign(self, r: int, sources: Ints, held: Adapters, index: Ints) -> Part:
        """Start from other tasks' entries of one rank, and follow the lives that begin so."""
        plan, t, q = self.plan, len(self.pool), len(self.ranks)
        tasks = np.repeat(np.arange(t), plan.sources)
        start = held[self.dynamics.tensor(sources.ravel())]
        curves = empty(t, plan.sources, q, self.dynamics.learning_steps + 1)
        ends = empty(t, plan.sources, q)
        lives = np.arange(plan.foreign_chains) * (plan.sources // max(1, plan.foreign_chains))
        begun = None
        for g in range(q):
            entry, curve, end = self._train(tasks, start, r, g, recalled=True, stage=(3, r, g))
            curves[:, :, g] = curve.reshape(t, plan.sources, -1)
            ends[:, :, g] = end.reshape(t, plan.sources)
            if g == r:
                rows = (np.arange(t)[:, None] * plan.sources + lives).ravel()
                begun = entry[self.dynamics.tensor(rows)]
        assert begun is not None
        loss = self._trainer.losses(tasks, start, index).reshape(t, plan.sources, plan.supports)
        born = np.repeat(np.arange(t), plan.foreign_chains)
        part, _ = self._follow(born, begun, r, index, stage=(4, r))
        return part | {
            "foreign": curves,
            "foreign_end": ends,
            "foreign_loss": np.ascontiguousarray(loss.swapaxes(1, 2)),
        }

    def _follow(
        self, tasks: Ints, entry: Adapters, r: int, index: Ints, stage: tuple[int, ...]
    ) -> tuple[Part, Adapters]:
        """Play return after return from entries of one rank, each the result of the last.

        Returns:
            Curves (T, K, chains, Q, L + 1), what they end with on validation images and losses
            (T, P, K, chains); the entries that stand for their tasks as sources.
        """
        t, levels, q = len(self.pool), self.plan.levels, len(self.ranks)
        chains = len(tasks) // t
        steps = self.dynamics.learning_steps + 1
        own, ends = empty(t, levels, chains, q, steps), empty(t, levels, chains, q)
        loss = empty(t, self.plan.supports, levels, chains)
        kept = entry
        for k in range(levels if chains else 0):
            if k == _SOURCE_LEVEL:
                kept = entry
            measured = self._trainer.losses(tasks, entry, index).reshape(t, chains, -1)
            loss[:, :, k] = measured.swapaxes(1, 2)
            following = entry
            for g in range(q):
                if g != r and k not in self.plan.branches:
                    continue
                result, curve, end = self._train(
                    tasks, entry, r, g, recalled=True, stage=(*stage, k, g)
                )
                own[:, k, :, g] = curve.reshape(t, chains, -1)
                ends[:, k, :, g] = end.reshape(t, chains)
                following = result if g == r else following
            entry = following
        return {"own": own, "own_end": ends, "loss": loss}, kept

    def _train(
        self,
        tasks: Ints,
        start: Adapters,
        r: int,
        g: int,
        *,
        recalled: bool,
        stage: tuple[int, ...],
    ) -> tuple[Adapters, Curves, Curves]:
        """Train one visit of each task from entries of rank index r at granted rank index g.

        Returns:
            What is stored, test accuracies (n, L + 1), and accuracies (n,) on validation images
            at the end (NaN where there are none).
        """
        part = self._part(
            step_name(stage), partial(self._trainer.train, tasks, start, r, g, recalled, stage)
        )
        return unpack(part, self.dynamics.tensor), part["curve"], part["end"]


def _count(part: str, argument: str, sizes: Sequence[int]) -> int:
    """Return how many images every task has.

    Raises:
        InvalidValueError: not all have equally many.
    """
    if len(set(sizes)) != 1:
        raise InvalidValueError(
            f"Expected tasks with equally many {part} images; got {sorted(set(sizes))}. Ask for "
            f"as many of each class as all have ({argument}, say)."
        )
    return sizes[0]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
