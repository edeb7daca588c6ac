"""Visits on image backbones: adapters learn, episodes do not touch, routers see features."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from image_samples import images, resnet, vit
from torch import Tensor

from nsr_gym.learning.adapters import Adapters
from nsr_gym.learning.data import TaskData
from nsr_gym.learning.features import RouterFeatures
from nsr_gym.learning.learner import LearnerConfig, LoRALearner
from nsr_gym.learning.visit import Visit
from nsr_gym.tasks import Task, TaskPool

CONFIG = LearnerConfig(learning_steps=6, updates=5, batch_size=16, learning_rate=2e-2)
MADE: dict[str, Any] = {
    "vit": lambda: vit(adapt=[r"blocks\.[12]\.attn\.[qv]"]),
    "resnet": lambda: resnet(adapt=[r"stages\.[12]\..*"]),
}


def pool(tasks: int = 3, n: int = 60) -> TaskPool:
    """Tasks whose five classes are noisy copies of five images each."""
    rng = np.random.default_rng(0)
    made = []
    for task in range(tasks):
        centres = images(5, seed=50 + task).numpy()
        y = np.arange(2 * n) % 5
        x = 0.8 * centres[y] + 0.2 * rng.random((2 * n, 3, 8, 8))
        made.append(
            Task(
                name=f"task-{task}", x_train=x[:n].astype(np.float32), y_train=y[:n],
                x_test=x[n:].astype(np.float32), y_test=y[n:], classes=tuple(range(5)),
            )
        )  # fmt: skip
    return TaskPool(name="copies", split="test", tasks=tuple(made))


def visit(learner: LoRALearner, n: int) -> Visit:
    g = torch.Generator().manual_seed(1)
    start = Adapters.zeros(learner.backbone.sites, n, 2)
    for up, down in start.factors.values():
        down.copy_(torch.randn(down.shape, generator=g) / down.shape[-1] ** 0.5)
        up.zero_()
    shape = (n, CONFIG.learning_steps, CONFIG.updates, CONFIG.batch_size)
    return Visit(
        tasks=torch.arange(n) % 3, start=start, batches=torch.randint(60, shape, generator=g)
    )


@pytest.mark.parametrize("name", MADE)
def test_adapters_on_the_last_blocks_learn_a_task_and_each_episode_is_alone(name: str) -> None:
    backbone = MADE[name]()
    learner, data = LoRALearner(backbone, CONFIG), TaskData(pool(), backbone)
    whole = visit(learner, 3)
    trained, curve = learner.learn(data, whole)
    assert curve.shape == (3, CONFIG.learning_steps + 1)
    assert float(curve[:, -1].min()) > float(curve[:, 0].max()) + 0.2
    for i in range(3):
        alone, own = learner.learn(data, whole[i : i + 1])
        for site, (up, down) in trained.factors.items():
            torch.testing.assert_close(alone.factors[site][0][0], up[i], rtol=1e-2, atol=1e-3)
            torch.testing.assert_close(alone.factors[site][1][0], down[i], rtol=1e-2, atol=1e-3)
        assert float((own[0] - curve[i]).abs().max()) <= 2 / 60


@pytest.mark.parametrize("kind", ["lower", "final", "layers"])
@pytest.mark.parametrize("name", MADE)
def test_routers_see_features_of_images_whatever_stands_beside_them(name: str, kind: str) -> None:
    backbone = MADE[name]()
    features = RouterFeatures(TaskData(pool(), backbone), backbone, kind)
    tasks = torch.tensor([2, 0])
    seen = features.of_tasks(tasks)
    assert seen.shape == (2, 60, features.dim)
    if kind == "final":
        assert features.dim == backbone.feature_dim
    if kind == "lower":
        assert features.dim == backbone.prefix(images(1))[0].shape[-1]
    alone: Tensor = features.of_tasks(tasks[1:])
    torch.testing.assert_close(alone[0], seen[1])


@pytest.mark.parametrize("name", MADE)
def test_a_pool_of_more_classes_is_refused(name: str) -> None:
    backbone = MADE[name]()
    data = pool()
    wide = tuple(replace(task, classes=tuple(range(7))) for task in data.tasks)
    with pytest.raises(ValueError, match="at most 5 classes"):
        TaskData(replace(data, tasks=wide), backbone)
    weight = torch.zeros(7, backbone.feature_dim)
    TaskData(replace(data, tasks=wide), backbone.with_head(weight))
