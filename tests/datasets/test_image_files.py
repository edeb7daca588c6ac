"""Official files are read as they are, and refused where they are missing, cut or unknown."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_file_samples import (
    balanced,
    cifar_pickle,
    idx,
    md5,
    random_images,
    write_cifar10,
    write_cifar100,
    write_idx,
    write_letters,
    write_svhn,
)

from nsr_gym.datasets import cifar_files, image_files, packed_files, vision
from nsr_gym.datasets.cifar_files import read_cifar10, read_cifar100
from nsr_gym.datasets.image_files import (
    read_fashion_mnist,
    read_mnist,
    read_notmnist,
    read_svhn,
)
from nsr_gym.datasets.packed_files import read_offline_five, tiny_imagenet_32
from nsr_gym.datasets.sources import data_root
from nsr_gym.errors import DataError

pytestmark = pytest.mark.usefixtures("tables")


def test_the_folder_is_the_argument_else_the_variable_else_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NSR_GYM_DATA", "/somewhere")
    assert data_root("~/here") == Path("~/here").expanduser()
    assert data_root() == Path("/somewhere")
    monkeypatch.setenv("NSR_GYM_DATA", "")
    assert data_root() == Path("~/.cache/nsr-gym-data").expanduser()


def test_importing_the_data_sets_loads_nothing_heavy() -> None:
    code = "import sys, nsr_gym.datasets; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"torch", "torchvision", "PIL", "scipy", "sklearn"} & set(done.stdout.split())


def test_cifar_images_and_labels_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_cifar100(tmp_path, cifar_files.CIFAR100, "official")
    x, y = balanced(0, 100, 6)
    found = read_cifar100(tmp_path, "train")
    np.testing.assert_array_equal(found.x, x)
    assert found.y.tolist() == y
    assert found.variant == "official"
    assert not found.x.flags.writeable
    written = write_cifar10(tmp_path, cifar_files.CIFAR10)
    for part in ("train", "test"):  # five files, one after another; one file
        np.testing.assert_array_equal(read_cifar10(tmp_path, part).x, written[part])


def test_our_checksums_of_official_files_are_those_of_torchvision() -> None:
    known = vision.load_torchvision().datasets
    for files, kind in ((cifar_files.CIFAR10, "CIFAR10"), (cifar_files.CIFAR100, "CIFAR100")):
        for part in ("train", "test"):
            for file, checksum in getattr(getattr(known, kind), f"{part}_list"):
                assert files[part][file][checksum] == "official"
    for part in ("train", "test"):
        assert image_files.SVHN[part] == {known.SVHN.split_list[part][2]: "official"}


@pytest.mark.parametrize("name", ["posix\nsystem", "numpy\nload", "builtins\neval"])
def test_a_pickle_that_refers_to_anything_else_is_refused_even_with_a_known_checksum(
    tmp_path: Path, name: str
) -> None:
    x, y = balanced(0, 100, 1)
    data = cifar_pickle(x, y, "fine_labels", make=name)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "test").write_bytes(data)
    cifar_files.CIFAR100["test"]["test"][md5(data)] = "official"
    with pytest.raises(DataError, match=f"refers to {name.replace(chr(10), '.')}, which is refus"):
        read_cifar100(tmp_path, "test")


def test_a_cifar_file_with_an_unknown_checksum_is_not_even_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar100(tmp_path, cifar_files.CIFAR100, "official")
    path = tmp_path / "cifar-100-python" / "train"
    path.write_bytes(path.read_bytes()[:-1000])
    monkeypatch.setattr(cifar_files, "_Reader", None)
    with pytest.raises(DataError) as error:
        read_cifar100(tmp_path, "train")
    message = str(error.value)
    assert str(path) in message
    assert "its md5 is" in message
    assert "16019d7e3df5f24257cddd939b257f8d (official)" in message
    assert f"fetch('cifar-100', root='{tmp_path}')" in message


@pytest.mark.parametrize(
    ("read", "file"),
    [
        (lambda root: read_cifar100(root, "test"), "cifar-100-python/test"),
        (lambda root: read_cifar10(root, "train"), "cifar-10-batches-py/data_batch_1"),
        (lambda root: read_mnist(root, "train"), "MNIST/raw/train-images-idx3-ubyte"),
        (lambda root: read_fashion_mnist(root, "test"), "FashionMNIST/raw/t10k-images-idx3-ubyte"),
        (lambda root: read_svhn(root, "test"), "test_32x32.mat"),
        (read_notmnist, "notMNIST"),
        (lambda root: read_offline_five(root, "mnist"), "five_datasets_small.npz"),
        (tiny_imagenet_32, "tiny-imagenet-32.npz"),
    ],
)
def test_a_missing_file_is_reported_with_its_path_and_the_command_that_fetches_it(
    tmp_path: Path, read: Any, file: str
) -> None:
    with pytest.raises(DataError, match="is missing; expected") as error:
        read(tmp_path)
    assert str(tmp_path / file) in str(error.value)
    assert "Fetch it with `" in str(error.value)
    assert str(tmp_path) in str(error.value).split("Fetch it with")[1]


def test_a_file_that_cannot_be_opened_is_reported_as_such(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="cannot be read"):
        read_cifar100(tmp_path, "train")


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_packed_and_unpacked(tmp_path: Path, packed: bool) -> None:
    write_idx(tmp_path / "MNIST" / "raw", image_files.MNIST, 5, packed)
    write_idx(tmp_path / "FashionMNIST" / "raw", image_files.FASHION_MNIST, 6, packed)
    found = read_mnist(tmp_path, "test")
    np.testing.assert_array_equal(found.x[:, 0], random_images(5 + 3, 30, (28, 28)))
    assert found.y.tolist() == list(range(10)) * 3
    assert len(read_fashion_mnist(tmp_path, "train").y) == 80


@pytest.mark.parametrize(
    ("file", "spoil", "problem"),
    [
        ("images-idx3", lambda data: data[:-5], "values for shape"),
        ("images-idx3", lambda data: b"\0\0\x0d" + data[3:], "does not begin like"),
        ("images-idx3", lambda data: data[:9], "does not begin like"),
        ("labels-idx1", lambda data: idx(np.zeros(7, dtype=np.uint8)), "do not match"),
    ],
)
def test_an_idx_file_that_is_cut_or_foreign_is_refused(
    tmp_path: Path, file: str, spoil: Any, problem: str
) -> None:
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, image_files.MNIST, 5, packed=False)
    path = folder / f"train-{file}-ubyte"
    data = spoil(path.read_bytes())
    path.write_bytes(data)
    with pytest.raises(DataError, match="its md5 is"):
        read_mnist(tmp_path, "train")
    image_files.MNIST[path.name][md5(data)] = "official"
    with pytest.raises(DataError, match=problem):
        read_mnist(tmp_path, "train")


def test_a_gzip_file_that_is_cut_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, image_files.MNIST, 5, packed=True)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(b"whole")[:-4])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz .* does not unpack"):
        read_mnist(tmp_path, "train")


def test_svhn_calls_ten_zero_and_turns_its_axes(tmp_path: Path) -> None:
    written = write_svhn(tmp_path, image_files.SVHN)
    found = read_svhn(tmp_path, "test")
    np.testing.assert_array_equal(found.x, written["test"])
    assert found.y.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="its md5 is"):
        read_svhn(tmp_path, "test")
    image_files.SVHN["test"][md5(path.read_bytes())] = "official"
    with pytest.raises(DataError, match="no images X and labels y"):
        read_svhn(tmp_path, "test")


def test_notmnist_is_read_in_the_order_of_names_and_broken_files_are_counted_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, per_class in (("train", 4), ("test", 2)):
        write_letters(tmp_path, image_files.NOTMNIST, part, per_class, 7)
    found = read_notmnist(tmp_path)
    assert set(found) == {"train", "test"}
    expected = np.concatenate([random_images(7 + i, 4, (28, 28)) for i in range(10)])
    np.testing.assert_array_equal(found["train"].x[:, 0], expected)
    assert found["train"].y.tolist() == np.repeat(np.arange(10), 4).tolist()
    assert (found["train"].skipped, found["test"].skipped) == (1, 1)
    assert capsys.readouterr().out + capsys.readouterr().err == ""


def test_the_original_notmnist_has_no_parts_and_a_letter_without_images_is_refused(
    tmp_path: Path,
) -> None:
    write_letters(tmp_path, image_files.NOTMNIST, "all", 2, 7)
    assert set(read_notmnist(tmp_path)) == {"all"}
    for path in (tmp_path / "notMNIST_small" / "C").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"letter C \(2 there, none readable\)"):
        read_notmnist(tmp_path)


def test_a_notmnist_image_of_another_size_is_refused(tmp_path: Path) -> None:
    from PIL import Image

    write_letters(tmp_path, image_files.NOTMNIST, "all", 2, 7)
    odd = tmp_path / "notMNIST_small" / "B" / "odd.png"
    Image.fromarray(random_images(0, 1, (32, 32))[0]).save(odd)
    with pytest.raises(DataError, match=r"odd\.png .* has \(32, 32\) pixels.*Remove it"):
        read_notmnist(tmp_path)


def test_packed_sets_become_channels_first(offline_root: Path) -> None:
    with np.load(offline_root / "five_datasets_small.npz") as file:
        raw = {key: file[key] for key in ("gtsrb10_x_test", "mnist_x_test", "mnist_y_test")}
    colour = read_offline_five(offline_root, "gtsrb10")["test"]
    grey = read_offline_five(offline_root, "mnist")["test"]
    np.testing.assert_array_equal(colour.x[3, 1], raw["gtsrb10_x_test"][3, :, :, 1])
    np.testing.assert_array_equal(grey.x[:, 0], raw["mnist_x_test"])
    np.testing.assert_array_equal(grey.y, raw["mnist_y_test"])


def test_a_packed_file_that_is_cut_or_holds_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny-imagenet-32.npz"
    images = {f"x_{part}": random_images(i, 4, (32, 32, 3)) for i, part in enumerate(_TINY)}
    labels = {f"y_{part}": np.arange(4) for part in _TINY}
    np.savez(path, **images, **labels)  # type: ignore[arg-type]
    found = tiny_imagenet_32(tmp_path)
    np.testing.assert_array_equal(found["val"].x[2, 0], images["x_val"][2, :, :, 0])
    whole = path.read_bytes()
    for data in (whole[:-200], b"", whole[:2000] + b"\0" * 64 + whole[2064:]):
        path.write_bytes(data)
        with pytest.raises(DataError, match="partial, damaged or another file"):
            tiny_imagenet_32(tmp_path)
    np.savez(path, **images, y_train=np.array([None] * 4), y_val=labels["y_val"])
    with pytest.raises(DataError, match="allow_pickle"):
        tiny_imagenet_32(tmp_path)
    (tmp_path / "five_datasets_small.npz").write_bytes(whole)
    with pytest.raises(DataError, match=f"sha256.*expected {next(iter(packed_files.FIVE_SMALL))}"):
        read_offline_five(tmp_path, "mnist")


_TINY = ("train", "val")
