"""What frozen features come to without an adapter: the bounds that systems are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsr_gym.backbones.base import Backbone
from nsr_gym.learning.data import Images, TaskData
from nsr_gym.learning.features import RouterFeatures
from nsr_gym.routing.heads import ClassMeans, FeatureClassifier, RidgeClassifier

Ints = NDArray[np.int64]
FEATURES = ("lower", "final")
TASK_KNOWN, ONE_FOR_ALL = "task known", "one for all"


@dataclass(frozen=True)
class Floor:
    """A classifier on frozen features.

    Attributes:
        name: what it is called in tables.
        build: makes classifiers of `num_banks` episodes and `feature_dim` features.
    """

    name: str
    build: Callable[..., FeatureClassifier]


FLOORS = (
    Floor("class means", ClassMeans),
    Floor("random projection + ridge", partial(RidgeClassifier, width=2048, lam=0.1)),
)
"""Width and lam are the best of (512, 2048) x (0.01, 0.1, 1, 10) on train-split streams of permuted
digits with the final features."""
IMAGE_FLOORS = (
    Floor("class means", ClassMeans),
    Floor("random projection + ridge", partial(RidgeClassifier, width=2048, lam=100.0)),
)
"""The same for image benchmarks; lam is the best of (0.1, 1, 10, 100, 1000) on a train-split stream
of Split-CIFAR-100 with the shipped residual network, the task known (0.807 against 0.502 at 0.1;
with one classifier for all 0.478 against at most 0.481)."""


def measure_floors(
    data: TaskData, backbone: Backbone, tasks: Ints, floors: Sequence[Floor] = FLOORS
) -> pd.DataFrame:
    """Fit and test classifiers on the tasks of n streams.

    All training images of a task are used, once each. With one classifier for all tasks, tasks
    come one after the other, in the order given; the result does not depend on it. The task is
    not known to it. Where the task is known, each has a classifier of its own.

    Args:
        data: the tasks, prepared for the backbone.
        backbone: the frozen network.
        tasks: (n, M) the tasks of each stream, as positions in the pool.
        floors: the classifiers.

    Returns:
        A row for each stream, floor, kind of features and knowledge of the task: `stream`,
        `floor`, `features` (`"lower"` or `"final"`, see `RouterFeatures`), `answer`
        (`"task known"` or `"one for all"`), `accuracy` (mean over the stream's tasks) and `bytes`
        (that the classifiers of one stream keep).
    """
    rows = []
    for kind in FEATURES:
        features = RouterFeatures(data, backbone, kind)
        for floor in floors:
            for answer, measure in ((ONE_FOR_ALL, _one_for_all), (TASK_KNOWN, _task_known)):
                accuracy, size = measure(floor, features, data, backbone, tasks)
                rows += [
                    {
                        "stream": stream, "floor": floor.name, "features": kind,
                        "answer": answer, "accuracy": float(accuracy[stream]),
                        "bytes": int(size[stream]),
                    }
                    for stream in range(len(tasks))
                ]  # fmt: skip
    return pd.DataFrame(rows)


def _one_for_all(
    floor: Floor, features: RouterFeatures, data: TaskData, backbone: Backbone, tasks: Ints
) -> tuple[NDArray[np.float64], Ints]:
    # Tasks may share classes or have others: labels are those of the pool as a whole.
    every, place = np.unique([task.classes for task in data.pool], return_inverse=True)
    classes = torch.as_tensor(place.reshape(len(data.pool), -1), device=backbone.device)
    episodes = np.arange(len(tasks))
    made = _build(floor, features, backbone, len(tasks), len(every))
    for column in tasks.T:
        for task in np.unique(column).tolist():
            # Streams that visit the same task share its features.
            rows = episodes[column == task]
            images = _training(data, backbone, task)
            known = features(images).expand(len(rows), -1, -1)
            made.update(rows, known, classes[task][images.labels].expand(len(rows), -1))
    found = []
    for column in tasks.T:
        images = _test(data, backbone, column)
        labels = classes[torch.as_tensor(column, device=classes.device)].gather(1, images.labels)
        found.append(_accuracy(made, episodes, features, replace(images, labels=labels)))
    return np.mean(found, axis=0), made.nbytes(episodes)


def _task_known(
    floor: Floor, features: RouterFeatures, data: TaskData, backbone: Backbone, tasks: Ints
) -> tuple[NDArray[np.float64], Ints]:
    own, place = np.unique(tasks, return_inverse=True)
    made = _build(floor, features, backbone, len(own), data.pool.num_classes)
    for row, task in enumerate(own.tolist()):
        images = _training(data, backbone, task)
        made.update(np.array([row]), features(images), images.labels)
    rows = np.arange(len(own))
    found = _accuracy(made, rows, features, _test(data, backbone, own))
    place = place.reshape(tasks.shape)
    return found[place].mean(axis=1), made.nbytes(rows)[place].sum(axis=1)


def _build(
    floor: Floor, features: RouterFeatures, backbone: Backbone, episodes: int, classes: int
) -> FeatureClassifier:
    return floor.build(
        num_banks=episodes,
        feature_dim=features.dim,
        num_classes=classes,
        device=str(backbone.device),
    )


def _training(data: TaskData, backbone: Backbone, task: int) -> Images:
    index = torch.arange(int(data.train_sizes[task]), device=backbone.device)
    return data.train(torch.tensor([task], device=backbone.device), index[None])


def _test(data: TaskData, backbone: Backbone, tasks: Ints) -> Images:
    return data.test(torch.as_tensor(tasks, device=backbone.device))


def _accuracy(
    made: FeatureClassifier, rows: Ints, features: RouterFeatures, images: Images
) -> NDArray[np.float64]:
    right: Tensor = made.predict(rows, features(images)) == images.labels
    if images.valid is None:
        return right.double().mean(dim=1).cpu().numpy()
    shown = (right & images.valid).sum(dim=1).double() / images.valid.sum(dim=1)
    return shown.cpu().numpy()
