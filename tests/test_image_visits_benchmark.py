"""The benchmark of visits on image backbones runs and reports what it says."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

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
        assert set(row["visits_per_s"]) == set(row["share"]) == {1, 2}
        for n, rate in row["visits_per_s"].items():
            assert row["share"][n] == pytest.approx(result["operations"] * rate / row["peak"])
        assert 0.0 <= row["difference"] < 0.05


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
