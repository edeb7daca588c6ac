"""5-Datasets: five data sets of ten classes as five tasks, by named manifests.

The published benchmark is CIFAR-10, MNIST, SVHN, Fashion-MNIST and notMNIST from their official
files. `"offline5"` has small sets and GTSRB in SVHN's place; results on it are no results on the
published benchmark.

What decisions may rest on is as in `nsr_gym.datasets.cifar100`. Tasks of split `"train"` pair
five classes of one data set with five of another, so that none of them is a task of the
benchmark, and are judged on validation images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from nsr_gym.datasets.cifar_files import read_cifar10
from nsr_gym.datasets.downloads import with_download
from nsr_gym.datasets.image_files import (
    read_fashion_mnist,
    read_mnist,
    read_notmnist,
    read_svhn,
)
from nsr_gym.datasets.image_pools import (
    VAL_PER_CLASS,
    Piece,
    check_labels,
    evaluation,
    image_task,
)
from nsr_gym.datasets.image_tasks import ImageTransform
from nsr_gym.datasets.manifests import (
    FiveManifest,
    HalvesGrouping,
    five_manifest,
    halves_grouping,
)
from nsr_gym.datasets.packed_files import read_offline_five
from nsr_gym.datasets.selecting import (
    Selection,
    check_per_class,
    check_val_per_class,
    deal_parts,
)
from nsr_gym.datasets.sources import LabelledImages, Root, data_root
from nsr_gym.errors import InvalidValueError
from nsr_gym.tasks import Split, TaskPool, check_split

_READERS: dict[str, tuple[str, Callable[[Path, str], LabelledImages]]] = {
    "cifar10": ("cifar-10", read_cifar10),
    "mnist": ("mnist", read_mnist),
    "svhn": ("svhn", read_svhn),
    "fashion_mnist": ("fashion-mnist", read_fashion_mnist),
}
"""Data set -> its name for `fetch`, and its reader."""

_GREY_SIDE = 28
_WIDTH = 10


def five_datasets_pool(
    split: str = "test",
    *,
    manifest: str = "five_datasets/l2p_torch",
    grouping: int = 0,
    labels: str = "task",
    evaluate: str | None = None,
    size: int | None = None,
    normalise: bool = True,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    val_per_class: int = VAL_PER_CLASS,
    root: Root = None,
    download: bool = False,
) -> TaskPool:
    """Return the five tasks of 5-Datasets, or of its offline stand-in.

    The bytes of all official files are about 600 MB, shared by the tasks of a process; numbers
    are made when they are read (`ImageTask`), in pieces where all at once would not fit: the
    73,257 images of SVHN at 224 pixels are 44 GB. `loaded_counts` says how many images there are.

    Args:
        split: `"test"`: the data sets of the manifest, in its order. `"train"`: pairs of halves
            of them, judged on validation images.
        manifest: `"five_datasets/l2p_torch"`, `"five_datasets/l2p_jax"`, `"five_datasets/gpm"`
            or `"offline5"`: composition, order and preprocessing.
        grouping: split train only: which shipped pairing of halves, 0 to 9.
        labels: what the outputs of the head mean. `"task"`: the task's own ten classes (task
            incremental). `"domain"`: the labels 0 to 9 of every data set (domain incremental).
            `"class"`: all 50 classes, data set after data set (class incremental).
        evaluate: as in `cifar100_pool`; the manifest says which share is held out.
        size: side of the images in pixels, reached by padding or bicubic resizing without a
            crop; None: the manifest's (224 with a crop, or 32).
        normalise: whether values get the mean and std of a manifest that has some
            (`"five_datasets/gpm"`). False leaves them in [0, 1], for networks that normalise by
            themselves, as the frozen image backbones do.
        train_per_class: at most so many training images of each class; None: all.
        test_per_class: the same for test images.
        val_per_class: as in `cifar100_pool`.
        root: where the data lies; None: `NSR_GYM_DATA`, else `~/.cache/nsr-gym-data`.
        download: whether to download missing official files through torchvision (notMNIST has
            no download there; the message says how to get it).

    Returns:
        The pool, cached. Global labels are 10 p + label, p the data set's position in the
        manifest.

    Raises:
        DataError: files are missing, partial, unreadable or unknown; the message says how to
            get them.
        UnknownNameError: no such split, manifest, labels or evaluation.
        InvalidValueError: a number out of range, or arguments of the other split.
    """
    part = check_split(split)
    check_labels(labels)
    judged = evaluation(part, evaluate)
    check_per_class(train_per_class)
    check_per_class(test_per_class)
    check_val_per_class(val_per_class)
    chosen = five_manifest(manifest, normalise=normalise)
    if part == "test" and grouping != 0:
        raise InvalidValueError("grouping goes with split 'train'; leave it out.")
    pairs = halves_grouping(grouping) if part == "train" else None
    ImageTransform(size=chosen.size if size is None else size)  # refused before data is read
    folder = data_root(root)
    for name in chosen.datasets:
        fetched = "five_datasets_small" if chosen.files == "offline" else "notmnist"
        if chosen.files == "official" and name in _READERS:
            fetched = _READERS[name][0]
        with_download(partial(_parts, folder, chosen, name), fetched, folder, download)
    per_class = (train_per_class, test_per_class)
    named = (chosen.name, bool(chosen.normalise))
    return _pool(folder, part, named, pairs, labels, judged, size, per_class, val_per_class)


def _parts(root: Path, manifest: FiveManifest, name: str) -> tuple[Selection, Selection]:
    if name != "notmnist":  # the same for all manifests, so read once
        return _selections(root, manifest.files, name, 0.0, False)
    return _selections(root, manifest.files, name, manifest.notmnist_test, manifest.notmnist_joined)


@lru_cache(maxsize=16)
def _selections(
    root: Path, files: str, name: str, share: float, joined: bool
) -> tuple[Selection, Selection]:
    if files == "offline":
        parts = read_offline_five(root, name)
    elif name == "notmnist":
        parts = read_notmnist(root)
        if "all" in parts:
            parts = dict(zip(("train", "test"), deal_parts(parts["all"], share), strict=True))
        elif joined:
            whole = _joined(parts)
            parts = dict(zip(("train", "test"), deal_parts(whole, share), strict=True))
    else:
        read = _READERS[name][1]
        parts = {part: read(root, part) for part in ("train", "test")}
    return Selection(parts["train"]), Selection(parts["test"])


def _joined(parts: dict[str, LabelledImages]) -> LabelledImages:
    both = [parts["train"], parts["test"]]
    return LabelledImages(
        np.concatenate([part.x for part in both]),
        np.concatenate([part.y for part in both]),
        f"{both[0].variant}-joined",
        sum(part.skipped for part in both),
    )


def _transform(manifest: FiveManifest, name: str, side: int, size: int | None) -> ImageTransform:
    numbers = manifest.normalise.get(name, {})
    mean, std = numbers.get("mean"), numbers.get("std")
    return ImageTransform(
        size=manifest.size if size is None else size,
        resize=manifest.resize if size is None else None,
        pad=manifest.pad if side == _GREY_SIDE else 0,
        mean=None if mean is None else tuple(mean),  # type: ignore[arg-type]
        std=None if std is None else tuple(std),  # type: ignore[arg-type]
    )


@lru_cache(maxsize=8)
def _pool(
    root: Path,
    split: Split,
    named: tuple[str, bool],
    pairs: HalvesGrouping | None,
    labels: str,
    evaluate: str,
    size: int | None,
    per_class: tuple[int | None, int | None],
    val_per_class: int,
) -> TaskPool:
    manifest = five_manifest(named[0], normalise=named[1])
    parts = [_parts(root, manifest, one) for one in manifest.datasets]
    whole = tuple(range(_WIDTH))
    # (name of the task, its halves or its one whole)
    plan = (
        [(one, [(i, whole)]) for i, one in enumerate(manifest.datasets)]
        if pairs is None
        else [(f"{pairs.name}-{i}", list(task)) for i, task in enumerate(pairs.tasks)]
    )
    every = tuple(range(_WIDTH * len(manifest.datasets)))
    tasks = []
    for title, halves in plan:
        pieces: list[Piece] = [
            (*parts[i], classes, _transform(manifest, manifest.datasets[i], _side(parts[i]), size))
            for i, classes in halves
        ]
        own = tuple(_WIDTH * i + c for i, classes in halves for c in classes)
        definition = {
            "kind": manifest.name,
            "source": manifest.source,
            "datasets": [manifest.datasets[i] for i, _ in halves],
            "classes": [list(classes) for _, classes in halves],
            "labels": labels,
        }
        tasks.append(
            image_task(
                f"{manifest.name}-{title}",
                pieces,
                head={"task": own, "domain": whole, "class": every}[labels],
                outputs=own if labels == "class" else range(_WIDTH),
                evaluate=evaluate,
                validation=manifest.validation,
                per_class=per_class,
                val_per_class=val_per_class,
                definition=definition,
            )
        )
    return TaskPool(name=manifest.name, split=split, tasks=tuple(tasks))


def _side(parts: tuple[Selection, Selection]) -> int:
    return int(parts[0].images.x.shape[2])
