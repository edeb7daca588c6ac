"""Factored truncation of a low-rank update against the SVD of its dense product.

Run as `python benchmarks/truncation.py`. The two are timed within one run; the numbers are medians.
"""

from __future__ import annotations

import json
import time

import numpy as np
import torch

from nsr_gym import lowrank


def run(
    *, side: int = 768, rank: int = 8, keep: int = 4, rounds: int = 7, per_round: int = 50
) -> dict[str, float]:
    """Time both, alternating.

    Args:
        side: the update is side x side.
        rank: width of its factors.
        keep: rank it is cut down to.
        rounds: timings of the dense SVD.
        per_round: factored truncations for each of them.

    Returns:
        Median milliseconds of the factored truncation and of `torch.linalg.svd` of the dense
        product, their ratio, the bound that it is to keep (100), and the difference between the
        two approximations relative to the update's norm.
    """
    generator = torch.Generator().manual_seed(0)
    up = torch.randn(side, rank, generator=generator)
    down = torch.randn(rank, side, generator=generator)
    dense = up @ down
    factored_s, dense_s = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        u, s, vh = torch.linalg.svd(dense, full_matrices=False)
        dense_s.append(time.perf_counter() - start)
        for _ in range(per_round):
            start = time.perf_counter()
            cut = lowrank.truncate(up, down, rank=keep)
            factored_s.append(time.perf_counter() - start)
    best = (u[:, :keep] * s[:keep]) @ vh[:keep]
    difference = torch.linalg.matrix_norm(best - cut.up @ cut.down)
    return {
        "factored_ms": 1e3 * float(np.median(factored_s)),
        "dense_svd_ms": 1e3 * float(np.median(dense_s)),
        "ratio": float(np.median(dense_s) / np.median(factored_s)),
        "ratio_bound": 100.0,
        "relative_difference": float(difference / torch.linalg.matrix_norm(dense)),
    }


def main() -> None:
    """Print the numbers as JSON."""
    print(json.dumps(run(), indent=2))


if __name__ == "__main__":
    main()
