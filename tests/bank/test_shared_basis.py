"""The bank of Share as a store: lossless, re-gauged, merged, projected, counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bank_samples import RANK, SITES, Pairs, adapter, bank_of, dense, fill, gap

from nsr_gym.bank import TaskKnowledgeBank
from nsr_gym.bank.shared_basis import SharedBasisFactors
from nsr_gym.errors import InvalidValueError, UnknownNameError
from nsr_gym.lowrank import canonicalise

EXACT = 1e-10
AXES = np.eye(4)


def store_of(bank: TaskKnowledgeBank) -> SharedBasisFactors:
    assert isinstance(bank.store, SharedBasisFactors)
    return bank.store


def numbers(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize("update", ["merge", "residual", "project"])
def test_every_entry_comes_back_where_k_reaches_the_rank_of_all(offset: float, update: str) -> None:
    bank = bank_of("shared_basis", 4, basis_rank=9, update=update)
    made = fill(bank, 3, offset=offset)
    for slot, factors in enumerate(made):
        back = bank.factors([slot] * 4)
        assert gap(dense(back), dense(factors)) <= EXACT
        for name, (up, down) in back.items():  # and in canonical form
            form = canonicalise(*factors[name])
            torch.testing.assert_close(up, form.up, rtol=0.0, atol=1e-9)
            torch.testing.assert_close(down, form.down, rtol=0.0, atol=1e-9)
    values = store_of(bank).read_singular_values(np.arange(4), numbers(2, 2, 2, 2))
    for i, update_of in enumerate(dense(made[2]).values()):
        expected = torch.linalg.svdvals(update_of)[:, :RANK]
        torch.testing.assert_close(values[:, i], expected, rtol=EXACT, atol=0.0)


def test_entries_of_lower_rank_take_no_more_directions_than_they_have() -> None:
    bank = bank_of("shared_basis", basis_rank=9)
    wide = adapter(0, rank=3)
    bank.reserve(embedding=AXES[0], rank=2, factors=wide)
    for name, (beta, alpha) in store_of(bank).basis(numbers(0)).items():
        for basis in (beta, alpha):
            assert (basis[0].norm(dim=0) > 0).tolist() == [True] * 2 + [False] * 7, name
    cut = {n: (up[..., :2] @ down[:, :2]) for n, (up, down) in wide.items()}
    assert gap(dense(bank.factors(0)), cut) <= EXACT


def regauged(pairs: Pairs, seed: int) -> Pairs:
    """The same updates, factored otherwise."""
    made = {}
    for i, (name, (up, down)) in enumerate(pairs.items()):
        g = torch.Generator().manual_seed(seed + i)
        turn = torch.randn(RANK, RANK, generator=g, dtype=torch.float64) + 2 * torch.eye(RANK)
        made[name] = up @ turn, torch.linalg.inv(turn) @ down
    return made


def test_how_an_adapter_was_factored_changes_neither_updates_nor_the_span() -> None:
    plain, other = (bank_of("shared_basis", basis_rank=6) for _ in "ab")
    for seed in range(3):
        factors = adapter(seed)
        plain.reserve(embedding=AXES[seed], rank=RANK, factors=factors)
        again = regauged(factors, 50) if seed == 1 else factors
        assert gap(dense(again), dense(factors)) <= 1e-12
        other.reserve(embedding=AXES[seed], rank=RANK, factors=again)
    assert (store_of(plain).tail_energy(numbers(0)) > 0.1).all()  # or the check would be empty
    for slot in range(3):
        assert gap(dense(other.factors(slot)), dense(plain.factors(slot))) <= EXACT
    bases = (store_of(b).basis(numbers(0)) for b in (plain, other))
    for ours, theirs in zip(*(pairs.values() for pairs in bases), strict=True):
        for left, right in zip(ours, theirs, strict=True):
            torch.testing.assert_close(left @ left.mT, right @ right.mT, rtol=0.0, atol=EXACT)


def test_the_span_of_stacked_factors_would_depend_on_it_without_canonical_form() -> None:
    def span(factors: list[Pairs]) -> torch.Tensor:
        stacked = torch.cat([pairs["fc1"][0] for pairs in factors], -1)
        basis = torch.linalg.svd(stacked, full_matrices=False)[0][..., :6]
        return basis @ basis.mT

    entries = [adapter(seed) for seed in range(3)]
    again = [entries[0], regauged(entries[1], 50), entries[2]]
    assert float((span(entries) - span(again)).norm()) > 0.1


def test_bytes_are_those_of_the_formula_and_count_the_basis() -> None:
    # Per site k (d_in + d_out) for the basis and 2 k p per entry, seed-systems.md 3.7.
    for dtype, item in (("float32", 4), ("float64", 8)):
        bank = bank_of("shared_basis", 2, basis_rank=8, pseudo_rank=2, dtype=dtype)
        assert bank.nbytes().tolist() == [0, 0]
        assert bank.bytes_by_kind()["basis"].tolist() == [0, 0]
        for count, (rank, p) in enumerate([(1, 1), (2, 2), (3, 2)], start=1):
            bank.reserve(embedding=AXES[:1], rank=rank, factors=adapter(rank), rows=[0])
            kinds = bank.bytes_by_kind()
            assert bank.rank[0, count - 1] == p
            held = int(bank.rank[0].sum())
            assert kinds["factors"].tolist() == [2 * 2 * 8 * held * item, 0]
            assert kinds["basis"].tolist() == [8 * (20 + 14 + 9 + 20) * item, 0]
            assert kinds["embedding"].tolist() == [count * 4 * 4, 0]
            assert bank.nbytes().tolist() == np.sum(list(kinds.values()), axis=0).tolist()
        bank.clear()
        assert bank.nbytes().tolist() == [0, 0]


@pytest.mark.parametrize(("tasks", "saving"), [(6, 1.4), (50, 8.2), (500, 20.0)])
def test_roberta_base_saves_what_the_formula_says(tasks: int, saving: float) -> None:
    sites = {f"layer.{i}.{p}": (768, 768) for i in range(12) for p in "qv"}
    store = SharedBasisFactors(sites=sites, max_rank=8, basis_rank=32)
    basis = int(store.shared_bytes(numbers(1))["basis"][0])
    entry = int(store.entry_bytes(numbers(8))["factors"][0])
    assert (basis, entry) == (4 * 1_179_648, 4 * 12_288)
    lora = 24 * 8 * (768 + 768) * 4
    assert tasks * lora / (basis + tasks * entry) == pytest.approx(saving, rel=0.03)


def test_k_is_four_times_the_rank_of_an_adapter_where_none_is_given() -> None:
    store = SharedBasisFactors(sites={"q": (768, 768)}, max_rank=8)
    assert store.config()["basis_rank"] == 32  # as in Share's runs on GLUE


def test_a_side_narrower_than_k_has_as_many_columns_as_it_is_wide() -> None:
    bank = bank_of("shared_basis", basis_rank=12)
    made = fill(bank, 4)
    beta, alpha = store_of(bank).basis(numbers(0))["fc2"]
    assert (beta.shape, alpha.shape) == ((1, 9, 9), (1, 20, 12))
    assert bank.bytes_by_kind()["basis"].tolist() == [8 * (12 * (20 + 14) + 9 * 9 + 12 * 20)]
    for slot, factors in enumerate(made):
        assert gap(dense(bank.factors(slot)), dense(factors)) <= EXACT


@pytest.mark.parametrize("p", [1, 2])
def test_a_pseudo_rank_keeps_the_best_of_each_update(p: int) -> None:
    bank = bank_of("shared_basis", basis_rank=9, pseudo_rank=p)
    factors = adapter(3)
    slot = bank.reserve(embedding=AXES[0], rank=RANK, factors=factors).slot
    assert bank.rank[0, int(slot)] == p
    back = bank.factors(slot)
    for name, update in dense(factors).items():
        error = (back[name][0] @ back[name][1] - update).norm()
        best = torch.linalg.svdvals(update)[:, p:].norm()
        torch.testing.assert_close(error, best, rtol=EXACT, atol=0.0)
        assert not back[name][0][..., p:].any()


def spans(bank: TaskKnowledgeBank) -> list[torch.Tensor]:
    parts = store_of(bank).basis(np.arange(bank.num_banks))
    return [basis @ basis.mT for pair in parts.values() for basis in pair]


def test_project_takes_the_basis_as_it_is_once_it_is_full_or_warm() -> None:
    for options, fixed_after in (({}, 2), ({"warm": 1}, 1), ({"warm": 3}, 3)):
        bank = bank_of("shared_basis", 2, basis_rank=6, update="project", **options)
        made = fill(bank, fixed_after)
        before, others = spans(bank), [bank.factors([s, s]) for s in range(fixed_after)]
        new = adapter(77, 2)
        slot = bank.reserve(embedding=AXES[:2], rank=RANK, factors=new).slot
        assert all(torch.equal(a, b) for a, b in zip(before, spans(bank), strict=True))
        for s, old in enumerate(others):
            now = bank.factors([s, s])
            assert all(torch.equal(old[n][i], now[n][i]) for n in SITES for i in (0, 1))
        basis, back, updates = store_of(bank).basis(np.arange(2)), bank.factors(slot), dense(new)
        inside = {n: b @ (b.mT @ updates[n] @ a) @ a.mT for n, (b, a) in basis.items()}
        assert gap(dense(back), inside) <= EXACT
        assert len(made) == fixed_after


def test_residual_merges_what_is_new_and_projects_what_is_known() -> None:
    bank = bank_of("shared_basis", 2, basis_rank=9, update="residual", tolerance=0.01)
    store, rows = store_of(bank), np.arange(2)
    first = adapter(0, 2)
    assert store.residual(rows, first).tolist() == [1.0, 1.0]
    fill(bank, 1)
    before = spans(bank)
    assert (store.residual(rows, first) < 1e-20).all()
    again = {n: (up * torch.tensor([2.0, -0.5, 1.0]), down) for n, (up, down) in first.items()}
    mixed = {n: (pair[0].clone(), pair[1].clone()) for n, pair in again.items()}
    for n, (up, down) in adapter(5, 1).items():  # the second bank meets something unlike it
        mixed[n][0][1], mixed[n][1][1] = up[0], down[0]
    residual = store.residual(rows, mixed)
    assert residual[0] < 1e-20
    assert 0.5 < residual[1] <= 1.0
    bank.reserve(embedding=AXES[:2], rank=RANK, factors=mixed)
    same = [torch.equal(a[0], b[0]) for a, b in zip(before, spans(bank), strict=True)]
    moved = [not torch.equal(a[1], b[1]) for a, b in zip(before, spans(bank), strict=True)]
    assert all(same + moved)
    assert gap(dense(bank.factors([1, 1])), dense(mixed)) <= EXACT
    assert (store.residual(rows, mixed) < 1e-20).all()


def test_a_bank_without_bases_merges_whatever_the_tolerance() -> None:
    bank = bank_of("shared_basis", 2, basis_rank=9, update="residual", tolerance=1.0)
    made = fill(bank, 1)
    assert gap(dense(bank.factors([0, 0])), dense(made[0])) <= EXACT


def test_the_residual_is_a_share_of_energy_whatever_the_factors() -> None:
    bank = bank_of("shared_basis", basis_rank=4)
    fill(bank, 3)
    new, row = adapter(9), numbers(0)
    inside = outside = 0.0
    for name, (b, a) in store_of(bank).basis(row).items():
        update = new[name][0] @ new[name][1]
        kept = b @ (b.mT @ update @ a) @ a.mT
        inside, outside = inside + kept.square().sum(), outside + (update - kept).square().sum()
    expected = float(outside / (inside + outside))
    assert 0.1 < expected < 0.99
    assert store_of(bank).residual(row, new) == pytest.approx([expected], rel=1e-9)
    assert store_of(bank).residual(row, regauged(new, 4)) == pytest.approx([expected], rel=1e-9)
    nothing = {n: (up * 0.0, down) for n, (up, down) in new.items()}
    assert store_of(bank).residual(row, nothing).tolist() == [0.0]


def test_tail_energy_is_what_the_latest_merge_dropped() -> None:
    bank = bank_of("shared_basis", 2, basis_rank=4)
    store, rows = store_of(bank), np.arange(2)
    assert store.tail_energy(rows).tolist() == [0.0, 0.0]
    fill(bank, 1)
    assert (store.tail_energy(rows) < 1e-20).all()
    old, new = bank.factors([0, 0]), adapter(9, 2)
    bank.reserve(embedding=AXES[:2], rank=RANK, factors=new)
    expected = torch.zeros(2, dtype=torch.float64)
    for name in SITES:
        form = canonicalise(*new[name])
        for stacked in (
            torch.cat([old[name][0], form.up], -1),
            torch.cat([old[name][1].mT, form.down.mT], -1),
        ):
            expected += torch.linalg.svdvals(stacked)[:, 4:].square().sum(-1)
    np.testing.assert_allclose(store.tail_energy(rows), expected, rtol=EXACT)
    share = store.tail_energy(rows, relative=True)
    assert ((share > 0.0) & (share < 0.5)).all()


def test_directions_of_entries_that_went_are_given_up_at_the_next_merge() -> None:
    bank = bank_of("shared_basis", basis_rank=6)
    fill(bank, 2)
    bank.remove(0)
    third = adapter(40)
    slot = bank.reserve(embedding=AXES[0], rank=RANK, factors=third).slot
    assert gap(dense(bank.factors(slot)), dense(third)) <= EXACT
    assert gap(dense(bank.factors(1)), dense(adapter(1))) <= EXACT
    assert store_of(bank).tail_energy(numbers(0)) < 1e-20
    bank.clear()
    assert all(
        not basis.any() for pair in store_of(bank).basis(numbers(0)).values() for basis in pair
    )


def test_an_update_in_place_does_not_keep_what_it_replaces_in_the_basis() -> None:
    bank = bank_of("shared_basis", basis_rank=6)
    fill(bank, 2)
    new = adapter(41)
    bank.replace(0, embedding=AXES[0], rank=RANK, factors=new)
    assert store_of(bank).tail_energy(numbers(0)) < 1e-20
    assert gap(dense(bank.factors(0)), dense(new)) <= EXACT
    assert gap(dense(bank.factors(1)), dense(adapter(1))) <= EXACT


def test_in_single_precision_many_merges_stay_as_exact_as_it_holds() -> None:
    bank = bank_of("shared_basis", basis_rank=9, dtype="float32", capacity=3)
    for seed in range(40):
        factors = adapter(seed)
        bank.reserve(embedding=AXES[seed % 4], rank=RANK, factors=factors)
        newest = int(bank.created_order[0].argmax())
        assert gap(dense(bank.factors(newest)), dense(factors)) < 2e-5
    for pair in store_of(bank).basis(numbers(0)).values():
        for basis in pair:
            eye = torch.eye(9, dtype=torch.float32)
            torch.testing.assert_close(basis.mT @ basis, eye[None], rtol=0.0, atol=2e-6)


def test_options_that_cannot_be_are_refused() -> None:
    for options in ({"basis_rank": 0}, {"basis_rank": 2.0}, {"pseudo_rank": 4}, {"pseudo_rank": 0},
                    {"warm": 0}, {"tolerance": 1.5}, {"dtype": "float16"}):  # fmt: skip
        with pytest.raises(
            InvalidValueError, match=next(iter(options))[:5].replace("dtype", "float")
        ):
            bank_of("shared_basis", **options)
    with pytest.raises(UnknownNameError, match="'merge'"):
        bank_of("shared_basis", update="merg")
