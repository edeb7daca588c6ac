"""Where the tasks' prefixes lie: stacked in memory, or in pieces in memory or on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache as once
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsr_gym.backbones.base import Backbone, Prefix
from nsr_gym.datasets.cache import FeatureCache, FeatureKey
from nsr_gym.errors import DataError, InvalidValueError, unknown

if TYPE_CHECKING:
    from nsr_gym.tasks import Task

PREFIX_DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}
"""How prefixes may be kept; they are handed out in single precision."""

_READ = 256
"""Images that are read and sent through the frozen part at once."""

_PIECE_BYTES = 1 << 30
"""Of one piece, at most: what is in memory while it is made. A piece on disk is a file that stays
open, so pieces must not be small: 250,000 images of ViT-B/16's size are some hundred."""


@dataclass(frozen=True)
class Source:
    """One part of a task's images, whose numbers may have to be made.

    Attributes:
        size: n, images.
        read: returns images (stop - start, *shape) float32 of start and stop.
        digest: returns a hash of the images.
    """

    size: int
    read: Callable[[int, int], NDArray[np.float32]]
    digest: Callable[[], str]


def source(task: Task, part: str) -> Source:
    """Return the `"train"`, `"test"` or `"val"` images of a task."""
    size = len(getattr(task, f"y_{part}"))
    images = getattr(task, part, None)
    if images is not None:  # an `ImageTask` makes numbers only of what is read
        return Source(size, images.read, lambda: str(images.digest))
    x = getattr(task, f"x_{part}")
    return Source(size, lambda start, stop: x[start:stop], lambda: f"{task.content_hash}/{part}")


class Prefixes(Protocol):
    """The prefixes of one part of every task."""

    def fill(self, task: int, images: Source) -> None:
        """Do the frozen work of one task."""
        ...

    def rows(self, tasks: Tensor, index: Tensor) -> Prefix:
        """Return a prefix (n, k, ...) by image index (n, k) and task, (n, 1) or (n, k)."""
        ...

    def whole(self, tasks: Tensor, width: int) -> Prefix:
        """Return the prefixes (n, width, ...) of all images of tasks (n,), padded with zeros."""
        ...


class StackedPrefixes:
    """All tasks in one tensor in memory: for small data, gathered in one operation."""

    def __init__(self, backbone: Backbone, num_tasks: int, width: int) -> None:
        self._backbone, self._shape = backbone, (num_tasks, width)
        self._stack: Prefix | None = None

    def fill(self, task: int, images: Source) -> None:
        """Do the frozen work of one task, all its images at once."""
        read = torch.tensor(images.read(0, images.size), device=self._backbone.device)
        prefix = self._backbone.prefix(read)
        if self._stack is None:
            self._stack = tuple(part.new_zeros(*self._shape, *part.shape[1:]) for part in prefix)
        for stack, part in zip(self._stack, prefix, strict=True):
            stack[task, : len(part)] = part

    def rows(self, tasks: Tensor, index: Tensor) -> Prefix:
        """See `Prefixes`."""
        assert self._stack is not None
        rows = tasks * self._shape[1] + index
        flat, shape = rows.reshape(-1), rows.shape
        return tuple(
            part.flatten(0, 1).index_select(0, flat).unflatten(0, shape) for part in self._stack
        )

    def whole(self, tasks: Tensor, width: int) -> Prefix:
        """See `Prefixes`."""
        assert self._stack is not None
        return tuple(part[:, :width][tasks] for part in self._stack)


class PiecewisePrefixes:
    """Every task in pieces of many images, which lie in memory, or on disk and are mapped.

    No more than one piece is in memory while it is made, so that parts of any size can be
    prepared. Of pieces on disk, rows that are asked for are copied and nothing else is read. On
    a CUDA device all pieces are put into its memory, where training needs them.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_tasks: int,
        *,
        cache: FeatureCache | None = None,
        dtype: str = "float32",
    ) -> None:
        """Prepare for filling.

        Args:
            backbone: the frozen network.
            num_tasks: tasks of the pool.
            cache: where pieces are kept on disk; None: in the memory of the backbone's device.
            dtype: how prefixes are kept, a name of `PREFIX_DTYPES`.

        Raises:
            UnknownNameError: no such type.
        """
        if dtype not in PREFIX_DTYPES:
            raise unknown("prefix_dtype", dtype, PREFIX_DTYPES)
        self._backbone, self._cache, self._name = backbone, cache, dtype
        self._dtype = PREFIX_DTYPES[dtype]
        self._on_disk = cache is not None and backbone.device.type == "cpu"
        with torch.no_grad():
            image = torch.zeros(1, *backbone.input_shape, device=backbone.device)
            self._shapes = [tuple(part.shape[1:]) for part in backbone.prefix(image)]
        numbers = max(1, sum(int(np.prod(shape)) for shape in self._shapes))
        reads = _PIECE_BYTES // (numbers * self._dtype.itemsize * _READ)
        self._size = _READ * max(1, reads)
        # Task -> pieces -> parts of the prefix.
        self._pieces: list[list[list[Any]]] = [[] for _ in range(num_tasks)]

    def fill(self, task: int, images: Source) -> None:
        """Do the frozen work of one task, or find it done.

        Raises:
            InvalidValueError: numbers that are too large for half precision.
            DataError: the cache's folder cannot be written to.
        """
        self._pieces[task] = [
            self._piece(images, start, min(start + self._size, images.size))
            for start in range(0, images.size, self._size)
        ]

    def _piece(self, images: Source, start: int, stop: int) -> list[Any]:
        compute = once(partial(self._compute, images, start, stop))
        if self._cache is None:
            return compute()
        kept: list[Any] = []
        for part in range(len(self._shapes)):
            key = FeatureKey(
                data=images.digest(),
                backbone=self._backbone.fingerprint,
                preprocessing={
                    "what": "prefix, second layout",
                    "part": part,
                    "sites": [site.name for site in self._backbone.sites],
                    "images": [start, stop],
                    "dtype": self._name,
                    "device": self._backbone.device.type,
                },
            )
            try:
                found = self._cache.get_or_compute(key, partial(_numbers, compute, part))
            except OSError as error:
                raise DataError(
                    f"Features cannot be kept in {self._cache.folder} ({error}); make room there, "
                    "name another folder, or keep them in memory (`cache=False`)."
                ) from error
            device = self._backbone.device
            kept.append(found if self._on_disk else torch.tensor(found, device=device))
        return kept

    @torch.no_grad()
    def _compute(self, images: Source, start: int, stop: int) -> list[Tensor]:
        device = self._backbone.device
        made = [
            torch.empty(stop - start, *shape, dtype=self._dtype, device=device)
            for shape in self._shapes
        ]
        for first in range(start, stop, _READ):
            last = min(first + _READ, stop)
            prefix = self._backbone.prefix(torch.tensor(images.read(first, last), device=device))
            for whole, part in zip(made, prefix, strict=True):
                whole[first - start : last - start] = part
        if self._dtype == torch.float16 and not all(bool(part.isfinite().all()) for part in made):
            raise InvalidValueError(
                "Expected prefixes that fit half precision; some are beyond 65504. Keep them with "
                "prefix_dtype='float32'."
            )
        return made

    def rows(self, tasks: Tensor, index: Tensor) -> Prefix:
        """See `Prefixes`; nothing but the rows asked for is read."""
        shape = tuple(index.shape)
        where = np.stack(
            [part.expand(shape).reshape(-1).cpu().numpy() for part in (tasks, index)], axis=1
        )
        where[:, 1], within = np.divmod(where[:, 1], self._size)
        pieces, places = np.unique(where, axis=0, return_inverse=True)
        places = places.reshape(-1)
        found = self._empty(len(where))
        for number, (task, piece) in enumerate(pieces.tolist()):
            place = np.flatnonzero(places == number)
            target = torch.from_numpy(place).to(self._backbone.device)
            for whole, part in zip(found, self._pieces[task][piece], strict=True):
                whole[target] = self._taken(part, within[place]).to(whole.dtype)
        return tuple(part.unflatten(0, shape) for part in found)

    def whole(self, tasks: Tensor, width: int) -> Prefix:
        """See `Prefixes`."""
        found = self._empty(len(tasks), width)
        for row, task in enumerate(tasks.tolist()):
            first = 0
            for piece in self._pieces[task]:
                last = first + len(piece[0])
                for whole, part in zip(found, piece, strict=True):
                    whole[row, first:last] = self._taken(part, slice(None)).to(whole.dtype)
                first = last
            for whole in found:
                whole[row, first:] = 0.0
        return found

    def _empty(self, *rows: int) -> Prefix:
        device = self._backbone.device
        return tuple(torch.empty(*rows, *shape, device=device) for shape in self._shapes)

    def _taken(self, part: Any, index: NDArray[np.int64] | slice) -> Tensor:
        if not self._on_disk:
            chosen = index if isinstance(index, slice) else torch.from_numpy(index).to(part.device)
            return part[chosen]  # type: ignore[no-any-return]
        # A copy: tensors cannot be made of read-only memory.
        return torch.from_numpy(np.array(part[index]))


def _numbers(compute: Callable[[], list[Tensor]], part: int) -> NDArray[Any]:
    return np.asarray(compute()[part].cpu().numpy())
