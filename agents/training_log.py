"""What a training run writes down: rows for CSV and TensorBoard, a card as JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter, Logger

from nsr_gym.errors import FileFormatError
from nsr_gym.files import write_whole

PROGRESS = "progress.csv"
RUN = "run.json"
TENSORBOARD = "tensorboard"

Row = dict[str, float]


class Rows(KVWriter):
    """The rows of a run, collected from the logger of Stable-Baselines3.

    Attributes:
        rows: name -> number, each with `steps`.
    """

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        """Begin with the rows that a run has written before it was stopped."""
        self.rows: list[Row] = [dict(row) for row in rows]

    def logger(self) -> Logger:
        """Return a logger that writes here and nowhere else."""
        return Logger(folder=None, output_formats=[self])

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Take a row; what is no finite number is left out, as JSON has no other."""
        row: Row = {"steps": step}
        for name, value in sorted(key_values.items()):
            number = float(value)
            if math.isfinite(number):
                row[name] = number
        self.rows.append(row)

    def close(self) -> None:
        """Do nothing: there is no file."""

    def write_csv(self, folder: Path) -> None:
        """Write all rows to `progress.csv`, whole or not at all; what a row lacks stays empty."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))

        def write(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(self.rows)

        write_whole(folder / PROGRESS, write)


class TensorBoard:
    """Rows for TensorBoard, where it is installed; without it nothing is written."""

    def __init__(self, folder: Path, steps: int) -> None:
        """Open the log of a run.

        Args:
            folder: of the run.
            steps: made so far; what an earlier process wrote beyond them is struck out.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._writer: Any = None
            return
        self._writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=steps + 1)

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows."""
        if self._writer is None:
            return
        for row in rows:
            for name, value in row.items():
                if name != "steps":
                    self._writer.add_scalar(name, value, int(row["steps"]))
        self._writer.flush()

    def close(self) -> None:
        """Close the log."""
        if self._writer is not None:
            self._writer.close()


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Write `run.json`, whole or not at all."""
    text = json.dumps(run, indent=2) + "\n"
    write_whole(folder / RUN, lambda path: path.write_text(text, encoding="utf-8"))


def read_run(folder: Path) -> dict[str, Any] | None:
    """Return what `run.json` says, None where there is none.

    Raises:
        FileFormatError: it cannot be read.
    """
    file = folder / RUN
    if not file.exists():
        return None
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        return {"config": run["config"], "finished": run["finished"], **run}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileFormatError(
            f"{file} cannot be read as the card of a training run ({error}); move the folder away "
            "or choose another name."
        ) from error
