"""Experiments on image streams for which no thresholds ship: they calibrate their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from image_file_samples import own_tables, write_cifar100, write_official_five

from nsr_gym.agents import reproduce, reproduce_thresholds
from nsr_gym.agents.reproduce import run_experiment
from nsr_gym.datasets import cifar_files

TINY: dict[str, Any] = {
    "cycles": 2, "learning_steps": 1, "updates": 1, "batch_size": 4, "support_size": 8,
    "train_per_class": 2, "test_per_class": 1, "weights": None, "cache": False,
}  # fmt: skip
AGENTS = ("oracle", "similarity", "trial-loss", "fresh")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny official files, known to their readers as long as the test lasts."""
    own_tables(monkeypatch)
    # The others project features to thousands of numbers, which takes longer than all the rest.
    monkeypatch.setattr(reproduce, "IMAGE_FLOORS", reproduce.IMAGE_FLOORS[:1])
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def refuse(*given: Any, **more: Any) -> Any:
    raise AssertionError(f"nothing was to be done again; called with {given} and {more}")


@pytest.mark.parametrize(
    ("name", "part", "pool", "more"),
    [
        ("five-datasets", "five", "five_datasets/l2p_torch", {"image_size": 32}),
        (
            "cyclic-cifar100", "tasks-10", "split-cifar100-10",
            {"num_tasks": 3, "division": 10, "order": "seed-1993", "evaluate": "test"},
        ),
    ],
)  # fmt: skip
def test_where_no_thresholds_ship_they_are_calibrated_once_on_the_train_split(
    name: str,
    part: str,
    pool: str,
    more: dict[str, Any],
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "five-datasets":
        write_official_five(root)
    else:
        write_cifar100(root, cifar_files.CIFAR100, "official")
    said: list[str] = []
    chosen: dict[str, Any] = {
        "seeds": (0,), "only": [part], "agents": AGENTS, "say": said.append,
        "arguments": TINY | {"root": str(root)} | more,
    }  # fmt: skip
    first = run_experiment(name, tmp_path / "runs", **chosen)
    assert set(first[0]["agent"]) == set(AGENTS)
    (line,) = said
    for expected in (pool, "similarity, trial-loss", "train split", "minutes"):
        assert expected in line
    folder = tmp_path / "runs" / part
    kept = json.loads((folder / "thresholds.json").read_text())
    assert (kept["pool"], kept["split"], kept["episodes"]) == (pool, "train", 3)
    assert {"order", "evaluate", "split"}.isdisjoint(kept["arguments"])
    played = json.loads((folder / "manifest.json").read_text())["comparison"]["agent_arguments"]
    assert played == {
        "similarity": {"threshold": kept["similarity"]},
        "trial-loss": {"threshold": kept["trial_loss"]},
    }
    # What is finished needs neither data nor work.
    monkeypatch.setattr(reproduce_thresholds, "calibrate", refuse)
    monkeypatch.setattr(reproduce_thresholds, "opened", refuse)
    monkeypatch.setattr(reproduce_thresholds.gym, "make_vec", refuse)
    monkeypatch.setattr(reproduce, "measure_bounds", refuse)
    again = run_experiment(name, tmp_path / "runs", **chosen)
    for one, two in zip(first, again, strict=True):
        pd.testing.assert_frame_equal(one, two)
    assert len(said) == 1
