"""Tables of recorded visits on disk: three Parquet files and a JSON file in a folder.

`visits.parquet` has a row for each recorded visit: task, source (-1: fresh), rank, level and chain
of the source, granted rank, and the number of test images named rightly before the first and after
every learning step; where the tasks have validation images, `correct_validation` is the number of
those named rightly after the last. `losses.parquet` has a row for each load of an entry on a
sample of support images, `supports.parquet` one for each sample. `table.json` says what they are,
with their hashes. Losses are stored as x / (x + log classes) in steps of 1/1023, embeddings as
16-bit fractions.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd

from nsr_gym.errors import FileFormatError
from nsr_gym.files import write_whole
from nsr_gym.outcome_frames import from_frames, sizes_of, to_frames
from nsr_gym.outcomes import OutcomeTable

FORMAT = 1
CARD = "table.json"
FILES = ("visits", "losses", "supports")


def save_table(table: OutcomeTable, folder: Path) -> None:
    """Write a table into a folder, the card last: without it nothing is there.

    Args:
        table: what to write. What was not recorded (NaN) has no row.
        folder: made if missing; an older table in it is replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frames = to_frames(table)
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
        "sizes": sizes_of(table),
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
        return from_frames(card, frames)
    except FileFormatError:
        raise
    except (
        OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError,
    ) as error:  # fmt: skip
        raise FileFormatError(
            f"{folder} holds no readable table of recorded outcomes ({error!r}){remedy}"
        ) from error
