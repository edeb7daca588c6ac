"""Nothing is downloaded unless asked for, and what is there already is not replaced."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from image_file_samples import write_cifar100

from nsr_gym.datasets import cifar100_pool, cifar_files, fetch, sources, vision
from nsr_gym.errors import DataError, UnknownNameError

pytestmark = pytest.mark.usefixtures("tables")


class Downloads:
    """Stands for torchvision: what is asked for is noted, and written if `works`."""

    def __init__(self, works: bool = True) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.datasets = SimpleNamespace(CIFAR100=self.cifar100, SVHN=self.svhn)
        self.works = works

    def cifar100(self, root: str, *, download: bool) -> None:
        self.asked.append(("CIFAR100", root, download))
        if not self.works:
            raise RuntimeError("no connection")
        write_cifar100(Path(root), cifar_files.CIFAR100, "official")

    def svhn(self, root: str, *, split: str, download: bool) -> None:
        self.asked.append(("SVHN", split, download))


def test_nothing_is_downloaded_unless_asked_for_and_then_through_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Downloads()
    monkeypatch.setattr(vision, "load_torchvision", lambda: made)
    root = tmp_path / "new"
    with pytest.raises(DataError, match="is missing"):
        cifar100_pool(root=root)
    assert made.asked == []
    assert len(cifar100_pool(root=root, download=True)) == 10
    assert len(cifar100_pool(root=root, download=True)) == 10
    assert made.asked == [("CIFAR100", str(root), True)]
    fetch("svhn", root=root)
    assert made.asked[1:] == [("SVHN", "train", True), ("SVHN", "test", True)]


def test_a_copy_that_is_accepted_is_never_replaced_by_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Downloads()
    monkeypatch.setattr(vision, "load_torchvision", lambda: made)
    write_cifar100(tmp_path, cifar_files.CIFAR100, "reordered-copy")
    pool = cifar100_pool(root=tmp_path, download=True)
    assert made.asked == []
    assert pool[0].definition["files"][0]["train"]["variant"] == "reordered-copy"


def test_a_download_that_fails_or_does_not_exist_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision, "load_torchvision", lambda: Downloads(works=False))
    with pytest.raises(DataError, match=r"download of cifar-100 .* failed \(no connection\)"):
        cifar100_pool(root=tmp_path, download=True)
    with pytest.raises(DataError, match=r"curl -L http://\S+notMNIST_small"):
        fetch("notmnist", root=tmp_path)
    with pytest.raises(UnknownNameError, match="cifar-100"):
        fetch("cifar100", root=tmp_path)
    assert "unpack.py" in sources.fetch_command("five_datasets_small", tmp_path)
