"""Features kept on disk: computed once per data, backbone and preprocessing, then mapped.

A folder with two files per entry. The `.npy` file carries its values' hash in its name and
the `.json` file names it, is written last and says what the features are of. Both appear whole
under their final names, so that a reader, or a second writer of the same entry, never meets half
of one: two writers of equal features write equal files, and of different ones (another number of
threads) the last one's stay.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.datasets.sources import DAMAGED_ARRAYS, data_root
from nsr_gym.errors import DataError, FileFormatError, InvalidValueError
from nsr_gym.files import TEMPORARY, write_whole

_FORMAT = "nsr-gym features 1"
_BLOCK = 1 << 22
_HASH = 64
"""Hexadecimal digits of a sha256."""

_LEFT_OVER = 24 * 3600.0
"""Seconds after which an unfinished file that nobody has written to is nobody's."""

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class FeatureKey:
    """What features are of.

    Attributes:
        data: hash of the images, such as `ImagePart.digest`.
        backbone: fingerprint of the frozen network.
        preprocessing: everything else that the values depend on (which block they are taken
            behind, precision, ...), as plain JSON.
    """

    data: str
    backbone: str
    preprocessing: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """Sha256 (hex) over all three."""
        try:
            text = json.dumps(self.to_json(), sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidValueError(
                f"Expected preprocessing as plain JSON; got {self.preprocessing!r} ({error})."
            ) from error
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {
            "data": self.data,
            "backbone": self.backbone,
            "preprocessing": dict(self.preprocessing),
        }


class FeatureCache:
    """A folder of features.

    Attributes:
        folder: where they lie; made when the first entry is written.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Open a cache.

        Args:
            folder: None: `features` in the folder of image data (see `data_root`).

        Raises:
            InvalidValueError: it is no path.
        """
        self.folder = data_root() / "features" if folder is None else data_root(folder)
        self._sound: dict[Path, tuple[int, int]] = {}
        self._swept = False

    def get(self, key: FeatureKey) -> Array | None:
        """Return the features of a key, or None where there are none.

        A file is hashed when it is first opened by this object, and mapped afterwards.

        Args:
            key: what they are of.

        Returns:
            A read-only memory map.

        Raises:
            FileFormatError: the entry is damaged or foreign, or cannot be read.
        """
        card = self.folder / f"{key.sha256}.json"
        try:
            content = json.loads(card.read_text())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(card, error) from error
        except (ValueError, RecursionError) as error:
            raise _refused(card, f"it is no JSON ({error})") from error
        try:
            fits = content["format"] == _FORMAT and content["key"] == key.to_json()
            shape, dtype, sha256 = tuple(content["shape"]), content["dtype"], content["sha256"]
            path = self._path(key, sha256)
        except (KeyError, TypeError) as error:
            raise _refused(card, f"a field is missing ({error!r})") from error
        if not fits:
            raise _refused(card, "it is of another format or of other features")
        try:
            state = path.stat()
            features = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise _refused(card, f"{path.name} is not beside it") from error
        except OSError as error:
            raise _unreadable(path, error) from error
        except DAMAGED_ARRAYS as error:
            raise _refused(path, str(error)) from error
        if not isinstance(features, np.ndarray):
            raise _refused(path, "it has several arrays")
        if features.shape != shape or features.dtype.str != dtype:
            raise _refused(path, f"it has {features.shape} {features.dtype.str}, not {shape}")
        now = (state.st_size, state.st_mtime_ns)
        if self._sound.get(path) != now and _hash(features) != sha256:
            raise _refused(path, "its content does not match its hash")
        self._sound[path] = now
        return np.asarray(features)

    def _path(self, key: FeatureKey, sha256: str) -> Path:
        return self.folder / f"{key.sha256}.{sha256[:16]}.npy"

    def put(self, key: FeatureKey, features: Array) -> Array:
        """Write features, and return them as they are read again.

        The first time, `remove_leftovers` is called.

        Args:
            key: what they are of.
            features: any shape and number type.

        Raises:
            DataError: values that are no numbers.
            OSError: the folder is not writable, or the disk is full.
        """
        features = np.ascontiguousarray(features)
        if features.dtype.kind not in "biuf" or not features.size:
            raise DataError(
                f"Expected features as numbers, at least one; got {features.shape} of type "
                f"{features.dtype}."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._swept:
            self.remove_leftovers()
            self._swept = True

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.save(file, features, allow_pickle=False)

        sha256 = _hash(features)
        path = self._path(key, sha256)
        write_whole(path, write)
        card = {
            "format": _FORMAT,
            "key": key.to_json(),
            "shape": list(features.shape),
            "dtype": features.dtype.str,
            "sha256": sha256,
        }
        text = json.dumps(card, indent=1)
        write_whole(self.folder / f"{key.sha256}.json", lambda card: card.write_text(text))
        stored = self.get(key)
        assert stored is not None
        return stored

    def get_or_compute(self, key: FeatureKey, compute: Callable[[], Array]) -> Array:
        """Return the features of a key, computing and writing them where they are missing.

        An entry that is damaged or cannot be read is refused, with a warning, and computed anew.

        Args:
            key: what they are of.
            compute: makes them.

        Returns:
            A read-only memory map.

        Raises:
            DataError: what `compute` returned are no numbers.
            OSError: the folder is not writable, or the disk is full.
        """
        try:
            found = self.get(key)
        except FileFormatError as error:
            warnings.warn(f"{error} They are computed anew.", RuntimeWarning, stacklevel=2)
            found = None
        return self.put(key, compute()) if found is None else found

    def remove_leftovers(self) -> None:
        """Remove unfinished files that killed writers left behind.

        Only those that nobody has written to for a day: younger ones may be another writer's, in
        this process or on another machine that shares the folder. Nothing else is touched, and a
        file that may not be removed stays.
        """
        oldest = time.time() - _LEFT_OVER
        for path in self.folder.glob(f"{TEMPORARY}{'[0-9a-f]' * _HASH}.*"):
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink()
            except OSError:  # removed by someone else, or someone else's
                continue


def _hash(features: Array) -> str:
    digest = hashlib.sha256()
    flat = features.reshape(-1).view(np.uint8)
    for begin in range(0, len(flat), _BLOCK):
        digest.update(flat[begin : begin + _BLOCK].data)
    return digest.hexdigest()


def _unreadable(path: Path, error: OSError) -> FileFormatError:
    return FileFormatError(
        f"The cached features in {path} cannot be read ({error}); mend the permissions of the "
        "file and its folder."
    )


def _refused(path: Path, problem: str) -> FileFormatError:
    return FileFormatError(
        f"The cached features in {path} are damaged or foreign: {problem}; remove the file."
    )
