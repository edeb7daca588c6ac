"""On permuted digits an adapter's rank decides what it can learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nsr_gym.backbones.pretrain import digits_backbone
from nsr_gym.datasets.digits import digits_pool
from nsr_gym.learning.adapters import Adapters
from nsr_gym.learning.data import TaskData
from nsr_gym.learning.learner import LearnerConfig, LoRALearner
from nsr_gym.learning.visit import Visit
from nsr_gym.lowrank import truncate_sites

RANKS = (1, 4, 16)
TASKS = 6


@pytest.fixture(scope="module")
def trained() -> tuple[Adapters, Tensor, LoRALearner, TaskData, Tensor]:
    """One visit of 100 updates of batch 32 from fresh directions, per rank and task."""
    backbone, rng = digits_backbone(), torch.Generator().manual_seed(0)
    learner = LoRALearner(backbone, LearnerConfig(learning_steps=1, updates=100))
    data = TaskData(digits_pool(size=TASKS), backbone)
    tasks = torch.arange(TASKS).repeat(len(RANKS))
    start = Adapters.zeros(backbone.sites, len(tasks), max(RANKS))
    for _, down in start.factors.values():
        down.copy_(torch.randn(down.shape, generator=rng) * 2.0 / down.shape[-1] ** 0.5)
    start.keep(torch.tensor(RANKS).repeat_interleave(TASKS))
    batches = torch.randint(int(data.train_sizes.min()), (len(tasks), 1, 100, 32), generator=rng)
    adapters, curve = learner.learn(data, Visit(tasks=tasks, start=start, batches=batches))
    return adapters, curve, learner, data, tasks


def test_more_rank_learns_more(
    trained: tuple[Adapters, Tensor, LoRALearner, TaskData, Tensor],
) -> None:
    _, curve, _, _, _ = trained
    low, middle, high = curve[:, -1].view(len(RANKS), TASKS).mean(dim=1).tolist()
    assert float(curve[:, 0].mean()) < 0.25  # a permuted digit is nothing to the bare backbone
    assert low > 0.35
    assert middle > low + 0.1
    assert high > middle + 0.02


def test_a_rank_16_adapter_cut_to_rank_4_keeps_most(
    trained: tuple[Adapters, Tensor, LoRALearner, TaskData, Tensor],
) -> None:
    adapters, curve, learner, data, tasks = trained
    whole = slice(2 * TASKS, 3 * TASKS)
    cut = truncate_sites(adapters[whole].factors, rank=4)
    kept = learner.accuracy(data.test(tasks[whole]), Adapters(cut.factors)).mean()
    high = curve[whole, -1].mean()
    assert kept > 0.75 * high
    coarse = truncate_sites(adapters[whole].factors, rank=1)
    assert kept > learner.accuracy(data.test(tasks[whole]), Adapters(coarse.factors)).mean() + 0.1
