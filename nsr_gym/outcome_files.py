"""Tables of recorded visits on disk: three Parquet files and a JSON file in a folder.

`visits.parquet` has a row for each recorded visit: task, source (-1: fresh), rank, level and chain
of the source, granted rank, and the number of test images named rightly before the first and after
every learning step. `losses.parquet` has a row for each load of an entry on a sample of support
images, `supports.parquet` one for each sample. `table.json` says what they are, with their hashes.
Losses are stored as x / (x + log classes) in steps of 1/1023, embeddings as 16-bit fractions.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nsr_gym.errors import FileFormatError
from nsr_gym.files import write_whole
from nsr_gym.outcomes import OutcomeTable
from nsr_gym.pools import PoolRecord

FORMAT = 1
CARD = "table.json"
FILES = ("visits", "losses", "supports")
_SCALE = 1023.0
_UNIT = 32767.0


def save_table(table: OutcomeTable, folder: Path) -> None:
    """Write a table into a folder, the card last: without it nothing is there.

    Args:
        table: what to write. What was not recorded (NaN) has no row.
        folder: made if missing; an older table in it is replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frames = {"visits": _visits(table), "losses": _losses(table), "supports": _supports(table)}
    (folder / CARD).unlink(missing_ok=True)
    hashes = {}
    for name, frame in frames.items():
        path = folder / f"{name}.parquet"
        write_whole(
            path,
            lambda file, frame=frame: frame.to_parquet(  # type: ignore[misc]
                file, index=False, compression="zstd", compression_level=19
            ),
        )
        hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    card = {
        "format": FORMAT,
        "pool": table.pool.to_json(),
        "ranks": list(table.ranks),
        "sizes": {
            "levels": table.own.shape[2],
            "chains": table.own.shape[3],
            "fresh_chains": table.fresh_chains,
            "sources": table.sources.shape[1],
            "supports": table.supports,
            "learning_steps": table.learning_steps,
            "embedding": table.embedding.shape[2],
            "test_images": _test_images(table),
        },
        "sites": {name: list(size) for name, size in table.sites.items()},
        "settings": dict(table.settings),
        "provenance": dict(table.provenance),
        "sha256": hashes,
    }
    text = json.dumps(card, sort_keys=True) + "\n"
    write_whole(folder / CARD, lambda file: file.write_text(text))


def load_table(folder: Path) -> OutcomeTable:
    """Read a table.

    Raises:
        FileFormatError: files are missing, damaged, of a newer format, or not a table's.
    """
    remedy = "; record it again with `nsr-gym record`."
    try:
        card = json.loads((folder / CARD).read_text())
        if card["format"] != FORMAT:
            raise FileFormatError(
                f"{folder} has format {card['format']!r}; this version reads {FORMAT}{remedy}"
            )
        frames = {}
        for name in FILES:
            path = folder / f"{name}.parquet"
            if hashlib.sha256(path.read_bytes()).hexdigest() != card["sha256"][name]:
                raise FileFormatError(f"{path} does not match the hash in {CARD}{remedy}")
            frames[name] = pd.read_parquet(path)
        return _table(card, frames)
    except FileFormatError:
        raise
    except (
        OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError,
    ) as error:  # fmt: skip
        raise FileFormatError(
            f"{folder} holds no readable table of recorded outcomes ({error!r}){remedy}"
        ) from error


def _test_images(table: OutcomeTable) -> int:
    return int(table.provenance["test_images"])


def _visits(table: OutcomeTable) -> pd.DataFrame:
    """Lay all recorded visits out as rows."""
    q = np.arange(len(table.ranks))
    rank = np.array(table.ranks)
    t, g, d = (
        np.arange(n) for n in (len(table.pool), *table.sources.shape[1:], table.fresh_chains)
    )
    k, c = np.arange(table.own.shape[2]), np.arange(table.own.shape[3])
    source = table.provenance["source_state"]
    parts: list[tuple[NDArray[Any], tuple[NDArray[Any], ...], Callable[..., tuple[Any, ...]]]] = [
        (table.fresh, (t, q, d), lambda t, q, d: (t, -1, 0, -1, d, rank[q])),
        (
            table.own,
            (t, q, k, c, q),
            lambda t, r, k, c, q: (t, t, rank[r], k, c, rank[q]),
        ),
        (
            table.foreign,
            (t, g, q, q),
            lambda t, g, r, q: (
                t, table.sources[t, g], rank[r], source["level"], source["chain"], rank[q],
            ),
        ),
    ]  # fmt: skip
    frames = []
    count = _test_images(table)
    for array, axes, keys in parts:
        index = [x.ravel() for x in np.meshgrid(*axes, indexing="ij")]
        curves = array.reshape(-1, array.shape[-1])
        there = ~np.isnan(curves[:, 0])
        columns = keys(*(x[there] for x in index))
        frame = pd.DataFrame(dict(zip(_KEYS, columns, strict=True))).astype(np.int16)
        kind = np.uint8 if count < 256 else np.uint16
        right = np.rint(curves[there] * count).astype(kind)
        for step in range(right.shape[1]):
            frame[f"correct_{step}"] = right[:, step]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


_KEYS = ("task", "source", "source_rank", "level", "chain", "rank")


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
    rows["bare_correct"] = np.rint(table.bare_accuracy[t] * _test_images(table)).astype(np.uint16)
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


def _table(card: Mapping[str, Any], frames: Mapping[str, pd.DataFrame]) -> OutcomeTable:
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
        raise FileFormatError(f"{CARD} names other sources than the visits have.")
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
    return OutcomeTable(
        pool=pool,
        ranks=ranks,
        bare_accuracy=np.ascontiguousarray(bare, dtype=np.float32),
        bare_loss=bare_loss.reshape(tasks, p),
        embedding=embedding,
        fresh=fresh,
        own=fill_levels(own),
        sources=sources,
        foreign=foreign,
        own_loss=own_loss,
        foreign_loss=foreign_loss,
        sites={name: (int(a), int(b)) for name, (a, b) in card["sites"].items()},
        settings=card["settings"],
        provenance=card["provenance"],
    )


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
