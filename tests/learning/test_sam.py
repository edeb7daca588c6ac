"""Sharpness-aware steps go by the gradient at the worst point nearby."""

from __future__ import annotations

from typing import Any

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

from nsr_gym.errors import InvalidValueError


def test_every_step_uses_the_gradient_at_radius_along_the_episodes_own_gradient(
    make_world: MakeWorld,
) -> None:
    world = make_world(learning_rate=0.03)
    of = visit(world)
    trained, _ = make(world, modifiers={"sam": {"radius": 0.5}}).learn(world.data, of)
    assert_differ(trained, make(world).learn(world.data, of)[0])
    for i in range(3):
        episode, leaves = ByHand(world, of, i), leaves_of(of.start, i)
        optimiser = torch.optim.Adam(flat(leaves), lr=0.03)
        for chosen in episode.batches():
            gradients = torch.autograd.grad(episode.loss(products(leaves), chosen), flat(leaves))
            length = sum(float(g.square().sum()) for g in gradients) ** 0.5
            worst = {
                site: tuple(
                    (part + 0.5 * g / length).detach().requires_grad_()
                    for part, g in zip(pair, gradients[2 * s : 2 * s + 2], strict=True)
                )
                for s, (site, pair) in enumerate(leaves.items())
            }
            found = torch.autograd.grad(episode.loss(products(worst), chosen), flat(worst))
            for part, g in zip(flat(leaves), found, strict=True):
                part.grad = g
            optimiser.step()
        assert_is(trained, i, leaves)


def test_a_radius_of_zero_is_plain_training_bit_for_bit(make_world: MakeWorld) -> None:
    world = make_world()
    of = visit(world, recalled=torch.tensor([True, False, True]))
    ours, curve = make(world, modifiers={"sam": {"radius": 0}}).learn(world.data, of)
    plain, expected = make(world).learn(world.data, of)
    assert_same(ours, plain, within=0.0)
    assert torch.equal(curve, expected)


def test_an_episodes_perturbation_does_not_depend_on_others(make_world: MakeWorld) -> None:
    world = make_world()
    assert_rows_are_alone(world, lambda: make(world, modifiers={"sam": {}}), visit(world))


def test_directions_that_are_not_trainable_are_not_perturbed(make_world: MakeWorld) -> None:
    """A huge radius leaves them, and with them the point that gradients are taken at, alone."""
    world = make_world()
    trainable = torch.tensor([[True, False, True]] * 3)
    of = visit(world, trainable=trainable)
    trained, _ = make(world, modifiers={"sam": {"radius": 9.0}}).learn(world.data, of)
    for site, (up, down) in trained.factors.items():
        old_up, old_down = of.start.factors[site]
        assert torch.equal(up[:, :, 1], old_up[:, :, 1])
        assert torch.equal(down[:, 1], old_down[:, 1])
    assert_differ(trained, of.start)


@pytest.mark.parametrize("radius", [-0.1, float("nan"), "0.1", True, None])
def test_a_radius_is_a_number_of_at_least_zero(make_world: MakeWorld, radius: Any) -> None:
    with pytest.raises(InvalidValueError, match="radius of sam"):
        make(make_world(), modifiers={"sam": {"radius": radius}})
