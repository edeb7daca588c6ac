"""Named manifests that ship with the package: class orders and compositions as explicit lists.

A stream is its explicit class lists and their hash, never a seed: the same "seed 1993" gives four
different first tasks in four published code bases.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from nsr_gym.errors import FileFormatError, InvalidValueError, unknown

CIFAR100_CLASSES = 100

_Numbered = TypeVar("_Numbered")


@dataclass(frozen=True)
class ClassOrder:
    """The classes of CIFAR-100 in the order in which they are dealt to tasks.

    Attributes:
        name: of the order, `"explicit"` for a list of the caller's.
        classes: all 100 labels.
    """

    name: str
    classes: tuple[int, ...]

    @property
    def sha256(self) -> str:
        """Sha256 (hex) of the list as compact JSON."""
        return list_hash(list(self.classes))

    def tasks(self, num_tasks: int) -> tuple[tuple[int, ...], ...]:
        """Return the classes of each of M tasks, in order."""
        width = len(self.classes) // num_tasks
        return tuple(self.classes[i * width : (i + 1) * width] for i in range(num_tasks))


@dataclass(frozen=True, kw_only=True)
class FiveManifest:
    """Five data sets of ten classes as a sequence of five tasks.

    Attributes:
        name: of the manifest.
        source: where order and preprocessing come from, and where ours depart.
        files: `"official"` or `"offline"`.
        datasets: the five, in order.
        size: side of the images in pixels.
        resize: side before the centre crop; None: no crop.
        pad: black pixels added on each side of images of 28 x 28.
        normalise: data set -> mean and std, three numbers each; empty: values stay in [0, 1].
        validation: share of the training images that is held out where validation is asked for.
        notmnist_test: share of notMNIST that is test where its files have no parts.
        notmnist_joined: whether notMNIST is dealt anew even if its files have parts.
    """

    name: str
    source: str
    files: str
    datasets: tuple[str, ...]
    size: int
    resize: int | None
    pad: int
    normalise: dict[str, dict[str, list[float]]]
    validation: float
    notmnist_test: float
    notmnist_joined: bool


Half = tuple[int, tuple[int, ...]]
"""Position of a data set in a manifest, and five of its classes."""


@dataclass(frozen=True)
class HalvesGrouping:
    """Five tasks, each of five classes of one data set and five of another.

    Attributes:
        name: of the grouping.
        tasks: two halves each; no class is in two tasks.
    """

    name: str
    tasks: tuple[tuple[Half, Half], ...]


def list_hash(content: Any) -> str:
    """Return the sha256 (hex) of a list as compact JSON."""
    text = json.dumps(content, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def class_orders() -> dict[str, ClassOrder]:
    """Return the shipped class orders of CIFAR-100 by name.

    `"natural"` (L2P, InfLoRA, CODA-Prompt's seed 0), `"seed-1993"` (the order list of PILOT,
    PyCIL, RanPAC and SD-LoRA: `np.random.RandomState(1993).permutation(100)`), `"random-0"` to
    `"random-9"` for tasks of split test and `"train-0"` to `"train-9"` for those of split train
    (sorted PCG64 output of odd and even seeds).
    """
    return dict(_orders())


def class_order(order: str | Sequence[int], seed: int | None = None) -> ClassOrder:
    """Return a class order by name or list.

    Args:
        order: a name of `class_orders`; `"random"`, with a seed; or all 100 labels in order.
        seed: 0 to 9 for `"random"`, which is then `"random-<seed>"`; None otherwise.

    Raises:
        UnknownNameError: no such order.
        InvalidValueError: a seed without a random order or out of range, or a list that is no
            permutation of 0..99.
    """
    orders = _orders()
    if order == "random":
        seeds = [int(name[7:]) for name in orders if name.startswith("random-")]
        if seed not in seeds or isinstance(seed, bool):
            raise InvalidValueError(
                f"Expected seed in {min(seeds)}..{max(seeds)} for order 'random', got {seed!r}; "
                "other orders are given as a list of the 100 labels."
            )
        return orders[f"random-{seed}"]
    if seed is not None:
        raise InvalidValueError(f"A seed goes with order 'random' only; got {seed!r}, {order!r}.")
    if isinstance(order, str):
        if order not in orders or order.startswith("train-"):
            names = [name for name in orders if not name.startswith("train-")]
            raise unknown("class order", order, [*names, "random"])
        return orders[order]
    classes: tuple[Any, ...] = tuple(order) if isinstance(order, Sequence) else ()
    if any(isinstance(c, bool) or not isinstance(c, int) for c in classes) or sorted(
        classes
    ) != list(range(CIFAR100_CLASSES)):
        raise InvalidValueError(
            f"Expected a class order as a name or as each label 0..99 once; got {str(order)[:60]}."
        )
    return ClassOrder("explicit", classes)


def train_order(grouping: int) -> ClassOrder:
    """Return the class order `"train-<grouping>"`, for tasks of split train.

    Raises:
        InvalidValueError: there is no such grouping.
    """
    return _numbered("grouping", grouping, _orders())


def five_manifests() -> dict[str, FiveManifest]:
    """Return the shipped compositions of five data sets by name.

    `"five_datasets/l2p_torch"`, `"five_datasets/l2p_jax"`, `"five_datasets/gpm"` (official
    files) and `"offline5"` (small sets, GTSRB in SVHN's place).
    """
    return dict(_five()[0])


def five_manifest(name: str, *, normalise: bool = True) -> FiveManifest:
    """Return a composition of five data sets.

    Args:
        name: of `five_manifests`.
        normalise: whether its mean and std are kept; without them all else stays what it is, and
            `source` says that they are left out.

    Raises:
        UnknownNameError: no such manifest.
        InvalidValueError: `normalise` is no bool.
    """
    manifests = _five()[0]
    if name not in manifests:
        raise unknown("manifest of five data sets", name, manifests)
    if not isinstance(normalise, bool):
        raise InvalidValueError(f"Expected normalise to be True or False; got {normalise!r}.")
    found = manifests[name]
    if normalise or not found.normalise:
        return found
    source = f"{found.source}; mean and std are left out, so that values are in [0, 1]"
    return replace(found, source=source, normalise={})


def halves_grouping(grouping: int) -> HalvesGrouping:
    """Return the shipped grouping `"train-<grouping>"` of half data sets.

    Raises:
        InvalidValueError: there is no such grouping.
    """
    return _numbered("grouping", grouping, _five()[1])


def _numbered(what: str, number: int, known: dict[str, _Numbered]) -> _Numbered:
    name = f"train-{number}"
    if isinstance(number, bool) or not isinstance(number, int) or name not in known:
        names = [key for key in known if key.startswith("train-")]
        raise InvalidValueError(f"Expected {what} in 0..{len(names) - 1}; got {number!r}.")
    return known[name]


@cache
def _orders() -> dict[str, ClassOrder]:
    orders = {}
    for name, content in _load("cifar100_orders.json").items():
        orders[name] = ClassOrder(name, tuple(content["classes"]))
        _check("cifar100_orders.json", name, content["classes"], content["sha256"])
    return orders


@cache
def _five() -> tuple[dict[str, FiveManifest], dict[str, HalvesGrouping]]:
    content = _load("five_datasets.json")
    manifests = {
        name: FiveManifest(name=name, **{**one, "datasets": tuple(one["datasets"])})
        for name, one in content["manifests"].items()
    }
    groupings = {}
    for name, one in content["train_groupings"].items():
        _check("five_datasets.json", name, one["tasks"], one["sha256"])
        tasks = tuple(((a, tuple(x)), (b, tuple(y))) for (a, x), (b, y) in one["tasks"])
        groupings[name] = HalvesGrouping(name, tasks)
    return manifests, groupings


def _load(name: str) -> dict[str, Any]:
    path = resources.files("nsr_gym.datasets") / "manifests" / name
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _check(file: str, name: str, content: Any, sha256: str) -> None:
    if list_hash(content) != sha256:
        raise FileFormatError(
            f"The lists of {name!r} in {file} do not match their hash; install nsr-gym again."
        )
