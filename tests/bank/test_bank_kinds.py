"""Every kind of bank: made by name, saved and loaded, like a dict, beside others, in its budget."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank_samples import RANK, SITES, adapter, bank_of, dense, fill, gap
from hypothesis import given, settings
from hypothesis import strategies as st

from nsr_gym.bank import BANKS, PerEntryFactors, TaskKnowledgeBank, load_bank, make_store, save_bank
from nsr_gym.errors import InvalidValueError, UnknownNameError

AXES = np.eye(4)
CAPACITY = 4
OPTIONS: dict[str, dict[str, Any]] = {
    "per_task": {},
    "shared_basis": {"basis_rank": CAPACITY * RANK},
    "flattened_basis": {"basis_rank": CAPACITY},
    "meta": {"summary_rank": 2},
    "additive": {},
}
"""With these nothing is lost while at most `CAPACITY` entries are held."""
LOSSY: dict[str, dict[str, Any]] = {
    "shared_basis": {"basis_rank": 4, "pseudo_rank": 2, "update": "residual", "tolerance": 0.3},
    "flattened_basis": {"basis_rank": 2, "update": "project", "warm": 3},
    "meta": {"summary_rank": 1},
}


def test_every_bank_is_made_by_its_name_and_covered_here() -> None:
    assert set(OPTIONS) == set(BANKS)
    for name, bank in BANKS.items():
        store = make_store(name, sites=SITES, max_rank=RANK, device="cpu")
        assert store.kind == bank.kind
        assert store.max_rank == RANK
        assert bank.summary
    assert isinstance(make_store("per_task", sites=SITES, max_rank=1), PerEntryFactors)


def test_unknown_banks_and_options_are_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match=r"no bank 'share_basis'.*'shared_basis'"):
        make_store("share_basis", sites=SITES, max_rank=RANK)
    with pytest.raises(
        UnknownNameError, match=r"option of bank 'meta': 'sumary_rank'.*'summary_rank'"
    ):
        make_store("meta", sites=SITES, max_rank=RANK, sumary_rank=2)
    with pytest.raises(UnknownNameError, match="basis_rank"):
        make_store("per_task", sites=SITES, max_rank=RANK, basis_rank=2)
    with pytest.raises(InvalidValueError, match="summary_rank is a whole number of at least 1 and"):
        make_store("meta", sites=SITES, max_rank=RANK, summary_rank=RANK + 1)


def test_the_names_of_the_banks_need_no_torch() -> None:
    code = "import sys; from nsr_gym.bank import BANKS; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def contents(bank: TaskKnowledgeBank) -> list[torch.Tensor]:
    """All that can be read of a bank's payload, in order."""
    rows, slots = np.nonzero(bank.occupied)
    store: Any = bank.store
    parts = [part for pair in bank.factors(slots, rows=rows).values() for part in pair]
    parts += list(bank.delta().values())
    every = np.arange(bank.num_banks)
    for name in ("basis", "summary"):
        found = getattr(store, name)(every) if hasattr(store, name) else {}
        pairs = [(found,)] if isinstance(found, torch.Tensor) else found.values()
        parts += [part for pair in pairs for part in pair]
    parts.append(store.read_singular_values(rows, slots))
    if hasattr(store, "tail_energy"):
        parts.append(torch.from_numpy(store.tail_energy(every)))
    if store.head_shape:
        parts += list(store.read_head(rows, slots))
    return parts


@pytest.mark.parametrize(
    ("name", "options"),
    [*OPTIONS.items(), *LOSSY.items()],
    ids=[*OPTIONS, *(f"{name}-lossy" for name in LOSSY)],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_saved_bank_comes_back_bit_for_bit_and_goes_on_alike(
    tmp_path: Path, name: str, options: dict[str, Any], dtype: str
) -> None:
    bank = bank_of(name, 2, dtype=dtype, capacity=CAPACITY, head=(2, 3), **options)
    g = torch.Generator().manual_seed(3)

    def head() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(2, 2, 3, generator=g), torch.randn(2, 2, generator=g)

    for seed in range(6):
        bank.reserve(
            embedding=AXES[[seed % 4] * 2], rank=[3, 1], factors=adapter(seed, 2), head=head()
        )
    bank.remove([1], rows=[1])
    save_bank(bank, tmp_path / "bank")
    back = load_bank(tmp_path / "bank")
    assert type(back.store) is type(bank.store)
    assert back.store is not None
    assert bank.store is not None
    assert back.store.config() == bank.store.config()
    assert back.nbytes().tolist() == bank.nbytes().tolist()
    payload = head()
    for step in range(3):
        ours, theirs = contents(bank), contents(back)
        assert len(ours) == len(theirs)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        for b in (bank, back):
            b.reserve(embedding=AXES[:2], rank=[2, 3], factors=adapter(20 + step, 2), head=payload)


operations = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "reserve", "reserve", "replace", "remove", "clear"]),
        st.lists(st.integers(0, 1), min_size=1, max_size=2, unique=True),
        st.integers(0, 10_000),
    ),
    max_size=12,
)


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=15, deadline=None)
@given(steps=operations)
def test_a_bank_that_loses_nothing_answers_like_a_dict(
    name: str, steps: list[tuple[str, list[int], int]]
) -> None:
    bank = bank_of(name, 2, capacity=CAPACITY, **OPTIONS[name])
    model: list[dict[int, dict[str, torch.Tensor]]] = [{}, {}]
    for call, rows, seed in steps:
        if call == "clear":
            bank.clear(rows=rows)
            for row in rows:
                model[row].clear()
            continue
        held = {row: sorted(model[row]) for row in rows}
        if call != "reserve":
            rows = [row for row in rows if held[row]]
        if not rows:
            continue
        slots = np.array([held[r][seed % len(held[r])] if held[r] else -1 for r in rows])
        if call == "remove":
            bank.remove(slots, rows=rows)
            for row, slot in zip(rows, slots.tolist(), strict=True):
                del model[row][slot]
            continue
        rank = 1 + seed % RANK
        entry: dict[str, Any] = {
            "embedding": AXES[[seed % 4] * len(rows)],
            "rank": rank,
            "factors": adapter(seed, len(rows), rank),
        }
        if call == "reserve":
            slots = bank.reserve(rows=rows, **entry).slot
        else:
            bank.replace(slots, rows=rows, **entry)
        for i, (row, slot) in enumerate(zip(rows, slots.tolist(), strict=True)):
            model[row][slot] = {n: u[i] for n, u in dense(entry["factors"]).items()}
    for row in range(2):
        assert np.flatnonzero(bank.occupied[row]).tolist() == sorted(model[row])
        total = {site: torch.zeros(size, dtype=torch.float64) for site, size in SITES.items()}
        for slot, expected in model[row].items():
            assert gap(dense(bank.factors([slot], rows=[row])), expected) <= 1e-9
            total = {site: part + expected[site] for site, part in total.items()}
        got = bank.delta(rows=[row])
        assert all(torch.allclose(got[site][0], part, atol=1e-8) for site, part in total.items())
        assert (bank.nbytes(rows=[row]) > 0).all() == bool(model[row])


@pytest.mark.parametrize(
    ("name", "options"),
    [*OPTIONS.items(), *LOSSY.items()],
    ids=[*OPTIONS, *(f"{name}-lossy" for name in LOSSY)],
)
def test_a_bank_among_others_holds_what_it_would_hold_alone(
    name: str, options: dict[str, Any]
) -> None:
    many = bank_of(name, 3, **options)
    alone = bank_of(name, 1, **options)
    for seed in range(5):
        made = adapter(seed, 3)
        only = {n: (up[1:2], down[1:2]) for n, (up, down) in made.items()}
        many.reserve(embedding=AXES[:3], rank=RANK, factors=made)
        alone.reserve(embedding=AXES[0], rank=RANK, factors=only)
    for seed in range(20):  # the first bank goes on, and all of them grow
        many.reserve(embedding=AXES[:1], rows=[0], rank=RANK, factors=adapter(70 + seed))
    assert many.slots > alone.slots
    for slot in range(5):
        together = dense(many.factors([slot], rows=[1]))
        assert gap(together, dense(alone.factors([slot]))) <= 1e-10
    assert many.nbytes(rows=[1]).tolist() == alone.nbytes().tolist()


def sizes(name: str, options: dict[str, Any], rank: int = 1) -> tuple[int, int]:
    """Bytes of a bank's first entry and of every further one."""
    bank, seen = bank_of(name, **options), [0]
    for seed in range(2):
        bank.reserve(embedding=AXES[seed], rank=rank, factors=adapter(seed, rank=rank))
        seen.append(int(bank.nbytes()[0]))
    return seen[1], seen[2] - seen[1]


@pytest.mark.parametrize("name", ["shared_basis", "flattened_basis", "meta"])
def test_the_first_entry_pays_for_what_all_share_and_is_refused_where_that_has_no_room(
    name: str,
) -> None:
    first, further = sizes(name, OPTIONS[name])
    assert first > 2 * further or name == "meta"
    assert first > further
    short = bank_of(name, capacity_bytes=first - 1, **OPTIONS[name])
    done = short.reserve(embedding=AXES[0], factors=adapter(0, rank=1))
    assert (done.slot, done.evicted, short.nbytes()[0]) == (-1, 0, 0)
    exact = bank_of(name, capacity_bytes=first, **OPTIONS[name])
    assert exact.reserve(embedding=AXES[0], factors=adapter(0, rank=1)).slot == 0
    done = exact.reserve(embedding=AXES[1], factors=adapter(1, rank=1))  # takes the other's place
    assert (done.slot, done.evicted, exact.nbytes()[0]) == (0, 1, first)
    two = bank_of(name, capacity_bytes=first + further, **OPTIONS[name])
    fill(two, 2, rank=1)
    assert two.entries.tolist() == [2]


@pytest.mark.parametrize("retention", ["lru", "pin"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_bank_never_ends_above_its_byte_budget(name: str, retention: str) -> None:
    first, further = sizes(name, OPTIONS[name])
    budget = first + 3 * further
    bank = bank_of(name, 2, retention=retention, **OPTIONS[name])
    bank.limit(capacity_bytes=[budget, first])
    rng, refused, evicted = np.random.default_rng(1), 0, 0
    for seed in range(25):
        rank = rng.integers(1, RANK + 1, size=2)
        entry: dict[str, Any] = {"embedding": AXES[:2], "rank": rank, "factors": adapter(seed, 2)}
        before = bank.nbytes()
        if seed % 3 == 2 and bank.occupied.any(axis=1).all():
            done = bank.replace(bank.occupied.argmax(axis=1), **entry)
        else:
            done = bank.reserve(**entry)
        kinds = bank.bytes_by_kind()
        assert bank.nbytes().tolist() == np.sum(list(kinds.values()), axis=0).tolist()
        assert bank.nbytes()[0] <= budget
        assert bank.nbytes()[1] <= first
        lost = done.slot < 0
        assert not done.evicted[lost].any()  # nothing goes for what is refused
        assert (bank.nbytes()[lost] == before[lost]).all()
        refused, evicted = refused + int(lost.sum()), evicted + int(done.evicted.sum())
    assert refused > 0 or name == "flattened_basis"
    assert evicted > 0 or retention == "pin"


def test_a_call_on_no_bank_stores_nothing_in_any_kind() -> None:
    for name, options in OPTIONS.items():
        bank = bank_of(name, 2, **options)
        bank.reserve(embedding=np.zeros((0, 4)), rows=[], factors=adapter(0, 0, 2))
        bank.remove([], rows=[])
        bank.clear(rows=[])
        assert bank.entries.tolist() == [0, 0]
        fill(bank, 2)
        assert bank.factors([], rows=[])["fc1"][0].shape == (0, 20, RANK)
        assert bank.delta(np.zeros((0, bank.slots)), rows=[])["fc2"].shape == (0, 9, 20)


@pytest.mark.parametrize("name", OPTIONS)
def test_directions_beyond_an_entrys_rank_are_of_no_effect_whatever_they_hold(name: str) -> None:
    bank, made = bank_of(name, **OPTIONS[name]), adapter(8)
    expected = {n: up[..., :2] @ down[:, :2] for n, (up, down) in made.items()}
    for up, down in made.values():
        up[..., 2], down[:, 2] = float("nan"), 1.0
    bank.reserve(embedding=AXES[0], rank=2, factors=made)
    assert gap(dense(bank.factors(0)), expected) <= 1e-10
    assert gap(bank.delta(), expected) <= 1e-10


@pytest.mark.parametrize("name", OPTIONS)
def test_factors_that_are_not_finite_change_nothing_in_any_kind(name: str) -> None:
    bank = bank_of(name, **OPTIONS[name])
    fill(bank, 2)
    before, version = contents(bank), bank.version.tolist()
    bad = adapter(5)
    bad["fc2"][1][0, 0, 0] = float("nan")
    with pytest.raises(InvalidValueError, match="NaN"):
        bank.reserve(embedding=AXES[0], rank=RANK, factors=bad)
    assert bank.version.tolist() == version
    assert all(torch.equal(a, b) for a, b in zip(before, contents(bank), strict=True))
