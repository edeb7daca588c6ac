"""Files of an experiment: each part's own tables, and those gathered from the finished parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from nsr_gym.evaluation.cells import VISITS, read_parquet, write_parquet
from nsr_gym.files import write_whole
from nsr_gym.report.summary import summarise

Tables = tuple[pd.DataFrame, pd.DataFrame]
"""Summary and bounds; see `nsr_gym.agents.reproduce.run_experiment`."""

SUMMARY, BOUNDS, STREAMS = "summary", "bounds", "streams"
STREAM_COLUMNS = (
    "environment", "agent", "post_task", "acc", "bwt", "forgetting", "recovery_median",
    "recovery_tries", "own_recovery_tries",
)  # fmt: skip
"""What is told of each stream by itself, columns of the summary."""

_LOCK = ".gathering"


def write_part(folder: Path, summary: pd.DataFrame, bounds: pd.DataFrame) -> None:
    """Keep the tables of a part that is finished, each file whole.

    Args:
        folder: of the part.
        summary: a row for each agent.
        bounds: a row for each seed, bound and answer.
    """
    write_parquet(folder / f"{BOUNDS}.parquet", bounds)
    write_parquet(folder / f"{SUMMARY}.parquet", summary)  # last: with it the part is finished


def read_part(folder: Path) -> Tables | None:
    """Return the tables of a part, None where it is not finished.

    Raises:
        FileFormatError: a file is damaged.
    """
    files = [folder / f"{name}.parquet" for name in (SUMMARY, BOUNDS)]
    if not all(file.exists() for file in files):
        return None
    summary, bounds = (read_parquet(file) for file in files)
    return summary, bounds


def gather(folder: Path, labels: Sequence[str]) -> Tables | None:
    """Return the tables of all parts that are finished, None where none is.

    Args:
        folder: of the experiment.
        labels: of its parts, in the order that their rows are to have.

    Raises:
        FileFormatError: a part's file is damaged.
    """
    parts = [tables for label in labels if (tables := read_part(folder / label)) is not None]
    if not parts:
        return None
    summary, bounds = (pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True))
    return summary, bounds


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

    with _one_after_another(folder):
        found = gather(folder, labels)
        if found is None:
            return []
        files = [folder / f"{name}.csv" for name in (SUMMARY, BOUNDS, STREAMS)]
        for file, table in zip(files, (*found, _by_stream(folder, labels)), strict=True):
            write_whole(file, lambda path, table=table: table.to_csv(path, index=False))  # type: ignore[misc]
        return [*files, draw_experiment(found[0], folder / f"{experiment}.png")]


def _by_stream(folder: Path, labels: Sequence[str]) -> pd.DataFrame:
    rows = []
    for label in labels:
        if read_part(folder / label) is None:
            continue
        visits = read_parquet(folder / label / VISITS)
        for seed, one in visits.groupby("seed"):
            row = summarise(one)[list(STREAM_COLUMNS)]
            row.insert(0, "label", label)
            row.insert(3, "seed", seed)
            rows.append(row)
    return pd.concat(rows, ignore_index=True)


@contextmanager
def _one_after_another(folder: Path) -> Iterator[None]:
    """Wait until no other process gathers in the folder; a killed process lets go of it."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    with (folder / _LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
