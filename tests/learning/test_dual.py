"""The dual learner's branches lie where they should, and nothing is denied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.dual import DualLearner
from nsr_gym.learning.inflora import InfLoRALearner
from nsr_gym.learning.kinds import make_learner
from nsr_gym.learning.visit import Visit

EPISODES = 3
ROWS, INDEX = np.arange(EPISODES), torch.arange(EPISODES)
MakeWorld = Callable[..., Any]


def learner_of(world: Any, name: str = "dual", **options: Any) -> InfLoRALearner:
    made = make_learner(
        name, world.backbone, world.learner.config, options=options,
        num_episodes=EPISODES, num_tasks=4, max_rank=4,
    )  # fmt: skip
    assert isinstance(made, InfLoRALearner)
    return made


def visit_of(world: Any, task: int, rank: int = 4) -> Visit:
    return Visit(
        tasks=(INDEX + task) % 4,
        start=world.adapters(EPISODES, rank, seed=task, up=0.0),
        batches=world.batches(EPISODES, seed=task),
        rows=ROWS,
        ranks=torch.full((EPISODES,), rank),
    )


def spd(width: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(EPISODES, 30, width, generator=g, dtype=torch.float64)
    return x.mT @ x / 30


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 1.0])
def test_branches_lie_outside_and_inside_of_what_is_protected(
    share: float, make_world: MakeWorld
) -> None:
    """In double precision, to 1e-10, at fc1 with 7 inputs of which some are protected."""
    learner = learner_of(make_world(), task_share=share, eps=0.6)
    memory = learner.memories["fc1"]
    memory.store(INDEX, memory.updated(spd(7, 0), INDEX))
    free, p = memory.free_dimension(INDEX), memory.protected(INDEX)
    assert ((free < 7) & (free > 0)).all()
    wanted, c = torch.tensor([4, 3, 1]), spd(7, 1)
    rows = learner.design("fc1", c, INDEX, wanted, 4)
    for i, r in enumerate(wanted.tolist()):
        plastic = min(int(share * r), 7 - int(free[i]))
        stable = min(r - plastic, int(free[i]))
        assert rows[i].any(dim=1).tolist() == [j < r for j in range(4)]
        d, t = rows[i, :stable], rows[i, stable:r]
        assert not len(d) or (d @ p[i]).abs().max() <= 1e-10
        assert not len(t) or (t - t @ p[i]).abs().max() <= 1e-10
        one = torch.eye(r, dtype=torch.float64)
        torch.testing.assert_close(rows[i, :r] @ rows[i, :r].mT, one, rtol=0, atol=1e-10)
        # Each branch leads in the energy of the new task's inputs within its space.
        for branch, space in ((d, one.new_ones(1) * (torch.eye(7) - p[i])), (t, p[i])):
            if len(branch):
                values = torch.linalg.svdvals(space @ c[i])
                energy = (branch @ c[i]).square().sum()
                assert energy.item() == pytest.approx(values[: len(branch)].square().sum().item())


def test_where_inflora_denies_directions_the_plastic_branch_takes_them(
    make_world: MakeWorld,
) -> None:
    world = make_world(learning_rate=0.05)
    clipped = {}
    for name in ("inflora", "dual"):
        learner = learner_of(world, name, eps=0.99, energy="activations")
        for task in range(2):
            learner.learn(world.data, visit_of(world, task))
            learner.commit(ROWS, np.full(EPISODES, task), None)
        clipped[name] = learner.clipped
    assert (clipped["inflora"] > 0).all()
    assert not clipped["dual"].any()


def test_the_first_task_is_all_stable_and_a_later_one_trains_both_branches(
    make_world: MakeWorld,
) -> None:
    world = make_world(learning_rate=0.05)
    learner, plain = learner_of(world, eps=0.5), learner_of(world, "inflora", eps=0.5)
    assert isinstance(learner, DualLearner)
    for task in range(2):
        visit = visit_of(world, task)
        (ours, _), (theirs, _) = (one.learn(world.data, visit) for one in (learner, plain))
        for site, pair in theirs.factors.items():
            same = all(torch.equal(a, b) for a, b in zip(ours.factors[site], pair, strict=True))
            assert same == (task == 0)
        p = learner.memories["fc1"].protected(INDEX)
        up, down = ours.factors["fc1"]
        within = (down.double() @ p).norm(dim=2) > 0.5 * down.norm(dim=2)
        learned = up.any(dim=1)
        assert (learned & ~within).any(dim=1).all()
        assert bool((learned & within).any(dim=1).all()) == (task == 1)
        for one in (learner, plain):
            one.commit(ROWS, np.full(EPISODES, task), None)


@pytest.mark.parametrize("share", [-0.1, 1.1, True, None, float("nan")])
def test_the_share_is_a_number_from_0_to_1(share: Any, make_world: MakeWorld) -> None:
    with pytest.raises(InvalidValueError, match="task_share to be a number from 0 to 1"):
        learner_of(make_world(), task_share=share)
