"""Flattened, additive and meta banks, and the sums of updates that every bank gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bank_samples import RANK, SITES, adapter, bank_of, dense, fill, gap
from torch import Tensor

from nsr_gym.bank import BANKS, CountedFactors, TaskKnowledgeBank
from nsr_gym.bank.additive import AdditiveFactors
from nsr_gym.bank.flattened_basis import FlattenedBasisFactors
from nsr_gym.bank.meta import MetaFactors
from nsr_gym.errors import DataError, InvalidValueError, StateError

EXACT = 1e-10
AXES = np.eye(4)
LOSSLESS: dict[str, dict[str, Any]] = {
    "per_task": {},
    "shared_basis": {"basis_rank": 12},
    "flattened_basis": {"basis_rank": 4},
    "meta": {},
    "additive": {},
}


def test_every_bank_is_covered_here() -> None:
    assert set(LOSSLESS) == set(BANKS)


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_sum_of_updates_has_the_signs_and_weights_it_was_asked_for(name: str) -> None:
    bank = bank_of(name, 3, **LOSSLESS[name])
    updates = [dense(made) for made in fill(bank, 4)]
    bank.remove([1, 2, 1])
    updates[1] = {n: u * torch.tensor([0.0, 1, 0])[:, None, None] for n, u in updates[1].items()}
    updates[2] = {n: u * torch.tensor([1.0, 0, 1])[:, None, None] for n, u in updates[2].items()}
    rng = np.random.default_rng(0)
    for weights in (rng.integers(-1, 2, size=(3, bank.slots)), rng.normal(size=(3, bank.slots))):
        w = weights * bank.occupied
        expected = {
            site: sum(torch.tensor(w[:, j])[:, None, None] * updates[j][site] for j in range(4))
            for site in SITES
        }
        assert gap(bank.delta(w), expected) <= EXACT
        rows = [2, 0, 2]
        some = {site: total[rows] for site, total in expected.items()}
        assert gap(bank.delta(w[rows], rows=rows), some) <= EXACT
    everything = {site: sum(updates[j][site] for j in range(4)) for site in SITES}
    assert gap(bank.delta(), everything) <= EXACT
    bank.clear()
    assert not any(total.any() for total in bank.delta().values())


def test_sums_over_empty_slots_and_of_no_factors_are_refused() -> None:
    bank = bank_of("per_task", 2)
    fill(bank, 2)
    weights = np.ones((2, bank.slots))
    with pytest.raises(InvalidValueError, match="multiply them by `occupied`"):
        bank.delta(weights)
    with pytest.raises(InvalidValueError, match="shape"):
        bank.delta(weights[:, :2])
    with pytest.raises(DataError, match="finite"):
        bank.delta(weights * np.nan)
    with pytest.raises(StateError, match="keeps no factors"):
        TaskKnowledgeBank(embedding_dim=4).delta()
    counted = TaskKnowledgeBank(embedding_dim=4, store=CountedFactors(sites=SITES, max_rank=2))
    with pytest.raises(StateError, match="none to add up"):
        counted.delta()


@pytest.mark.parametrize("name", LOSSLESS)
def test_weights_given_as_a_tensor_keep_their_gradient(name: str) -> None:
    bank = bank_of(name, 1, **LOSSLESS[name])
    updates = [dense(made) for made in fill(bank, 2)]
    weights = torch.zeros(1, bank.slots, dtype=torch.float64, requires_grad=True)
    sum(total.sum() for total in bank.delta(weights).values()).backward()  # type: ignore[union-attr]
    assert weights.grad is not None
    for j in range(2):
        expected = sum(float(u.sum()) for u in updates[j].values())
        assert float(weights.grad[0, j]) == pytest.approx(expected, rel=1e-9)


def test_an_additive_bank_sums_what_it_holds_scaled_site_by_site() -> None:
    bank = bank_of("additive", 2)
    updates = [dense(made) for made in fill(bank, 3)]
    store = bank.store
    assert isinstance(store, AdditiveFactors)
    before = bank.factors([1, 1])
    factors = torch.ones(2, bank.slots, len(SITES), dtype=torch.float64)
    factors[0, 0, 0], factors[1, 2, 1] = -0.25, 0.0
    versions = bank.version.copy()
    bank.scale(factors)
    assert (bank.version > versions)[bank.occupied].all()
    expected = {
        site: sum(factors[:, j, i, None, None] * updates[j][site] for j in range(3))
        for i, site in enumerate(SITES)
    }
    assert gap(bank.delta(), expected) <= EXACT
    untouched = bank.factors([1, 1])
    assert all(torch.equal(before[n][i], untouched[n][i]) for n in SITES for i in (0, 1))
    values = store.read_singular_values(np.array([0]), np.array([0]))
    singular = 0.25 * torch.linalg.svdvals(updates[0]["fc1"][0])[:RANK]
    up, down = bank.factors([0], rows=[0])["fc1"]
    torch.testing.assert_close(values[0, 0], (up.norm(dim=1) * down.norm(dim=2))[0])
    assert float((up @ down).norm()) == pytest.approx(float(singular.norm()))
    with pytest.raises(StateError, match="additive"):
        bank_of("per_task").scale(factors)
    with pytest.raises(InvalidValueError, match="shape"):
        bank.scale(factors[..., :1])


def oldest_first(bank: TaskKnowledgeBank, row: int) -> list[int]:
    held = np.flatnonzero(bank.occupied[row])
    return held[np.argsort(bank.version[row, held])].tolist()


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_write_that_concerns_other_entries_gives_them_new_versions_in_their_order(
    name: str,
) -> None:
    bank = bank_of(name, 2, **LOSSLESS[name])
    coupled = bank.store is not None and bank.store.coupled
    assert coupled == (name in ("shared_basis", "flattened_basis", "additive"))
    fill(bank, 3)
    seen = bank.version.copy()
    bank.replace([0], rows=[1], embedding=AXES[:1], rank=RANK, factors=adapter(30))
    assert oldest_first(bank, 1) == [1, 2, 0]
    assert (bank.version[0] == seen[0]).all()
    assert (bank.version[1, 1:3] > seen[1].max()).all() == coupled
    seen = bank.version.copy()
    bank.remove([1], rows=[1])
    assert oldest_first(bank, 1) == [2, 0]
    assert (bank.version[1, [0, 2]] > seen[1].max()).all() == coupled


def mean_update(updates: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {site: torch.stack([u[site] for u in updates]).mean(0) for site in SITES}


@pytest.mark.parametrize("summary_rank", [1, 2, 3])
def test_a_summary_is_the_best_approximation_of_the_mean_update(summary_rank: int) -> None:
    bank = bank_of("meta", 2, summary_rank=summary_rank)
    store, rows = bank.store, np.arange(2)
    assert isinstance(store, MetaFactors)
    assert not any(part.any() for pair in store.summary(rows).values() for part in pair)
    updates = [dense(made) for made in fill(bank, 4)]

    def check(held: list[int]) -> None:
        summary = store.summary(rows)
        for site, mean in mean_update([updates[j] for j in held]).items():
            up, down = summary[site]
            assert up.shape == (2, SITES[site][0], RANK)
            assert not up[..., summary_rank:].any()
            error = (mean - up @ down).norm(dim=(-2, -1))
            best = torch.linalg.svdvals(mean)[:, summary_rank:].norm(dim=-1)
            torch.testing.assert_close(error, best, rtol=1e-8, atol=EXACT)

    check([0, 1, 2, 3])
    bank.remove([1, 1])
    check([0, 2, 3])
    new = adapter(50, 2)
    updates[2] = dense(new)
    bank.replace([2, 2], embedding=AXES[:2], rank=RANK, factors=new)
    check([0, 2, 3])
    bank.remove([0, 0])
    bank.remove([2, 2])
    check([3])
    bank.clear()
    assert not any(part.any() for pair in store.summary(rows).values() for part in pair)


def test_a_summary_of_one_entry_is_that_entry_and_its_bytes_count() -> None:
    bank = bank_of("meta", 2, summary_rank=3)
    made = adapter(0)
    bank.reserve(embedding=AXES[:1], rows=[1], rank=RANK, factors=made)
    assert isinstance(bank.store, MetaFactors)
    summary = bank.store.summary(np.array([1]))
    assert gap({n: up @ down for n, (up, down) in summary.items()}, dense(made)) <= EXACT
    sides = sum(a + b for a, b in SITES.values())
    assert bank.bytes_by_kind()["summary"].tolist() == [0, 3 * sides * 8]
    plain = bank_of("per_task")
    plain.reserve(embedding=AXES[0], rank=RANK, factors=made)
    assert bank.nbytes().tolist() == [0, 3 * sides * 8 + int(plain.nbytes()[0])]


def test_a_half_precision_bank_summarises_too() -> None:
    bank = bank_of("meta", dtype="float16")
    updates = [dense(made) for made in fill(bank, 3)]
    assert isinstance(bank.store, MetaFactors)
    summary = {
        n: (u.double() @ d.double()) for n, (u, d) in bank.store.summary(np.array([0])).items()
    }
    mean = mean_update(updates)
    best = max(float(torch.linalg.svdvals(m)[:, RANK:].norm() / m.norm()) for m in mean.values())
    assert best < gap(summary, mean) < best + 0.01


def test_a_flattened_basis_loses_nothing_while_there_are_no_more_entries_than_directions() -> None:
    bank = bank_of("flattened_basis", 3, basis_rank=4, capacity=4)
    made = fill(bank, 4, offset=2.0)
    for slot, factors in enumerate(made):
        assert gap(dense(bank.factors([slot] * 3)), dense(factors)) <= EXACT
    store = bank.store
    assert isinstance(store, FlattenedBasisFactors)
    d = RANK * sum(a + b for a, b in SITES.values())
    assert store.basis(np.array([1])).shape == (1, d, 4)
    assert store.coefficients(np.array([1, 1]), np.array([0, 3])).shape == (2, 4)
    kinds = bank.bytes_by_kind()
    assert kinds["basis"].tolist() == [d * 4 * 8] * 3
    assert kinds["factors"].tolist() == [4 * 4 * 8] * 3


def test_a_full_flattened_basis_is_the_best_of_the_vectors_and_knows_what_is_outside() -> None:
    bank = bank_of("flattened_basis", basis_rank=2)
    store, row = bank.store, np.array([0])
    assert isinstance(store, FlattenedBasisFactors)
    made = fill(bank, 2)
    assert store.residual(row, made[0]) < 1e-20
    third = adapter(60)
    outside = store.residual(row, third)
    assert 0.3 < outside[0] <= 1.0
    bank.reserve(embedding=AXES[0], rank=RANK, factors=third)
    share = store.tail_energy(row, relative=True)
    assert 0.05 < share[0] < 1 / 3  # of three nearly orthogonal vectors one direction went
    assert 0.1 < gap(dense(bank.factors(0)), dense(made[0])) < 1.5


def test_an_entry_of_low_rank_comes_back_at_its_rank_from_a_flattened_basis() -> None:
    bank = bank_of("flattened_basis", basis_rank=2)
    for seed, rank in enumerate((3, 3, 1)):
        factors = adapter(seed)
        bank.reserve(embedding=AXES[seed], rank=rank, factors=factors)
    for up, down in bank.factors(2).values():
        assert up[..., :1].any()
        assert not up[..., 1:].any()
        assert not down[:, 1:].any()
