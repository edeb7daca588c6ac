"""Tables of recorded visits: what came out of live training, ready to be looked up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.datasets.digits import MIXED
from nsr_gym.errors import InvalidValueError, StateError, unknown
from nsr_gym.pools import PoolRecord
from nsr_gym.tasks import check_split

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class OutcomeTable:
    """Outcomes of live visits, dense arrays.

    A stored adapter is known by the task it was last trained on, its rank, its *level* (how often
    it was trained on that task before, counted from 0, at most K - 1) and its *chain*: one life of
    an adapter as it was recorded, visit after visit. Chains 0..D-1 began with fresh directions,
    D..C-1 with the adapter of another task.

    Sizes: T tasks, Q ranks, D fresh chains, C chains, K levels, G other tasks recorded as sources
    for each task, P samples of support images, L + 1 accuracies of a visit.

    Attributes:
        pool: the T tasks.
        ranks: (Q,) ranks that were granted and stored, ascending.
        bare_accuracy: (T,) test accuracy of the bare backbone.
        bare_loss: (T, P) its loss in nats on samples of support images.
        embedding: (T, P, d) unit vectors.
        fresh: (T, Q, D, L + 1) test accuracies of a visit that started afresh, by granted rank.
        own: (T, Q, K, C, Q, L + 1) the same from an entry of the task itself: by the entry's rank,
            level and chain, and the granted rank.
        sources: (T, G) the other tasks whose entries were tried.
        foreign: (T, G, Q, Q, L + 1) as `own`, from an entry of sources[t, g].
        own_loss: (T, P, Q, K, C) loss in nats of loading an entry of the task itself.
        foreign_loss: (T, P, G, Q) the same of an entry of sources[t, g].
        fresh_validation: (T, Q, D) accuracies on validation images at the end of the visits of
            `fresh`; None where the tasks have no validation images.
        own_validation: (T, Q, K, C, Q) the same of `own`.
        foreign_validation: (T, G, Q, Q) the same of `foreign`.
        sites: site name -> (d_out, d_in), for counting bytes.
        settings: environment arguments that the outcomes depend on, with the values they were
            recorded with.
        provenance: where the table comes from, plain JSON.
    """

    pool: PoolRecord
    ranks: tuple[int, ...]
    bare_accuracy: Floats
    bare_loss: Floats
    embedding: Floats
    fresh: Floats
    own: Floats
    sources: Ints
    foreign: Floats
    own_loss: Floats
    foreign_loss: Floats
    sites: Mapping[str, tuple[int, int]]
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    fresh_validation: Floats | None = None
    own_validation: Floats | None = None
    foreign_validation: Floats | None = None

    @property
    def validated(self) -> bool:
        """Whether accuracies on validation images were recorded."""
        return self.fresh_validation is not None

    @property
    def learning_steps(self) -> int:
        """L."""
        return int(self.fresh.shape[-1]) - 1

    @property
    def fresh_chains(self) -> int:
        """D."""
        return int(self.fresh.shape[2])

    @property
    def supports(self) -> int:
        """P."""
        return int(self.embedding.shape[1])

    @property
    def head(self) -> tuple[int, int] | None:
        """Shape (classes, features) of the head that every entry has; None: entries have none."""
        if self.settings.get("head", "frozen") == "frozen":
            return None
        return self.pool.num_classes, int(self.embedding.shape[2])

    @cached_property
    def source_index(self) -> Ints:
        """(T, T): which recorded source g of task t stands for task s; -1 for t itself.

        A source that was not recorded is stood for by the recorded one whose mean embedding is
        most similar to its own.
        """
        mean = self.embedding.mean(axis=1)
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        alike = mean @ mean.T
        near = np.take_along_axis(alike[None], self.sources[:, :, None], axis=1)  # (T, G, T)
        index = near.argmax(axis=1)
        np.put_along_axis(index, self.sources, np.arange(self.sources.shape[1])[None], axis=1)
        np.fill_diagonal(index, -1)
        return np.asarray(index, dtype=np.int64)

    @cached_property
    def end(self) -> Floats:
        """(T, Q, K, C) test accuracy of every entry on its own task, loaded as it lies."""
        q = np.arange(len(self.ranks))
        return np.ascontiguousarray(np.moveaxis(self.own[:, q, :, :, q, 0], 0, 1))

    @cached_property
    def next_level(self) -> Ints:
        """(T, Q, K, C, Q) level of the entry that a visit from an own entry leaves behind.

        At the entry's own rank the next level of its chain. At another granted rank the level, of
        at most one more, whose recorded entry comes closest in accuracy to what the visit ended
        with.
        """
        levels = self.own.shape[2]
        reached = self.own[..., -1]  # (T, r, K, C, q)
        entries = np.moveaxis(self.end, 1, -1)[:, None]  # (T, 1, K', C, q)
        gap = np.abs(reached[:, :, :, None] - entries[:, :, None])  # (T, r, K, K', C, q)
        k = np.arange(levels)
        gap[:, :, k[:, None] + 1 < k[None, :]] = np.inf
        nearest = gap.argmin(axis=3)
        same = np.arange(len(self.ranks))
        nearest[:, same, :, :, same] = np.minimum(k + 1, levels - 1)[None, None, :, None]
        return np.asarray(nearest, dtype=np.int64)

    @cached_property
    def foreign_chain(self) -> Ints:
        """(T, G, Q, Q) chain that goes on from a visit that began with another task's entry.

        The one whose entry at level 0 comes closest in accuracy to what the visit ended with;
        among equals one that began with another task's entry itself.
        """
        reached = self.foreign[..., -1][..., None]  # (T, G, r, q, 1)
        entries = self.end[:, :, 0][:, None, None]  # (T, 1, 1, q, C)
        gap = np.abs(reached - entries)[..., ::-1]
        return np.asarray(gap.shape[-1] - 1 - gap.argmin(axis=-1), dtype=np.int64)

    def check_settings(self, asked: Mapping[str, Any]) -> None:
        """Refuse arguments that the table holds no outcomes for.

        Args:
            asked: values of the arguments named in `settings`.

        Raises:
            InvalidValueError: one differs from what was recorded.
        """
        # Tables that say nothing of heads were recorded before entries could have their own.
        for name, recorded in ({"head": "frozen"} | dict(self.settings)).items():
            if name in asked and asked[name] != recorded:
                raise InvalidValueError(
                    f"Expected {name}={recorded!r}, as the outcomes of {self.pool.name!r} were "
                    f'recorded; got {asked[name]!r}. Take dynamics="live", or record a table with '
                    "that value (nsr-gym record)."
                )


def join_tables(tables: Sequence[OutcomeTable], name: str) -> OutcomeTable:
    """Put tables one after another; entries of one table's tasks are never used in another's.

    Raises:
        InvalidValueError: they differ in size, ranks, sites, settings, or in whether there are
            accuracies on validation images.
    """
    first = tables[0]
    for other in tables[1:]:
        same = all(
            getattr(first, field) == getattr(other, field)
            for field in ("ranks", "sites", "settings", "validated")
        ) and all(
            getattr(first, field).shape[1:] == getattr(other, field).shape[1:] for field in _ARRAYS
        )
        if not same:
            raise InvalidValueError(
                f"Expected tables recorded alike; {other.pool.name!r} and {first.pool.name!r} "
                "differ in size, ranks, sites, settings or validation images. Record them with the "
                "same options."
            )
    starts = np.cumsum([0, *(len(table.pool) for table in tables[:-1])])
    moved = [table.sources + start for table, start in zip(tables, starts, strict=True)]
    arrays = {
        field: np.concatenate([getattr(table, field) for table in tables])
        for field in (*_ARRAYS, *(VALIDATION if first.validated else ()))
        if field != "sources"
    }
    return OutcomeTable(
        pool=PoolRecord.join(name, [table.pool for table in tables]),
        ranks=first.ranks,
        sites=first.sites,
        settings=first.settings,
        provenance={table.pool.name: dict(table.provenance) for table in tables},
        sources=np.concatenate(moved),
        **arrays,
    )


_ARRAYS = (
    "bare_accuracy", "bare_loss", "embedding", "fresh", "own", "sources", "foreign", "own_loss",
    "foreign_loss",
)  # fmt: skip

VALIDATION = ("fresh_validation", "own_validation", "foreign_validation")
"""Arrays of accuracies on validation images: all of them are there, or none."""

TABLES = Path(str(resources.files("nsr_gym"))) / "tables"
"""Folder of the tables that ship with the package."""


def shipped_tables() -> tuple[str, ...]:
    """Return the names of the tables that ship, `"<pool>-<split>"`, sorted."""
    return tuple(sorted(folder.name for folder in TABLES.iterdir() if folder.is_dir()))


def shipped_pool_table(pool: str, split: str) -> OutcomeTable:
    """Return the table of a pool that ships with the package.

    Args:
        pool: its name, as in `TaskPool.name`.
        split: `"train"` or `"test"`.

    Raises:
        UnknownNameError: no such split.
        StateError: no such table ships, or it is missing from this installation.
        FileFormatError: it is damaged.
    """
    name = f"{pool.replace('/', '-')}-{check_split(split)}"
    folder = TABLES / name
    if not folder.is_dir():
        raise StateError(
            f"The table of recorded outcomes {name} is missing from this installation; "
            "reinstall the package, or make it with `nsr-gym record`."
        )
    return _loaded(folder)


@cache
def _loaded(folder: Path) -> OutcomeTable:
    from nsr_gym.outcome_files import load_table

    return load_table(folder)


@cache
def shipped_table(tasks: str, split: str) -> OutcomeTable:
    """Return a table that ships with the package.

    Args:
        tasks: a family of digits, or `"mixed"` for all of them in one pool `"digits-mixed"`.
        split: `"train"` or `"test"`.

    Raises:
        UnknownNameError: no such family or split.
        StateError: the table is missing from this installation.
    """
    check_split(split)
    if tasks == "mixed":
        return join_tables([shipped_table(one, split) for one in MIXED], "digits-mixed")
    if tasks not in MIXED:
        raise unknown("recorded family of tasks", tasks, (*MIXED, "mixed"))
    return shipped_pool_table(f"digits-{tasks}", split)
