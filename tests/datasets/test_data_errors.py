"""Whatever is wrong with image data is said in words, with a remedy that works."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image  # before permissions are dropped, since readers import it when they need it
import pytest
import scipy.io
from damaged_files import NPZ, PNG, SOUND_PNG
from image_file_samples import write_idx, write_letters

from nsr_gym.datasets import (
    fetch,
    five_datasets_pool,
    image_files,
    tiny_imagenet_32,
)
from nsr_gym.datasets.cifar_files import read_cifar100
from nsr_gym.datasets.image_files import (
    read_fashion_mnist,
    read_mnist,
    read_notmnist,
    read_svhn,
)
from nsr_gym.datasets.packed_files import read_images, read_offline_five
from nsr_gym.errors import DataError, FileFormatError

pytestmark = pytest.mark.usefixtures("tables")

assert PIL.Image
assert scipy.io


@contextmanager
def unreadable(folder: Path) -> Iterator[None]:
    """Take all permissions from a folder, and from this process those of root."""
    mode, user = folder.stat().st_mode, os.geteuid()
    folder.chmod(0)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(mode)


@pytest.mark.parametrize(
    "read",
    [
        lambda root: read_mnist(root, "train"),
        lambda root: read_fashion_mnist(root, "test"),
        lambda root: read_svhn(root, "test"),
        lambda root: read_cifar100(root, "test"),
        read_notmnist,
        lambda root: read_offline_five(root, "mnist"),
        tiny_imagenet_32,
    ],
    ids=["mnist", "fashion", "svhn", "cifar", "notmnist", "five", "tiny"],
)
def test_a_folder_without_permissions_is_said_to_be_one(tmp_path: Path, read: Any) -> None:
    root = tmp_path / "closed"
    write_idx(root / "MNIST" / "raw", image_files.MNIST, 5, packed=False)
    with unreadable(root), pytest.raises(DataError, match=r"cannot be read.*[Mm]end its perm"):
        read(root)
    with unreadable(root), pytest.raises(DataError, match="Permission denied"):
        fetch("mnist", root=root)


def test_a_letter_without_permissions_is_not_said_to_be_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = write_letters(tmp_path, image_files.NOTMNIST, "all", 2, 7)
    listed = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path == letters / "C":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"notMNIST_small/C cannot be read \(.*denied"):
        read_notmnist(tmp_path)


@pytest.mark.parametrize("problem", NPZ)
def test_every_kind_of_damage_to_a_packed_file_is_reported(tmp_path: Path, problem: str) -> None:
    path = tmp_path / "tiny-imagenet-32.npz"
    path.write_bytes(NPZ[problem])
    with pytest.raises(FileFormatError, match=r"cannot be read.*Make or fetch it again"):
        read_images(path)
    with pytest.raises(DataError, match="partial, damaged or another file"):
        tiny_imagenet_32(tmp_path)


@pytest.mark.parametrize("problem", PNG)
def test_every_kind_of_damage_to_a_png_file_is_counted(tmp_path: Path, problem: str) -> None:
    letters = write_letters(tmp_path, image_files.NOTMNIST, "all", 2, 7)
    (letters / "B" / "damaged.png").write_bytes(PNG[problem])
    (letters / "B" / "sound.png").write_bytes(SOUND_PNG)
    image_files.NOTMNIST["all"] = 21
    (found,) = read_notmnist(tmp_path).values()
    assert found.skipped == 2
    assert found.y.tolist().count(1) == 3


@pytest.mark.parametrize(("known", "told"), [(20, False), (1_000, True), (10, True)])
def test_a_notmnist_of_another_size_is_taken_with_a_warning(
    tmp_path: Path, known: int, told: bool
) -> None:
    folder = write_letters(tmp_path, image_files.NOTMNIST, "all", 2, 7)
    image_files.NOTMNIST["all"] = known
    if told:
        expected = f"{re.escape(str(folder))} has 20 images of notMNIST, expected about {known}:"
        with pytest.warns(RuntimeWarning, match=expected):
            found = read_notmnist(tmp_path)
    else:  # other warnings are errors
        found = read_notmnist(tmp_path)
    assert len(found["all"].y) == 20


def test_the_parts_of_notmnist_are_counted_each(tmp_path: Path) -> None:
    write_letters(tmp_path, image_files.NOTMNIST, "train", 100, 7)
    write_letters(tmp_path, image_files.NOTMNIST, "test", 1, 8)
    image_files.NOTMNIST["train"] = 1_019  # 1.9 % more
    read_notmnist(tmp_path)
    image_files.NOTMNIST["test"] = 1_873
    with pytest.warns(RuntimeWarning, match="Test has 10 images") as warned:
        read_notmnist(tmp_path)
    assert len(warned) == 1


def test_whole_copies_of_notmnist_are_known_to_be_large() -> None:
    assert image_files.NOTMNIST["train"] + image_files.NOTMNIST["test"] == pytest.approx(
        image_files.NOTMNIST["all"], rel=1e-3
    )


@pytest.mark.parametrize(("there", "lacking"), [("train", "Test"), ("test", "Train")])
def test_one_part_of_notmnist_alone_is_refused_with_what_is_missing(
    tmp_path: Path, there: str, lacking: str
) -> None:
    write_letters(tmp_path, image_files.NOTMNIST, there, 2, 7)
    with pytest.raises(DataError, match=f"has {there.capitalize()} and no {lacking}") as error:
        read_notmnist(tmp_path)
    assert "curl" not in str(error.value)  # what it gets is not looked at
    write_letters(tmp_path, image_files.NOTMNIST, lacking.lower(), 2, 8)
    assert set(read_notmnist(tmp_path)) == {"train", "test"}
    for path in (tmp_path / "notMNIST" / lacking / "D").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"letter D \(0 there.*Unpack the archive of both"):
        read_notmnist(tmp_path)


def test_asking_for_a_download_does_not_hide_what_is_missing(official_root: Path) -> None:
    shutil.rmtree(official_root / "notMNIST" / "Test")
    with pytest.raises(DataError, match=r"has Train and no Test.*no download in torchvision"):
        five_datasets_pool(root=official_root, download=True)
