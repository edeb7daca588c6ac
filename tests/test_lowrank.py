from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nsr_gym import lowrank
from nsr_gym.errors import InvalidValueError

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6))
seeds = st.integers(0, 2**31)
quick = settings(max_examples=40, deadline=None)


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def factors(seed: int, d_out: int, d_in: int, r: int, *batch: int) -> tuple[Tensor, Tensor]:
    return draw(seed, *batch, d_out, r), draw(seed + 1, *batch, r, d_in)


def best_approximation(dense: Tensor, rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(dense, full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]


@quick
@given(shapes, seeds, st.integers(1, 9), st.sampled_from(["qr", None]))
def test_truncation_is_the_optimal_one_of_eckart_and_young(
    shape: tuple[int, int, int], seed: int, rank: int, method: lowrank.Method | None
) -> None:
    d_out, d_in, r = shape
    rank = min(rank, d_out, d_in)
    up, down = factors(seed, d_out, d_in, r)
    result = lowrank.truncate(up, down, rank=rank, method=method)
    dense = up @ down
    error = torch.linalg.matrix_norm(dense - result.up @ result.down)
    optimal = torch.linalg.matrix_norm(dense - best_approximation(dense, rank))
    assert abs(error - optimal) < 1e-10
    assert abs(result.discarded_energy - optimal**2) < 1e-10
    assert abs(result.discarded_share - optimal**2 / dense.square().sum()) < 1e-10


@quick
@given(shapes, seeds, st.integers(1, 4))
def test_truncation_does_not_depend_on_how_the_update_was_factored(
    shape: tuple[int, int, int], seed: int, rank: int
) -> None:
    d_out, d_in, r = shape
    rank = min(rank, d_out, d_in)
    up, down = factors(seed, d_out, d_in, r)
    q, _ = torch.linalg.qr(draw(seed + 2, r, r))
    gauge = q * torch.linspace(0.5, 2.0, r, dtype=torch.float64)
    one = lowrank.truncate(up, down, rank=rank)
    two = lowrank.truncate(up @ gauge, torch.linalg.inv(gauge) @ down, rank=rank)
    torch.testing.assert_close(one.up @ one.down, two.up @ two.down, rtol=0, atol=1e-8)
    torch.testing.assert_close(one.singular_values, two.singular_values, rtol=0, atol=1e-10)


def test_canonical_form_is_the_same_for_every_factorisation_down_to_the_signs() -> None:
    up, down = factors(3, 12, 9, 4)
    gauge = draw(5, 4, 4) + 3 * torch.eye(4, dtype=torch.float64)
    one = lowrank.canonicalise(up, down)
    for other in (gauge, -torch.eye(4, dtype=torch.float64)):
        two = lowrank.canonicalise(up @ other, torch.linalg.inv(other) @ down)
        torch.testing.assert_close(one.up, two.up, rtol=0, atol=1e-10)
        torch.testing.assert_close(one.down, two.down, rtol=0, atol=1e-10)
    torch.testing.assert_close(one.up @ one.down, up @ down)
    torch.testing.assert_close(one.up.mT @ one.up, torch.diag(one.singular_values))
    torch.testing.assert_close(one.down @ one.down.mT, torch.diag(one.singular_values))
    assert (one.singular_values.diff() <= 0).all()


@pytest.mark.parametrize("method", ["qr", "gram"])
def test_svd_gives_back_the_update_with_orthonormal_factors(method: lowrank.Method | None) -> None:
    up, down = factors(7, 10, 6, 3, 2, 5)
    u, s, vh = lowrank.svd(up, down, method=method)
    torch.testing.assert_close((u * s.unsqueeze(-2)) @ vh, up @ down)
    eye = torch.eye(3, dtype=torch.float64).expand(2, 5, 3, 3)
    torch.testing.assert_close(u.mT @ u, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(vh @ vh.mT, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(s, torch.linalg.svdvals(up @ down)[..., :3])


@pytest.mark.parametrize("method", ["qr", "gram"])
def test_single_precision_factors_lose_no_more_than_single_precision(
    method: lowrank.Method | None,
) -> None:
    # A spread of 1e5 between singular values, which a Gram matrix in float32 would not survive.
    up, down = factors(11, 64, 48, 6)
    up = up * torch.logspace(0, -5, 6, dtype=torch.float64)
    exact = torch.linalg.svdvals(up @ down)[:6]
    result = lowrank.canonicalise(up.float(), down.float(), method=method)
    assert result.up.dtype == torch.float32
    assert (result.singular_values.double() - exact).abs().max() < 1e-6 * exact[0]
    error = torch.linalg.matrix_norm((result.up @ result.down).double() - up @ down)
    assert error < 2e-6 * torch.linalg.matrix_norm(up @ down)


@pytest.mark.parametrize("method", ["qr", "gram"])
def test_fresh_directions_and_zero_adapters_stay_exact_and_finite(
    method: lowrank.Method | None,
) -> None:
    up, down = factors(13, 8, 7, 4, 3)
    up[0, :, 2:] = 0  # two fresh directions
    up[1] = 0  # an untrained adapter
    up[2, :, 3] = up[2, :, 0]  # linearly dependent directions
    for dtype, tolerance in (
        (torch.float64, 1e-7 if method == "gram" else 1e-12),
        (torch.float32, 1e-5),
    ):
        result = lowrank.canonicalise(up.to(dtype), down.to(dtype), method=method)
        torch.testing.assert_close(
            (result.up @ result.down).double(), up @ down, rtol=0, atol=tolerance
        )
        assert (result.singular_values[0, 2:] < tolerance).all()
    kept = lowrank.truncate(up, down, energy=0.5, method=method)
    assert kept.rank[1] == 1
    assert kept.discarded_energy[1] == 0
    assert kept.discarded_share[1] == 0
    assert not kept.up[1].any()


@quick
@given(seeds, st.integers(2, 5))
def test_a_batch_with_its_own_ranks_equals_the_loop(seed: int, batch: int) -> None:
    up, down = factors(seed, 7, 5, 4, batch, 2)
    ranks = torch.randint(1, 5, (batch, 2), generator=torch.Generator().manual_seed(seed))
    result = lowrank.truncate(up, down, rank=ranks)
    for i in range(batch):
        for j in range(2):
            one = lowrank.truncate(up[i, j], down[i, j], rank=int(ranks[i, j]))
            torch.testing.assert_close(result.up[i, j], one.up)
            torch.testing.assert_close(result.down[i, j], one.down)
            torch.testing.assert_close(result.discarded_energy[i, j], one.discarded_energy)
            assert result.rank[i, j] == one.rank == ranks[i, j]
            assert not result.up[i, j, :, ranks[i, j] :].any()
            assert not result.down[i, j, ranks[i, j] :].any()


@pytest.mark.parametrize("shape", [(5, 4, 1), (5, 4, 4), (3, 4, 6), (1, 1, 1), (1, 5, 2)])
@pytest.mark.parametrize("method", ["qr", "gram"])
def test_any_width_from_one_to_beyond_the_matrix_keeps_the_update(
    shape: tuple[int, int, int], method: lowrank.Method | None
) -> None:
    d_out, d_in, r = shape
    up, down = factors(17, *shape)
    result = lowrank.truncate(up, down, rank=min(d_out, d_in), method=method)
    assert result.up.shape == (d_out, r)
    assert result.down.shape == (r, d_in)
    torch.testing.assert_close(result.up @ result.down, up @ down)
    assert result.rank == min(d_out, d_in, r)


@quick
@given(seeds, st.floats(0.01, 1.0))
def test_energy_truncation_keeps_the_asked_share_at_the_lowest_rank(
    seed: int, energy: float
) -> None:
    up, down = factors(seed, 9, 8, 5, 3)
    result = lowrank.truncate(up, down, energy=energy)
    s2 = torch.linalg.svdvals(up @ down)[:, :5].square()
    shares = s2.cumsum(-1) / s2.sum(-1, keepdim=True)
    for i, rank in enumerate(result.rank.tolist()):
        assert shares[i, rank - 1] >= energy - 1e-12
        assert rank == 1 or shares[i, rank - 2] < energy
        assert abs(result.discarded_share[i] - (1 - shares[i, rank - 1])) < 1e-10


def test_width_leaves_room_or_cuts_what_is_empty() -> None:
    up, down = factors(19, 9, 8, 5)
    wide = lowrank.truncate(up, down, rank=2, width=7)
    narrow = lowrank.truncate(up, down, rank=2, width=2)
    assert wide.up.shape == (9, 7)
    assert narrow.down.shape == (2, 8)
    torch.testing.assert_close(wide.up @ wide.down, narrow.up @ narrow.down)
    with pytest.raises(InvalidValueError, match="width of 2 has no room for rank 3"):
        lowrank.truncate(up, down, rank=3, width=2)


def test_sites_are_truncated_together_as_they_would_be_alone() -> None:
    sites = {
        "fc1": factors(1, 9, 6, 4, 3),
        "fc2": factors(2, 5, 9, 4, 3),
        "out": factors(4, 3, 5, 4, 3),
    }
    ranks = torch.tensor([1, 2, 3])
    together = lowrank.truncate_sites(sites, rank=ranks)
    alone = {name: lowrank.truncate(*pair, rank=ranks) for name, pair in sites.items()}
    for name, one in alone.items():
        torch.testing.assert_close(together.factors[name][0], one.up)
        torch.testing.assert_close(together.factors[name][1], one.down)
        torch.testing.assert_close(together.singular_values[name], one.singular_values)
    torch.testing.assert_close(
        together.discarded_energy, sum(one.discarded_energy for one in alone.values())
    )


def test_energy_over_several_sites_gives_one_rank_for_all() -> None:
    sites = {"a": factors(1, 9, 6, 4), "b": factors(2, 5, 9, 4)}
    result = lowrank.truncate_sites(sites, energy=0.9)
    s2 = sum(torch.linalg.svdvals(up @ down)[:4].square() for up, down in sites.values())
    shares = s2.cumsum(-1) / s2.sum()
    assert result.rank == int((shares < 0.9).sum()) + 1
    assert abs(result.discarded_share - (1 - shares[result.rank - 1])) < 1e-12


@quick
@given(seeds)
def test_arithmetic_agrees_with_dense_matrices(seed: int) -> None:
    x, y = factors(seed, 7, 6, 3, 2), factors(seed + 2, 7, 6, 2, 2)
    z = factors(seed + 4, 6, 5, 1, 2)
    dx, dy, dz = x[0] @ x[1], y[0] @ y[1], z[0] @ z[1]
    close = torch.testing.assert_close
    up, down = lowrank.compose([x, y], [0.5, -2.0])
    close(up @ down, 0.5 * dx - 2.0 * dy)
    per_batch = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    up, down = lowrank.compose([x, y], per_batch)
    close(up @ down, per_batch[0, :, None, None] * dx + per_batch[1, :, None, None] * dy)
    for left, right, dense in ((x, z, dx @ dz), (z, (z[1].mT, z[0].mT), dz @ dz.mT)):
        up, down = lowrank.matmul(left, right)
        close(up @ down, dense)
        assert up.shape[-1] == min(left[0].shape[-1], right[0].shape[-1])
    close(lowrank.inner(x, y), (dx * dy).sum((-2, -1)))
    close(lowrank.norm(*x), torch.linalg.matrix_norm(dx))
    close(lowrank.distance(x, y), torch.linalg.matrix_norm(dx - dy))
    inputs = draw(seed, 2, 4, 6)
    close(lowrank.apply(inputs, *x), inputs @ dx.mT)


def test_distance_of_nearly_equal_updates_keeps_its_digits() -> None:
    up, down = factors(23, 20, 20, 3)
    change = (draw(1, 20, 1) * 1e-9, draw(2, 1, 20))
    moved = lowrank.compose([(up, down), change])
    torch.testing.assert_close(
        lowrank.distance((up, down), moved), lowrank.norm(*change), rtol=1e-5, atol=0
    )
    assert lowrank.distance((up, down), (2 * up, down / 2)) < 1e-12


def test_bad_factors_are_refused_with_what_came() -> None:
    up, down = factors(0, 5, 4, 3)
    with pytest.raises(InvalidValueError, match="3 directions, down has 2"):
        lowrank.truncate(up, down[:2], rank=1)
    with pytest.raises(InvalidValueError, match="equal leading"):
        lowrank.svd(up.expand(2, 5, 3), down)
    with pytest.raises(InvalidValueError, match="both float32 or both float64"):
        lowrank.svd(up.float(), down)
    with pytest.raises(InvalidValueError, match="both float32 or both float64"):
        lowrank.svd(up.half(), down.half())
    with pytest.raises(InvalidValueError, match="NaN"):
        lowrank.truncate(up * float("nan"), down, rank=1)
    with pytest.raises(InvalidValueError, match=r"Site 'fc': .*NaN"):
        lowrank.canonicalise_sites({"fc": (up, down / 0)})
    with pytest.raises(InvalidValueError, match="at least one direction"):
        lowrank.svd(up[:, :0], down[:0])
    with pytest.raises(InvalidValueError, match="at least one site"):
        lowrank.truncate_sites({}, rank=1)
    with pytest.raises(InvalidValueError, match="share leading dimensions"):
        lowrank.truncate_sites({"a": (up, down), "b": factors(0, 5, 4, 2)}, rank=1)
    with pytest.raises(InvalidValueError, match="'qr' or 'gram'"):
        lowrank.svd(up, down, method="eig")  # type: ignore[arg-type]


@pytest.mark.parametrize("rank", [0, -1, 5, 2.0, True, torch.tensor([1, 2])])
def test_a_rank_that_cannot_be_is_refused(rank: int | float | Tensor) -> None:
    up, down = factors(0, 5, 4, 3)
    with pytest.raises(InvalidValueError, match="rank"):
        lowrank.truncate(up, down, rank=rank)


@pytest.mark.parametrize("energy", [0.0, -0.1, 1.1, float("nan")])
def test_an_energy_outside_its_range_is_refused(energy: float) -> None:
    with pytest.raises(InvalidValueError, match="share in"):
        lowrank.truncate(*factors(0, 5, 4, 3), energy=energy)


def test_exactly_one_of_rank_and_energy() -> None:
    for arguments in ({}, {"rank": 1, "energy": 0.5}):
        with pytest.raises(InvalidValueError, match="exactly one"):
            lowrank.truncate(*factors(0, 5, 4, 3), **arguments)


def test_arithmetic_refuses_what_does_not_fit() -> None:
    x, y = factors(0, 5, 4, 3), factors(0, 4, 4, 3)
    with pytest.raises(InvalidValueError, match="differ in shape"):
        lowrank.inner(x, y)
    with pytest.raises(InvalidValueError, match="differ in shape"):
        lowrank.distance(x, y)
    with pytest.raises(InvalidValueError, match="differ in shape"):
        lowrank.compose([x, y])
    with pytest.raises(InvalidValueError, match="at least one adapter"):
        lowrank.compose([])
    with pytest.raises(InvalidValueError, match="1 weights came for 2"):
        lowrank.compose([x, x], [1.0])
    with pytest.raises(InvalidValueError, match="takes 4 inputs"):
        lowrank.matmul(x, x)
    with pytest.raises(InvalidValueError, match="3 features"):
        lowrank.apply(torch.zeros(2, 3), *x)
