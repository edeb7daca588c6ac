"""The bounds without an adapter: what frozen features come to, measured as they claim."""

from __future__ import annotations

import numpy as np
import pytest

from nsr_gym.backbones.pretrain import digits_backbone
from nsr_gym.datasets.digits import digits_pool
from nsr_gym.evaluation.floors import FEATURES, FLOORS, measure_floors
from nsr_gym.learning.data import TaskData

TASKS = np.array([[0, 1, 2], [3, 0, 4]])


@pytest.fixture(scope="module")
def world() -> tuple[TaskData, object]:
    backbone = digits_backbone()
    return TaskData(digits_pool("permutation", "train", size=6), backbone), backbone


def test_every_floor_is_measured_for_every_stream(world: tuple) -> None:
    table = measure_floors(*world, TASKS)
    assert len(table) == len(TASKS) * len(FLOORS) * len(FEATURES) * 2
    assert table["accuracy"].between(0.0, 1.0).all()
    assert (table["bytes"] > 0).all()
    means = table.groupby(["answer", "features", "floor"])["accuracy"].mean()
    for features in FEATURES:
        for floor in FLOORS:
            one, known = (means[a, features, floor.name] for a in ("one for all", "task known"))
            assert known > one  # knowing the task never hurts here
    assert means["one for all", "lower", "random projection + ridge"] > 0.9


def test_one_classifier_for_all_does_not_depend_on_the_order_of_tasks(world: tuple) -> None:
    table, turned = (measure_floors(*world, tasks) for tasks in (TASKS, TASKS[:, ::-1]))
    np.testing.assert_allclose(table["accuracy"], turned["accuracy"], atol=0.0051)


def test_class_means_are_what_they_say(world: tuple) -> None:
    data, backbone = world
    table = measure_floors(data, backbone, TASKS[:1, :1])
    pool = data.pool
    x, y = pool[0].x_train, pool[0].y_train
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = np.stack([unit[y == c].mean(axis=0) for c in range(10)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    answers = (pool[0].x_test @ means.T).argmax(axis=1)
    found = table[(table["floor"] == "class means") & (table["features"] == "lower")]["accuracy"]
    np.testing.assert_allclose(found, (answers == pool[0].y_test).mean(), atol=0.0051)


def test_streams_do_not_touch_each_other(world: tuple) -> None:
    together, alone = measure_floors(*world, TASKS), measure_floors(*world, TASKS[1:])
    second = together[together["stream"] == 1].reset_index(drop=True)
    np.testing.assert_allclose(second["accuracy"], alone["accuracy"], atol=0.0051)
