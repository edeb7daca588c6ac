"""Frozen work is done once per data set, lazily, and images reach the episode they belong to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.errors import InvalidValueError, StateError
from nsr_gym.learning.data import TaskData
from nsr_gym.tasks import Task, TaskPool

MakeWorld = Callable[..., Any]


def test_training_images_are_those_of_task_and_index(make_world: MakeWorld) -> None:
    world = make_world(sizes=((9, 4), (6, 2), (12, 7)))
    tasks, index = torch.tensor([2, 0]), torch.tensor([[11, 0, 5], [8, 8, 1]])
    images = world.data.train(tasks, index)
    for i, task in enumerate(world.pool[int(t)] for t in tasks):
        assert torch.equal(images.prefix[0][i], torch.tensor(task.x_train)[index[i]])
        assert torch.equal(images.labels[i], torch.tensor(task.y_train)[index[i]])
    part = images.part(slice(1, 3))
    assert torch.equal(part.labels, images.labels[:, 1:3])
    assert torch.equal(images.take(torch.tensor([1])).labels[0], images.labels[1])


def test_test_images_are_padded_and_marked(make_world: MakeWorld) -> None:
    world = make_world(sizes=((9, 4), (6, 2), (12, 7)))
    images = world.data.test(torch.tensor([1, 2]))
    assert images.valid is not None
    assert images.valid.sum(dim=1).tolist() == [2, 7]
    assert torch.equal(images.prefix[0][0, :2], torch.tensor(world.pool[1].x_test))
    assert images[slice(1, 2)].valid.all()
    same = make_world(sizes=((9, 4), (6, 4))).data.test(torch.tensor([1]))
    assert same.valid is None


def test_validation_images_are_a_part_of_their_own(make_world: MakeWorld) -> None:
    world = make_world(sizes=((9, 4), (6, 2), (12, 7)))
    with pytest.raises(StateError, match="'random' has no validation images"):
        world.data.validation(torch.tensor([0]))
    assert not world.data.validated
    tasks = tuple(
        replace(task, x_val=task.x_train[:n], y_val=task.y_train[:n])
        for task, n in zip(world.pool, (3, 5, 3), strict=True)
    )
    data = TaskData(TaskPool(name="random", split="test", tasks=tasks), world.backbone)
    assert data.validated
    images = data.validation(torch.tensor([1, 2]))
    assert images.valid is not None
    assert images.valid.sum(dim=1).tolist() == [5, 3]
    assert torch.equal(images.prefix[0][1, :3], torch.tensor(tasks[2].x_val))
    assert torch.equal(images.labels[0], torch.tensor(tasks[1].y_val))
    assert data.validation(torch.tensor([0, 2])).valid is None
    # The other parts are what they were.
    for one in (data, world.data):
        same = one.test(torch.tensor([1]))
        assert torch.equal(same.prefix[0][0], torch.tensor(world.pool[1].x_test))


def test_frozen_work_is_done_once_per_task_and_only_for_tasks_that_are_visited(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, images = make_world(adapt=["fc3"]), []
    prefix = MLPBackbone.prefix

    def counted(self: MLPBackbone, x: torch.Tensor) -> Any:
        images.append(len(x))
        return prefix(self, x)

    monkeypatch.setattr(MLPBackbone, "prefix", counted)
    data = TaskData(world.pool, world.backbone)
    assert images == []
    for _ in range(2):
        data.test(torch.tensor([2, 2, 1]))
        data.train(torch.tensor([1]), torch.zeros(1, 3, dtype=torch.int64))
    assert sorted(images) == [20, 20, 30, 30]  # both parts of two of the four tasks


def test_an_embedding_is_the_mean_of_normalised_frozen_features(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    index = torch.tensor([[0, 3, 4, 9], [7, 7, 1, 2]])
    embedding = world.data.embed(world.data.train(torch.tensor([3, 1]), index))
    assert embedding.shape == (2, world.backbone.feature_dim)
    assert embedding.dtype == np.float32
    weights = world.backbone.weights
    for i, task in enumerate((3, 1)):
        features = torch.tensor(world.pool[task].x_train)[index[i]]
        for layer in ("fc1", "fc2", "fc3"):
            features = torch.relu(
                features @ weights[f"{layer}.weight"].mT + weights[f"{layer}.bias"]
            )
        mean = (features / features.norm(dim=1, keepdim=True)).mean(dim=0)
        np.testing.assert_allclose(embedding[i], (mean / mean.norm()).numpy(), atol=1e-6)


def test_images_of_another_shape_are_refused(make_world: MakeWorld) -> None:
    world = make_world()
    x, y = np.zeros((4, 5), dtype=np.float32), np.arange(4) % 3
    task = Task(name="t", x_train=x, y_train=y, x_test=x, y_test=y, classes=(0, 1, 2))
    with pytest.raises(InvalidValueError, match=r"shape \(7,\).*'narrow' has \(5,\)"):
        TaskData(TaskPool(name="narrow", split="train", tasks=(task,)), world.backbone)


def test_more_classes_than_the_head_has_are_refused_and_fewer_are_fine(
    make_world: MakeWorld,
) -> None:
    world = make_world()

    def pool(classes: int) -> TaskPool:
        tasks = (replace(task, classes=tuple(range(classes))) for task in world.pool)
        return TaskPool(name="many", split="train", tasks=tuple(tasks))

    with pytest.raises(InvalidValueError, match=r"at most 3 classes.*'many' has 4"):
        TaskData(pool(4), world.backbone)
    TaskData(pool(3), world.backbone)
