"""Files of an experiment: each part's own tables, and those gathered from the finished parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from nsr_gym.evaluation.cells import read_parquet, write_parquet
from nsr_gym.files import take_lock, write_whole
from nsr_gym.report.summary import summarise


class Tables(NamedTuple):
    """What comes of a part, or of several.

    Attributes:
        summary: a row for each part and agent.
        bounds: a row for each part, seed, bound and answer.
        streams: a row for each part, agent and seed.
    """

    summary: pd.DataFrame
    bounds: pd.DataFrame
    streams: pd.DataFrame


STREAM_COLUMNS = (
    "environment", "agent", "post_task", "acc", "bwt", "forgetting", "recovery_median",
    "recovery_tries", "own_recovery_tries",
)  # fmt: skip
"""What is told of each stream by itself, columns of the summary."""

_LOCK = ".gathering"


def write_part(folder: Path, tables: Tables) -> None:
    """Keep the tables of a part that is finished, each file whole."""
    for name in reversed(Tables._fields):  # the summary last: with it the part is finished
        write_parquet(folder / f"{name}.parquet", getattr(tables, name))


def read_part(folder: Path) -> Tables | None:
    """Return the tables of a part, None where it is not finished.

    Raises:
        FileFormatError: a file is damaged.
    """
    files = [folder / f"{name}.parquet" for name in Tables._fields]
    if not all(file.exists() for file in files):
        return None
    return Tables(*map(read_parquet, files))


def joined(parts: Sequence[Tables]) -> Tables:
    """Return the rows of several parts, at least one, in their order."""
    return Tables(*(pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True)))


def gather(folder: Path, labels: Sequence[str]) -> Tables | None:
    """Return the tables of all parts that are finished, None where none is.

    Args:
        folder: of the experiment.
        labels: of its parts, in the order that their rows are to have.

    Raises:
        FileFormatError: a part's file is damaged.
    """
    parts = [tables for label in labels if (tables := read_part(folder / label)) is not None]
    return joined(parts) if parts else None


def write_gathered(folder: Path, experiment: str, labels: Sequence[str]) -> list[Path]:
    """Write the tables of all parts that are finished, whole and by stream, and their figure.

    Processes that play different parts do so one after another, so that the last one to finish
    leaves the rows of them all.

    Args:
        folder: of the experiment.
        experiment: its name, that of the figure.
        labels: of its parts, in the order that their rows are to have.

    Returns:
        The files: `summary.csv`, `bounds.csv`, `streams.csv` (a row for each part, agent and seed)
        and the figure; none where no part is finished.

    Raises:
        FileFormatError: a part's file is damaged.
    """
    from nsr_gym.report.reproduce_figure import draw_experiment

    with (folder / _LOCK).open("w") as lock:
        take_lock(lock, wait=True)
        found = gather(folder, labels)
        if found is None:
            return []
        files = [folder / f"{name}.csv" for name in Tables._fields]
        for file, table in zip(files, found, strict=True):
            write_whole(file, lambda path, table=table: table.to_csv(path, index=False))  # type: ignore[misc]
        return [*files, draw_experiment(found.summary, folder / f"{experiment}.png")]


def by_stream(label: str, visits: pd.DataFrame) -> pd.DataFrame:
    """Return what is told of each stream of a part, a row for each agent and seed."""
    rows = []
    for seed, one in visits.groupby("seed"):
        row = summarise(one)[list(STREAM_COLUMNS)]
        row.insert(0, "label", label)
        row.insert(3, "seed", seed)
        rows.append(row)
    return pd.concat(rows, ignore_index=True)
