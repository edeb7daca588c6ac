"""Recall from a large bank against one matrix-vector product over the same array.

Run as `python benchmarks/recall.py`. The two are timed in turn within one run, so that whatever
else the machine does meets both; the numbers are medians over the rounds.
"""

from __future__ import annotations

import json
import time

import numpy as np

from nsr_gym.bank import TaskKnowledgeBank


def run(
    *, entries: int = 100_000, dim: int = 512, top_n: int = 8, rounds: int = 31
) -> dict[str, float]:
    """Time both, alternating.

    Args:
        entries: entries in the bank.
        dim: dimension of their embeddings.
        top_n: how many entries a recall returns.
        rounds: timings of each.

    Returns:
        Median milliseconds of a recall and of the product, the median of the ratios of the pairs,
        and the bound that the ratio is to keep (1.5).
    """
    rng = np.random.default_rng(0)
    bank = TaskKnowledgeBank(embedding_dim=dim, capacity=entries)
    for row in rng.standard_normal((entries, dim), dtype=np.float32):
        bank.reserve(embedding=row)
    stored = bank.embedding[0, :entries]
    recall, product = [], []
    for _ in range(rounds):
        query = rng.standard_normal(dim, dtype=np.float32)
        start = time.perf_counter()
        stored @ query
        middle = time.perf_counter()
        bank.recall(query, top_n=top_n)
        product.append(middle - start)
        recall.append(time.perf_counter() - middle)
    ratios = np.asarray(recall) / np.asarray(product)
    return {
        "recall_ms": 1e3 * float(np.median(recall)),
        "matrix_vector_ms": 1e3 * float(np.median(product)),
        "ratio": float(np.median(ratios)),
        "ratio_bound": 1.5,
    }


def main() -> None:
    """Print the numbers as JSON."""
    print(json.dumps(run(), indent=2))


if __name__ == "__main__":
    main()
