from __future__ import annotations

import numpy as np
import pytest

from nsr_gym.bank import RETENTION_RULES, CountedFactors, TaskKnowledgeBank
from nsr_gym.errors import UnknownNameError

X = np.eye(8)


def wide(budget: int, retention: str = "lru") -> TaskKnowledgeBank:
    """A bank whose entry of rank r takes exactly 4 (15 + 15 + 1) r + 4 * 8 = 124 r + 32 bytes."""
    store = CountedFactors(sites={"fc": (15, 15)}, max_rank=15)
    return TaskKnowledgeBank(
        embedding_dim=8, capacity_bytes=budget, retention=retention, store=store
    )


def three(retention: str) -> TaskKnowledgeBank:
    """Three entries that every rule ranks differently.

    Slot 0 is created first, updated last and recalled once; slot 1 is never touched again and the
    most important; slot 2 is recalled twice before slot 0 is, and the least important.
    """
    bank = TaskKnowledgeBank(embedding_dim=8, capacity=3, retention=retention)
    for axis, importance in enumerate((0.5, 0.9, 0.1)):
        bank.reserve(embedding=X[axis], importance=importance)
        bank.tick()
    bank.mark_recalled(2)
    bank.mark_recalled(2)
    bank.replace(0, embedding=X[0], importance=0.5)
    bank.mark_recalled(0)
    return bank


@pytest.mark.parametrize(
    ("retention", "goes"),
    [("lru", 1), ("fifo", 0), ("lfu", 1), ("oldest-accuracy", 1), ("importance", 2)],
)
def test_the_rule_decides_which_entry_of_a_full_bank_goes(retention: str, goes: int) -> None:
    bank = three(retention)
    result = bank.reserve(embedding=X[5])
    assert result.slot == goes
    assert result.evicted == 1
    assert bank.entries.tolist() == [3]


def test_fifo_goes_by_creation_and_not_by_slot() -> None:
    bank = TaskKnowledgeBank(embedding_dim=8, capacity=3, retention="fifo")
    for axis in range(3):
        bank.reserve(embedding=X[axis])
    assert [int(bank.reserve(embedding=X[axis]).slot) for axis in (3, 4, 5, 6)] == [0, 1, 2, 0]
    bank.remove(1)
    assert bank.reserve(embedding=X[7]).slot == 1
    assert bank.reserve(embedding=X[7]).slot == 2


def test_oldest_accuracy_goes_by_writes_and_lru_by_use() -> None:
    for retention, goes in (("oldest-accuracy", 0), ("lru", 1)):
        bank = TaskKnowledgeBank(embedding_dim=8, capacity=2, retention=retention)
        bank.reserve(embedding=X[0])
        bank.reserve(embedding=X[1])
        bank.mark_recalled(0)
        assert bank.reserve(embedding=X[2]).slot == goes


def test_lfu_breaks_ties_by_least_recent_use() -> None:
    bank = TaskKnowledgeBank(embedding_dim=8, capacity=3, retention="lfu")
    for axis in range(3):
        bank.reserve(embedding=X[axis])
    for slot in (1, 0, 2):
        bank.mark_recalled(slot)
    assert bank.reserve(embedding=X[3]).slot == 1


def test_importance_is_the_accuracy_where_none_is_given() -> None:
    bank = TaskKnowledgeBank(embedding_dim=8, capacity=3, retention="importance")
    for axis, accuracy in enumerate((0.7, 0.3, 0.5)):
        bank.reserve(embedding=X[axis], accuracy=accuracy)
    assert bank.reserve(embedding=X[3], accuracy=0.9).slot == 1


def test_pin_refuses_additions_to_a_full_bank_and_changes_nothing() -> None:
    bank = three("pin")
    before = [bank.occupied.tolist(), bank.version.tolist(), bank.embedding.tolist()]
    result = bank.reserve(embedding=X[5])
    assert result.slot == -1
    assert result.evicted == 0
    assert [bank.occupied.tolist(), bank.version.tolist(), bank.embedding.tolist()] == before
    assert bank.replace(1, embedding=X[6]).slot == 1


@pytest.mark.parametrize("retention", sorted(RETENTION_RULES))
def test_a_byte_budget_is_met_by_evicting_until_the_newcomer_fits(retention: str) -> None:
    bank = wide(3 * 156, retention)
    for axis in range(6):
        bank.reserve(embedding=X[axis])
        assert bank.nbytes()[0] <= 3 * 156
    assert bank.entries.tolist() == [3]
    assert bool(bank.recall(X[0]).similarity[0] > 0.99) == (retention == "pin")


def test_one_large_entry_may_cost_several_small_ones() -> None:
    bank = wide(4 * 156)
    for axis in range(4):
        bank.reserve(embedding=X[axis], rank=1)
    result = bank.reserve(embedding=X[4], rank=3)  # 404 bytes: three of the four must go
    assert result.evicted == 3
    assert bank.entries.tolist() == [2]
    assert bank.nbytes().tolist() == [156 + 404]


def test_an_entry_above_the_whole_budget_is_refused_and_nothing_goes_for_it() -> None:
    bank = wide(300)
    bank.reserve(embedding=X[0], rank=1)
    result = bank.reserve(embedding=X[1], rank=5)
    assert [int(result.slot), int(result.evicted)] == [-1, 0]
    assert bank.entries.tolist() == [1]
    assert bank.replace(0, embedding=X[0], rank=5).slot == -1
    assert bank.rank[0, 0] == 1


def test_a_growing_update_evicts_others_and_never_itself() -> None:
    bank = wide(4 * 156)
    for axis in range(4):
        bank.reserve(embedding=X[axis], rank=1)
    result = bank.replace(0, embedding=X[0], rank=2)  # slot 0 is the least recently used one
    assert [int(result.slot), int(result.evicted)] == [0, 1]
    assert bank.occupied[0, :4].tolist() == [True, False, True, True]


def test_pin_refuses_an_update_that_has_no_room_to_grow() -> None:
    bank = wide(3 * 156, "pin")
    for axis in range(3):
        bank.reserve(embedding=X[axis], rank=1)
    result = bank.replace(1, embedding=X[6], rank=2)
    assert [int(result.slot), int(result.evicted)] == [-1, 0]
    assert bank.entries.tolist() == [3]
    assert bank.rank[0, :3].tolist() == [1, 1, 1]
    assert bank.recall(X[1]).similarity == pytest.approx([1.0])


def test_an_unknown_rule_is_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match=r"retention rule 'lri'.*'lru'"):
        TaskKnowledgeBank(embedding_dim=8, retention="lri")
