"""Figures of experiments of which only some parts or agents were played."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nsr_gym.report.reproduce_figure import draw_experiment

ROWS: dict[str, list[dict[str, Any]]] = {
    "the number of tasks, the oracle in one part only": [
        {"agent": "oracle", "access": "bank", "label": "tasks-2", "M": 2},
        {"agent": "fresh", "access": "visit", "label": "tasks-2", "M": 2},
        {"agent": "fresh", "access": "visit", "label": "tasks-3", "M": 3},
    ],
    "a memoryless agent beside two oracles of three parts": [
        *({"agent": "oracle", "access": "bank", "label": f"tasks-{m}", "M": m} for m in (2, 3)),
        *({"agent": "fresh", "access": "visit", "label": f"tasks-{m}", "M": m} for m in (2, 3, 5)),
    ],
    "capacities without ranks": [
        {"agent": "oracle-pin", "access": "bank", "label": "capacity-2", "rank": 8, "capacity": 2},
    ],
    "ranks without capacities": [
        {"agent": "oracle", "access": "bank", "label": f"rank-{r}", "rank": r, "capacity": 20}
        for r in (1, 2)
    ],
}  # fmt: skip


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_what_there_is_is_drawn(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    numbers = {
        name + end: 0.5
        for name in ("acc", "bwt", "post_task", "online", "recovery_tries", "forgetting")
        for end in ("", "_low", "_high")
    }
    numbers |= {"bytes_per_task": 100.0, "retained": 1.0, "dropped": float("nan"), "runs": 1}
    settings = {"environment": "NSR/SplitCIFAR100-v0", "split": "test", "cycles": 5,
                "learning_steps": 15, "num_tasks": 2}  # fmt: skip
    table = pd.DataFrame([settings | numbers | row for row in rows])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = draw_experiment(table, tmp_path / "figure.png")
    assert path.stat().st_size > 1000
