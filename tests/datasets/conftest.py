"""Folders of image data: tiny ones made on the spot, and the real ones where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from image_file_samples import (
    own_tables,
    write_cifar100,
    write_official_five,
    write_offline_five,
)

from nsr_gym.datasets import cifar_files, packed_files
from nsr_gym.datasets.sources import VARIABLE


def real_root(holds: str) -> Path:
    """Return the folder of real data, or skip the test where it has no such file."""
    root = Path(os.environ.get(VARIABLE) or "/nowhere").expanduser()
    if not (root / holds).exists():
        pytest.skip(f"{VARIABLE} names no folder with {holds}")
    return root


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `own_tables`."""
    own_tables(monkeypatch)


@pytest.fixture(params=["tiny", "real"])
def cifar_root(request: pytest.FixtureRequest, tables: None, tmp_path: Path) -> Path:
    """A folder with CIFAR-100."""
    if request.param == "real":
        return real_root("cifar-100-python/train")
    write_cifar100(tmp_path, cifar_files.CIFAR100, "official")
    return tmp_path


@pytest.fixture(params=["tiny", "real"])
def offline_root(request: pytest.FixtureRequest, tables: None, tmp_path: Path) -> Path:
    """A folder with the offline five."""
    if request.param == "real":
        return real_root("five_datasets_small.npz")
    write_offline_five(tmp_path, packed_files.FIVE_SMALL)
    return tmp_path


@pytest.fixture
def official_root(tables: None, tmp_path: Path) -> Path:
    """A folder with tiny official files of 5-Datasets."""
    write_official_five(tmp_path)
    return tmp_path
