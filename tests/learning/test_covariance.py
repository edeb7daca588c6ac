"""Covariances of site inputs are those of a visit's distinct images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nsr_gym.learning.covariance import covariances, seen
from nsr_gym.learning.visit import Visit

MakeWorld = Callable[..., Any]


def a_visit(world: Any) -> Visit:
    batches = torch.tensor([[5, 5, 2, 9, 2, 0], [1, 1, 1, 1, 1, 1], [8, 7, 6, 5, 4, 3]])
    tasks = torch.tensor([2, 0, 3])
    return Visit(tasks=tasks, start=world.adapters(3, 2), batches=batches.view(3, 1, 2, 3))


def test_every_image_counts_once_in_the_order_of_training(make_world: MakeWorld) -> None:
    world = make_world()
    visit = a_visit(world)
    known = seen(world.data, visit, 100)
    assert known.weights.sum(dim=1).tolist() == [4, 1, 6]
    for i, order in enumerate([[5, 2, 9, 0], [1], [8, 7, 6, 5, 4, 3]]):
        x = torch.tensor(world.pool[int(visit.tasks[i])].x_train[order])
        assert torch.equal(known.images.prefix[0][i, : len(order)], x)
        assert known.weights[i, : len(order)].all()
    few = seen(world.data, visit, 3)
    assert few.weights.sum(dim=1).tolist() == [3, 1, 3]
    assert torch.equal(few.images.labels, known.images.labels[:, :3])


def test_images_of_several_tasks_are_told_apart(make_world: MakeWorld) -> None:
    world = make_world()
    visit = Visit(
        tasks=torch.tensor([0]),
        start=world.adapters(1, 2),
        batches=torch.tensor([[[[4, 4, 4, 1]]]]),
        batch_tasks=torch.tensor([[[[0, 3, 0, 3]]]]),
    )
    known = seen(world.data, visit, 10)
    x = torch.stack([torch.tensor(world.pool[t].x_train[i]) for t, i in ((0, 4), (3, 4), (3, 1))])
    assert torch.equal(known.images.prefix[0][0, :3], x)
    assert known.weights.tolist() == [[1, 1, 1, 0]]


@pytest.mark.parametrize("with_base", [False, True])
def test_covariances_are_those_of_what_enters_the_sites(
    with_base: bool, make_world: MakeWorld
) -> None:
    """Against the network written out, within 1e-5 (single precision)."""
    world = make_world()
    visit = a_visit(world)
    base = None
    if with_base:
        more = world.adapters(3, 3, seed=8)
        base = {site: up @ down for site, (up, down) in more.factors.items()}
    found = covariances(world.learner, seen(world.data, visit, 100), visit.start, base)
    for i in range(3):
        chosen = visit.batches[i].flatten().unique()
        x = torch.tensor(world.pool[int(visit.tasks[i])].x_train)[chosen]
        weights = world.dense(visit.start, i)
        for site in ("fc1", "fc2", "fc3"):
            expected = (x.mT @ x / len(x)).double()
            torch.testing.assert_close(found[site][i], expected, rtol=1e-5, atol=1e-5)
            weight = weights[f"{site}.weight"]
            weight = weight if base is None else weight + base[site][i]
            x = torch.relu(x @ weight.mT + weights[f"{site}.bias"])


def test_an_episode_that_is_not_finite_has_none(make_world: MakeWorld) -> None:
    world = make_world()
    visit = a_visit(world)
    sound = covariances(world.learner, seen(world.data, visit, 100), visit.start, None)
    visit.start.factors["fc1"][0][1] = torch.nan
    spoilt = covariances(world.learner, seen(world.data, visit, 100), visit.start, None)
    assert not spoilt["fc2"][1].any()
    for site, c in sound.items():
        assert torch.equal(spoilt[site][[0, 2]], c[[0, 2]])
