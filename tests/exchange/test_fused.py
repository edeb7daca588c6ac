"""Adapters of fused layers and of their parts."""

from __future__ import annotations

import pytest
import torch

from nsr_gym.errors import InvalidValueError, UnknownNameError
from nsr_gym.exchange import fuse, split_fused

SIZES = {"query": 4, "key": 3, "value": 5}


def parts(*names: str, batch: tuple[int, ...] = ()) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    ranks = {"query": 2, "key": 1, "value": 3}
    return {
        name: (
            torch.randn(*batch, SIZES[name], ranks[name], generator=g, dtype=torch.float64),
            torch.randn(*batch, ranks[name], 7, generator=g, dtype=torch.float64),
        )
        for name in names
    }


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_fusing_stacks_the_updates_exactly(batch: tuple[int, ...]) -> None:
    made = parts("query", "key", "value", batch=batch)
    fused = fuse(made, SIZES)
    assert fused.up.shape == (*batch, 12, 6)
    assert torch.equal(fused.discarded_share, torch.zeros(batch, dtype=torch.float64))
    dense = torch.cat([up @ down for up, down in made.values()], -2)
    assert torch.allclose(fused.up @ fused.down, dense, atol=1e-12)
    for name, (up, down) in split_fused(fused.up, fused.down, SIZES).items():
        assert torch.allclose(up @ down, made[name][0] @ made[name][1], atol=1e-12)


def test_a_part_that_is_left_out_has_no_update() -> None:
    fused = fuse(parts("value", "query"), SIZES)
    dense = fused.up @ fused.down
    made = parts("value", "query")
    assert fused.up.shape == (12, 5)
    assert torch.count_nonzero(dense[4:7]) == 0
    assert torch.allclose(dense[:4], made["query"][0] @ made["query"][1], atol=1e-12)
    assert torch.allclose(dense[7:], made["value"][0] @ made["value"][1], atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_cutting_reports_the_share_that_is_lost(rank: int) -> None:
    made = parts("query", "key", "value")
    dense = torch.cat([up @ down for up, down in made.values()])
    fused = fuse(made, SIZES, rank=rank)
    assert fused.up.shape == (12, rank)
    lost = (fused.up @ fused.down - dense).square().sum() / dense.square().sum()
    best = torch.linalg.svdvals(dense)[rank:].square().sum() / dense.square().sum()
    assert float(fused.discarded_share) == pytest.approx(float(lost), abs=1e-12)
    assert float(lost) == pytest.approx(float(best), abs=1e-12)


def test_an_energy_share_chooses_the_rank() -> None:
    made = parts("query", "key", "value")
    fused = fuse(made, SIZES, energy=0.9)
    assert float(fused.discarded_share) <= 0.1
    assert fused.up.shape[1] < 6
    lower = fuse(made, SIZES, rank=fused.up.shape[1] - 1)
    assert float(lower.discarded_share) > 0.1


def test_what_does_not_fit_is_refused() -> None:
    made = parts("query", "key", "value")
    up, down = fuse(made, SIZES).up, fuse(made, SIZES).down
    with pytest.raises(InvalidValueError, match="add up to 12"):
        split_fused(up, down, {"query": 4, "key": 4, "value": 5})
    with pytest.raises(InvalidValueError, match="add up to 12"):
        split_fused(up, down, {"query": 12, "key": 0})
    with pytest.raises(UnknownNameError, match=r"'value'.*query"):
        fuse(made, {"query": 4, "key": 3})
    with pytest.raises(InvalidValueError, match="'key' has 2 outputs"):
        fuse(made, SIZES | {"key": 2})
    with pytest.raises(InvalidValueError, match="at least one part"):
        fuse({}, SIZES)
    with pytest.raises(InvalidValueError, match="share their inputs"):
        fuse(made | {"key": (torch.zeros(3, 1).double(), torch.zeros(1, 8).double())}, SIZES)
    with pytest.raises(InvalidValueError, match="exactly one"):
        fuse(made, SIZES, rank=2, energy=0.5)
