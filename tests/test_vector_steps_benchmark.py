"""The benchmark of native vector environments runs and reports what it says."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    # The benchmarks are no part of the installed package.
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module("benchmarks.vector_steps")


def test_every_contestant_is_timed(benchmark: Any) -> None:
    result = benchmark.run(num_envs=3, rounds=2, seconds=0.002)
    rates = result["steps_per_s"]
    kinds = {f"{name} {kind}" for name in benchmark.IDS for kind in ("native", "single")}
    cartpole = {f"CartPole-v1 {kind}" for kind in ("native", "sync", "single")}
    assert set(rates) == kinds | cartpole
    for rate in rates.values():
        assert 0 < rate["smallest"] <= rate["median"] <= rate["largest"]
    assert set(result["ratio_to_cartpole"]) == set(benchmark.IDS)
    for ratios in result["ratio_to_cartpole"].values():
        assert set(ratios) == {"native", "sync"}
        assert min(ratios.values()) > 0


def test_steps_of_all_environments_of_a_batch_count(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock by which every timing takes one second: rates are then numbers of steps.
    monkeypatch.setattr(benchmark, "_seconds", lambda play, steps: 1.0)
    monkeypatch.setattr(benchmark, "_steps_within", lambda play, seconds: 10)
    result = benchmark.run(ids=(), num_envs=4, rounds=1)
    medians = {name: rate["median"] for name, rate in result["steps_per_s"].items()}
    assert medians == {
        "CartPole-v1 native": 40.0, "CartPole-v1 sync": 40.0, "CartPole-v1 single": 10.0,
    }  # fmt: skip
