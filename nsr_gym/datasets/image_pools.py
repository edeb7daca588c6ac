"""What the pools of image tasks share: labels, which images are judged on, and their counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.datasets.image_tasks import ImagePart, ImageTask, ImageTransform, Segment
from nsr_gym.datasets.selecting import Part, Selection
from nsr_gym.errors import InvalidValueError, unknown
from nsr_gym.tasks import Split, TaskPool

LABELS = ("task", "domain", "class")
EVALUATIONS = ("test", "validation")
VAL_PER_CLASS = 20
"""Training images of each class that are held out to decide on, unless asked otherwise."""

Labels = NDArray[np.int64]

Piece = tuple[Selection, Selection, Sequence[int], ImageTransform]
"""Training part and test part of a data set, the classes taken of it, and their transform."""


def check_labels(labels: str) -> None:
    """Make sure that there is such a way to label.

    Raises:
        UnknownNameError: there is not.
    """
    if labels not in LABELS:
        raise unknown("kind of labels", labels, LABELS)


def evaluation(split: Split, evaluate: str | None) -> str:
    """Return what a pool's tasks are judged on.

    Args:
        split: of the pool.
        evaluate: `"test"`, `"validation"`, or None for what the split has by default.

    Raises:
        UnknownNameError: no such evaluation.
        InvalidValueError: test images for split train.
    """
    if evaluate is None:
        return "test" if split == "test" else "validation"
    if evaluate not in EVALUATIONS:
        raise unknown("evaluation", evaluate, EVALUATIONS)
    if split == "train" and evaluate == "test":
        raise InvalidValueError(
            "Split 'train' is judged on validation images, so that nothing is decided on test "
            "images; leave `evaluate` out, or ask for split 'test'."
        )
    return evaluate


def image_task(
    name: str,
    pieces: Sequence[Piece],
    *,
    head: Sequence[int],
    outputs: Sequence[int],
    evaluate: str,
    validation: float,
    per_class: tuple[int | None, int | None],
    val_per_class: int,
    definition: dict[str, Any],
) -> ImageTask:
    """Make a task of some classes of one or more data sets.

    Args:
        name: of the task.
        pieces: what the task is made of.
        head: global label behind each output of the head.
        outputs: output of each class of the pieces, in their order.
        evaluate: `"test"`: all training images train, test images are the task's test part;
            `"validation"`: some training images are held out and are its test part.
        validation: share of each class's training images that is held out.
        per_class: at most so many training and test images of each class; None: all.
        val_per_class: so many of each class's training images are held out beside those, and are
            the task's validation part; no more than half of the class. 0: it has none.
        definition: of the task; what was loaded is added.

    Returns:
        The task.

    Raises:
        DataError: a class without images.
        InvalidValueError: numbers out of range.
    """
    target = np.asarray(outputs, dtype=np.int64)
    held = evaluate == "validation"
    share = validation if held else 0.0

    def made(part: Part, count: int | None, *, official: bool) -> tuple[ImagePart, Labels]:
        segments, labels, offset = [], [], 0
        for train, test, classes, transform in pieces:
            side = test if official else train
            index, place = side.of_classes(
                classes,
                part,
                share=0.0 if official else share,
                val=0 if official else val_per_class,
                per_class=count,
            )
            segments.append(Segment(side.images.x, index, transform))
            labels.append(target[offset + place])
            offset += len(classes)
        return ImagePart(segments), np.concatenate(labels)

    x_train, y_train = made("train", per_class[0], official=False)
    x_test, y_test = made("held" if held else "train", per_class[1], official=not held)
    x_val, y_val = made("val", None, official=False) if val_per_class else (None, None)
    loaded = {
        **definition,
        "evaluated_on": evaluate,
        "validation": share,
        "train_images": len(x_train),
        "test_images": len(x_test),
        "transforms": [transform.to_json() for *_, transform in pieces],
        "files": [
            {"train": _origin(train)} | ({} if held else {"test": _origin(test)})
            for train, test, *_ in pieces
        ],
    }
    if x_val is not None:
        loaded["val_images"] = len(x_val)
    return ImageTask(
        name=name,
        train=x_train,
        y_train=y_train,
        test=x_test,
        y_test=y_test,
        val=x_val,
        y_val=y_val,
        classes=head,
        definition=loaded,
    )


def loaded_counts(pool: TaskPool) -> dict[str, dict[str, int]]:
    """Return how many images each task of an image pool has, and how many files were unreadable.

    Returns:
        Task name -> `"train"`, `"test"`, `"val"` (images of the task) and `"skipped"` (files of
        its data sets that were left out).
    """
    counts = {}
    for task in pool:
        parts = [part for piece in task.definition.get("files", []) for part in piece.values()]
        counts[task.name] = {
            "train": len(task.y_train),
            "test": len(task.y_test),
            "val": 0 if task.y_val is None else len(task.y_val),
            "skipped": sum(part["skipped"] for part in parts),
        }
    return counts


def _origin(selection: Selection) -> dict[str, Any]:
    images = selection.images
    return {"variant": images.variant, "images": len(images.y), "skipped": images.skipped}
