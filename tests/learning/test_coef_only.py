"""Coefficient-only training on bases that are shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from short_visits import (
    ByHand,
    MakeWorld,
    assert_is,
    assert_rows_are_alone,
    assert_same,
    bases,
    make,
    visit,
)

from nsr_gym.bank import TaskKnowledgeBank
from nsr_gym.bank.kinds import make_store
from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.adapters import Adapters
from nsr_gym.learning.coef_only import filled
from nsr_gym.lowrank import canonicalise_sites


def shared_bank(world: Any, *, entries: int, basis_rank: int) -> TaskKnowledgeBank:
    """Three banks whose bases are made of so many random entries, and stay as they are then."""
    sites = {site.name: (site.d_out, site.d_in) for site in world.backbone.sites}
    store = make_store(
        "shared_basis", sites=sites, max_rank=3, basis_rank=basis_rank, update="project",
        warm=entries,
    )  # fmt: skip
    bank = TaskKnowledgeBank(embedding_dim=2, num_banks=3, store=store)
    for slot in range(entries):
        reserve(bank, world.adapters(3, 3, seed=40 + slot))
    return bank


def reserve(bank: TaskKnowledgeBank, results: Adapters) -> Any:
    canonical = canonicalise_sites(results.factors)
    return bank.reserve(
        embedding=np.ones((3, 2), dtype=np.float32), rank=np.full(3, 3),
        factors={site: (found.up, found.down) for site, found in canonical.items()},
    ).slot  # fmt: skip


def test_training_leaves_bases_and_all_other_entries_bit_for_bit(make_world: MakeWorld) -> None:
    """Seed-systems 3.10.6, for a fresh task and for one that is recalled and updated."""
    world = make_world(learning_rate=0.1)
    bank, rows = shared_bank(world, entries=2, basis_rank=4), np.arange(3)
    learner, images = make(world, "coef_only"), world.data.test(torch.tensor([0, 1, 2]))
    basis = bank.store.basis(rows)
    factors = [bank.factors(np.full(3, slot)) for slot in range(2)]
    outputs = [learner.loss(images, Adapters(found)) for found in factors]

    def unchanged(slots: Any) -> None:
        for site, pair in bank.store.basis(rows).items():
            assert all(torch.equal(a, b) for a, b in zip(pair, basis[site], strict=True))
        for slot in slots:
            found = bank.factors(np.full(3, slot))
            for site, pair in found.items():
                assert all(
                    torch.equal(a, b) for a, b in zip(pair, factors[slot][site], strict=True)
                )
            assert torch.equal(learner.loss(images, Adapters(found)), outputs[slot])

    of = visit(world, basis=basis, start=world.adapters(3, 3, up=0.0))
    trained, _ = learner.learn(world.data, of)
    new = reserve(bank, trained)
    assert new.tolist() == [2, 2, 2]
    unchanged([0, 1])
    # What was trained is what is stored: it lies in the bases.
    stored = bank.factors(new)
    for site, (up, down) in trained.factors.items():
        product = stored[site][0] @ stored[site][1]
        assert product.abs().max() > 0.01
        torch.testing.assert_close(product, up @ down, rtol=1e-4, atol=1e-5)

    start = Adapters(bank.factors(np.full(3, 1)))
    of = visit(world, basis=basis, start=start, recalled=torch.ones(3, dtype=torch.bool))
    trained, _ = learner.learn(world.data, of)
    canonical = canonicalise_sites(trained.factors)
    bank.replace(
        np.full(3, 1), embedding=np.ones((3, 2), dtype=np.float32), rank=np.full(3, 3),
        factors={site: (found.up, found.down) for site, found in canonical.items()},
    )  # fmt: skip
    unchanged([0])
    changed = bank.factors(np.full(3, 1))
    assert all(not torch.equal(changed[site][0], factors[1][site][0]) for site in changed)


def test_plain_training_would_leave_the_bases(make_world: MakeWorld) -> None:
    """The negative control: what plain factors learn is not what such a bank can store."""
    world = make_world(learning_rate=0.1)
    bank = shared_bank(world, entries=2, basis_rank=4)
    trained, _ = make(world).learn(world.data, visit(world))
    stored = bank.factors(reserve(bank, trained))
    gaps = [
        (stored[s][0] @ stored[s][1] - up @ down).abs().max()
        for s, (up, down) in trained.factors.items()
    ]
    assert max(gaps) > 0.1


def test_only_coefficients_are_trained_from_the_projection_of_the_start(
    make_world: MakeWorld,
) -> None:
    world = make_world(learning_rate=0.03)
    basis = bases(world, 3)
    of = visit(world, basis=basis)
    trained, _ = make(world, "coef_only").learn(world.data, of)
    for i in range(3):
        episode = ByHand(world, of, i)
        leaves = {
            site: (
                (basis[site][0][i].mT @ up[i]).requires_grad_(),
                (basis[site][1][i].mT @ down[i].mT).requires_grad_(),
            )
            for site, (up, down) in of.start.factors.items()
        }
        optimiser = torch.optim.Adam([part for pair in leaves.values() for part in pair], lr=0.03)

        def formed(leaves: Any = leaves, i: int = i) -> Any:
            return {
                site: (basis[site][0][i] @ e_beta, (basis[site][1][i] @ e_alpha).mT)
                for site, (e_beta, e_alpha) in leaves.items()
            }

        for chosen in episode.batches():
            optimiser.zero_grad()
            episode.loss({s: up @ down for s, (up, down) in formed().items()}, chosen).backward()
            optimiser.step()
        assert_is(trained, i, formed())


def test_a_recalled_entry_of_the_bank_is_where_its_visit_starts(make_world: MakeWorld) -> None:
    world = make_world(sizes=((30, 200),) * 4)
    bank = shared_bank(world, entries=2, basis_rank=4)
    start = Adapters(bank.factors(np.zeros(3, dtype=np.int64)))
    of = visit(world, basis=bank.store.basis(np.arange(3)), start=start)
    learner = make(world, "coef_only")
    prepared = learner.prepare(world.data, of)
    assert prepared.extra["ready"].all()
    assert_same(prepared.start, start, within=1e-5)


def test_episodes_without_bases_train_plain_factors(make_world: MakeWorld) -> None:
    """In one batch with others, whose bases are ready; and where there are no bases at all."""
    world = make_world()
    basis = bases(world, 3)
    for pair in basis.values():
        for side in pair:
            side[1, :, 1:] = 0.0  # one direction, where there is room for three
    for least, ready in ((1, True), (2, False), (3, False), (9, False), (None, False)):
        assert filled(basis, least).tolist() == [True, ready, True]
    of = visit(world, basis=basis)
    mixed, _ = make(world, "coef_only").learn(world.data, of)
    plain, _ = make(world).learn(world.data, visit(world))
    assert_same(mixed[1:2], plain[1:2])
    for i in (0, 2):
        alpha = basis["fc1"][1][i]
        down = mixed.factors["fc1"][1][i]
        torch.testing.assert_close(down @ alpha @ alpha.mT, down, rtol=0, atol=1e-5)
    empty, _ = make(world, "coef_only").learn(world.data, visit(world))
    assert_same(empty, plain, within=0.0)
    # An option asks for fewer.
    ready = make(world, "coef_only", options={"least": 1}).prepare(world.data, of).extra["ready"]
    assert ready.tolist() == [True, True, True]


def test_an_episodes_coefficients_do_not_depend_on_others(make_world: MakeWorld) -> None:
    world = make_world()
    basis = bases(world, 3)
    basis["fc2"][0][2, :, 2] = 0.0
    assert_rows_are_alone(world, lambda: make(world, "coef_only"), visit(world, basis=basis))


@pytest.mark.parametrize("least", [0, 1.5, True])
def test_least_is_a_count(make_world: MakeWorld, least: Any) -> None:
    with pytest.raises(InvalidValueError, match="least of coef_only"):
        make(make_world(), "coef_only", options={"least": least})
