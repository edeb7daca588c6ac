"""O-LoRA keeps a new adapter away from the input directions of others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from short_visits import (
    ByHand,
    MakeWorld,
    assert_is,
    assert_rows_are_alone,
    assert_same,
    entries,
    flat,
    leaves_of,
    make,
    products,
    visit,
)

from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.adapters import Adapters, summed
from nsr_gym.learning.olora import overlap


def test_overlap_is_the_sum_over_pairs_of_directions(make_world: MakeWorld) -> None:
    world = make_world()
    others, own = entries(world), world.adapters(3, 2)
    found = overlap(
        {site: down for site, (_, down) in others.items()},
        {site: down for site, (_, down) in own.factors.items()},
    )
    for i in range(3):
        expected = 0.0
        for site, (_, kept) in others.items():
            for entry in kept[i]:
                for a in entry:
                    expected += sum(abs(float(a @ b)) for b in own.factors[site][1][i])
        assert float(found[i]) == pytest.approx(expected, rel=1e-5)


def test_training_pays_for_overlap_on_top_of_the_sum_of_the_others(make_world: MakeWorld) -> None:
    world = make_world(learning_rate=0.03)
    of = visit(world, others=entries(world))
    trained, _ = make(world, "olora", options={"lambda1": 0.2}).learn(world.data, of)
    below = summed(of.others)
    for i in range(3):
        episode, leaves = ByHand(world, of, i), leaves_of(of.start, i)
        optimiser = torch.optim.Adam(flat(leaves), lr=0.03)
        for chosen in episode.batches():
            deltas = {site: below[site][i] + delta for site, delta in products(leaves).items()}
            penalty = sum(
                (old @ leaves[site][1].mT).abs().sum()
                for site, (_, downs) in of.others.items()
                for old in downs[i]
            )
            optimiser.zero_grad()
            (episode.loss(deltas, chosen) + 0.2 * penalty).backward()
            optimiser.step()
        assert_is(trained, i, leaves)


def test_without_penalty_it_is_plain_training_on_the_sum(make_world: MakeWorld) -> None:
    world = make_world()
    of = visit(world, others=entries(world))
    free, curve = make(world, "olora", options={"lambda1": 0}).learn(world.data, of)
    on_sum = replace(of, others=None, base=summed(of.others))
    plain, expected = make(world).learn(world.data, on_sum)
    assert_same(free, plain, within=0.0)
    assert torch.equal(curve, expected)


def test_the_penalty_lowers_the_overlap(make_world: MakeWorld) -> None:
    world = make_world(learning_steps=20)
    of = visit(world, others=entries(world))
    kept = {site: down for site, (_, down) in of.others.items()}

    def remaining(trained: Adapters) -> Any:
        return overlap(kept, {site: down for site, (_, down) in trained.factors.items()})

    with_it, without = (
        remaining(make(world, "olora", options={"lambda1": weight}).learn(world.data, of)[0])
        for weight in (0.5, 0.0)
    )
    assert (with_it < 0.8 * without).all()
    assert (with_it < 0.8 * remaining(of.start)).all()


def test_the_first_entry_of_a_bank_is_trained_plainly(make_world: MakeWorld) -> None:
    world = make_world()
    nothing = {s: (up * 0.0, down * 0.0) for s, (up, down) in entries(world).items()}
    alone, _ = make(world, "olora").learn(world.data, visit(world, others=nothing))
    assert_same(alone, make(world).learn(world.data, visit(world))[0])


def test_an_episodes_penalty_does_not_depend_on_others(make_world: MakeWorld) -> None:
    world = make_world()
    assert_rows_are_alone(world, lambda: make(world, "olora"), visit(world, others=entries(world)))


def test_the_weight_is_an_amount(make_world: MakeWorld) -> None:
    with pytest.raises(InvalidValueError, match="lambda1 of olora"):
        make(make_world(), "olora", options={"lambda1": -1.0})
