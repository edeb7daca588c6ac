"""Tables of recorded visits as rows: what `nsr_gym.outcome_files` writes and reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nsr_gym.errors import FileFormatError
from nsr_gym.outcomes import OutcomeTable
from nsr_gym.pools import PoolRecord

_SCALE = 1023.0
_UNIT = 32767.0
_KEYS = ("task", "source", "source_rank", "level", "chain", "rank")
_VALIDATION = "correct_validation"

Frames = Mapping[str, pd.DataFrame]


def to_frames(table: OutcomeTable) -> dict[str, pd.DataFrame]:
    """Lay a table out as rows; what was not recorded (NaN) has none."""
    return {"visits": _visits(table), "losses": _losses(table), "supports": _supports(table)}


def sizes_of(table: OutcomeTable) -> dict[str, int]:
    """Return what else `from_frames` has to know of a table, by name."""
    sizes = {
        "levels": table.own.shape[2],
        "chains": table.own.shape[3],
        "fresh_chains": table.fresh_chains,
        "sources": table.sources.shape[1],
        "supports": table.supports,
        "learning_steps": table.learning_steps,
        "embedding": table.embedding.shape[2],
        "test_images": _images(table, "test"),
    }
    return sizes | ({"validation_images": _images(table, "validation")} if table.validated else {})


def _images(table: OutcomeTable, part: str) -> int:
    return int(table.provenance[f"{part}_images"])


def _visits(table: OutcomeTable) -> pd.DataFrame:
    """Lay all recorded visits out as rows."""
    q = np.arange(len(table.ranks))
    rank = np.array(table.ranks)
    t, g, d = (
        np.arange(n) for n in (len(table.pool), *table.sources.shape[1:], table.fresh_chains)
    )
    k, c = np.arange(table.own.shape[2]), np.arange(table.own.shape[3])
    source = table.provenance["source_state"]
    parts: list[
        tuple[
            NDArray[Any],
            NDArray[Any] | None,
            tuple[NDArray[Any], ...],
            Callable[..., tuple[Any, ...]],
        ]
    ] = [
        (
            table.fresh,
            table.fresh_validation,
            (t, q, d),
            lambda t, q, d: (t, -1, 0, -1, d, rank[q]),
        ),
        (
            table.own,
            table.own_validation,
            (t, q, k, c, q),
            lambda t, r, k, c, q: (t, t, rank[r], k, c, rank[q]),
        ),
        (
            table.foreign,
            table.foreign_validation,
            (t, g, q, q),
            lambda t, g, r, q: (
                t, table.sources[t, g], rank[r], source["level"], source["chain"], rank[q],
            ),
        ),
    ]  # fmt: skip
    frames = []
    count = _images(table, "test")
    for array, validation, axes, keys in parts:
        index = [x.ravel() for x in np.meshgrid(*axes, indexing="ij")]
        curves = array.reshape(-1, array.shape[-1])
        there = ~np.isnan(curves[:, 0])
        columns = keys(*(x[there] for x in index))
        frame = pd.DataFrame(dict(zip(_KEYS, columns, strict=True))).astype(np.int16)
        right = _right(curves[there], count)
        for step in range(right.shape[1]):
            frame[f"correct_{step}"] = right[:, step]
        if validation is not None:
            frame[_VALIDATION] = _right(validation.ravel()[there], _images(table, "validation"))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _right(accuracy: NDArray[Any], count: int) -> NDArray[Any]:
    """Return how many of so many images were named rightly."""
    return np.asarray(np.rint(accuracy * count), dtype=np.uint8 if count < 256 else np.uint16)


def _losses(table: OutcomeTable) -> pd.DataFrame:
    rank, state = np.array(table.ranks), table.provenance["source_state"]
    t, p, r, k, c = (x.ravel() for x in np.indices(table.own_loss.shape))
    own = {
        "task": t, "support": p, "source": t, "rank": rank[r], "level": k, "chain": c,
        "loss": _pack_loss(table, table.own_loss.ravel()),
    }  # fmt: skip
    t, p, g, r = (x.ravel() for x in np.indices(table.foreign_loss.shape))
    foreign = {
        "task": t, "support": p, "source": table.sources[t, g], "rank": rank[r],
        "level": np.full(len(t), state["level"]), "chain": np.full(len(t), state["chain"]),
        "loss": _pack_loss(table, table.foreign_loss.ravel()),
    }  # fmt: skip
    rows = pd.concat([pd.DataFrame(own), pd.DataFrame(foreign)], ignore_index=True)
    return rows.astype(dict.fromkeys(rows.columns[:-1], np.int16) | {"loss": np.uint16})


def _supports(table: OutcomeTable) -> pd.DataFrame:
    t, p = (x.ravel() for x in np.indices(table.bare_loss.shape))
    rows = pd.DataFrame({"task": t.astype(np.int16), "support": p.astype(np.int16)})
    rows["bare_loss"] = _pack_loss(table, table.bare_loss.ravel())
    rows["bare_correct"] = np.rint(table.bare_accuracy[t] * _images(table, "test")).astype(
        np.uint16
    )
    packed = np.rint(table.embedding.reshape(len(rows), -1) * _UNIT).astype(np.int16)
    vectors = pd.DataFrame(packed, columns=[f"e{i}" for i in range(packed.shape[1])])
    return pd.concat([rows, vectors], axis=1)


def _pack_loss(table: OutcomeTable, loss: NDArray[Any]) -> NDArray[np.uint16]:
    guess = math.log(max(2, table.pool.num_classes))
    scaled = np.where(np.isfinite(loss), 1.0 - guess / (loss.astype(np.float64) + guess), 1.0)
    return np.rint(scaled * _SCALE).astype(np.uint16)


def _unpack_loss(values: NDArray[Any], num_classes: int) -> NDArray[np.float32]:
    scaled = np.minimum(values.astype(np.float64), _SCALE - 0.5) / _SCALE
    return (scaled / (1.0 - scaled) * math.log(max(2, num_classes))).astype(np.float32)


def from_frames(card: Mapping[str, Any], frames: Frames) -> OutcomeTable:
    """Put a table together from its rows and its card.

    Raises:
        FileFormatError: something is missing, or the card names other sources than the visits.
    """
    pool, ranks, sizes = PoolRecord.from_json(card["pool"]), tuple(card["ranks"]), card["sizes"]
    tasks, q, p, g = len(pool), len(ranks), sizes["supports"], sizes["sources"]
    k, c, d = sizes["levels"], sizes["chains"], sizes["fresh_chains"]
    steps, count = sizes["learning_steps"] + 1, sizes["test_images"]
    place = np.full(max(ranks) + 1, -1)
    place[list(ranks)] = np.arange(q)

    supports = frames["supports"].sort_values(["task", "support"])
    vectors = supports[[f"e{i}" for i in range(sizes["embedding"])]].to_numpy() / np.float32(_UNIT)
    vectors = vectors.reshape(tasks, p, -1)
    embedding = (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).astype(np.float32)
    bare_loss = _unpack_loss(supports["bare_loss"].to_numpy(), pool.num_classes)
    bare = supports["bare_correct"].to_numpy().reshape(tasks, p)[:, 0] / np.float32(count)

    visits = {name: column.to_numpy() for name, column in frames["visits"].items()}
    curves = np.stack([visits[f"correct_{i}"] for i in range(steps)], axis=1) / np.float32(count)
    validated = "validation_images" in sizes
    if validated:  # beside the curve, so that it goes where that goes
        seen = visits[_VALIDATION] / np.float32(sizes["validation_images"])
        curves, steps = np.column_stack([curves, seen]), steps + 1
    t, s = visits["task"].astype(np.int64), visits["source"].astype(np.int64)
    chain, level = visits["chain"], visits["level"]
    granted = place[visits["rank"]]
    fresh = np.full((tasks, q, d, steps), np.nan, dtype=np.float32)
    own = np.full((tasks, q, k, c, q, steps), np.nan, dtype=np.float32)
    foreign = np.full((tasks, g, q, q, steps), np.nan, dtype=np.float32)
    is_fresh, is_own = s < 0, s == t
    rest = ~is_fresh & ~is_own
    fresh[t[is_fresh], granted[is_fresh], chain[is_fresh]] = curves[is_fresh]
    held = place[visits["source_rank"]]
    own[t[is_own], held[is_own], level[is_own], chain[is_own], granted[is_own]] = curves[is_own]
    sources = np.array(card["provenance"]["sources"], dtype=np.int64)
    position = np.full((tasks, tasks), -1)
    np.put_along_axis(position, sources, np.arange(g)[None], axis=1)
    if (position[t[rest], s[rest]] < 0).any():
        raise FileFormatError("The card names other sources than the visits have.")
    foreign[t[rest], position[t[rest], s[rest]], held[rest], granted[rest]] = curves[rest]

    losses = {name: column.to_numpy() for name, column in frames["losses"].items()}
    value = _unpack_loss(losses["loss"], pool.num_classes)
    t, s = losses["task"].astype(np.int64), losses["source"].astype(np.int64)
    own_loss = np.full((tasks, p, q, k, c), np.nan, dtype=np.float32)
    foreign_loss = np.full((tasks, p, g, q), np.nan, dtype=np.float32)
    mine, r, support = s == t, place[losses["rank"]], losses["support"]
    own_loss[
        t[mine], support[mine], r[mine], losses["level"][mine], losses["chain"][mine]
    ] = value[mine]  # fmt: skip
    other = ~mine
    foreign_loss[t[other], support[other], position[t[other], s[other]], r[other]] = value[other]
    for name, array in (("fresh", fresh), ("foreign", foreign), ("own_loss", own_loss),
                        ("foreign_loss", foreign_loss)):  # fmt: skip
        if np.isnan(array).any():
            raise FileFormatError(f"The table lacks {int(np.isnan(array).sum())} of {name}.")
    own = fill_levels(own)
    more: dict[str, Any] = {}
    if validated:
        more = {
            "fresh_validation": _last(fresh),
            "own_validation": _last(own),
            "foreign_validation": _last(foreign),
        }
        fresh, own, foreign = (
            np.ascontiguousarray(array[..., :-1]) for array in (fresh, own, foreign)
        )
    return OutcomeTable(
        pool=pool,
        ranks=ranks,
        bare_accuracy=np.ascontiguousarray(bare, dtype=np.float32),
        bare_loss=bare_loss.reshape(tasks, p),
        embedding=embedding,
        fresh=fresh,
        own=own,
        sources=sources,
        foreign=foreign,
        own_loss=own_loss,
        foreign_loss=foreign_loss,
        sites={name: (int(a), int(b)) for name, (a, b) in card["sites"].items()},
        settings=dict(card["settings"]),
        provenance=dict(card["provenance"]),
        **more,
    )


def _last(array: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(array[..., -1])


def fill_levels(own: NDArray[np.float32]) -> NDArray[np.float32]:
    """Let a level that was not recorded be stood for by the nearest that was, the lower one first.

    Args:
        own: (T, Q, K, C, Q, L + 1) with NaN for what was not recorded.

    Raises:
        FileFormatError: something was recorded at no level.
    """
    there = ~np.isnan(own[..., 0])  # (T, r, K, C, q)
    levels = own.shape[2]
    k = np.arange(levels)
    distance = np.abs(k[:, None] - k[None, :]) * 2 + (k[None, :] > k[:, None])  # (K, K')
    cost = np.where(there[:, :, None], distance[None, None, :, :, None, None], 1e9)
    if not there.any(axis=2).all():
        raise FileFormatError("The table lacks visits from entries of the task itself.")
    nearest = cost.argmin(axis=3)  # (T, r, K, C, q)
    return np.take_along_axis(own, nearest[..., None], axis=2)
