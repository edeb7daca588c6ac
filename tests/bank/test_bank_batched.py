from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nsr_gym.bank import RETENTION_RULES, CountedFactors, TaskKnowledgeBank

E, D = 3, 5
ARRAYS = ("occupied", "embedding", "rank", "accuracy", "importance", "reserved_at", "used_at",
          "times_recalled", "created_order", "used_order", "version")  # fmt: skip

operations = st.lists(
    st.tuples(
        st.sampled_from(
            ["reserve", "reserve", "reserve", "replace", "recalled", "remove", "clear", "tick"]
        ),
        st.lists(st.integers(0, E - 1), min_size=1, max_size=E, unique=True),
        st.integers(0, 10_000),
    ),
    max_size=25,
)
limits = st.tuples(
    st.sampled_from([None, 0, 1, 3, 5]),
    st.sampled_from([None, 100, 400]),
    st.sampled_from(sorted(RETENTION_RULES)),
)


def make(limit: tuple[int | None, int | None, str], num_banks: int) -> TaskKnowledgeBank:
    return TaskKnowledgeBank(
        embedding_dim=D,
        capacity=limit[0],
        capacity_bytes=limit[1],
        retention=limit[2],
        num_banks=num_banks,
        store=CountedFactors(sites={"fc": (4, 4)}, max_rank=4),
        tags=("task",),
    )


def draw(seed: int, n: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "embedding": rng.normal(size=(n, D)),
        "rank": rng.integers(1, 5, size=n),
        "accuracy": rng.random(n),
        "tags": {"task": rng.integers(0, 9, size=n)},
    }


def held(bank: TaskKnowledgeBank, row: int) -> dict[str, Any]:
    """Everything of one bank that does not depend on how far its arrays have grown."""
    slots = np.flatnonzero(bank.occupied[row])
    content: dict[str, Any] = {n: getattr(bank, n)[row, slots].tolist() for n in ARRAYS}
    content |= {"slots": slots.tolist(), "task": bank.tags["task"][row, slots].tolist()}
    content |= {"clock": int(bank.clock[row]), "bytes": int(bank.nbytes()[row])}
    return content


def run(bank: TaskKnowledgeBank, name: str, rows: list[int], entry: dict[str, Any]) -> list[Any]:
    """One operation on some banks, where it is legal there; what came of it per bank."""
    if name in ("tick", "clear"):
        (bank.tick if name == "tick" else bank.clear)(rows=rows)
        return [None] * len(rows)
    if name == "reserve":
        result = bank.reserve(rows=rows, **entry)
        return list(zip(result.slot.tolist(), result.evicted.tolist(), strict=True))
    picks = [np.flatnonzero(bank.occupied[row]) for row in rows]
    slots = [int(p[r % len(p)]) for p, r in zip(picks, entry["rank"], strict=True)]
    if name == "replace":
        result = bank.replace(slots, rows=rows, **entry)
        return list(zip(result.slot.tolist(), result.evicted.tolist(), strict=True))
    (bank.mark_recalled if name == "recalled" else bank.remove)(slots, rows=rows)
    return slots


def only(entry: dict[str, Any], keep: list[int]) -> dict[str, Any]:
    return {
        k: {t: v[keep] for t, v in x.items()} if isinstance(x, dict) else x[keep]
        for k, x in entry.items()
    }


@settings(max_examples=60, deadline=None)
@given(limits, operations)
def test_banks_side_by_side_equal_single_banks_and_keep_their_limits(
    limit: tuple[int | None, int | None, str], steps: list[tuple[str, list[int], int]]
) -> None:
    many = make(limit, E)
    ones = [make(limit, 1) for _ in range(E)]
    for name, rows, seed in steps:
        entry = draw(seed, len(rows))
        if name not in ("reserve", "tick", "clear"):
            keep = [i for i, row in enumerate(rows) if many.occupied[row].any()]
            rows, entry = [rows[i] for i in keep], only(entry, keep)
        before = [held(many, row) for row in range(E)]
        results = run(many, name, rows, entry) if rows else []
        for i, row in enumerate(rows):
            assert run(ones[row], name, [0], only(entry, [i])) == [results[i]]
            if name in ("reserve", "replace") and results[i][0] < 0:
                assert held(many, row) == before[row]
                assert results[i][1] == 0
        for row in range(E):
            assert held(many, row) == held(ones[row], 0)
            assert row in rows or held(many, row) == before[row]
        assert limit[0] is None or (many.entries <= limit[0]).all()
        assert limit[1] is None or (many.nbytes() <= limit[1]).all()
        queries = draw(seed + 1, E)["embedding"]
        found = many.recall(queries, top_n=4)
        for row in range(E):
            one = ones[row].recall(queries[row], top_n=4)
            assert found.slot[row].tolist() == one.slot.tolist()
            assert found.valid[row].tolist() == one.valid.tolist()
            assert found.similarity[row].tolist() == one.similarity.tolist()
        kinds = many.bytes_by_kind()
        assert np.sum(list(kinds.values()), axis=0).tolist() == many.nbytes().tolist()


def test_similarities_are_bit_for_bit_those_of_a_single_bank_however_far_others_grew() -> None:
    rng = np.random.default_rng(0)
    for d in (3, 65, 100, 512):
        many = TaskKnowledgeBank(embedding_dim=d, num_banks=3)
        one = TaskKnowledgeBank(embedding_dim=d, capacity=7)
        for i in range(50):
            x = rng.normal(size=(3, d))
            many.reserve(embedding=x[:1], rows=[0])
            if i < 7:
                many.reserve(embedding=x[1:2], rows=[1])
                one.reserve(embedding=x[1])
        assert many.slots > one.slots
        queries = rng.normal(size=(3, d))
        alone = one.recall(queries[1], top_n=7)
        together = many.recall(queries, top_n=7)
        some = many.recall(queries[1:], top_n=7, rows=[1, 2])
        for answer in (together.similarity[1], some.similarity[0]):
            assert answer.tolist() == alone.similarity.tolist()
