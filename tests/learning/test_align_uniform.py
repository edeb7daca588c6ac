"""Alignment and uniformity of features."""

from __future__ import annotations

import math

import pytest
import torch
from short_visits import (
    ByHand,
    MakeWorld,
    assert_differ,
    assert_is,
    assert_rows_are_alone,
    assert_same,
    flat,
    leaves_of,
    make,
    products,
    visit,
)
from torch import Tensor

from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.align_uniform import align_uniform


def by_loops(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One episode's losses, pair by pair."""
    unit = [f / f.norm() for f in features]
    together, spread = [], []
    for i in range(len(unit)):
        for j in range(i):
            distance = (unit[i] - unit[j]).square().sum()
            spread.append(torch.exp(-2.0 * distance))
            if labels[i] == labels[j]:
                together.append(distance)
    align = torch.stack(together).mean() if together else torch.zeros(())
    return align, torch.stack(spread).mean().log()


def test_both_losses_equal_loops_over_pairs() -> None:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(4, 6, 5, generator=g, dtype=torch.float64)
    labels = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 2, 3, 4, 5], [1] * 6, [2, 1, 2, 1, 2, 1]])
    align, uniform = align_uniform(features, labels)
    for i in range(4):
        expected = by_loops(features[i], labels[i])
        assert float(align[i]) == pytest.approx(float(expected[0]), rel=1e-10, abs=1e-12)
        assert float(uniform[i]) == pytest.approx(float(expected[1]), rel=1e-10)
    assert align[1] == 0.0  # no two images of one class


def test_gradients_are_those_of_the_losses() -> None:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 3, generator=g, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]])
    assert torch.autograd.gradcheck(lambda f: align_uniform(f, labels), features)


def test_equal_and_lonely_images_have_finite_losses() -> None:
    one = torch.ones(2, 1, 3, requires_grad=True)
    lonely = align_uniform(one, torch.zeros(2, 1))
    assert [part.tolist() for part in lonely] == [[0.0, 0.0]] * 2
    same = torch.ones(2, 4, 3, requires_grad=True)
    align, uniform = align_uniform(same, torch.zeros(2, 4))
    assert float(align.detach().abs().max()) == pytest.approx(0.0, abs=1e-6)
    assert float(uniform.detach().abs().max()) == pytest.approx(0.0, abs=1e-6)
    (align + uniform).sum().backward()
    assert same.grad.isfinite().all()
    # Opposite features are 2 apart.
    apart = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert float(align_uniform(apart, torch.zeros(1, 2))[1]) == pytest.approx(-8.0)
    assert math.isclose(float(align_uniform(apart, torch.zeros(1, 2))[0]), 4.0, rel_tol=1e-6)


def test_training_minimises_cross_entropy_and_both_losses(make_world: MakeWorld) -> None:
    world = make_world(learning_rate=0.03)
    of, weights = visit(world), {"align": 0.7, "uniform": 0.3}
    trained, _ = make(world, modifiers={"align_uniform": weights}).learn(world.data, of)
    assert_differ(trained, make(world).learn(world.data, of)[0])
    for i in range(3):
        episode, leaves = ByHand(world, of, i), leaves_of(of.start, i)
        optimiser = torch.optim.Adam(flat(leaves), lr=0.03)
        for chosen in episode.batches():
            features = episode.features(products(leaves), chosen)
            align, uniform = by_loops(features, episode.labels(chosen))
            optimiser.zero_grad()
            (episode.loss(products(leaves), chosen) + 0.7 * align + 0.3 * uniform).backward()
            optimiser.step()
        assert_is(trained, i, leaves)


def test_weights_of_zero_are_plain_training(make_world: MakeWorld) -> None:
    world = make_world()
    of = visit(world)
    ours = make(world, modifiers={"align_uniform": {"align": 0, "uniform": 0}})
    assert_same(ours.learn(world.data, of)[0], make(world).learn(world.data, of)[0])


def test_training_with_alignment_brings_images_of_a_class_together(make_world: MakeWorld) -> None:
    world = make_world(learning_steps=20)
    of = visit(world)

    def aligned(weight: float) -> Tensor:
        chosen = {"align": weight, "uniform": 0.0}
        trained, _ = make(world, modifiers={"align_uniform": chosen}).learn(world.data, of)
        images = world.data.train(of.tasks, torch.arange(30).expand(3, 30))
        ((_, site_map),) = world.learner.maps(trained, None, 3, 30)
        features = world.backbone.forward(images.prefix, site_map)
        return align_uniform(features, images.labels)[0]

    assert (aligned(5.0) < 0.7 * aligned(0.0)).all()


def test_an_episodes_loss_does_not_depend_on_others(make_world: MakeWorld) -> None:
    world = make_world()
    assert_rows_are_alone(world, lambda: make(world, modifiers={"align_uniform": {}}), visit(world))


@pytest.mark.parametrize("name", ["align", "uniform"])
def test_weights_are_amounts(make_world: MakeWorld, name: str) -> None:
    with pytest.raises(InvalidValueError, match=f"{name} of align_uniform"):
        make(make_world(), modifiers={"align_uniform": {name: -1.0}})
