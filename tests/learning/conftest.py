"""A network of a few neurons and tasks of random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.learning.adapters import Adapters
from nsr_gym.learning.data import TaskData
from nsr_gym.learning.learner import LearnerConfig, LoRALearner
from nsr_gym.tasks import Task, TaskPool

WIDTHS = (7, 6, 5, 4)
CLASSES = 3


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    weights = {}
    layers = zip(("fc1", "fc2", "fc3", "head"), WIDTHS, (*WIDTHS[1:], CLASSES), strict=True)
    for name, d_in, d_out in layers:
        weights[f"{name}.weight"] = torch.randn(d_out, d_in, generator=g) / d_in**0.5
        weights[f"{name}.bias"] = torch.randn(d_out, generator=g) * 0.3
    return weights


def random_pool(sizes: Sequence[tuple[int, int]], seed: int = 0) -> TaskPool:
    rng = np.random.default_rng(seed)
    tasks = []
    for i, (train, test) in enumerate(sizes):
        x = rng.standard_normal((train + test, WIDTHS[0]), dtype=np.float32)
        y = rng.integers(CLASSES, size=train + test)
        tasks.append(
            Task(
                name=f"task-{i}", x_train=x[:train], y_train=y[:train], x_test=x[train:],
                y_test=y[train:], classes=tuple(range(CLASSES)),
            )
        )  # fmt: skip
    return TaskPool(name="random", split="test", tasks=tuple(tasks))


@dataclass(frozen=True, kw_only=True)
class World:
    """A backbone, tasks behind it, and a learner."""

    backbone: MLPBackbone
    pool: TaskPool
    data: TaskData
    learner: LoRALearner

    def adapters(self, n: int, rank: int, seed: int = 1, up: float = 0.3) -> Adapters:
        g = torch.Generator().manual_seed(seed)
        made = Adapters.zeros(self.backbone.sites, n, rank)
        for site_up, down in made.factors.values():
            site_up.copy_(torch.randn(site_up.shape, generator=g) * up)
            down.copy_(torch.randn(down.shape, generator=g))
        return made

    def batches(self, n: int, seed: int = 2) -> Tensor:
        config, fewest = self.learner.config, int(self.data.train_sizes.min())
        shape = (n, config.learning_steps, config.updates, config.batch_size)
        return torch.randint(fewest, shape, generator=torch.Generator().manual_seed(seed))

    def dense(self, adapters: Adapters, i: int) -> dict[str, Tensor]:
        """All weights, with episode i's updates added as dense products."""
        weights = self.backbone.weights
        for site, (up, down) in adapters.factors.items():
            weights[f"{site}.weight"] = weights[f"{site}.weight"] + up[i] @ down[i]
        return weights


def dense_logits(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    for layer in ("fc1", "fc2", "fc3"):
        x = torch.relu(x @ weights[f"{layer}.weight"].mT + weights[f"{layer}.bias"])
    return x @ weights["head.weight"].mT + weights["head.bias"]


@pytest.fixture
def dense_forward() -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """The network written out, for images (k, d)."""
    return dense_logits


@pytest.fixture
def make_world() -> Callable[..., World]:
    """Make a world; `adapt` and `sizes` (train, test) as given, the rest goes to the learner."""

    def make(
        *,
        adapt: Sequence[str] | None = None,
        sizes: Sequence[tuple[int, int]] = ((30, 20),) * 4,
        **config: float,
    ) -> World:
        backbone, pool = MLPBackbone(random_weights(), adapt=adapt), random_pool(sizes)
        settings = {"learning_steps": 3, "updates": 2, "batch_size": 8} | config
        return World(
            backbone=backbone,
            pool=pool,
            data=TaskData(pool, backbone),
            learner=LoRALearner(backbone, LearnerConfig(**settings)),  # type: ignore[arg-type]
        )

    return make
