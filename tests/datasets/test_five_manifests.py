"""Compositions of five data sets, with and without statistics of their own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from playable import TINY_IMAGES

from nsr_gym.datasets import five_datasets_pool
from nsr_gym.datasets.manifests import five_manifest, five_manifests
from nsr_gym.errors import InvalidValueError


def test_mean_and_std_can_be_left_out_and_all_else_stays() -> None:
    own, without = (five_manifest("five_datasets/gpm", normalise=n) for n in (True, False))
    assert set(own.normalise) == set(own.datasets)
    assert without.normalise == {}
    assert (
        without.source == f"{own.source}; mean and std are left out, so that values are in [0, 1]"
    )
    changed = {"normalise", "source"}
    assert {k: v for k, v in asdict(own).items() if k not in changed} == {
        k: v for k, v in asdict(without).items() if k not in changed
    }


@pytest.mark.parametrize("name", ["five_datasets/l2p_torch", "five_datasets/l2p_jax", "offline5"])
def test_what_has_no_statistics_is_the_same_without(name: str) -> None:
    assert five_manifest(name, normalise=False) is five_manifests()[name]


def test_a_pool_without_statistics_differs_by_them_alone(official_root: Path) -> None:
    own, without = (
        five_datasets_pool(manifest="five_datasets/gpm", normalise=n, root=official_root)
        for n in (True, False)
    )
    assert own.name == without.name
    assert own.fingerprint != without.fingerprint
    for normalised, plain in zip(own, without, strict=True):
        numbers = five_manifest("five_datasets/gpm").normalise[plain.definition["datasets"][0]]
        mean, std = (np.array(numbers[k])[:, None, None] for k in ("mean", "std"))
        np.testing.assert_allclose((plain.x_test - mean) / std, normalised.x_test, atol=1e-5)
        np.testing.assert_array_equal(plain.y_train, normalised.y_train)
        assert "mean and std are left out" in plain.definition["source"]
        assert "left out" not in normalised.definition["source"]
    same = [
        five_datasets_pool(manifest="five_datasets/l2p_torch", normalise=n, root=official_root)
        for n in (True, False)
    ]
    assert same[0] is same[1]


def test_environments_leave_statistics_to_the_backbone(official_root: Path) -> None:
    env = gym.make(
        "NSR/FiveDatasets-v0",
        **TINY_IMAGES | {"split": "test", "root": official_root, "manifest": "five_datasets/gpm"},
    )
    env.reset(seed=0)
    engine: Any = env.unwrapped.engine  # type: ignore[attr-defined]
    pool = engine.dynamics.pool
    plain = five_manifest("five_datasets/gpm", normalise=False)
    assert [task.definition["datasets"] for task in pool] == [[name] for name in plain.datasets]
    for task in pool:
        assert task.definition["source"] == plain.source
        assert 0.0 <= task.x_test.min() < task.x_test.max() <= 1.0
    images = engine.dynamics.data.test(torch.tensor([0]))
    assert all(bool(part.isfinite().all()) for part in images.prefix)
    env.close()


@pytest.mark.parametrize("value", [0, None, "no"])
def test_statistics_are_kept_or_not(value: Any) -> None:
    with pytest.raises(InvalidValueError, match="normalise to be True or False"):
        five_manifest("five_datasets/gpm", normalise=value)
