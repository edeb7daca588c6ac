"""Gates on directions: how they are trained, and what they close."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
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
    visit,
)
from torch import Tensor

from nsr_gym.errors import InvalidValueError, UnknownNameError
from nsr_gym.learning.adalora import Importance, budget

ADALORA = {"prune": "adalora", "target": 0.5, "warm": 0.2, "cool": 0.3}


def test_gates_fixed_at_one_are_plain_training_bit_for_bit(make_world: MakeWorld) -> None:
    world = make_world()
    of = visit(world, recalled=torch.tensor([True, False, True]))
    fixed = make(world, modifiers={"rank_gates": {"train": False, "penalty": 0}})
    ours, curve = fixed.learn(world.data, of)
    plain, expected = make(world).learn(world.data, of)
    assert_same(ours, plain, within=0.0)
    assert torch.equal(curve, expected)


def gated(leaves: Any, gates: Tensor) -> dict[str, Tensor]:
    return {s: up * gates[:, i] @ down for i, (s, (up, down)) in enumerate(leaves.items())}


def test_gates_pay_their_penalty_and_stay_in_range(make_world: MakeWorld) -> None:
    world = make_world(learning_rate=0.05)
    of, options = visit(world), {"penalty": 0.1, "threshold": 0.3, "rate": 8.0, "warm": 0.34}
    trained, _ = make(world, modifiers={"rank_gates": options}).learn(world.data, of)
    closed = 0
    for i in range(3):
        episode, leaves = ByHand(world, of, i), leaves_of(of.start, i)
        gates = torch.ones(3, 3, requires_grad=True)
        optimiser = torch.optim.Adam([{"params": flat(leaves), "lr": 0.05}, {"params": [gates]}])
        optimiser.param_groups[1]["lr"] = 0.05 * 8.0
        optimiser.param_groups[1]["eps"] = 1e-8 / 8.0
        for step, chosen in enumerate(episode.batches()):
            optimiser.zero_grad()
            loss = episode.loss(gated(leaves, gates), chosen)
            if step >= 2:  # a third of six updates
                loss = loss + 0.1 * gates.sum()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                gates.clamp_(0.0, 1.0)
        kept = gates.detach() * (gates.detach() > 0.3)
        closed += int((kept == 0).sum())
        stored = {
            s: (up * kept[:, g], down * (kept[:, g, None] > 0))
            for g, (s, (up, down)) in enumerate(leaves.items())
        }
        assert_is(trained, i, stored)
    assert 0 < closed < 27


def test_a_high_penalty_closes_gates_and_the_measured_model_is_what_is_left(
    make_world: MakeWorld,
) -> None:
    world = make_world(sizes=((30, 200),) * 4, learning_steps=20)
    of = visit(world)
    learner = make(world, modifiers={"rank_gates": {"penalty": 5.0}})
    trained, curve = learner.learn(world.data, of)
    assert trained.used().tolist() == [0, 0, 0]
    assert torch.equal(curve[:, -1], learner.accuracy(world.data.test(of.tasks), None))
    light = make(world, modifiers={"rank_gates": {"penalty": 1e-6}}).learn(world.data, of)[0]
    assert light.used().tolist() == [3, 3, 3]


def test_the_budget_falls_cubically_between_warm_and_cool() -> None:
    found = [budget(step, 10, 12, 8, 2, 3) for step in range(12)]
    expected = [12, 12, 12] + [8 + 4 * (1 - (t - 2) / 5) ** 3 for t in range(3, 7)] + [8] * 5
    assert found == pytest.approx(expected)
    many = budget(4, 10, np.array([12.0, 6.0]), np.array([8.0, 3.0]), 2, 3)
    assert many == pytest.approx([budget(4, 10, 12, 8, 2, 3), budget(4, 10, 6, 3, 2, 3)])


def test_importance_is_smoothed_sensitivity_times_its_deviation() -> None:
    rng, ours = np.random.default_rng(0), Importance()
    mean, deviation = np.zeros(5), np.zeros(5)
    for _ in range(6):
        products = rng.standard_normal(5)
        mean = 0.85 * mean + 0.15 * np.abs(products)
        deviation = 0.85 * deviation + 0.15 * np.abs(np.abs(products) - mean)
        np.testing.assert_allclose(ours.update(products), mean * deviation)


def test_adalora_keeps_the_most_important_directions_of_all_sites(make_world: MakeWorld) -> None:
    world = make_world(learning_rate=0.05, learning_steps=5)
    of = visit(world)
    trained, _ = make(world, modifiers={"rank_gates": ADALORA}).learn(world.data, of)
    for i in range(3):
        episode, leaves = ByHand(world, of, i), leaves_of(of.start, i)
        gates = torch.ones(3, 3, requires_grad=True)
        optimiser = torch.optim.Adam([{"params": flat(leaves), "lr": 0.05}, {"params": [gates]}])
        optimiser.param_groups[1]["lr"] = 0.05 * 4.0
        optimiser.param_groups[1]["eps"] = 1e-8 / 4.0
        tallies = [Importance() for _ in range(7)]
        for step, chosen in enumerate(episode.batches(), start=1):
            optimiser.zero_grad()
            episode.loss(gated(leaves, gates), chosen).backward()
            scores = tallies[6].update((gates * gates.grad).detach())
            for j, part in enumerate(flat(leaves)):
                found = tallies[j].update((part * part.grad).detach())
                scores[:, j // 2] += found.mean(0 if j % 2 == 0 else 1)
            optimiser.step()
            # 9 directions, half of which is 4.5 and rounds to 4 (ties to even); 10 updates.
            allowed = round(budget(step, 10, 9, 4, 2, 3))
            ranked = sorted(np.ndindex(3, 3), key=lambda place: -float(scores[place]))
            with torch.no_grad():
                for place in ranked[allowed:]:
                    gates[place] = 0.0
        kept = gates.detach()
        assert int((kept != 0).sum()) == 4
        stored = {
            s: (up * kept[:, g], down * (kept[:, g, None] != 0))
            for g, (s, (up, down)) in enumerate(leaves.items())
        }
        assert_is(trained, i, stored)
    # Sites share one budget, so that they end with different numbers of directions.
    assert len(set(trained.directions().sum(1).flatten().tolist())) > 1


def test_adalora_ends_with_its_share_of_the_granted_directions(make_world: MakeWorld) -> None:
    world = make_world(sizes=((30, 200),) * 4, learning_steps=5)
    of = visit(world, ranks=torch.tensor([1, 3, 2]))
    of.start.keep(torch.tensor([1, 3, 2]))
    learner = make(world, modifiers={"rank_gates": ADALORA})
    trained, curve = learner.learn(world.data, of)
    assert trained.directions().sum((1, 2)).tolist() == [2, 4, 3]  # of 3, 9 and 6
    assert not (trained.directions() & ~of.start.directions()).any()
    assert torch.equal(curve[:, -1], learner.accuracy(world.data.test(of.tasks), trained))


def test_a_recalled_entry_is_not_pruned_again(make_world: MakeWorld) -> None:
    world = make_world(learning_steps=5)
    learner = make(world, modifiers={"rank_gates": ADALORA})
    first, _ = learner.learn(world.data, visit(world))
    again, _ = learner.learn(world.data, visit(world, start=first))
    assert torch.equal(first.directions(), again.directions())
    assert_differ(first, again)


def test_adalora_with_fixed_gates_closes_without_reweighing(make_world: MakeWorld) -> None:
    world = make_world(learning_steps=5, learning_rate=1e-9)
    of = visit(world)
    trained, _ = make(world, modifiers={"rank_gates": {**ADALORA, "train": False}}).learn(
        world.data, of
    )
    kept = trained.directions()
    assert kept.sum((1, 2)).tolist() == [4, 4, 4]
    for s, (site, (up, down)) in enumerate(trained.factors.items()):
        old_up, old_down = of.start.factors[site]
        torch.testing.assert_close(up, old_up * kept[:, None, :, s], rtol=0, atol=1e-6)
        torch.testing.assert_close(down, old_down * kept[:, :, s, None], rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, ADALORA], ids=["penalty", "adalora"])
def test_an_episodes_gates_do_not_depend_on_others(
    make_world: MakeWorld, options: dict[str, Any]
) -> None:
    world = make_world(learning_rate=0.05)
    of = visit(world)
    assert_rows_are_alone(world, lambda: make(world, modifiers={"rank_gates": options}), of)
    assert_differ(
        make(world, modifiers={"rank_gates": options}).learn(world.data, of)[0],
        make(world).learn(world.data, of)[0],
    )


@pytest.mark.parametrize(
    "options", [{"penalty": 5.0, "rate": 49.0, "start": 0.9}, {**ADALORA, "start": 0.9}]
)
def test_directions_that_are_not_trainable_have_no_gates(
    make_world: MakeWorld, options: dict[str, Any]
) -> None:
    world = make_world()
    of = visit(world)
    of = replace(of, trainable=torch.tensor([[True, False, True]] * 3))
    trained, _ = make(world, modifiers={"rank_gates": options}).learn(world.data, of)
    for site, (up, down) in trained.factors.items():
        old_up, old_down = of.start.factors[site]
        assert torch.equal(up[:, :, 1], old_up[:, :, 1])
        assert torch.equal(down[:, 1], old_down[:, 1])
    assert not trained.directions().all(2)[:, [0, 2]].any(1).all()


@pytest.mark.parametrize(
    "options",
    [
        {"start": 0}, {"rate": 0}, {"train": 1}, {"penalty": -1}, {"threshold": None},
        {"target": 1.5}, {"warm": 0.6, "cool": 0.4},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(make_world: MakeWorld, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match="of rank_gates"):
        make(make_world(), modifiers={"rank_gates": options})


def test_there_are_two_ways_to_prune(make_world: MakeWorld) -> None:
    with pytest.raises(UnknownNameError, match="adalora"):
        make(make_world(), modifiers={"rank_gates": {"prune": "adalor"}})


def test_the_schedule_needs_no_torch() -> None:
    code = "import sys, nsr_gym.learning.adalora; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
