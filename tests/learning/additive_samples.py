"""Learners of additive banks with entries to learn beside, in double precision or single."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.learning.adapters import Adapters
from nsr_gym.learning.data import TaskData
from nsr_gym.learning.drs import DriftResistantLearner
from nsr_gym.learning.inflora import InfLoRALearner
from nsr_gym.learning.kinds import make_learner
from nsr_gym.learning.visit import Visit

EPISODES, ENTRIES, RANK = 3, 2, 3
ROWS = np.arange(EPISODES)
TASKS = torch.tensor([2, 0, 3])


class DoubleBackbone(MLPBackbone):
    """The same network in double precision, for what is to hold to 1e-10."""

    def __init__(self, weights: Any, **arguments: Any) -> None:
        super().__init__(weights, **arguments)
        self._weights = {name: weight.double() for name, weight in self._weights.items()}

    def prefix(self, x: Tensor) -> Any:
        return super().prefix(x.double())


class Episodes:
    """A learner and an additive bank of its results, that a visit adds to."""

    def __init__(
        self, world: Any, *, double: bool = True, n: int = EPISODES, **options: Any
    ) -> None:
        self.world, self.n = world, n
        kind = DoubleBackbone if double else MLPBackbone
        self.backbone = kind(world.backbone.weights)
        self.data = TaskData(world.pool, self.backbone)
        self.dtype = torch.float64 if double else torch.float32
        learner = make_learner(
            "inflora",
            self.backbone,
            world.learner.config,
            options=options,
            num_episodes=EPISODES,
            num_tasks=4,
            max_rank=4,
        )
        assert isinstance(learner, InfLoRALearner)
        self.learner = learner
        self.entries: list[Adapters] = []

    def fresh(self, rank: int = RANK, seed: int = 1) -> Adapters:
        made = self.world.adapters(EPISODES, rank, seed=seed, up=0.0)[: self.n]
        return Adapters(
            {s: (up.to(self.dtype), down.to(self.dtype)) for s, (up, down) in made.factors.items()}
        )

    def visit(self, task: int, start: Adapters, rows: np.ndarray = ROWS, **parts: Any) -> Visit:
        others = None
        if self.entries:
            others = {
                site: tuple(
                    torch.stack([e.factors[site][i] for e in self.entries], 1) for i in (0, 1)
                )
                for site in start.factors
            }
        n = len(rows)
        return Visit(
            tasks=(torch.arange(n) + task) % 4,
            start=start,
            batches=self.world.batches(n, seed=task),
            rows=rows,
            others=others,  # type: ignore[arg-type]
            **parts,
        )

    def learn(self, task: int, start: Adapters) -> tuple[Adapters, Tensor]:
        trained, curve = self.learner.learn(self.data, self.visit(task, start))
        self.learner.commit(ROWS, np.full(EPISODES, len(self.entries)), None)
        self.entries.append(trained)
        return trained, curve

    def protected(self, site: str) -> Tensor:
        return self.learner.memories[site].protected(torch.arange(EPISODES))


def two_learned(make_world: Callable[..., Any]) -> Episodes:
    """Two tasks learned and protected, with room left at every site."""
    episodes = Episodes(make_world(learning_rate=0.05), eps=0.4)
    for task in range(2):
        episodes.learn(task, episodes.fresh(seed=task))
    for memory in episodes.learner.memories.values():
        free = memory.free_dimension(torch.arange(EPISODES))
        assert ((free > 0) & (free < memory.dimension)).all()
    return episodes


@dataclasses.dataclass
class Setting:
    """A learner, and a visit to a bank that holds two entries in episodes 1 and 2."""

    world: Any
    backbone: MLPBackbone
    data: TaskData
    learner: DriftResistantLearner
    visit: Visit


def drs_setting(
    make_world: Callable[..., Any], *, double: bool = True, rate: float = 0.03, **options: Any
) -> Setting:
    """Set a learner and a visit up; `options` are the learner's."""
    world = make_world(learning_rate=rate, learning_steps=4)
    backbone = (DoubleBackbone if double else MLPBackbone)(world.backbone.weights)
    learner = make_learner(
        "lora_sub_drs",
        backbone,
        world.learner.config,
        options=options,
        num_episodes=EPISODES,
        num_tasks=4,
        max_rank=4,
    )
    assert isinstance(learner, DriftResistantLearner)
    dtype = torch.float64 if double else torch.float32
    entries = [world.adapters(EPISODES, RANK, seed=5 + j, up=0.4) for j in range(ENTRIES)]
    others = {}
    for site in world.backbone.sites:
        pair = [
            torch.stack([e.factors[site.name][i] for e in entries], dim=1).to(dtype) for i in (0, 1)
        ]
        pair[0][0], pair[1][0] = 0, 0
        others[site.name] = (pair[0], pair[1])
    fresh = world.adapters(EPISODES, RANK, up=0.0)
    start = Adapters({s: (u.to(dtype), d.to(dtype)) for s, (u, d) in fresh.factors.items()})
    visit = Visit(
        tasks=TASKS, start=start, batches=world.batches(EPISODES), rows=ROWS, others=others
    )
    return Setting(world, backbone, TaskData(world.pool, backbone), learner, visit)


def dense(setting: Setting, sign: int, i: int) -> dict[str, Tensor]:
    """Weights of episode i with all entries added or subtracted, one product at a time."""
    weights = setting.backbone.weights
    assert setting.visit.others is not None
    for site, (up, down) in setting.visit.others.items():
        for entry in range(ENTRIES):
            change = sign * up[i, entry] @ down[i, entry]
            weights[f"{site}.weight"] = weights[f"{site}.weight"] + change
    return weights
