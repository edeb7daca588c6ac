"""A finished comparison read back from its folder: the table, and what was compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nsr_gym.errors import FileFormatError
from nsr_gym.evaluation.cells import MANIFEST, ResultFolder
from nsr_gym.evaluation.compare import Comparison, check_environment, load


@dataclass(frozen=True, eq=False)
class Results:
    """What `nsr-gym compare` leaves behind.

    Agents are names only: a folder can be read where they are not registered.

    Attributes:
        folder: where it lies.
        table: the long table.
        environments: ids.
        agents: names.
        seeds: of every agent.
        arguments: of the environments.
        agent_arguments: agent -> arguments of its constructor.
    """

    folder: Path
    table: pd.DataFrame
    environments: tuple[str, ...]
    agents: tuple[str, ...]
    seeds: tuple[int, ...]
    arguments: dict[str, Any]
    agent_arguments: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, comparison: Comparison, folder: Path, table: pd.DataFrame) -> Results:
        """Put a comparison and its table together."""
        return cls(
            folder=folder,
            table=table,
            environments=comparison.environments,
            agents=comparison.agents,
            seeds=comparison.seeds,
            arguments=comparison.arguments,
            agent_arguments=comparison.agent_arguments,
        )

    @property
    def played(self) -> dict[str, Any]:
        """The environments' arguments, with the split that a run takes where none is given."""
        return {"split": "test"} | self.arguments


def read_results(folder: Path) -> Results:
    """Read a finished comparison.

    Raises:
        FileFormatError: there is none, or a file of it is damaged.
        UnknownNameError: its environments are not registered here.
    """
    table = load(folder)
    manifest = ResultFolder(folder).read_manifest() or {}
    try:
        found = manifest["comparison"]
        results = Results(
            folder=folder,
            table=table,
            environments=tuple(found["environments"]),
            agents=tuple(found["agents"]),
            seeds=tuple(found["seeds"]),
            arguments=dict(found["arguments"]),
            agent_arguments=dict(found["agent_arguments"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"Expected {folder / MANIFEST} to say what was compared; it lacks a part ({error!r}). "
            "Run `nsr-gym compare` again under another name."
        ) from error
    for environment in results.environments:
        check_environment(environment)
    return results
