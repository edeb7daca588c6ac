"""Cached features are whole or not there, whoever else writes, and damage is not believed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nsr_gym.datasets import FeatureCache, FeatureKey
from nsr_gym.errors import DataError, FileFormatError, InvalidValueError

FEATURES = np.random.default_rng(0).normal(size=(50, 3, 8)).astype(np.float16)


def key(**changes: Any) -> FeatureKey:
    return FeatureKey(
        **{"data": "d", "backbone": "b", "preprocessing": {"size": 32, "behind": "blocks.3"}}
        | changes
    )


def never() -> Any:
    raise AssertionError("computed again")


def test_features_are_computed_once_and_mapped_afterwards(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "new" / "features")
    assert cache.get(key()) is None
    first = cache.get_or_compute(key(), lambda: FEATURES)
    again = FeatureCache(tmp_path / "new" / "features").get_or_compute(key(), never)
    for found in (first, again):
        np.testing.assert_array_equal(found, FEATURES)
        assert found.dtype == np.float16
        assert not found.flags.writeable
        assert isinstance(found.base, np.memmap)


def test_the_default_folder_lies_in_that_of_image_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NSR_GYM_DATA", str(tmp_path))
    assert FeatureCache().folder == tmp_path / "features"


def test_features_of_other_data_backbones_or_preprocessing_are_others(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    keys = [key(), key(data="e"), key(backbone="c"), key(preprocessing={"size": 224})]
    for i, one in enumerate(keys):
        cache.put(one, FEATURES + i)
    for i, one in enumerate(keys):
        np.testing.assert_array_equal(cache.get_or_compute(one, never), FEATURES + i)
    turned = key(preprocessing={"behind": "blocks.3", "size": 32})
    assert turned.sha256 == key().sha256  # the order of the settings does not matter


def spoil_values(folder: Path) -> None:
    (path,) = folder.glob("*.npy")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut_values(folder: Path) -> None:
    (path,) = folder.glob("*.npy")
    path.write_bytes(path.read_bytes()[:-100])


def empty_values(folder: Path) -> None:
    (path,) = folder.glob("*.npy")
    path.write_bytes(b"")


def drop_values(folder: Path) -> None:
    (path,) = folder.glob("*.npy")
    path.unlink()


def reshape_values(folder: Path) -> None:
    (path,) = folder.glob("*.npy")
    np.save(path, FEATURES.reshape(150, 8))


def cut_card(folder: Path) -> None:
    (path,) = folder.glob("*.json")
    path.write_text(path.read_text()[:40])


def foreign_card(folder: Path) -> None:
    (path,) = folder.glob("*.json")
    content = json.loads(path.read_text())
    content["key"]["data"] = "other"
    path.write_text(json.dumps(content))


def poor_card(folder: Path) -> None:
    (path,) = folder.glob("*.json")
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_values,
        cut_values,
        empty_values,
        drop_values,
        reshape_values,
        cut_card,
        foreign_card,
        poor_card,
    ],
)
def test_a_damaged_entry_is_refused_and_computed_anew(tmp_path: Path, spoil: Any) -> None:
    FeatureCache(tmp_path).put(key(), FEATURES)
    spoil(tmp_path)
    with pytest.raises(FileFormatError, match="damaged or foreign"):
        FeatureCache(tmp_path).get(key())
    with pytest.warns(RuntimeWarning, match="computed anew"):
        found = FeatureCache(tmp_path).get_or_compute(key(), lambda: FEATURES)
    np.testing.assert_array_equal(found, FEATURES)
    np.testing.assert_array_equal(FeatureCache(tmp_path).get_or_compute(key(), never), FEATURES)


def test_a_computation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)

    def fail() -> Any:
        raise OSError("interrupted")

    with pytest.raises(OSError, match="interrupted"):
        cache.get_or_compute(key(), fail)
    with pytest.raises(DataError, match="as numbers"):
        cache.put(key(), np.array(["a"]))
    with pytest.raises(DataError, match="at least one"):
        cache.put(key(), np.zeros((0, 4)))
    with pytest.raises(InvalidValueError, match="plain JSON"):
        cache.put(key(preprocessing={"size": {1}}), FEATURES)
    assert not list(tmp_path.iterdir())


WRITER = """
import sys, time
import numpy as np
from nsr_gym.datasets import FeatureCache, FeatureKey
folder, fill, start = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
key = FeatureKey(data="d", backbone="b", preprocessing={})
features = np.full((200, 1000), fill)
while time.time() < start:
    time.sleep(0.001)
for _ in range(40):
    found = FeatureCache(folder).put(key, features)
    assert found.shape == (200, 1000) and found.min() == found.max(), "torn"
    found = FeatureCache(folder).get(key)
    assert found is not None and found.min() == found.max(), "torn"
"""


@pytest.mark.parametrize("fills", [(1, 1), (1, 2)], ids=["equal", "different"])
def test_two_processes_that_write_the_same_entry_never_meet_half_of_one(
    tmp_path: Path, fills: tuple[int, int]
) -> None:
    import time

    start = str(time.time() + 1.5)  # both are up by then
    writers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WRITER, str(tmp_path), str(fill), start],
            stderr=subprocess.PIPE,
            text=True,
        )
        for fill in fills
    ]
    for writer in writers:
        _, problem = writer.communicate(timeout=60)
        assert writer.returncode == 0, problem
    found = FeatureCache(tmp_path).get(FeatureKey(data="d", backbone="b", preprocessing={}))
    assert found is not None
    assert found.min() == found.max()
    assert not list(tmp_path.glob(".tmp-*"))
