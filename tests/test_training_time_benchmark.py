"""The benchmark of training runs and reports what it says."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


def test_runs_that_do_not_get_there_are_none_and_the_rule_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The benchmarks are no part of the installed package.
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    benchmark = importlib.import_module("benchmarks.training_time")
    result = benchmark.run(networks=("mlp",), seeds=(0,), every=2048, most=2048, streams=4)
    assert result["runs"] == {"mlp": [None]}
    assert 40 < result["similarity"] < 60
    monkeypatch.setattr(benchmark, "SHARE", 0.1)
    (reached,) = benchmark.run(networks=("mlp",), seeds=(0,), every=2048, streams=4)["runs"]["mlp"]
    assert reached["steps"] == 2048
    assert reached["seconds"] > 0
