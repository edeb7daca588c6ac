"""Short visits of a few episodes, and one episode's training written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.learning.adapters import Adapters
from nsr_gym.learning.kinds import make_learner
from nsr_gym.learning.learner import LoRALearner
from nsr_gym.learning.visit import Visit

TASKS = (2, 0, 3)
KEYS = np.array([[7, 1], [8, 2], [9, 3]], dtype=np.uint64)

Leaves = dict[str, tuple[Tensor, Tensor]]
MakeWorld = Callable[..., Any]


def make(world: Any, name: str = "lora", *, rank: int = 3, n: int = 3, **more: Any) -> LoRALearner:
    """A learner by name; `modifiers` and `options` as `make_learner` takes them."""
    return make_learner(
        name, world.backbone, world.learner.config, num_episodes=n, num_tasks=len(world.pool),
        max_rank=rank, **more,
    )  # fmt: skip


def visit(world: Any, *, rank: int = 3, up: float = 0.3, seed: int = 1, **more: Any) -> Visit:
    """A visit of three episodes, whose adapters fill all their directions."""
    return Visit(
        **{
            "tasks": torch.tensor(TASKS),
            "start": world.adapters(3, rank, seed=seed, up=up),
            "batches": world.batches(3),
            "ranks": torch.full((3,), rank),
            "rows": np.arange(3),
            "numbers": np.zeros(3, dtype=np.int64),
            "keys": KEYS,
        }
        | more
    )


def entries(world: Any, *, n: int = 3, slots: int = 2, rank: int = 3, seed: int = 11) -> Any:
    """Factors of `slots` entries in each of n banks, the last episode's last slot empty."""
    flat = world.adapters(n * slots, rank, seed=seed)
    stacks = {
        site: (up.unflatten(0, (n, slots)).clone(), down.unflatten(0, (n, slots)).clone())
        for site, (up, down) in flat.factors.items()
    }
    for up, down in stacks.values():
        up[-1, -1], down[-1, -1] = 0.0, 0.0
    return stacks


def bases(world: Any, k: int, *, n: int = 3, seed: int = 3) -> Any:
    """Orthonormal bases of k columns for both sides of every site."""
    g = torch.Generator().manual_seed(seed)
    return {
        site.name: tuple(
            torch.linalg.qr(torch.randn(n, side, k, generator=g))[0]
            for side in (site.d_out, site.d_in)
        )
        for site in world.backbone.sites
    }


def leaves_of(start: Adapters, i: int) -> Leaves:
    """Episode i's factors as leaves of their own."""
    return {
        site: (up[i].clone().requires_grad_(), down[i].clone().requires_grad_())
        for site, (up, down) in start.factors.items()
    }


def flat(leaves: Mapping[str, tuple[Tensor, ...]]) -> list[Tensor]:
    """The leaves in the order of a run's."""
    return [part for pair in leaves.values() for part in pair]


@dataclass
class ByHand:
    """One episode of a visit, written out with dense weights and automatic differentiation."""

    world: Any
    visit: Visit
    i: int

    def batches(self) -> Iterator[Tensor]:
        """Image numbers of every update."""
        yield from self.visit.batches[self.i].flatten(0, 1)

    def features(self, deltas: Mapping[str, Tensor], chosen: Tensor) -> Tensor:
        """Features (k, d) of training images under weights with dense updates added."""
        x = torch.tensor(self.world.pool[TASKS[self.i]].x_train)[chosen]
        weights = self.world.backbone.weights
        for site in ("fc1", "fc2", "fc3"):
            weight = weights[f"{site}.weight"] + deltas[site]
            x = torch.relu(x @ weight.mT + weights[f"{site}.bias"])
        return x

    def labels(self, chosen: Tensor) -> Tensor:
        """Labels of training images."""
        return torch.tensor(self.world.pool[TASKS[self.i]].y_train)[chosen]

    def loss(self, deltas: Mapping[str, Tensor], chosen: Tensor) -> Tensor:
        """Cross-entropy on training images."""
        weights = self.world.backbone.weights
        logits = self.features(deltas, chosen) @ weights["head.weight"].mT + weights["head.bias"]
        return functional.cross_entropy(logits, self.labels(chosen))


def products(leaves: Leaves) -> dict[str, Tensor]:
    """Dense updates of one episode."""
    return {site: up @ down for site, (up, down) in leaves.items()}


def assert_same(a: Adapters, b: Adapters, *, within: float = 1e-4) -> None:
    """Adapters agree, bit for bit with `within=0`."""
    for site, pair in a.factors.items():
        for ours, theirs in zip(pair, b.factors[site], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=within, atol=within)


def assert_is(trained: Adapters, i: int, leaves: Leaves, *, within: float = 1e-4) -> None:
    """Episode i was trained to what the leaves are."""
    by_hand = {s: (u.detach()[None], d.detach()[None]) for s, (u, d) in leaves.items()}
    assert_same(trained[i : i + 1], Adapters(by_hand), within=within)


def assert_differ(a: Adapters, b: Adapters, *, by: float = 1e-3) -> None:
    """Adapters differ in every episode."""
    gaps = [
        (ours - theirs).flatten(1).abs().amax(1)
        for site, pair in a.factors.items()
        for ours, theirs in zip(pair, b.factors[site], strict=True)
    ]
    assert (torch.stack(gaps).amax(0) > by).all()


def assert_rows_are_alone(world: Any, made: Callable[[], LoRALearner], of: Visit) -> None:
    """What becomes of an episode does not depend on those beside it."""
    together, curves = made().learn(world.data, of)
    for i in range(len(of)):
        alone, curve = made().learn(world.data, of[i : i + 1])
        assert_same(together[i : i + 1], alone)
        torch.testing.assert_close(curves[i : i + 1], curve, rtol=0.0, atol=1.01 / 20)
