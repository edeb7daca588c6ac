"""Cells: self-contained units of a comparison, and the folder that keeps their results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from nsr_gym.errors import FileFormatError, StateError
from nsr_gym.files import TEMPORARY, take_lock, write_whole
from nsr_gym.registry import AgentSpec, register_agent

MANIFEST = "manifest.json"
CELLS = "cells"
VISITS = "visits.parquet"
LOCK = ".lock"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One agent in one environment on a block of seeds: a picklable unit of work.

    Attributes:
        environment: id.
        agent: registered name.
        seeds: played side by side in one batch.
        arguments: of the environment, plain JSON.
        agent_arguments: of the agent, plain JSON.
        routers: see `nsr_gym.evaluation.rollout.play`.
        spec: of the agent, so that a process that never registered it can run the cell.
    """

    environment: str
    agent: str
    seeds: tuple[int, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    agent_arguments: Mapping[str, Any] = field(default_factory=dict)
    routers: tuple[str, ...] = ()
    spec: AgentSpec | None = None

    @property
    def key(self) -> str:
        """A name for the cell that depends on its content alone."""
        text = json.dumps(asdict(self), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        seeds = f"{self.seeds[0]}-{self.seeds[-1]}"
        return f"{self.environment.replace('/', '_')}.{self.agent}.{seeds}.{digest}"

    def run(self, progress: Callable[[int], None] | None = None) -> pd.DataFrame:
        """Play the cell; see `nsr_gym.evaluation.rollout.play`."""
        from nsr_gym.evaluation.rollout import play

        if self.spec is not None:
            register_agent(**asdict(self.spec))
        return play(
            self.environment,
            self.agent,
            self.seeds,
            arguments=dict(self.arguments),
            agent_arguments=dict(self.agent_arguments),
            routers=self.routers,
            progress=progress,
        )


@dataclass(frozen=True)
class ResultFolder:
    """A folder `runs/<name>`: a manifest, a Parquet file per finished cell, later the whole table.

    A cell's file appears under its name only when it is complete, so a killed run loses no
    finished cell and leaves no half of one behind.
    """

    path: Path

    def cell_path(self, cell: Cell) -> Path:
        """Return where the cell's rows are kept."""
        return self.path / CELLS / f"{cell.key}.parquet"

    def finished(self, cells: Iterable[Cell]) -> set[str]:
        """Return the keys of those cells whose rows are there."""
        return {cell.key for cell in cells if self.cell_path(cell).exists()}

    def cell_files(self) -> list[Path]:
        """Return the files of all finished cells, of whatever comparison."""
        return sorted((self.path / CELLS).glob("*.parquet"))

    def write_cell(self, cell: Cell, rows: pd.DataFrame) -> None:
        """Keep a finished cell's rows."""
        write_parquet(self.cell_path(cell), rows)

    def table(self, cells: Iterable[Cell]) -> pd.DataFrame:
        """Read the rows of all given cells, in their order.

        Raises:
            FileFormatError: a cell's file cannot be read.
        """
        frames = []
        for cell in cells:
            frames.append(read_parquet(self.cell_path(cell)))
        return pd.concat(frames, ignore_index=True)

    def read_manifest(self) -> dict[str, Any] | None:
        """Return the manifest, None where there is none.

        Raises:
            FileFormatError: it cannot be read.
        """
        file = self.path / MANIFEST
        if not file.exists():
            return None
        try:
            return dict(json.loads(file.read_text()).items())
        except (ValueError, AttributeError) as error:
            raise FileFormatError(
                f"{file} cannot be read ({error}); move the folder away or choose another name."
            ) from error

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Keep the manifest."""
        text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
        write_whole(self.path / MANIFEST, lambda file: file.write_text(text))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from working in this folder; a killed process lets go of it.

        Raises:
            StateError: another process is working in it.
        """
        with (self.path / LOCK).open("w") as file:
            try:
                take_lock(file, wait=False)
            except OSError as error:
                raise StateError(
                    f"Another process is working in {self.path}; wait for it or stop it."
                ) from error
            yield

    def remove_leftovers(self) -> None:
        """Remove temporary files that a killed run left behind."""
        pattern = f"{TEMPORARY}*"
        for file in [*self.path.glob(pattern), *(self.path / CELLS).glob(pattern)]:
            file.unlink(missing_ok=True)


def write_parquet(path: Path, rows: pd.DataFrame) -> None:
    """Write a table under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: rows.to_parquet(file, index=False))


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a table.

    Raises:
        FileFormatError: the file is missing, damaged, or no Parquet file.
    """
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise FileFormatError(
            f"{path} cannot be read as a results table ({error}); delete it and run the "
            "comparison again, which repeats only what is missing."
        ) from error
