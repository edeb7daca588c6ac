"""Live visits on image backbones: visits per second, and the share of the device's peak.

Run as `python -m benchmarks.image_visits`; on a GPU, at the size of ViT-B/16, as

    python -m benchmarks.image_visits --device cuda --backbone vit_b_16 --precision highest high

Images are random, since no number here depends on them. What is timed are whole steps of the
environment: observation with trial loads, training, accuracies. The frozen part in front of the
adapters is done beforehand, as in any longer run. Operations are those that torch's own counter
sees in such a step (products and attention, 2 per multiply-add; nothing else), the peak is the
fastest square matrix product in the same precision, and all of it is timed in turn within one run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from nsr_gym.datasets import from_arrays
from nsr_gym.envs import ContinualVectorEnv
from nsr_gym.envs.image_arguments import ADAPT, CifarArguments
from nsr_gym.envs.images import IMAGE_DEFAULTS

GEMM_SIDES = (1024, 2048, 4096)
PRECISIONS = ("highest", "high", "medium")
"""Of products in float32, names of `torch.set_float32_matmul_precision`; on CUDA, `"high"` and
`"medium"` are TF32."""
VISIT = {"num_tasks": 2, "cycles": 10_000, "ranks": [8], "capacity": 2, "view_size": 2}
TRAIN, TEST, CLASSES = 13, 20, 10
"""Images of each class: enough to draw support images from."""
RECALL = (1, 0, 1)
"""Action: recall the nearest entry, grant the only rank, update it."""


def _pool(side: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    tasks = {}
    for name in ("a", "b"):
        arrays = []
        for count in (TRAIN, TEST):
            labels = np.repeat(np.arange(CLASSES), count)
            arrays += [rng.random((len(labels), 3, side, side), dtype=np.float32), labels]
        tasks[name] = tuple(arrays)
    return from_arrays(tasks, split="train").pool


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def _precision(name: str) -> None:
    torch.set_float32_matmul_precision(name)
    torch.backends.cudnn.allow_tf32 = name != "highest"


class _Episodes:
    """n episodes side by side that return to two tasks in turn."""

    def __init__(self, backbone: str, n: int, device: torch.device) -> None:
        arguments = CifarArguments(backbone=backbone, weights=None)
        settings = {**IMAGE_DEFAULTS, **VISIT, "device": str(device)}
        self.env = ContinualVectorEnv(
            _pool(arguments.side), arguments.network(str(device)), n, **settings
        )
        self._actions = np.tile(RECALL, (n, 1))
        self.begin()

    def begin(self) -> None:
        """Start anew, and visit each task once."""
        self.env.reset(seed=0)
        self.step()
        self.step()

    def step(self) -> np.ndarray:
        """Visit; return the accuracies (n, L + 1)."""
        return np.stack(list(self.env.step(self._actions)[-1]["curve"]))


def run(
    *,
    backbone: str,
    device: str = "cpu",
    batches: Sequence[int] = (1, 4),
    precisions: Sequence[str] = ("highest",),
    rounds: int = 3,
) -> dict[str, Any]:
    """Time visits of episodes side by side beside matrix products, in turn.

    Args:
        backbone: a name of `nsr_gym.envs.image_arguments.ADAPT`, with random weights.
        device: `"cpu"` or a CUDA device.
        batches: numbers of episodes, n.
        precisions: names of `PRECISIONS`; the first is what the others are compared with.
        rounds: timings of each.

    Returns:
        `operations` of a visit in GFLOP; for each precision `peak` in GFLOP/s (the largest median
        over sizes), for each n `visits_per_s` and `share` of the peak, and `difference`, the mean
        absolute difference of all accuracies from those of the first precision (the frozen part
        in front is the same for all).
    """
    where = torch.device(device)
    episodes = {n: _Episodes(backbone, n, where) for n in batches}
    before, allowed = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    threads = torch.get_num_threads()
    squares = [torch.randn(side, side, device=where) for side in GEMM_SIDES]
    timed: dict[str, dict[Any, list[float]]] = {p: {} for p in precisions}
    curves: dict[str, list[np.ndarray]] = {p: [] for p in precisions}
    try:
        one = _Episodes(backbone, 1, where)
        torch.set_num_threads(1)  # the counter sees its own thread alone
        with FlopCounterMode(display=False) as counter:
            one.step()
        torch.set_num_threads(threads)
        operations = counter.get_total_flops() / 1e9
        for turn in range(rounds + 1):
            for precision in precisions:
                _precision(precision)
                times = timed[precision]
                for square in squares:
                    taken = _seconds(lambda s=square: s @ s, where)  # type: ignore[misc]
                    times.setdefault(("gemm", len(square)), []).append(taken)
                for n, played in episodes.items():
                    if turn == 0:
                        played.begin()
                        curves[precision].append(played.step())
                    times.setdefault(n, []).append(_seconds(played.step, where))
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = allowed
    found: dict[str, Any] = {}
    for precision, times in timed.items():
        median = {key: float(np.median(values[1:])) for key, values in times.items()}  # warmed up
        peak = max(2 * side**3 / median["gemm", side] / 1e9 for side in GEMM_SIDES)
        per_s = {n: n / median[n] for n in batches}
        pairs = zip(curves[precision], curves[precisions[0]], strict=True)
        found[precision] = {
            "peak": peak,
            "visits_per_s": per_s,
            "share": {n: operations * rate / peak for n, rate in per_s.items()},
            "difference": float(np.mean([np.abs(a - b).mean() for a, b in pairs])),
        }
    return {"operations": operations, "precisions": found}


def main(arguments: Sequence[str] = ()) -> None:
    """Print a table for each backbone."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.image_visits")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backbone", nargs="+", choices=list(ADAPT),
                        default=["resnet-small-32", "vit-small-32"])  # fmt: skip
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4], help="episodes, n")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["highest"])
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"  {card}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for backbone in chosen.backbone:
        result = run(
            backbone=backbone, device=chosen.device, batches=chosen.batch,
            precisions=chosen.precision, rounds=chosen.rounds,
        )  # fmt: skip
        print(f"  {backbone}: {result['operations']:.1f} GFLOP a visit", flush=True)
        for precision, row in result["precisions"].items():
            print(f"    {precision}: peak {row['peak']:,.0f} GFLOP/s; accuracies differ by "
                  f"{row['difference']:.4f} from {chosen.precision[0]}")  # fmt: skip
            for n, rate in row["visits_per_s"].items():
                share = row["share"][n]
                print(
                    f"      n = {n:<4d} {rate:8.2f} visits/s {share:7.1%} of the peak", flush=True
                )


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
