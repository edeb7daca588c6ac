from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nsr_gym.bank import TaskKnowledgeBank
from nsr_gym.errors import DataError, InvalidValueError, StateError, UnknownNameError


def unit(dim: int, axis: int) -> NDArray[np.float32]:
    return np.asarray(np.eye(dim)[axis], dtype=np.float32)


def filled(count: int, **arguments: object) -> TaskKnowledgeBank:
    """A single bank with `count` entries along the axes of an eight-dimensional space."""
    bank = TaskKnowledgeBank(embedding_dim=8, **arguments)  # type: ignore[arg-type]
    for axis in range(count):
        bank.reserve(embedding=unit(8, axis), rank=1 + axis, accuracy=axis / 10)
    return bank


def state(bank: TaskKnowledgeBank) -> dict[str, object]:
    names = ("occupied", "embedding", "rank", "accuracy", "importance", "clock", "reserved_at",
             "used_at", "times_recalled", "created_order", "used_order", "version")  # fmt: skip
    return {n: getattr(bank, n).tolist() for n in names} | {"bytes": bank.nbytes().tolist()}


def test_an_entry_comes_back_with_what_was_reserved() -> None:
    bank = filled(3, capacity=4)
    found = bank.recall(3 * unit(8, 1), top_n=2)
    assert found.slot[0] == 1
    assert found.similarity[0] == pytest.approx(1.0)
    assert bank.rank[0, 1] == 2
    assert bank.accuracy[0, 1] == 0.1
    assert bank.entries.tolist() == [3]


def test_recall_is_sorted_by_cosine_with_ties_by_lower_slot() -> None:
    bank = TaskKnowledgeBank(embedding_dim=2, capacity=8)
    for x in ([0, 1], [1, 0], [5, 0], [1, 1], [1, 0]):
        bank.reserve(embedding=x)
    found = bank.recall([2, 0], top_n=5)
    assert found.slot.tolist() == [1, 2, 4, 3, 0]
    np.testing.assert_allclose(found.similarity, [1, 1, 1, 0.5**0.5, 0], atol=1e-6)


def test_recall_of_a_large_bank_equals_sorting_all_of_it() -> None:
    rng = np.random.default_rng(0)
    stored = rng.integers(-2, 3, size=(600, 3)) + np.array([0.5, 0.0, 0.0])
    bank = TaskKnowledgeBank(embedding_dim=3)
    for x in stored:
        bank.reserve(embedding=x)
    query = np.array([0.5, 1.0, -1.0])
    cosine = stored @ query / np.linalg.norm(stored, axis=1) / np.linalg.norm(query)
    found = bank.recall(query, top_n=40)
    np.testing.assert_allclose(found.similarity, np.sort(cosine)[::-1][:40], atol=1e-5)
    np.testing.assert_allclose(found.similarity, cosine[found.slot], atol=1e-5)
    assert len(set(found.slot.tolist())) == 40
    same = np.diff(found.similarity) == 0
    assert same.any()
    assert (np.diff(found.slot)[same] > 0).all()


def test_what_is_not_there_or_below_the_threshold_is_not_valid() -> None:
    found = filled(2, capacity=4).recall(unit(8, 0) + 0.1 * unit(8, 1), top_n=5, threshold=0.5)
    assert found.valid.tolist() == [True, False, False, False, False]
    assert found.slot.tolist() == [0, 1, -1, -1, -1]
    assert np.isfinite(found.similarity).all()


def test_recall_looks_past_holes_and_not_at_what_was_removed() -> None:
    bank = filled(6)
    query = np.arange(6, 14)[::-1]
    for slot in (1, 4, 5):
        bank.remove(slot)
    assert bank.recall(query, top_n=5).slot.tolist() == [0, 2, 3, -1, -1]
    bank.remove(0)
    assert bank.recall(query, top_n=2).slot.tolist() == [2, 3]
    bank.clear()
    found = bank.recall(query, top_n=2)
    assert found.slot.tolist() == [-1, -1]
    assert not found.valid.any()


def test_recall_does_not_count_as_use_and_mark_recalled_does() -> None:
    bank = filled(3, capacity=3)
    before = state(bank)
    bank.recall(unit(8, 0), top_n=3)
    assert state(bank) == before
    bank.tick()
    bank.mark_recalled(0)
    assert bank.times_recalled.tolist() == [[1, 0, 0]]
    assert bank.used_at[0].tolist() == [1, 0, 0]
    assert (bank.clock[:, None] - bank.reserved_at).tolist() == [[1, 1, 1]]
    assert bank.version.tolist() == np.asarray(before["version"]).tolist()


def test_replace_writes_anew_in_place_and_keeps_the_counters_of_recalls() -> None:
    bank = filled(2, capacity=2)
    bank.mark_recalled(0)
    bank.tick()
    old = bank.version[0].tolist(), bank.created_order[0].tolist()
    assert bank.replace(0, embedding=unit(8, 7), rank=5, accuracy=0.9).slot == 0
    assert bank.rank[0, 0] == 5
    assert bank.times_recalled[0, 0] == 1
    assert bank.reserved_at[0].tolist() == [1, 0]
    assert bank.version[0, 0] > max(old[0])
    assert bank.version[0, 1] == old[0][1]
    assert bank.created_order[0].tolist() == old[1]
    assert bank.recall(unit(8, 7)).slot[0] == 0


def test_versions_tell_every_write_apart() -> None:
    bank = filled(4, capacity=2)
    seen = set(bank.version[0].tolist())
    for axis in range(6):
        slot = int(bank.reserve(embedding=unit(8, axis)).slot)
        assert int(bank.version[0, slot]) not in seen
        seen.add(int(bank.version[0, slot]))


def test_removed_and_cleared_entries_are_gone() -> None:
    bank = filled(3, capacity=4)
    bank.remove(1)
    assert bank.entries.tolist() == [2]
    assert bank.recall(unit(8, 1), top_n=3).slot.tolist() == [0, 2, -1]
    assert bank.reserve(embedding=unit(8, 1)).slot == 1
    bank.clear()
    assert bank.entries.tolist() == [0]
    assert bank.nbytes().tolist() == [0]
    assert not bank.recall(unit(8, 0)).valid.any()


def test_a_slot_used_again_starts_with_fresh_counters_and_tags() -> None:
    bank = TaskKnowledgeBank(embedding_dim=8, capacity=1, tags=("task",))
    bank.reserve(embedding=unit(8, 0), tags={"task": 5})
    bank.mark_recalled(0)
    bank.replace(0, embedding=unit(8, 1))
    assert (bank.tags["task"][0, 0], bank.times_recalled[0, 0]) == (5, 1)
    bank.reserve(embedding=unit(8, 2))
    assert (bank.tags["task"][0, 0], bank.times_recalled[0, 0]) == (0, 0)


def test_capacity_zero_refuses_everything() -> None:
    bank = TaskKnowledgeBank(embedding_dim=4, capacity=0, num_banks=2)
    result = bank.reserve(embedding=np.ones((2, 4)))
    assert result.slot.tolist() == [-1, -1]
    assert result.evicted.tolist() == [0, 0]
    found = bank.recall(np.ones((2, 4)), top_n=3)
    assert not found.valid.any()
    assert found.slot.tolist() == [[-1] * 3] * 2
    assert bank.entries.tolist() == [0, 0]


def test_a_bank_without_limit_grows() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(100, 4))
    bank = TaskKnowledgeBank(embedding_dim=4, capacity=None, tags=("task",))
    for i, row in enumerate(x):
        assert bank.reserve(embedding=row, tags={"task": i}).slot == i
    assert bank.entries.tolist() == [100]
    assert [int(bank.recall(row).slot[0]) for row in x] == list(range(100))
    assert bank.tags["task"][0, :100].tolist() == list(range(100))


def test_banks_side_by_side_do_not_touch_each_other() -> None:
    bank = TaskKnowledgeBank(embedding_dim=2, capacity=2, num_banks=3)
    bank.reserve(embedding=[[1, 0], [0, 1]], rows=[2, 0])
    bank.tick(rows=[1])
    assert bank.entries.tolist() == [1, 0, 1]
    assert bank.clock.tolist() == [0, 1, 0]
    found = bank.recall([[1, 0]] * 3)
    assert found.valid[:, 0].tolist() == [True, False, True]
    np.testing.assert_allclose(found.similarity[[0, 2], 0], [0, 1])


@pytest.mark.parametrize(
    "embedding", [[0.0] * 8, [np.nan] + [1.0] * 7, [np.inf] + [1.0] * 7, [1e300] * 8]
)
def test_an_embedding_without_direction_is_refused_and_changes_nothing(
    embedding: list[float],
) -> None:
    bank = filled(2, capacity=4)
    before = state(bank)
    for call in (
        lambda: bank.reserve(embedding=embedding),
        lambda: bank.replace(0, embedding=embedding),
        lambda: bank.recall(embedding),
    ):
        with pytest.raises(DataError, match="zero or not finite"):
            call()
    assert state(bank) == before


@pytest.mark.parametrize("size", [1e-150, 1e-40, 1e-22, 1e22, 1e30, 1e150])
def test_embeddings_of_any_length_become_unit_vectors(size: float) -> None:
    bank = TaskKnowledgeBank(embedding_dim=3)
    bank.reserve(embedding=size * np.array([3.0, 0.0, 4.0]))
    np.testing.assert_allclose(bank.embedding[0, 0], [0.6, 0.0, 0.8], rtol=1e-6)
    assert bank.recall(size * np.array([3.0, 0.0, 4.0])).similarity == pytest.approx([1.0])


def test_a_call_on_no_bank_does_nothing() -> None:
    bank = filled(2, capacity=2)
    before = state(bank)
    none = np.zeros((0, 8))
    assert bank.reserve(embedding=none, rows=[]).slot.shape == (0,)
    assert bank.replace([], embedding=none, rows=[]).slot.shape == (0,)
    assert bank.recall(none, top_n=3, rows=[]).slot.shape == (0, 3)
    bank.mark_recalled([], rows=[])
    bank.remove([], rows=[])
    bank.clear(rows=[])
    bank.tick(rows=[])
    assert bank.nbytes(rows=[]).shape == (0,)
    assert state(bank) == before


def test_bad_calls_are_refused_and_change_nothing() -> None:
    bank = filled(2, capacity=4, tags=("task",))
    before = state(bank)
    x = unit(8, 0)
    with pytest.raises(InvalidValueError, match=r"shape \(1, 8\)"):
        bank.reserve(embedding=np.ones(7))
    with pytest.raises(InvalidValueError, match="ranks"):
        bank.reserve(embedding=x, rank=0)
    with pytest.raises(InvalidValueError, match="whole numbers"):
        bank.reserve(embedding=x, rank=1.5)
    with pytest.raises(DataError, match="accuracy to be finite"):
        bank.reserve(embedding=x, accuracy=np.nan)
    with pytest.raises(UnknownNameError, match="'task'"):
        bank.reserve(embedding=x, tags={"tsk": 1})
    with pytest.raises(InvalidValueError, match="embeddings as numbers"):
        bank.reserve(embedding=["1"] * 8)
    payloads: list[dict[str, Any]] = [{"factors": {}}, {"singular_values": 1}, {"head": 1}]
    for payload in payloads:
        with pytest.raises(InvalidValueError, match="keeps no factors"):
            bank.reserve(embedding=x, **payload)
    with pytest.raises(StateError, match="keeps no factors"):
        bank.factors(0)
    for slot in (2, -1, 9):
        with pytest.raises(InvalidValueError, match="slots that hold an entry"):
            bank.mark_recalled(slot)
    for rows in ([1], [-1], [0.0]):
        with pytest.raises(InvalidValueError, match="bank numbers"):
            bank.tick(rows=rows)
    with pytest.raises(InvalidValueError, match="distinct"):
        bank.tick(rows=[0, 0])
    for top_n in (0, 1.0, True):
        with pytest.raises(InvalidValueError, match="top_n"):
            bank.recall(x, top_n=top_n)  # type: ignore[arg-type]
    assert state(bank) == before


@pytest.mark.parametrize(
    ("argument", "value"),
    [("capacity", -1), ("capacity", 1.5), ("capacity_bytes", -1), ("embedding_dim", 0),
     ("num_banks", 0), ("capacity", True)],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(argument: str, value: object) -> None:
    with pytest.raises(InvalidValueError, match=argument):
        TaskKnowledgeBank(**({"embedding_dim": 4} | {argument: value}))  # type: ignore[arg-type]


def test_a_bank_of_numbers_needs_no_torch() -> None:
    code = (
        "import sys; from nsr_gym.bank import TaskKnowledgeBank, CountedFactors;"
        "b = TaskKnowledgeBank(embedding_dim=2, capacity=2,"
        " store=CountedFactors(sites={'fc': (4, 4)}, max_rank=2));"
        "b.reserve(embedding=[1, 0]); b.recall([1, 0]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
