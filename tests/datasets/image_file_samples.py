"""Tiny files in the formats of the official image data sets, written byte by byte."""

from __future__ import annotations

import gzip
import hashlib
import struct
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nsr_gym.datasets import cifar_files, image_files, packed_files

Images = NDArray[np.uint8]

CIFAR100_PER_CLASS = {"train": 6, "test": 2}


def random_images(seed: int, n: int, shape: tuple[int, ...] = (3, 32, 32)) -> Images:
    """Return n images of random bytes."""
    return np.random.default_rng(seed).integers(256, size=(n, *shape), dtype=np.uint8)


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def cifar_pickle(x: Images, y: list[int], key: str, make: str | None = None) -> bytes:
    """Write what Python 2 wrote: protocol 2, byte strings, NumPy's old module names.

    Args:
        x: (n, 3, 32, 32).
        y: (n,) labels.
        key: under which they lie.
        make: module and name, with a newline between, that stands for the array maker.
    """

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    def whole(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    pixels = x.reshape(len(x), -1)
    array = b"c" + (make or "numpy.core.multiarray\n_reconstruct").encode() + b"\n"
    array += b"cnumpy\nndarray\n" + whole(0) + b"\x85" + text("b") + b"\x87R"
    array += b"(" + whole(1) + whole(pixels.shape[0]) + whole(pixels.shape[1]) + b"\x86"
    array += b"cnumpy\ndtype\n" + text("u1") + whole(0) + whole(1) + b"\x87R"
    array += b"(" + whole(3) + text("|") + b"NNN" + whole(-1) + whole(-1) + whole(0) + b"tb"
    array += b"\x89T" + struct.pack("<i", pixels.size) + pixels.tobytes() + b"tb"
    labels = b"](" + b"".join(whole(label) for label in y) + b"e"
    return b"\x80\x02}(" + text("data") + array + text(key) + labels + b"u."


def balanced(seed: int, classes: int, per_class: int) -> tuple[Images, list[int]]:
    """Return random images and mixed labels, equally many of each class."""
    labels = np.repeat(np.arange(classes), per_class)
    order = np.random.default_rng(seed).permutation(len(labels))
    return random_images(seed, len(labels)), labels[order].tolist()


def write_cifar100(root: Path, known: dict[str, cifar_files.Files], variant: str) -> None:
    """Write a tiny CIFAR-100 and note its md5s under the name of a variant."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for seed, (part, per_class) in enumerate(CIFAR100_PER_CLASS.items()):
        x, y = balanced(seed, 100, per_class)
        if variant != "official":  # other places within the classes
            for label in range(100):
                members = np.flatnonzero(np.array(y) == label)
                x[members] = x[np.roll(members, 1)]
        data = cifar_pickle(x, y, "fine_labels")
        (folder / part).write_bytes(data)
        known[part][part][md5(data)] = variant


def write_cifar10(root: Path, known: dict[str, cifar_files.Files]) -> dict[str, Images]:
    """Write a tiny CIFAR-10, ten images of each class per file."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    written: dict[str, list[Images]] = {"train": [], "test": []}
    for part, files in known.items():
        for i, file in enumerate(files):
            x, y = balanced(100 + i + 10 * (part == "test"), 10, 2)
            data = cifar_pickle(x, y, "labels")
            (folder / file).write_bytes(data)
            files[file] = {md5(data): "official"}
            written[part].append(x)
    return {part: np.concatenate(images) for part, images in written.items()}


def idx(array: NDArray[np.uint8]) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def write_idx(folder: Path, known: dict[str, dict[str, str]], seed: int, packed: bool) -> None:
    """Write a tiny MNIST: 8 training and 3 test images of each class."""
    folder.mkdir(parents=True)
    for part, per_class in (("train", 8), ("t10k", 3)):
        labels = np.tile(np.arange(10, dtype=np.uint8), per_class)
        images = random_images(seed + per_class, len(labels), (28, 28))
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx(array)
            file = f"{part}-{name}-ubyte"
            known[file] = {md5(data): "official"}
            if packed:
                (folder / f"{file}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / file).write_bytes(data)


def write_svhn(root: Path, known: dict[str, dict[str, str]]) -> dict[str, Images]:
    """Write a tiny SVHN, whose files call the digit 0 ten."""
    from scipy.io import savemat

    written = {}
    for part, per_class in (("train", 9), ("test", 2)):
        x = random_images(200 + per_class, 10 * per_class)
        y = np.tile(np.arange(1, 11, dtype=np.uint8), per_class)[:, None]
        path = root / f"{part}_32x32.mat"
        savemat(path, {"X": x.transpose(2, 3, 1, 0), "y": y})
        known[part] = {md5(path.read_bytes()): "official"}
        written[part] = x
    return written


def write_letters(root: Path, known: dict[str, int], part: str, per_class: int, seed: int) -> Path:
    """Write PNG files of every letter, and one empty file, and note how many images there are.

    Args:
        root: below which they go.
        known: part -> images of a whole copy.
        part: `"train"`, `"test"`, or `"all"` (the original archive).
        per_class: images of each letter.
        seed: of their bytes.

    Returns:
        The folder with one folder per letter.
    """
    from PIL import Image

    folder = root / {"all": "notMNIST_small"}.get(part, f"notMNIST/{part.capitalize()}")
    known[part] = 10 * per_class

    for label, letter in enumerate("ABCDEFGHIJ"):
        (folder / letter).mkdir(parents=True)
        images = random_images(seed + label, per_class, (28, 28))
        # Written from the last name to the first, so that order of creation is not that of names.
        for i in reversed(range(per_class)):
            Image.fromarray(images[i]).save(folder / letter / f"{i:03d}.png")
    (folder / "A" / "broken.png").write_bytes(b"")
    return folder


def own_tables(patch: pytest.MonkeyPatch) -> None:
    """Let a test add to the checksums, and change the counts, of known files."""
    for module, names in (
        (cifar_files, ("CIFAR10", "CIFAR100")),
        (image_files, ("MNIST", "FASHION_MNIST", "SVHN", "NOTMNIST")),
        (packed_files, ("FIVE_SMALL",)),
    ):
        for name in names:
            patch.setattr(module, name, deepcopy(getattr(module, name)))


def write_offline_five(root: Path, known: dict[str, str]) -> None:
    """Write the packed five, ten training and three test images of each class."""
    arrays: dict[str, NDArray[np.uint8] | NDArray[np.int64]] = {}
    for i, name in enumerate(packed_files.OFFLINE_FIVE):
        shape = (32, 32, 3) if name in ("gtsrb10", "cifar10") else (28, 28)
        for part, per_class in (("train", 10), ("test", 3)):
            arrays[f"{name}_x_{part}"] = random_images(10 * i + per_class, 10 * per_class, shape)
            arrays[f"{name}_y_{part}"] = np.tile(np.arange(10), per_class)
    path = root / "five_datasets_small.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    known[hashlib.sha256(path.read_bytes()).hexdigest()] = "five_datasets_small"


def write_official_five(root: Path) -> None:
    """Write tiny official files of 5-Datasets into the tables of known files."""
    write_cifar10(root, cifar_files.CIFAR10)
    write_idx(root / "MNIST" / "raw", image_files.MNIST, 20, packed=True)
    write_idx(root / "FashionMNIST" / "raw", image_files.FASHION_MNIST, 40, packed=False)
    write_svhn(root, image_files.SVHN)
    write_letters(root, image_files.NOTMNIST, "train", 8, 300)
    write_letters(root, image_files.NOTMNIST, "test", 2, 400)
