"""A moving average replaces the weights at the end of a visit."""

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
from torch import Tensor

from nsr_gym.errors import InvalidValueError


def weight_of(part: Tensor, average: Tensor, now: Tensor, before: Tensor | None) -> float:
    if before is None:
        return 0.01
    moved, turned = float((part - average).abs().sum()), float((now - before).abs().sum())
    if moved * turned == 0.0:
        return 0.01
    a = 2.0 * (1.0 + float(now.abs().sum())) / (moved * turned)
    return a if 0.0 < a < 1.0 else 0.01


def test_the_average_follows_the_released_rule_for_every_tensor(make_world: MakeWorld) -> None:
    world = make_world(learning_rate=0.5, learning_steps=5)
    of, weights = visit(world), []
    trained, _ = make(world, modifiers={"ema_merge": {}}).learn(world.data, of)
    for i in range(3):
        episode, leaves = ByHand(world, of, i), leaves_of(of.start, i)
        parts = flat(leaves)
        averages = [part.detach().clone() for part in parts]
        optimiser, before = torch.optim.Adam(parts, lr=0.5), [None] * len(parts)
        for chosen in episode.batches():
            now = torch.autograd.grad(episode.loss(products(leaves), chosen), parts)
            for part, g in zip(parts, now, strict=True):
                part.grad = g
            optimiser.step()
            for j, part in enumerate(parts):
                a = weight_of(part.detach(), averages[j], now[j], before[j])
                averages[j] = (1.0 - a) * averages[j] + a * part.detach()
                weights.append(a)
            before = list(now)
        average = iter(averages)
        # An average of long steps: rounding of one moves the next weight as well.
        assert_is(trained, i, {s: (next(average), next(average)) for s in leaves}, within=2e-3)
    used = [a for a in weights if a != 0.01]
    assert 0.2 < len(used) / len(weights) < 0.9  # the rule and its replacement both took part


def test_a_weight_of_one_keeps_the_last_weights_bit_for_bit(make_world: MakeWorld) -> None:
    world = make_world()
    of = visit(world)
    last, curve = make(world, modifiers={"ema_merge": {"weight": 1.0}}).learn(world.data, of)
    plain, expected = make(world).learn(world.data, of)
    assert_same(last, plain, within=0.0)
    assert torch.equal(curve, expected)


def test_a_small_weight_stays_near_the_start(make_world: MakeWorld) -> None:
    world = make_world()
    of = visit(world)
    slow, _ = make(world, modifiers={"ema_merge": {"weight": 1e-6}}).learn(world.data, of)
    assert_same(slow, of.start)
    assert_differ(make(world).learn(world.data, of)[0], of.start)


def test_the_curve_ends_with_the_average(make_world: MakeWorld) -> None:
    world = make_world(sizes=((30, 200),) * 4, learning_rate=0.2)
    of = visit(world)
    learner = make(world, modifiers={"ema_merge": {"weight": 0.1}})
    trained, curve = learner.learn(world.data, of)
    expected = make(world).learn(world.data, of)[1]
    assert torch.equal(curve[:, :-1], expected[:, :-1])  # until then the weights are in use
    assert torch.equal(curve[:, -1], learner.accuracy(world.data.test(of.tasks), trained))
    assert not torch.equal(curve[:, -1], expected[:, -1])


def test_an_episodes_average_does_not_depend_on_others(make_world: MakeWorld) -> None:
    world = make_world(learning_rate=0.05)
    assert_rows_are_alone(world, lambda: make(world, modifiers={"ema_merge": {}}), visit(world))


@pytest.mark.parametrize("options", [{"weight": 0}, {"weight": 1.5}, {"fallback": None}])
def test_weights_are_shares(make_world: MakeWorld, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match="of ema_merge"):
        make(make_world(), modifiers={"ema_merge": options})
