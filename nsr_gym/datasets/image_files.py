"""MNIST and Fashion-MNIST (idx), SVHN (.mat) and notMNIST (folders of PNG files)."""

from __future__ import annotations

import gzip
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nsr_gym.datasets.sources import (
    LabelledImages,
    damaged,
    missing,
    read_file,
    unreadable,
    variant_of,
)
from nsr_gym.errors import DataError

MNIST = {
    "train-images-idx3-ubyte": {"6bbc9ace898e44ae57da46a324031adb": "official"},
    "train-labels-idx1-ubyte": {"a25bea736e30d166cdddb491f175f624": "official"},
    "t10k-images-idx3-ubyte": {"2646ac647ad5339dbf082846283269ea": "official"},
    "t10k-labels-idx1-ubyte": {"27ae3e4e09519cfbb04c329615203637": "official"},
}
"""File -> md5 of its content (unpacked) -> variant."""

FASHION_MNIST = {
    "train-images-idx3-ubyte": {"f4a8712d7a061bf5bd6d2ca38dc4d50a": "official"},
    "train-labels-idx1-ubyte": {"9018921c3c673c538a1fc5bad174d6f9": "official"},
    "t10k-images-idx3-ubyte": {"8181f5470baa50b63fa0f6fddb340f0a": "official"},
    "t10k-labels-idx1-ubyte": {"15d484375f8d13e6eb1aabb0c3f46965": "official"},
}
"""As `MNIST`."""

SVHN = {
    "train": {"e26dedcc434d2e4c54c9b2d4a06d8373": "official"},
    "test": {"eb5a983be6a315427106f1b164d9cef3": "official"},
}
"""Part -> md5 -> variant."""

NOTMNIST = {"train": 16_853, "test": 1_873, "all": 18_724}
"""Part -> images that whole copies have."""

LETTERS = "ABCDEFGHIJ"
SIDE = 28

_FAR = 0.02
_FOLDERS = ("Train", "Test")
_LETTERS_EACH = "each with folders A to J of PNG files"


def read_mnist(root: Path, part: str) -> LabelledImages:
    """Read MNIST from `root/MNIST/raw`, where torchvision puts it.

    Args:
        root: the folder that data is looked for in.
        part: `"train"` (60,000 images) or `"test"` (10,000).

    Returns:
        Images (n, 1, 28, 28), labels 0 to 9.

    Raises:
        DataError: files are missing, unreadable, partial or not the official ones.
    """
    return _read_idx(root, "mnist", root / "MNIST" / "raw", MNIST, part)


def read_fashion_mnist(root: Path, part: str) -> LabelledImages:
    """Read Fashion-MNIST from `root/FashionMNIST/raw`; otherwise as `read_mnist`."""
    return _read_idx(root, "fashion-mnist", root / "FashionMNIST" / "raw", FASHION_MNIST, part)


def read_svhn(root: Path, part: str) -> LabelledImages:
    """Read SVHN, cropped digits, from `root/{train,test}_32x32.mat`.

    Args:
        root: the folder that data is looked for in.
        part: `"train"` (73,257 images; the part `extra` is not used) or `"test"` (26,032).

    Returns:
        Images (n, 3, 32, 32), labels 0 to 9: the files' label 10 is the digit 0.

    Raises:
        DataError: files are missing, unreadable, partial or not the official ones.
    """
    from scipy.io import loadmat

    path = root / f"{part}_32x32.mat"
    data = read_file(path, "svhn", root, "cropped digits of SVHN")
    variant = variant_of(data, SVHN[part], path, "svhn", root)
    try:
        content = loadmat(io.BytesIO(data), variable_names=["X", "y"])
        x, y = content["X"], content["y"].astype(np.int64).reshape(-1) % 10
        return LabelledImages(np.ascontiguousarray(x.transpose(3, 2, 0, 1)), y, variant)
    except (KeyError, ValueError, TypeError, OSError, zlib.error) as error:
        raise damaged(path, "svhn", root, f"it holds no images X and labels y ({error})") from error


def read_notmnist(root: Path) -> dict[str, LabelledImages]:
    """Read notMNIST, letters A to J, from folders with one sub-folder per letter.

    `root/notMNIST/Train` and `root/notMNIST/Test` (ACL's archive, used by l2p-pytorch and
    HiDe-Prompt) are taken where they are there; else `root/notMNIST_small` (the original
    archive), which has no parts of its own. Files are read in the order of their names, where
    the released loaders take them as the file system lists them, which is not the same
    everywhere. Files that are no images (the original archive has two) are left out and counted.
    A part with over 2 % more or fewer images than whole copies have is taken with a warning.

    Args:
        root: the folder that data is looked for in.

    Returns:
        `"train"` and `"test"`, or `"all"` where there are no parts: images (n, 1, 28, 28),
        labels 0 (A) to 9 (J). Nobody publishes checksums, so the variant is `"acl"` or
        `"small"` and says no more than where the files lay.

    Raises:
        DataError: no such folder, one of Train and Test alone, a letter without images, an image
            of another size, or permissions are lacking.
    """
    folder, small = root / "notMNIST", root / "notMNIST_small"
    expected = f"Train and Test there, or {small}, {_LETTERS_EACH}"
    try:
        there = [name for name in _FOLDERS if (folder / name).is_dir()]
        whole = not there and small.is_dir()
    except OSError as error:
        raise unreadable(folder, "notmnist", root, expected, error) from error
    if len(there) == 1:
        (lacking,) = set(_FOLDERS) - set(there)
        raise DataError(
            f"{folder} has {there[0]} and no {lacking}; expected both, {_LETTERS_EACH}. "
            f"{_unpack_or_move(root)}"
        )
    if not there and not whole:
        raise missing(folder, "notmnist", root, expected)
    places = {"all": small} if whole else {name.lower(): folder / name for name in _FOLDERS}
    found = {part: _letters(root, place, part) for part, place in places.items()}
    for part, images in found.items():
        if abs(len(images.y) - NOTMNIST[part]) > _FAR * NOTMNIST[part]:
            warnings.warn(
                f"{places[part]} has {len(images.y)} images of notMNIST, expected about "
                f"{NOTMNIST[part]}: it is partial, or another selection, and results on it are "
                "not comparable with others. Unpack its archive again.",
                RuntimeWarning,
                stacklevel=2,
            )
    return found


def check_kept(name: str, root: Path) -> None:
    """Refuse damaged files that a download through torchvision would leave as they are.

    Of MNIST and Fashion-MNIST it fetches nothing where all unpacked files are there, whatever is
    in them; those of other data sets are checked and replaced.

    Args:
        name: of the data set, as in `fetch`.
        root: the folder that data is looked for in.

    Raises:
        DataError: such a file is not the official one, or cannot be read.
    """
    tables = {"mnist": ("MNIST", MNIST), "fashion-mnist": ("FashionMNIST", FASHION_MNIST)}
    if name not in tables:
        return
    folder, known = root / tables[name][0] / "raw", tables[name][1]
    expected = f"idx files of {name}"
    try:
        whole = all((folder / file).is_file() for file in known)
    except OSError as error:
        raise unreadable(folder, name, root, expected, error) from error
    for file in known if whole else ():
        path = folder / file
        variant_of(read_file(path, name, root, expected), known[file], path, name, root)


_PARTS = {"train": "train", "test": "t10k"}


def _read_idx(
    root: Path, name: str, folder: Path, known: dict[str, dict[str, str]], part: str
) -> LabelledImages:
    arrays, variants = [], set()
    for kind, dimensions in (("images", 3), ("labels", 1)):
        file = f"{_PARTS[part]}-{kind}-idx{dimensions}-ubyte"
        path, data = _plain(root, name, folder / file)
        variants.add(variant_of(data, known[file], path, name, root))
        arrays.append(_parse_idx(root, name, path, data, dimensions))
    images, labels = arrays
    try:
        return LabelledImages(images[:, None], labels.astype(np.int64), "+".join(sorted(variants)))
    except DataError as error:
        raise damaged(folder, name, root, f"images and labels do not match ({error})") from error


def _plain(root: Path, name: str, path: Path) -> tuple[Path, bytes]:
    """Return an idx file's content, from the file itself or from its gzip file beside it."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        unpacked = path.exists() or not packed.exists()
    except OSError:  # which reading it meets again, and reports
        unpacked = True
    if unpacked:
        return path, read_file(path, name, root, f"it, or {packed.name}, an idx file of {name}")
    data = read_file(packed, name, root, f"an idx file of {name}")
    try:
        return packed, gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(packed, name, root, f"it does not unpack ({error})") from error


def _parse_idx(
    root: Path, name: str, path: Path, data: bytes, dimensions: int
) -> NDArray[np.uint8]:
    # Two zero bytes, the type (8: unsigned byte), the number of dimensions, their big-endian
    # lengths, the values.
    begin = 4 + 4 * dimensions
    if len(data) < begin or data[:4] != bytes([0, 0, 8, dimensions]):
        raise damaged(path, name, root, f"it does not begin like bytes in {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", data[4:begin])
    if len(data) - begin != np.prod(shape, dtype=np.int64):
        raise damaged(path, name, root, f"it has {len(data) - begin} values for shape {shape}")
    return np.frombuffer(data, dtype=np.uint8, offset=begin).reshape(shape)


def _letters(root: Path, folder: Path, part: str) -> LabelledImages:
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    skipped = 0
    for label, letter in enumerate(LETTERS):
        files = _png_files(root, folder / letter)
        pixels = [found for path in files if (found := _picture(path)) is not None]
        if not pixels:
            expected = f"PNG files of the letter {letter} ({len(files)} there, none readable)"
            if part == "all":
                raise missing(folder / letter, "notmnist", root, expected)
            raise DataError(
                f"{folder / letter} is missing or empty; expected {expected}. "
                f"{_unpack_or_move(root)}"
            )
        images += pixels
        labels += [label] * len(pixels)
        skipped += len(files) - len(pixels)
    variant = "small" if part == "all" else "acl"
    return LabelledImages(
        np.stack(images)[:, None], np.array(labels, dtype=np.int64), variant, skipped
    )


def _unpack_or_move(root: Path) -> str:
    return (
        f"Unpack the archive of both into {root / 'notMNIST'} again, or move that folder away: "
        f"{root / 'notMNIST_small'} is looked at only where it has neither."
    )


def _png_files(root: Path, folder: Path) -> list[Path]:
    """Return the PNG files of a letter in the order of their names, none without the folder."""
    try:
        files = [path for path in folder.iterdir() if path.name.endswith(".png")]
        return sorted(files, key=lambda path: path.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, "notmnist", root, "a folder of PNG files", error) from error


def _picture(path: Path) -> NDArray[np.uint8] | None:
    """Return a grey image (28, 28), None where the file is no image."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("L"))
    except PermissionError as error:
        raise DataError(f"{path} cannot be read ({error}); mend its permissions.") from error
    # What Pillow raises for broken files.
    except (OSError, SyntaxError, ValueError, LookupError, Image.DecompressionBombError):
        return None
    if pixels.shape != (SIDE, SIDE):
        raise DataError(
            f"{path} is no image of notMNIST: it has {pixels.shape} pixels, expected {SIDE} each. "
            "Remove it, or unpack its archive again."
        )
    return pixels
