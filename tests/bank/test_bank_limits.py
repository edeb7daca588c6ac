"""Banks side by side may have limits of their own; each then acts as it would alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nsr_gym.bank import CountedFactors, TaskKnowledgeBank, load_bank, save_bank
from nsr_gym.bank.bank import NO_LIMIT
from nsr_gym.errors import InvalidValueError

CAPACITY = [2, -1, 0, 3]
BYTES = [-1, 700, -1, 450]


def make(n: int, **limits: Any) -> TaskKnowledgeBank:
    store = CountedFactors(sites={"a": (8, 8)}, max_rank=4)
    return TaskKnowledgeBank(embedding_dim=4, num_banks=n, store=store, tags=("task",), **limits)


def fill(bank: TaskKnowledgeBank, rows: list[int]) -> list[list[int]]:
    """Reserve and recall the same way in some banks; return slots and evictions of each."""
    rng, answers = np.random.default_rng(0), []
    for step in range(30):
        ranks = int(rng.integers(1, 5))
        embedding = np.tile(rng.standard_normal(4), (len(rows), 1))
        done = bank.reserve(embedding=embedding, rank=ranks, tags={"task": step}, rows=rows)
        answers.append([*done.slot.tolist(), *done.evicted.tolist()])
        held = [row for row in rows if bank.occupied[row].any()]
        if held and step % 3 == 0:
            hits = bank.recall(embedding[: len(held)], rows=held)
            bank.mark_recalled(hits.slot[:, 0], rows=held)
        if held and step % 4 == 1:
            slots = bank.recall(embedding[: len(held)], rows=held).slot[:, 0]
            bank.replace(slots, embedding=embedding[: len(held)], rank=5 - ranks, rows=held)
    return answers


def test_each_bank_keeps_to_its_own_limits_as_a_bank_alone_with_them() -> None:
    together = make(len(CAPACITY))
    together.limit(capacity=CAPACITY, capacity_bytes=BYTES)
    answers = np.array(fill(together, list(range(len(CAPACITY)))))
    for i, (capacity, size) in enumerate(zip(CAPACITY, BYTES, strict=True)):
        alone = make(
            1,
            capacity=None if capacity < 0 else capacity,
            capacity_bytes=None if size < 0 else size,
        )
        assert fill(alone, [0]) == answers[:, [i, i + len(CAPACITY)]].tolist()
        assert together.entries[i] == alone.entries[0]
        assert together.nbytes(rows=[i]) == alone.nbytes(rows=[0])
        assert capacity < 0 or together.entries[i] <= capacity
        assert size < 0 or together.nbytes(rows=[i])[0] <= size
    assert together.entries[1] > 0
    assert together.entries[2] == 0


def test_minus_one_takes_a_limit_away_and_none_leaves_it() -> None:
    bank = make(3, capacity=2, capacity_bytes=1000)
    bank.limit(rows=[1], capacity=-1)
    bank.limit(rows=[2], capacity_bytes=500)
    assert bank.capacities.tolist() == [2, NO_LIMIT, 2]
    assert bank.budgets.tolist() == [1000, 1000, 500]


@pytest.mark.parametrize("limits", [{"capacity": -2}, {"capacity_bytes": [1, 2, -3]}])
def test_limits_below_minus_one_are_refused_and_change_nothing(limits: dict[str, Any]) -> None:
    bank = make(3, capacity=2)
    with pytest.raises(InvalidValueError, match="-1 for no limit"):
        bank.limit(**limits)
    assert bank.capacities.tolist() == [2, 2, 2]


def test_a_file_keeps_the_limits_even_where_more_lies_in_the_bank(tmp_path: Path) -> None:
    bank = make(2)
    for value in range(20):
        bank.reserve(embedding=np.tile([1.0, value, 0.0, 0.0], (2, 1)), rank=1)
    bank.limit(rows=[0], capacity=3, capacity_bytes=10_000)
    save_bank(bank, tmp_path / "bank")
    again = load_bank(tmp_path / "bank")
    assert again.entries.tolist() == [20, 20]
    np.testing.assert_array_equal(again.capacities, bank.capacities)
    np.testing.assert_array_equal(again.budgets, bank.budgets)
    done = again.reserve(embedding=[[1.0, 0.0, 0.0, 1.0]], rank=1, rows=[0])
    assert (done.evicted[0], again.entries[0]) == (18, 3)


def test_sizes_of_the_same_bank_may_be_asked_for_more_than_once() -> None:
    bank = make(2)
    bank.reserve(embedding=[[1.0, 0.0, 0.0, 1.0]], rank=2, rows=[1])
    size = int(bank.nbytes(rows=[1])[0])
    assert bank.nbytes(rows=[1, 0, 1]).tolist() == [size, 0, size]
    assert bank.count(np.array([1, 0, 1])).tolist() == [1, 0, 1]
