from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from nsr_gym import lowrank
from nsr_gym.bank import CountedFactors, PerEntryFactors, TaskKnowledgeBank
from nsr_gym.errors import InvalidValueError, StateError, UnknownNameError

SITES = {"fc1": (6, 4), "fc2": (3, 6)}


def adapter(seed: int, n: int, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(n, a, rank, generator=g), torch.randn(n, rank, b, generator=g))
        for name, (a, b) in SITES.items()
    }


def bank_of(num_banks: int = 1, **arguments: object) -> TaskKnowledgeBank:
    store = PerEntryFactors(sites=SITES, max_rank=3, **arguments)  # type: ignore[arg-type]
    return TaskKnowledgeBank(embedding_dim=4, capacity=4, num_banks=num_banks, store=store)


def test_factors_come_back_padded_and_cut_at_each_entrys_own_rank() -> None:
    bank, factors = bank_of(num_banks=3), adapter(0, 3, 2)
    rank = np.array([1, 2, 2])
    slot = bank.reserve(embedding=np.eye(3, 4), rank=rank, factors=factors).slot
    back = bank.factors(slot)
    for name, (up, down) in factors.items():
        assert back[name][0].shape == (3, SITES[name][0], 3)
        for i, r in enumerate(rank):
            assert torch.equal(back[name][0][i, :, :r], up[i, :, :r])
            assert torch.equal(back[name][1][i, :r], down[i, :r])
            assert not back[name][0][i, :, r:].any()
            assert not back[name][1][i, r:].any()


def test_only_accepted_entries_are_written_and_neighbours_stay() -> None:
    bank, first, second = bank_of(num_banks=2), adapter(1, 2, 3), adapter(2, 1, 3)
    bank.reserve(embedding=np.eye(2, 4), rank=3, factors=first)
    bank.replace([0], embedding=np.eye(1, 4), rank=3, factors=second, rows=[1])
    back = bank.factors([0, 0])
    for name in SITES:
        assert torch.equal(back[name][0][0], first[name][0][0])
        assert torch.equal(back[name][0][1], second[name][0][0])
    back["fc1"][0].zero_()  # what was read is a copy
    assert bank.factors([0, 0])["fc1"][0].any()


def test_a_truncated_adapter_is_stored_without_loss_and_with_its_singular_values() -> None:
    bank = bank_of()
    cut = lowrank.truncate_sites(adapter(3, 1, 3), rank=2)
    slot = bank.reserve(embedding=[1, 0, 0, 0], rank=2, factors=cut.factors).slot
    back = bank.factors(slot)
    assert all(torch.equal(back[n][0], cut.factors[n][0]) for n in SITES)
    assert isinstance(bank.store, PerEntryFactors)
    values = bank.store.read_singular_values(np.array([0]), np.array([0]))
    torch.testing.assert_close(values, torch.stack(list(cut.singular_values.values()), 1))


def test_heads_are_kept_where_the_store_has_room_for_them() -> None:
    bank = bank_of(head=(5, 3))
    head = (torch.randn(5, 3), torch.randn(5))
    x, factors = [1, 0, 0, 0], adapter(4, 1, 1)
    with pytest.raises(InvalidValueError, match="head="):
        bank.reserve(embedding=x, factors=factors)
    bank.reserve(embedding=x, factors=factors, head=head)
    assert isinstance(bank.store, PerEntryFactors)
    weight, bias = bank.store.read_head(np.array([0]), np.array([0]))
    assert torch.equal(weight[0], head[0])
    assert torch.equal(bias[0], head[1])
    assert bank.bytes_by_kind()["head"].tolist() == [4 * (5 * 3 + 5)]
    with pytest.raises(InvalidValueError, match="keeps no heads"):
        bank_of().reserve(embedding=x, factors=factors, head=head)


@pytest.mark.parametrize("kind", [CountedFactors, PerEntryFactors])
def test_vit_b16_query_and_value_at_rank_2_take_the_bytes_of_the_paper(
    kind: type[CountedFactors],
) -> None:
    # 24 sites of 768 x 768 at rank 2: 24 * 2 * (768 + 768) = 73,728 numbers of 4 bytes.
    sites = {f"blocks.{i}.{p}": (768, 768) for i in range(12) for p in "qv"}
    store = kind(sites=sites, max_rank=2)
    kinds = store.entry_bytes(np.array([2]))
    assert kinds["factors"].tolist() == [294_912]
    assert kinds["singular_values"].tolist() == [192]
    if kind is CountedFactors:
        bank = TaskKnowledgeBank(embedding_dim=768, capacity=2, store=store)
        bank.reserve(embedding=np.ones(768), rank=2)
        by_kind = {k: int(v[0]) for k, v in bank.bytes_by_kind().items()}
        assert by_kind == {
            "factors": 294_912, "singular_values": 192, "head": 0, "embedding": 3_072,
        }  # fmt: skip
        assert bank.nbytes().tolist() == [sum(by_kind.values())]


def test_bytes_go_by_an_entrys_own_rank_and_type_and_not_by_the_padding() -> None:
    for dtype, item in (("float16", 2), ("float32", 4), ("float64", 8)):
        bank = bank_of(dtype=dtype)
        for axis, rank in enumerate((1, 3)):
            bank.reserve(embedding=np.eye(4)[axis], rank=rank, factors=adapter(5, 1, 3))
        kinds = bank.bytes_by_kind()
        assert kinds["factors"].tolist() == [(1 + 3) * (6 + 4 + 3 + 6) * item]
        assert kinds["singular_values"].tolist() == [(1 + 3) * 2 * item]
        assert kinds["embedding"].tolist() == [2 * 4 * 4]


def test_payloads_that_do_not_fit_are_refused_and_change_nothing() -> None:
    bank, good = bank_of(), adapter(6, 1, 2)
    x = [1, 0, 0, 0]
    bank.reserve(embedding=x, rank=2, factors=good)
    version = bank.version.tolist()
    bad = {
        "cover the sites": {"fc1": good["fc1"]},
        "takes up": {**good, "fc2": good["fc1"]},
        "r at most 3": adapter(0, 1, 4),
        "less than rank 2": adapter(0, 1, 1),
        "NaN": {**good, "fc1": (good["fc1"][0] * float("nan"), good["fc1"][1])},
    }
    for message, factors in bad.items():
        for call in (bank.reserve, lambda **entry: bank.replace(0, **entry)):
            with pytest.raises(InvalidValueError, match=message):
                call(embedding=x, rank=2, factors=factors)
    with pytest.raises(InvalidValueError, match="cover the sites"):
        bank.reserve(embedding=x)
    with pytest.raises(InvalidValueError, match="ranks between 1 and 3"):
        bank.reserve(embedding=x, rank=4, factors=good)
    with pytest.raises(InvalidValueError, match="singular_values has shape"):
        bank.reserve(embedding=x, rank=2, factors=good, singular_values=torch.ones(1, 3, 2))
    assert bank.version.tolist() == version
    assert torch.equal(bank.factors(0)["fc1"][0][..., :2], good["fc1"][0])


def test_a_head_that_is_not_finite_is_refused() -> None:
    bank = bank_of(head=(5, 3))
    head = (torch.zeros(5, 3), torch.full((5,), float("inf")))
    with pytest.raises(InvalidValueError, match="NaN or infinite"):
        bank.reserve(embedding=[1, 0, 0, 0], factors=adapter(4, 1, 1), head=head)
    assert bank.entries.tolist() == [0]


def test_factors_stay_where_they_are_when_a_bank_grows() -> None:
    store = PerEntryFactors(sites=SITES, max_rank=3)
    bank = TaskKnowledgeBank(embedding_dim=4, num_banks=2, store=store)
    kept = [adapter(seed, 2, 3) for seed in range(40)]
    for factors in kept:
        bank.reserve(embedding=np.eye(2, 4), rank=3, factors=factors)
    for i, factors in enumerate(kept):
        back = bank.factors([i, i])
        assert all(torch.equal(back[n][j], factors[n][j]) for n in SITES for j in (0, 1))


def test_a_reserve_on_no_bank_stores_nothing() -> None:
    bank = bank_of()
    slot = bank.reserve(embedding=np.zeros((0, 4)), rows=[], factors=adapter(0, 0, 2)).slot
    assert slot.shape == (0,)
    assert bank.entries.tolist() == [0]


def test_a_counting_store_takes_and_gives_no_factors() -> None:
    store = CountedFactors(sites=SITES, max_rank=3)
    bank = TaskKnowledgeBank(embedding_dim=4, capacity=2, store=store)
    bank.reserve(embedding=[1, 0, 0, 0], rank=2)
    with pytest.raises(StateError, match="holds no factors"):
        bank.factors(0)
    with pytest.raises(InvalidValueError, match="holds no factors"):
        bank.reserve(embedding=[1, 0, 0, 0], factors=adapter(0, 1, 1))


def test_layouts_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="at least one site"):
        CountedFactors(sites={}, max_rank=1)
    with pytest.raises(InvalidValueError, match="at least 1"):
        CountedFactors(sites={"fc": (0, 3)}, max_rank=1)
    for rank in (0, 4):
        with pytest.raises(InvalidValueError, match="between 1 and 3"):
            CountedFactors(sites=SITES, max_rank=rank)
    with pytest.raises(UnknownNameError, match="factor type"):
        CountedFactors(sites=SITES, max_rank=1, dtype="int8")
