"""Banks whose tasks lie in different directions of the features and of the sites' inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nsr_gym.routing import ROUTERS, make_router
from nsr_gym.routing.base import Ints, Query, Router, Written

D = 24
SITES = {"first": (6, 10), "second": (7, 12)}
RANK = 3


def ints(*numbers: int) -> Ints:
    return np.array(numbers, dtype=np.int64)


def _directions(seed: int, count: int, width: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(width, width, generator=g, dtype=torch.float64))
    return q[:count]


@dataclass
class World:
    """Tasks of banks; those of one bank are told apart by orthogonal directions."""

    tasks: int = 5
    noise: float = 0.3

    def _draw(self, kind: int, bank: int, task: int, number: int, k: int, width: int) -> Tensor:
        direction = _directions(1000 * kind + bank, self.tasks, width)[task]
        g = torch.Generator().manual_seed(hash((kind, bank, task, number)) % 2**31)
        noise = torch.randn(k, width, generator=g, dtype=torch.float64)
        sign = 1.0 if kind == 0 else torch.randn(k, 1, generator=g, dtype=torch.float64).sign()
        return (3.0 * sign * direction + self.noise * noise).float()

    def features(self, banks: list[int], tasks: list[int], k: int, number: int) -> Tensor:
        pairs = zip(banks, tasks, strict=True)
        return torch.stack([self._draw(0, b, t, number, k, D) for b, t in pairs])

    def build(self, name: str, banks: list[int], *, slots: int = 6, **options: Any) -> Router:
        """A router whose row i is bank `banks[i]` of the world, still empty."""
        router = make_router(name, num_banks=len(banks), feature_dim=D, **options)
        router.allocate(slots)
        router.begin(np.arange(len(banks)), self.keys(banks))
        return router

    def teach(self, router: Router, banks: list[int], tasks: list[int], **how: Any) -> Router:
        """Task t of every bank goes to slot t."""
        for task in tasks:
            same = [task] * len(banks)
            rows = list(range(len(banks)))
            router.learn(self.written(banks, same, same, rows=rows, **how))
        return router

    @staticmethod
    def keys(banks: list[int]) -> np.ndarray:
        return np.array([[7 * b + 1, 11 * b + 3] for b in banks], dtype=np.uint64)

    @staticmethod
    def pick(query: Query, index: list[int], inputs: list[int] | None = None) -> Query:
        """Some of the banks of a query, and some of its inputs or the same in another order."""
        places = slice(None) if inputs is None else inputs
        return Query(
            query.rows[index],
            query.features[index][:, places],
            query.tasks[index],
            {site: x[index][:, places] for site, x in query.inputs.items()},
        )

    def _factors(self, bank: int, task: int, site: int, gauge: int) -> tuple[Tensor, Tensor]:
        d_out, d_in = list(SITES.values())[site]
        g = torch.Generator().manual_seed(hash((bank, task, site)) % 2**31)
        up = torch.linalg.qr(torch.randn(d_out, RANK, generator=g, dtype=torch.float64))[0]
        down = torch.randn(RANK, d_in, generator=g, dtype=torch.float64) * 0.2
        down[0] = 3.0 * _directions(1000 * (site + 1) + bank, self.tasks, d_in)[task]
        mix = torch.eye(RANK, dtype=torch.float64)
        if gauge:
            mix = torch.randn(RANK, RANK, generator=torch.Generator().manual_seed(gauge)).double()
        return (up @ mix).float(), (torch.linalg.inv(mix) @ down).float()

    def written(
        self,
        banks: list[int],
        slots: list[int],
        tasks: list[int],
        *,
        rows: list[int] | None = None,
        k: int = 40,
        number: int = 0,
        gauge: int = 0,
    ) -> Written:
        z = self.features(banks, tasks, k, number)
        mean = torch.nn.functional.normalize(z, dim=-1).mean(1)
        factors = {}
        for i, site in enumerate(SITES):
            made = [self._factors(b, t, i, gauge) for b, t in zip(banks, tasks, strict=True)]
            factors[site] = torch.stack([m[0] for m in made]), torch.stack([m[1] for m in made])
        return Written(
            rows=ints(*(banks if rows is None else rows)),
            slots=ints(*slots),
            features=z,
            embedding=torch.nn.functional.normalize(mean, dim=-1),
            tasks=ints(*tasks),
            factors=factors,
        )

    def query(
        self,
        banks: list[int],
        tasks: list[int],
        *,
        rows: list[int] | None = None,
        k: int = 20,
        number: int = 1,
    ) -> Query:
        inputs = {}
        for i, (site, (_, d_in)) in enumerate(SITES.items()):
            pairs = zip(banks, tasks, strict=True)
            inputs[site] = torch.stack([self._draw(i + 1, b, t, number, k, d_in) for b, t in pairs])
        return Query(
            rows=ints(*(banks if rows is None else rows)),
            features=self.features(banks, tasks, k, number),
            tasks=ints(*tasks),
            inputs=inputs,
        )


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(params=list(ROUTERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)
