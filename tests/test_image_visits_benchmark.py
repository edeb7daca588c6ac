"""The benchmark of visits on image backbones runs and reports what it says."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    # The benchmarks are no part of the installed package.
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    found = importlib.import_module("benchmarks.image_visits")
    monkeypatch.setattr(found, "GEMM_SIDES", (64,))
    return found


def test_visits_are_counted_and_timed(benchmark: Any) -> None:
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    result = benchmark.run(
        backbone="resnet-small-32", batches=(1, 2), precisions=("highest", "high"), rounds=1
    )
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == before
    assert 4.0 < result["operations"] < 6.0  # about 5 GFLOP, as the environment's docs say
    assert set(result["precisions"]) == {"highest", "high"}
    assert result["precisions"]["highest"]["difference"] == 0.0
    for row in result["precisions"].values():
        assert row["peak"] > 0
        assert set(row["visits_per_s"]) == set(row["share"]) == {1, 2}
        assert min(row["visits_per_s"].values()) > 0


def test_a_share_of_the_peak_is_operations_by_the_time_they_would_take(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock by which everything takes two seconds.
    monkeypatch.setattr(benchmark, "_seconds", lambda call, device: call() is None or 2.0)
    monkeypatch.setattr(benchmark, "_Episodes", Stub)
    result = benchmark.run(backbone="any", batches=(1, 4), rounds=1, precisions=("high", "medium"))
    product = 2 * 64**3 / 1e9
    assert result["operations"] == pytest.approx(product)
    first, second = result["precisions"].values()
    assert first["peak"] == pytest.approx(product / 2)  # GFLOP/s
    assert first["visits_per_s"] == {1: 0.5, 4: 2.0}
    assert first["share"] == pytest.approx({1: 1.0, 4: 4.0})
    assert (first["difference"], second["difference"]) == (0.0, pytest.approx(0.25))


class Stub:
    """Episodes whose visit is one product; accuracies depend on the precision."""

    def __init__(self, *_: Any) -> None:
        self.square = torch.ones(64, 64)

    def begin(self) -> None:
        """Nothing to start."""

    def step(self) -> np.ndarray:
        torch.mm(self.square, self.square)
        return np.full((1, 3), 0.75 if torch.get_float32_matmul_precision() == "high" else 0.5)


def test_the_command_says_what_it_measured(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"peak": 100.0, "visits_per_s": {3: 10.0}, "share": {3: 0.5}, "difference": 0.01}
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        benchmark, "run",
        lambda **a: asked.update(a) or {"operations": 5.0, "precisions": {"high": row}},
    )  # fmt: skip
    benchmark.main(["--backbone", "resnet18", "--batch", "3", "--precision", "high"])
    assert asked["batches"] == [3]
    assert asked["backbone"] == "resnet18"
    assert asked["precisions"] == ["high"]
    out = capsys.readouterr().out
    assert "5.0 GFLOP a visit" in out
    assert "10.00 visits/s" in out
    assert "50.0% of the peak" in out
