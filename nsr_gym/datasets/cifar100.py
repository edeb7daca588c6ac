"""Split-CIFAR-100: the classes of CIFAR-100 dealt to tasks.

What decisions may rest on: pools of split `"test"` are the published tasks of a named class
order, judged on the official test images, and nothing may be tuned on them. Pools of split
`"train"` group the classes otherwise and are judged on validation images held out of the official
training images. To choose thresholds for the published tasks themselves, ask for
`split="test", evaluate="validation"`: the held-out images then leave the training part.
Every pool holds out a few more training images, its tasks' validation parts: what is decided while
the tasks are learned rests on them, and what is reported does not.
The official files themselves overlap a little: 10 of the 10,000 test images are pixel-equal to a
training image. They stay, as in the published protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

from nsr_gym.datasets.cifar_files import read_cifar100
from nsr_gym.datasets.downloads import with_download
from nsr_gym.datasets.image_pools import VAL_PER_CLASS, check_labels, evaluation, image_task
from nsr_gym.datasets.image_tasks import ImageTransform
from nsr_gym.datasets.manifests import CIFAR100_CLASSES, ClassOrder, class_order, train_order
from nsr_gym.datasets.selecting import Selection, check_per_class, check_val_per_class
from nsr_gym.datasets.sources import Root, data_root
from nsr_gym.errors import InvalidValueError
from nsr_gym.tasks import Split, TaskPool, check_split

NUM_TASKS = (5, 10, 20)
"""How many tasks the classes are dealt to; the shipped orders of split train share no task with
those of split test at any of them."""

VALIDATION = 0.1
"""Share of each class's training images that is held out where validation is asked for."""


def cifar100_pool(
    split: str = "test",
    *,
    num_tasks: int = 10,
    order: str | Sequence[int] = "natural",
    seed: int | None = None,
    grouping: int = 0,
    groupings: int = 1,
    labels: str = "task",
    evaluate: str | None = None,
    size: int = 32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    val_per_class: int = VAL_PER_CLASS,
    root: Root = None,
    download: bool = False,
) -> TaskPool:
    """Return the tasks of Split-CIFAR-100.

    10 tasks have 4,800 training, 200 validation and 1,000 test images each; with `val_per_class=0`
    5,000, 0 and 1,000, as published. The tasks share the 180 MB of the images' bytes; numbers are
    made when they are read (`ImageTask`). Tasks and their hashes are the same for the official
    files and the accepted copy, since images are ordered by a hash of their pixels.

    Args:
        split: `"test"`: the published tasks of `order`. `"train"`: other groupings of the classes,
            judged on validation images.
        num_tasks: M, one of 5, 10 and 20 (10 and 20 are published).
        order: of the classes, split test only: `"natural"`, `"seed-1993"`, `"random"` with a
            seed, or all 100 labels; see `nsr_gym.datasets.manifests.class_order`.
        seed: for order `"random"`, 0 to 9.
        grouping: split train only: the first shipped grouping that is taken, 0 to 9.
        groupings: split train only: how many groupings are taken, one after another. Tasks of
            different groupings share classes, so keep to 1 where tasks must be disjoint.
        labels: what the outputs of the head mean. `"task"`: the task's own classes (task
            incremental). `"domain"`: positions within the task, the same outputs for all tasks
            (domain incremental). `"class"`: all 100 classes in the order (class incremental).
        evaluate: what the tasks' test parts are: `"test"` (official test images; split test
            only, its default) or `"validation"` (a tenth of the training images of each class,
            held out; the default of split train).
        size: side of the images in pixels: 32, or what they are resized to (bicubic).
        mean: subtracted from values in [0, 1], per channel.
        std: divided by, per channel.
        train_per_class: at most so many training images of each class; None: all.
        test_per_class: the same for test images.
        val_per_class: so many training images of each class are held out as the tasks' validation
            parts, no more than half of the class; 0: tasks have none.
        root: where the data lies; None: `NSR_GYM_DATA`, else `~/.cache/nsr-gym-data`.
        download: whether to download missing official files through torchvision.

    Returns:
        The pool, cached; tasks in the order of their classes. Each task's `definition` has its
        order, its hash, the transform and what was loaded from which files.

    Raises:
        DataError: files are missing, partial, unreadable or unknown; the message says how to
            get them.
        UnknownNameError: no such split, order, labels or evaluation.
        InvalidValueError: a number out of range, or arguments of the other split.
    """
    part = check_split(split)
    check_labels(labels)
    judged = evaluation(part, evaluate)
    if not isinstance(num_tasks, int) or num_tasks not in NUM_TASKS:
        raise InvalidValueError(f"Expected num_tasks as one of {NUM_TASKS}; got {num_tasks!r}.")
    check_per_class(train_per_class)
    check_per_class(test_per_class)
    check_val_per_class(val_per_class)
    chosen = _orders(part, order, seed, grouping, groupings)
    transform = ImageTransform(
        size=size,
        mean=None if mean is None else tuple(mean),  # type: ignore[arg-type]
        std=None if std is None else tuple(std),  # type: ignore[arg-type]
    )
    folder = data_root(root)
    with_download(partial(_selections, folder), "cifar-100", folder, download)
    per_class = (train_per_class, test_per_class)
    return _pool(
        folder, part, chosen, num_tasks, labels, judged, transform, per_class, val_per_class
    )


def _orders(
    split: Split, order: str | Sequence[int], seed: int | None, grouping: int, groupings: int
) -> tuple[ClassOrder, ...]:
    if split == "test":
        if (grouping, groupings) != (0, 1):
            raise InvalidValueError("grouping and groupings go with split 'train'; give `order`.")
        return (class_order(order, seed),)
    if order != "natural" or seed is not None:
        raise InvalidValueError(
            f"Split 'train' groups the classes otherwise than any named order; leave order "
            f"{order!r} and seed {seed!r} out and choose `grouping`."
        )
    train_order(grouping)
    if isinstance(groupings, bool) or not isinstance(groupings, int) or groupings < 1:
        raise InvalidValueError(f"Expected groupings to be at least 1; got {groupings!r}.")
    return tuple(train_order(grouping + i) for i in range(groupings))


@lru_cache(maxsize=2)
def _selections(root: Path) -> tuple[Selection, Selection]:
    return Selection(read_cifar100(root, "train")), Selection(read_cifar100(root, "test"))


@lru_cache(maxsize=8)
def _pool(
    root: Path,
    split: Split,
    orders: tuple[ClassOrder, ...],
    num_tasks: int,
    labels: str,
    evaluate: str,
    transform: ImageTransform,
    per_class: tuple[int | None, int | None],
    val_per_class: int,
) -> TaskPool:
    train, test = _selections(root)
    tasks = []
    for order in orders:
        width = CIFAR100_CLASSES // num_tasks
        for i, classes in enumerate(order.tasks(num_tasks)):
            head = {"task": classes, "domain": tuple(range(width)), "class": order.classes}[labels]
            first = i * width if labels == "class" else 0
            definition = {
                "kind": "split-cifar-100",
                "order": order.name,
                "order_sha256": order.sha256,
                "num_tasks": num_tasks,
                "position": i,
                "classes": list(classes),
                "labels": labels,
            }
            tasks.append(
                image_task(
                    f"cifar100-{order.name}-{num_tasks}-{i}",
                    [(train, test, classes, transform)],
                    head=head,
                    outputs=range(first, first + width),
                    evaluate=evaluate,
                    validation=VALIDATION,
                    per_class=per_class,
                    val_per_class=val_per_class,
                    definition=definition,
                )
            )
    # One name for both splits: thresholds are calibrated on one and looked up for the other.
    return TaskPool(name=f"split-cifar100-{num_tasks}", split=split, tasks=tuple(tasks))
