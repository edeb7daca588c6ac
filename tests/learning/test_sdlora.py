"""SD-LoRA keeps directions and retrains the magnitudes of all entries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from short_visits import (
    ByHand,
    MakeWorld,
    assert_rows_are_alone,
    assert_same,
    entries,
    make,
    visit,
)
from torch import Tensor

from nsr_gym.bank import TaskKnowledgeBank
from nsr_gym.bank.kinds import make_store
from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.adapters import Adapters, summed
from nsr_gym.lowrank import canonicalise_sites

SITES = ("fc1", "fc2", "fc3")


def filled_bank(world: Any, *, n: int = 3, slots: int = 2) -> TaskKnowledgeBank:
    """A bank of n episodes with as many canonical entries each."""
    sites = {site.name: (site.d_out, site.d_in) for site in world.backbone.sites}
    bank = TaskKnowledgeBank(
        embedding_dim=2, num_banks=n, store=make_store("additive", sites=sites, max_rank=3)
    )
    for slot in range(slots):
        reserve(bank, world.adapters(n, 3, seed=40 + slot))
    return bank


def reserve(bank: TaskKnowledgeBank, results: Adapters, rows: Any = None) -> Any:
    canonical = canonicalise_sites(results.factors)
    factors = {site: (found.up, found.down) for site, found in canonical.items()}
    n = len(results)
    embedding = np.ones((n, 2), dtype=np.float32)
    return bank.reserve(embedding=embedding, rank=np.full(n, 3), factors=factors, rows=rows)


def others_of(bank: TaskKnowledgeBank, *, without: int | None = None) -> Any:
    """All entries as stacks, zero where empty and where the recalled one lies."""
    n, slots = bank.occupied.shape
    rows, at = np.repeat(np.arange(n), slots), np.tile(np.arange(slots), n)
    stacks = {}
    for site, (up, down) in bank.store.read(rows, at).items():
        stacks[site] = up.unflatten(0, (n, slots)).clone(), down.unflatten(0, (n, slots)).clone()
        for part in stacks[site]:
            part[torch.as_tensor(~bank.occupied)] = 0.0
            if without is not None:
                part[:, without] = 0.0
    return stacks


def dense(bank: TaskKnowledgeBank) -> dict[str, Tensor]:
    return dict(summed(others_of(bank)))


def model_by_hand(
    leaves: Any, own: Tensor, directions: Any, magnitudes: Tensor
) -> dict[str, Tensor]:
    return {
        site: own[s] * leaves[site][0] @ leaves[site][1]
        + sum(magnitudes[j, s] * direction for j, direction in enumerate(directions[site]))
        for s, site in enumerate(SITES)
    }


def test_factors_and_all_magnitudes_are_trained(make_world: MakeWorld) -> None:
    world = make_world(learning_rate=0.03)
    bank = filled_bank(world)
    of = visit(world, others=others_of(bank))
    learner = make(world, "sdlora")
    trained, _ = learner.learn(world.data, of)
    before = dense(bank)
    slots = reserve(bank, trained).slot
    learner.commit(np.arange(3), slots, bank)
    after = dense(bank)
    for i in range(3):
        episode = ByHand(world, of, i)
        leaves = {
            site: ((up[i] / 0.8).requires_grad_(), down[i].clone().requires_grad_())
            for site, (up, down) in of.start.factors.items()
        }
        own = torch.full((3,), 0.8, requires_grad=True)
        directions, sizes = {}, torch.zeros(2, 3)
        for s, site in enumerate(SITES):
            ups, downs = (part[i, :2] for part in of.others[site])
            sizes[:, s] = torch.stack(
                [u.norm() * d.norm() for u, d in zip(ups, downs, strict=True)]
            )
            directions[site] = [
                u @ d / (u.norm() * d.norm()) for u, d in zip(ups, downs, strict=True)
            ]
        magnitudes = sizes.clone().requires_grad_()
        parts = [part for pair in leaves.values() for part in pair]
        optimiser = torch.optim.Adam([*parts, own, magnitudes], lr=0.03)
        for chosen in episode.batches():
            optimiser.zero_grad()
            episode.loss(model_by_hand(leaves, own, directions, magnitudes), chosen).backward()
            optimiser.step()
        expected = model_by_hand(leaves, own, directions, magnitudes)
        for site in SITES:
            torch.testing.assert_close(after[site][i], expected[site].detach(), rtol=0, atol=1e-4)
            assert (after[site][i] - before[site][i]).abs().max() > 1e-2
        assert ((magnitudes - sizes).abs() > 1e-3).all()  # all of them took part


@pytest.mark.parametrize("recall", [None, 1])
def test_the_stored_sum_is_the_model_that_was_measured(
    make_world: MakeWorld, recall: int | None
) -> None:
    """Within 1e-5, after a fresh start and after an update of a recalled entry."""
    world = make_world(sizes=((30, 200),) * 4, learning_rate=0.1)
    bank = filled_bank(world)
    of = visit(world, others=others_of(bank, without=recall))
    if recall is not None:
        start = Adapters(bank.factors(np.full(3, recall)))
        of = visit(world, others=of.others, start=start, recalled=torch.ones(3, dtype=torch.bool))
    learner, measured = make(world, "sdlora"), []

    class Watched(learner._run):
        def model(self) -> Adapters:
            found = super().model()
            measured.append({s: up @ down for s, (up, down) in found.factors.items()})
            return found

    learner._run = Watched
    trained, curve = learner.learn(world.data, of)
    if recall is None:
        slots = reserve(bank, trained).slot
    else:
        slots = np.full(3, recall)
        canonical = canonicalise_sites(trained.factors)
        bank.replace(
            slots, embedding=np.ones((3, 2), dtype=np.float32), rank=np.full(3, 3),
            factors={site: (found.up, found.down) for site, found in canonical.items()},
        )  # fmt: skip
    learner.commit(np.arange(3), slots, bank)
    below, stored = summed(of.others), dense(bank)
    for site in SITES:
        model = below[site] + measured[-1][site]
        torch.testing.assert_close(stored[site], model, rtol=1e-5, atol=1e-5)
    found = learner.accuracy(world.data.test(of.tasks), None, stored)
    torch.testing.assert_close(found, curve[:, -1], rtol=0, atol=1.01 / 200)


def test_a_visit_starts_where_the_bank_is(make_world: MakeWorld) -> None:
    world = make_world(sizes=((30, 200),) * 4)
    bank = filled_bank(world)
    of = visit(
        world, others=others_of(bank, without=0), start=Adapters(bank.factors(np.zeros(3, int)))
    )
    learner = make(world, "sdlora")
    _, curve = learner.learn(world.data, of)
    expected = learner.accuracy(world.data.test(of.tasks), None, dense(bank))
    torch.testing.assert_close(curve[:, 0], expected, rtol=0, atol=1.01 / 200)


def test_a_discarded_result_leaves_the_bank_as_it_is(make_world: MakeWorld) -> None:
    """Of three results one is reserved; the other banks stay bit for bit."""
    world = make_world(learning_rate=0.1)
    bank = filled_bank(world)
    learner, before = make(world, "sdlora"), dense(bank)
    trained, _ = learner.learn(world.data, visit(world, others=others_of(bank)))
    rows = np.array([1])
    slots = reserve(bank, trained[1:2], rows=rows).slot
    with_result = dense(bank)
    learner.commit(rows, slots, bank)
    after = dense(bank)
    for site in SITES:
        for i in (0, 2):
            assert torch.equal(after[site][i], before[site][i])
        assert not torch.equal(after[site][1], with_result[site][1])  # others were rescaled


def test_an_empty_slot_stays_empty_and_nothing_is_divided_by_zero(make_world: MakeWorld) -> None:
    world = make_world()
    nothing = {s: (up * 0.0, down * 0.0) for s, (up, down) in entries(world).items()}
    trained, curve = make(world, "sdlora").learn(world.data, visit(world, others=nothing))
    alone, expected = make(world, "sdlora").learn(world.data, visit(world))
    assert trained.finite().all()
    assert_same(trained, alone)
    assert torch.equal(curve, expected)


def test_an_episodes_magnitudes_do_not_depend_on_others(make_world: MakeWorld) -> None:
    world = make_world()
    assert_rows_are_alone(world, lambda: make(world, "sdlora"), visit(world, others=entries(world)))


def test_a_magnitude_is_positive(make_world: MakeWorld) -> None:
    with pytest.raises(InvalidValueError, match="magnitude of sdlora"):
        make(make_world(), "sdlora", options={"magnitude": 0.0})
