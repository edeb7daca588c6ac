"""Live visits: episodes in one batch against the same visits one at a time with PEFT.

Run as `python -m benchmarks.visits` with the extra `peft`. Both sides do the same visits: the
digits backbone, rank 8, L = 15 learning steps of u = 3 updates of 32 images, Adam, distillation
towards the recalled adapter, accuracy on 200 test images before the first and after every
learning step; the accuracies are compared. Everything is timed in turn within one run, so that
whatever else the machine does meets all sides, and reported as medians over the rounds.

PEFT gets what is best for it (`benchmarks.peft_visits`): whether it measures accuracy with merged
adapters and how many threads it uses is decided by timing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peft_visits import PeftVisits
from nsr_gym.backbones.base import Site
from nsr_gym.backbones.pretrain import digits_backbone
from nsr_gym.datasets.digits import digits_pool
from nsr_gym.learning.adapters import Adapters
from nsr_gym.learning.data import TaskData
from nsr_gym.learning.learner import LearnerConfig, LoRALearner
from nsr_gym.learning.visit import Visit

RANK = 8
GEMM_SIDES = (256, 512, 1024, 2048)
TOLERANCE = 0.02
"""Accuracies may differ by 4 of 200 images: rounding differs, and 45 updates let it grow."""


@dataclass(frozen=True, kw_only=True)
class Visits:
    """Visits of n episodes that return to a task: task, start and minibatches of each."""

    learner: LoRALearner
    data: TaskData
    tasks: Tensor
    start: Adapters
    batches: Tensor

    @classmethod
    def draw(cls, n: int, seed: int = 0) -> Visits:
        """Let n episodes learn a task each from fresh directions; its return is the visit."""
        backbone, config = digits_backbone(), LearnerConfig()
        learner, rng = LoRALearner(backbone, config), torch.Generator().manual_seed(seed)
        data = TaskData(digits_pool(size=64), backbone)
        tasks = torch.arange(n) % len(data.pool)
        shape = (2, n, config.learning_steps, config.updates, config.batch_size)
        first, batches = torch.randint(int(data.train_sizes.min()), shape, generator=rng)
        fresh = Adapters.zeros(backbone.sites, n, RANK)
        for _, down in fresh.factors.values():
            down.copy_(torch.randn(down.shape, generator=rng) * 2.0 / down.shape[-1] ** 0.5)
        start, _ = learner.learn(data, Visit(tasks=tasks, start=fresh, batches=first))
        return cls(learner=learner, data=data, tasks=tasks, start=start, batches=batches)

    def __len__(self) -> int:
        return len(self.tasks)

    def learn(self) -> Tensor:
        """Do all visits in one batch; return the accuracies (n, L + 1)."""
        recalled = torch.ones(len(self), dtype=torch.bool)
        return self.learner.learn(
            self.data,
            Visit(tasks=self.tasks, start=self.start, batches=self.batches, recalled=recalled),
        )[1]


def operations_per_visit(
    sites: Sequence[Site], head: int, config: LearnerConfig, test_images: int
) -> dict[str, int]:
    """Count the floating-point operations (2 per multiply-add) in the matrix products of a visit.

    Left out is all that is no matrix product (activations, softmax, Adam). The first site's
    frozen product is known beforehand and needs no gradient to its input.

    Args:
        sites: the adapted layers, in the order of the network.
        head: multiply-adds of the frozen head for one image.
        config: how a visit trains.
        test_images: images that accuracy is measured on.
    """
    train_images = config.learning_steps * config.updates * config.batch_size
    measured = (config.learning_steps + 1) * test_images
    dense = [site.d_out * site.d_in for site in sites]
    thin = [RANK * (site.d_out + site.d_in) for site in sites]
    frozen = sum(dense[1:]) + head
    merged = thin[0] + frozen  # with merged weights; of the first site only the update is needed
    return {
        "frozen forward": 2 * train_images * frozen,
        "frozen backward": 2 * train_images * frozen,
        "low-rank forward": 2 * train_images * sum(thin),
        "low-rank backward": 2 * train_images * (2 * sum(thin) - RANK * sites[0].d_in),
        "recalled model": 2 * (train_images * merged + RANK * sum(dense[1:])),
        "evaluation": 2 * (measured * merged + (config.learning_steps + 1) * RANK * sum(dense[1:])),
    }


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _best_setting(baseline: PeftVisits, threads: int, rounds: int = 5) -> tuple[bool, int]:
    """Return PEFT's fastest way: whether accuracy is measured merged, and how many threads."""
    settings = list(itertools.product((False, True), sorted({1, threads})))
    times: dict[tuple[bool, int], list[float]] = {setting: [] for setting in settings}
    for _ in range(rounds):
        for merge, count in settings:
            torch.set_num_threads(count)
            times[merge, count].append(_seconds(lambda m=merge: baseline.learn(0, merge=m)))  # type: ignore[misc]
    torch.set_num_threads(threads)
    return min(settings, key=lambda setting: float(np.median(times[setting])))


def compare_with_peft(*, episodes: int = 64, rounds: int = 8) -> dict[str, float]:
    """Time one batch of visits against the same visits one at a time, alternating.

    Args:
        episodes: E, visits of a batch.
        rounds: timings of the batch; in each, PEFT does the next E / rounds of its visits.

    Returns:
        Median visits per second of both, the median of the rounds' ratios and its smallest and
        largest, PEFT's setting, and the largest and mean difference of all accuracies.
    """
    threads, visits = torch.get_num_threads(), Visits.draw(episodes)
    baseline = PeftVisits(visits)
    curves, peft_curves = visits.learn(), []
    merge, peft_threads = _best_setting(baseline, threads)
    batched_s, peft_s = [], []
    for chosen in np.array_split(np.arange(episodes), rounds):
        batched_s.append(_seconds(visits.learn) / episodes)
        torch.set_num_threads(peft_threads)
        start = time.perf_counter()
        peft_curves += [baseline.learn(int(episode), merge=merge) for episode in chosen]
        peft_s.append((time.perf_counter() - start) / len(chosen))
        torch.set_num_threads(threads)
    ratios = np.asarray(peft_s) / np.asarray(batched_s)
    difference = (curves - torch.stack(peft_curves)).abs()
    if difference.max() > TOLERANCE:
        raise RuntimeError(
            f"The two sides did not do the same visits: accuracies differ by up to "
            f"{difference.max():.3f}, more than {TOLERANCE}."
        )
    return {
        "batched_per_s": float(1 / np.median(batched_s)),
        "peft_per_s": float(1 / np.median(peft_s)),
        "ratio": float(np.median(ratios)),
        "ratio_min": float(ratios.min()),
        "ratio_max": float(ratios.max()),
        "ratio_bound": 10.0,
        "peft_merged": merge,
        "peft_threads": peft_threads,
        "largest_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
    }


def share_of_peak(*, batches: Sequence[int] = (1, 16, 64, 256), rounds: int = 5) -> dict[str, Any]:
    """Relate the matrix products of batched visits to the machine's fastest matrix product.

    Args:
        batches: numbers of episodes, E.
        rounds: timings of each, in turn.

    Returns:
        Operations of a visit by part, the peak in GFLOP/s (the largest median over sizes), and per
        E the visits per second and the share of the peak.
    """
    drawn = {n: Visits.draw(n) for n in batches}
    squares = [torch.randn(side, side) for side in GEMM_SIDES]
    visit_s: dict[int, list[float]] = {n: [] for n in batches}
    gemm: dict[int, list[float]] = {side: [] for side in GEMM_SIDES}
    for _ in range(rounds + 1):
        for square in squares:
            side, repeats = len(square), max(1, 2048 // len(square))
            seconds = _seconds(lambda s=square, r=repeats: [torch.mm(s, s) for _ in range(r)])  # type: ignore[misc]
            gemm[side].append(2 * side**3 * repeats / seconds / 1e9)
        for n in batches:
            visit_s[n].append(_seconds(drawn[n].learn))
    peak = max(float(np.median(values[1:])) for values in gemm.values())  # the first warms up
    visits = next(iter(drawn.values()))
    backbone, config = visits.learner.backbone, visits.learner.config
    operations = operations_per_visit(
        backbone.sites,
        backbone.feature_dim * backbone.num_classes,
        config,
        len(visits.data.pool[0].y_test),
    )
    per_s = {n: n / float(np.median(seconds[1:])) for n, seconds in visit_s.items()}
    total = sum(operations.values())
    return {
        "operations": operations,
        "gemm_peak_gflops": peak,
        "visits_per_s": per_s,
        "share": {n: total * rate / 1e9 / peak for n, rate in per_s.items()},
    }


def run(*, threads: int | None = None) -> dict[str, Any]:
    """Measure both at a number of threads (None: as many as torch takes by itself)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return {
            "threads": torch.get_num_threads(),
            "peft": compare_with_peft(),
            "peak": share_of_peak(),
        }
    finally:
        torch.set_num_threads(before)


def main() -> None:
    """Print a table for one thread and for all."""
    for threads in sorted({1, torch.get_num_threads()}):
        result = run(threads=threads)
        peft, peak = result["peft"], result["peak"]
        merged = "merged" if peft["peft_merged"] else "not merged"
        print(f"threads: {threads}")
        print(f"  batched, E = 64         {peft['batched_per_s']:8.1f} visits/s")
        print(
            f"  PEFT, one at a time     {peft['peft_per_s']:8.1f} visits/s   "
            f"(its best: {peft['peft_threads']} thread(s), accuracy measured {merged})"
        )
        print(
            f"  ratio                   {peft['ratio']:8.1f}            "
            f"(rounds {peft['ratio_min']:.1f} to {peft['ratio_max']:.1f}; "
            f"to be at least {peft['ratio_bound']:.0f})"
        )
        print(
            f"  accuracies differ by    {peft['largest_difference']:8.4f} at most, "
            f"{peft['mean_difference']:.5f} on average (one of 200 test images is 0.005)"
        )
        operations = peak["operations"]
        parts = ", ".join(f"{name} {count / 1e6:.1f}" for name, count in operations.items())
        print(f"  matrix products of a visit: {sum(operations.values()) / 1e6:.1f} MFLOP ({parts})")
        print(f"  GEMM peak               {peak['gemm_peak_gflops']:8.1f} GFLOP/s")
        for n, share in peak["share"].items():
            rate = peak["visits_per_s"][n]
            print(f"  E = {n:<4d} {rate:8.1f} visits/s   {share:6.1%} of the GEMM peak")


if __name__ == "__main__":
    main()
