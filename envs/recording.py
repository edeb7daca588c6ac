"""Records live visits into a table of outcomes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from nsr_gym.envs.dynamics import Ints, Visits
from nsr_gym.envs.live import LiveDynamics
from nsr_gym.envs.recording_plan import RecordingPlan
from nsr_gym.errors import InvalidValueError, StateError
from nsr_gym.evaluation.compare import installation
from nsr_gym.files import TEMPORARY, write_whole
from nsr_gym.learning.adapters import Adapters
from nsr_gym.outcomes import OutcomeTable
from nsr_gym.pools import PoolRecord

SETTINGS = (
    "support_size", "learning_steps", "updates", "batch_size", "learning_rate", "distillation",
    "temperature", "init_gain", "head",
)  # fmt: skip
"""Environment arguments that outcomes depend on."""


_SOURCE_LEVEL, _SOURCE_CHAIN = 1, 0
"""The entries that stand for other tasks: trained twice, of the first chain."""

_NOTE = "recording.json"
Progress = Callable[[int, int], None]
_Part = dict[str, NDArray[Any]]


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
                numbers of test images.
            StateError: the folder holds parts of another recording.
        """
        dynamics = getattr(engine, "dynamics", None)
        if not isinstance(dynamics, LiveDynamics):
            raise InvalidValueError("Expected an environment with live dynamics to record.")
        pool = dynamics.pool
        sizes = {len(task.y_test) for task in pool}
        if len(sizes) != 1:
            raise InvalidValueError(
                f"Expected tasks with equally many test images; got {sorted(sizes)}."
            )
        if len(pool) <= plan.sources or plan.levels <= _SOURCE_LEVEL:
            raise InvalidValueError(
                f"Expected more than {plan.sources} tasks (sources + 1) and at least "
                f"{_SOURCE_LEVEL + 1} levels; the pool {pool.name!r} has {len(pool)} tasks, and "
                f"levels is {plan.levels}."
            )
        self.dynamics, self.config, self.plan = dynamics, engine.config, plan
        self.pool, self.test_images = pool, sizes.pop()
        self.batch = engine.num_episodes
        self.ranks = tuple(self.config.ranks)
        self._parts, self._progress = parts, progress or (lambda done, total: None)
        self._done = 0
        self._names: list[str] = []
        t, q, chains = len(pool), len(self.ranks), plan.fresh_chains + plan.foreign_chains
        self.total = t * q * (
            plan.fresh_chains
            + chains * (plan.levels + (q - 1) * len(plan.branches))
            + q * plan.sources
        )  # fmt: skip
        parts.mkdir(parents=True, exist_ok=True)
        asked = {
            "pool": pool.fingerprint,
            "plan": {f.name: _plain(getattr(plan, f.name)) for f in fields(plan)},
            "settings": self._settings(),
            "ranks": list(self.ranks),
            "installation": installation(),
        }
        note = parts / _NOTE
        if note.exists():
            if json.loads(note.read_text()) != asked:
                raise StateError(
                    f"{parts} holds parts of another recording, or of one by another installation; "
                    "remove it or choose another output."
                )
        else:
            write_whole(note, lambda file: file.write_text(json.dumps(asked)))

    def record(self, origin: Mapping[str, Any] | None = None) -> OutcomeTable:
        """Record everything that is not there yet, and put the table together.

        Args:
            origin: what else the table is to say of where it comes from, plain JSON.
        """
        plan, pool = self.plan, self.pool
        supports = self._part("supports", self._supports)
        sources = self._choose_sources(supports["embedding"])
        t, q, k = len(pool), len(self.ranks), plan.levels
        d, c = plan.fresh_chains, plan.fresh_chains + plan.foreign_chains
        steps = self.dynamics.learning_steps + 1
        fresh = np.full((t, q, d, steps), np.nan, dtype=np.float32)
        own = np.full((t, q, k, c, q, steps), np.nan, dtype=np.float32)
        foreign = np.full((t, plan.sources, q, q, steps), np.nan, dtype=np.float32)
        own_loss = np.full((t, plan.supports, q, k, c), np.nan, dtype=np.float32)
        foreign_loss = np.full((t, plan.supports, plan.sources, q), np.nan, dtype=np.float32)
        held: dict[int, Adapters] = {}
        for r, rank in enumerate(self.ranks):
            part = self._part(f"fresh-{rank}", partial(self._fresh, r, supports["index"]))
            fresh[:, r] = part["fresh"]
            own[:, r, :, :d] = part["own"]
            own_loss[:, :, r, :, :d] = part["loss"]
            held[r] = self._unpack(part)
        for r, rank in enumerate(self.ranks):
            part = self._part(
                f"foreign-{rank}", partial(self._foreign, r, sources, held[r], supports["index"])
            )
            foreign[:, :, r] = part["foreign"]
            foreign_loss[..., r] = part["foreign_loss"]
            own[:, r, :, d:] = part["own"]
            own_loss[:, :, r, :, d:] = part["loss"]
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
                "plan": {f.name: _plain(getattr(plan, f.name)) for f in fields(plan)},
                "pool_fingerprint": pool.fingerprint,
                "visits": self.total,
                "test_images": self.test_images,
                "sources": sources.tolist(),
                "source_state": {"level": _SOURCE_LEVEL, "chain": _SOURCE_CHAIN},
            },
        )

    def remove_parts(self) -> None:
        """Remove the folder of finished parts, once the table is written."""
        for name in self._names:
            (self._parts / f"{name}.safetensors").unlink(missing_ok=True)
        (self._parts / _NOTE).unlink(missing_ok=True)
        for leftover in self._parts.glob(f"{TEMPORARY}*"):  # of a recording that was killed
            leftover.unlink(missing_ok=True)
        self._parts.rmdir()

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self.config, name) for name in SETTINGS}

    def _part(self, name: str, make: Callable[[], _Part]) -> _Part:
        self._names.append(name)
        path = self._parts / f"{name}.safetensors"
        if not path.exists():
            part = make()
            write_whole(path, lambda file: save_file(part, file))
        part = load_file(path)
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

    def _supports(self) -> _Part:
        """Draw the samples of support images; losses and embeddings of the bare backbone."""
        dynamics, plan, t = self.dynamics, self.plan, len(self.pool)
        rng = np.random.default_rng([plan.seed, 1])
        size = self.config.support_size
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
            "done": np.zeros(1, dtype=np.int64),
        }

    def _fresh(self, r: int, index: Ints) -> _Part:
        """Follow the lives that begin with fresh directions at one rank."""
        tasks = np.repeat(np.arange(len(self.pool)), self.plan.fresh_chains)
        start = self.dynamics.empty(len(tasks))
        entry, curve = self._train(tasks, start, 0, r, recalled=False, stage=(1, r))
        part, kept = self._follow(tasks, entry, r, index, stage=(2, r))
        shape = len(self.pool), self.plan.fresh_chains
        one = kept[torch.arange(_SOURCE_CHAIN, len(tasks), self.plan.fresh_chains)]
        return part | self._pack(one) | {
            "fresh": curve.reshape(*shape, -1),
            "done": np.array([self._done]),
        }  # fmt: skip

    def _foreign(self, r: int, sources: Ints, held: Adapters, index: Ints) -> _Part:
        """Start from other tasks' entries of one rank, and follow the lives that begin so."""
        plan, t, q = self.plan, len(self.pool), len(self.ranks)
        tasks = np.repeat(np.arange(t), plan.sources)
        start = held[self.dynamics.tensor(sources.ravel())]
        curves = np.empty((t, plan.sources, q, self.dynamics.learning_steps + 1), dtype=np.float32)
        lives = np.arange(plan.foreign_chains) * (plan.sources // max(1, plan.foreign_chains))
        begun = None
        for g in range(q):
            entry, curve = self._train(tasks, start, r, g, recalled=True, stage=(3, r, g))
            curves[:, :, g] = curve.reshape(t, plan.sources, -1)
            if g == r:
                rows = (np.arange(t)[:, None] * plan.sources + lives).ravel()
                begun = entry[self.dynamics.tensor(rows)]
        assert begun is not None
        loss = self._losses(tasks, start, index).reshape(t, plan.sources, plan.supports)
        born = np.repeat(np.arange(t), plan.foreign_chains)
        part, _ = self._follow(born, begun, r, index, stage=(4, r))
        return part | {
            "foreign": curves,
            "foreign_loss": np.ascontiguousarray(loss.swapaxes(1, 2)),
            "done": np.array([self._done]),
        }

    def _follow(
        self, tasks: Ints, entry: Adapters, r: int, index: Ints, stage: tuple[int, ...]
    ) -> tuple[_Part, Adapters]:
        """Play return after return from entries of one rank, each the result of the last.

        Returns:
            Curves (T, K, chains, Q, L + 1) and losses (T, P, K, chains); the entries that stand
            for their tasks as sources.
        """
        t, levels, q = len(self.pool), self.plan.levels, len(self.ranks)
        chains = len(tasks) // t
        steps = self.dynamics.learning_steps + 1
        own = np.full((t, levels, chains, q, steps), np.nan, dtype=np.float32)
        loss = np.empty((t, self.plan.supports, levels, chains), dtype=np.float32)
        kept = entry
        for k in range(levels if chains else 0):
            if k == _SOURCE_LEVEL:
                kept = entry
            measured = self._losses(tasks, entry, index).reshape(t, chains, -1)
            loss[:, :, k] = measured.swapaxes(1, 2)
            following = entry
            for g in range(q):
                if g != r and k not in self.plan.branches:
                    continue
                result, curve = self._train(tasks, entry, r, g, recalled=True, stage=(*stage, k, g))
                own[:, k, :, g] = curve.reshape(t, chains, -1)
                following = result if g == r else following
            entry = following
        return {"own": own, "loss": loss}, kept

    def _train(
        self,
        tasks: Ints,
        start: Adapters,
        r: int,
        g: int,
        *,
        recalled: bool,
        stage: tuple[int, ...],
    ) -> tuple[Adapters, NDArray[np.float32]]:
        """Train one visit of each task from entries of rank index r at granted rank index g."""
        dynamics, n = self.dynamics, len(tasks)
        rng = np.random.default_rng([self.plan.seed, 2, *stage])
        keys = rng.integers(2**63, size=(n, 2), dtype=np.uint64)
        results, curves = [], []
        for first in range(0, n, self.batch):
            block = slice(first, min(n, first + self.batch))
            size = block.stop - first
            rows, zeros = np.arange(size), np.zeros(size, dtype=np.int64)
            dynamics.begin(rows, keys[block])
            begin = start[dynamics.tensor(np.arange(block.start, block.stop))]  # a copy
            ranks = zeros + self.ranks[g]
            begin.keep(dynamics.tensor(ranks))
            trained, curve = dynamics.train(
                Visits(rows, tasks[block], zeros),
                begin,
                zeros + (self.ranks[r] if recalled else 0),
                ranks,
                recalled=zeros.astype(bool) | recalled,
            )
            cut = dynamics.compress(trained, ranks, energy=None)
            results.append(Adapters(cut.factors, trained.head))
            curves.append(curve.astype(np.float32))
            self._done += size
            self._progress(self._done, self.total)
        return Adapters.cat(results), np.concatenate(curves)

    def _losses(self, tasks: Ints, adapters: Adapters, index: Ints) -> NDArray[np.float32]:
        """Return the losses (n, P) of adapters on the samples of their tasks."""
        dynamics, n = self.dynamics, len(tasks)
        out = np.empty((n, self.plan.supports), dtype=np.float32)
        for first in range(0, n, self.batch):
            block = slice(first, min(n, first + self.batch))
            chosen = dynamics.tensor(tasks[block])
            for p in range(self.plan.supports):
                images = dynamics.data.train(chosen, dynamics.tensor(index[tasks[block], p]))
                out[block, p] = dynamics.learner.loss(images, adapters[block]).cpu().numpy()
        return out

    def _pack(self, adapters: Adapters) -> _Part:
        packed = {}
        for site, (up, down) in adapters.factors.items():
            packed[f"up.{site}"], packed[f"down.{site}"] = up.cpu().numpy(), down.cpu().numpy()
        if adapters.head is not None:
            weight, bias = adapters.head
            packed["head.weight"], packed["head.bias"] = weight.cpu().numpy(), bias.cpu().numpy()
        return {name: np.ascontiguousarray(array) for name, array in packed.items()}

    def _unpack(self, part: _Part) -> Adapters:
        tensor = self.dynamics.tensor
        head = None
        if "head.weight" in part:
            head = tensor(part["head.weight"]), tensor(part["head.bias"])
        return Adapters(
            {
                name[3:]: (tensor(part[name]), tensor(part[f"down.{name[3:]}"]))
                for name in part
                if name.startswith("up.")
            },
            head,
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
