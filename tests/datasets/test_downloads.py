"""Nothing is downloaded unless asked for, and what is there already is not replaced."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from image_file_samples import write_cifar100, write_idx, write_official_five

from nsr_gym.datasets import (
    FeatureCache,
    cifar100_pool,
    cifar_files,
    data_root,
    fetch,
    five_datasets_pool,
    image_files,
    sources,
    vision,
)
from nsr_gym.errors import DataError, InvalidValueError, UnknownNameError

pytestmark = pytest.mark.usefixtures("tables")


class Downloads:
    """Stands for torchvision: what is asked for is noted, and written if `works`."""

    def __init__(self, works: bool = True) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.datasets = SimpleNamespace(
            CIFAR100=self.cifar100, SVHN=self.svhn, MNIST=self.mnist, FashionMNIST=self.mnist
        )
        self.works = works

    def cifar100(self, root: str, *, download: bool) -> None:
        self.asked.append(("CIFAR100", root, download))
        if not self.works:
            raise RuntimeError("no connection")
        write_cifar100(Path(root), cifar_files.CIFAR100, "official")

    def svhn(self, root: str, *, split: str, download: bool) -> None:
        self.asked.append(("SVHN", split, download))

    def mnist(self, root: str, *, download: bool) -> None:
        self.asked.append(("MNIST", root, download))


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


@pytest.mark.parametrize(
    ("name", "table", "below"),
    [("mnist", "MNIST", "MNIST"), ("fashion-mnist", "FASHION_MNIST", "FashionMNIST")],
)
def test_a_damaged_file_that_torchvision_would_keep_is_named_and_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, table: str, below: str
) -> None:
    made = Downloads()
    monkeypatch.setattr(vision, "load_torchvision", lambda: made)
    folder = tmp_path / below / "raw"
    write_idx(folder, getattr(image_files, table), 5, packed=False)
    fetch(name, root=tmp_path)
    assert len(made.asked) == 1
    path = folder / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{path} is partial, .*Remove it and fetch") as error:
        fetch(name, root=tmp_path)
    assert "connection" not in str(error.value)
    assert len(made.asked) == 1
    path.unlink()  # what the message says
    fetch(name, root=tmp_path)
    assert len(made.asked) == 2


def test_a_pool_with_a_damaged_file_names_it_although_a_download_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Downloads()
    monkeypatch.setattr(vision, "load_torchvision", lambda: made)
    write_official_five(tmp_path)
    path = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{path} is partial, .*Remove it and fetch"):
        five_datasets_pool(root=tmp_path, download=True)
    assert made.asked == []


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    for root in (path, path / "below"):
        with pytest.raises(DataError, match=f"Expected {root} as a folder"):
            fetch("mnist", root=root)
    for wrong in (3, b"x", [], "~nobody-of-that-name/data"):
        for use in (data_root, FeatureCache, lambda root: cifar100_pool(root=root)):
            with pytest.raises(InvalidValueError, match="Expected a folder as a path"):
                use(wrong)  # type: ignore[operator]
