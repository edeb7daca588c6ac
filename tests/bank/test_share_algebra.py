"""The algebra of Share against its acceptance checks (seed-systems.md 3.10), in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nsr_gym.bank import share
from nsr_gym.lowrank import canonicalise, distance, norm

D, M, R, T = 24, 17, 4, 3  # up factors are D x R, T adapters
EXACT = 1e-10


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(error: Tensor, size: Tensor) -> float:
    return float((error / size).max())


def basis_error(basis: Tensor, columns: Tensor) -> Tensor:
    """Squared error of projecting columns on a basis, from the definition."""
    return (columns - basis @ (basis.mT @ columns)).square().sum((-2, -1))


def centred(columns: Tensor, k: int) -> Tensor:
    """The basis of the released code: the mean column is subtracted and forgotten."""
    return share.fit(columns - columns.mean(-1, keepdim=True), k).basis


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_with_as_many_directions_as_there_are_projection_loses_nothing(offset: float) -> None:
    columns = randn(5, D, T * R) + offset * randn(5, D, 1, seed=1)
    fit = share.fit(columns, T * R)
    error, size = basis_error(fit.basis, columns).sqrt(), columns.norm(dim=(-2, -1))
    assert relative(error, size) <= EXACT
    assert relative(fit.tail.sqrt(), size) <= EXACT
    # The same check catches the missing mean of the released code, most of all with an offset.
    lost = relative(basis_error(centred(columns, T * R), columns).sqrt(), size)
    assert lost > (0.5 if offset else 1e-3)


@pytest.mark.parametrize("k", [1, 3, 6, 11])
def test_the_squared_error_of_a_basis_is_the_tail_of_the_squared_singular_values(k: int) -> None:
    columns = randn(5, D, T * R)
    fit = share.fit(columns, k)
    tail = torch.linalg.svdvals(columns)[:, k:].square().sum(-1)
    assert (tail > 0.1).all()
    torch.testing.assert_close(fit.tail, tail, rtol=EXACT, atol=0.0)
    torch.testing.assert_close(basis_error(fit.basis, columns), tail, rtol=EXACT, atol=0.0)
    torch.testing.assert_close(fit.energy, columns.square().sum((-2, -1)), rtol=EXACT, atol=0.0)


def test_a_basis_has_no_more_directions_than_there_are_and_zeros_beyond() -> None:
    columns = randn(2, D, 3) @ randn(2, 3, 9, seed=1)
    for k in (3, 8, 20):
        basis = share.fit(columns, k).basis
        gram = basis.mT @ basis
        assert basis.shape == (2, D, k)
        torch.testing.assert_close(gram[:, :3, :3], torch.eye(3).double().expand(2, 3, 3))
        assert not basis[:, :, 3:].any()
    assert not share.fit(torch.zeros(2, D, 4).double(), 3).basis.any()


@pytest.mark.parametrize("p", [1, 2, 3])
def test_a_pseudo_rank_is_the_best_approximation_of_the_reconstructed_update(p: int) -> None:
    beta, alpha = share.fit(randn(5, D, 8), 8).basis, share.fit(randn(5, M, 8, seed=1), 8).basis
    e_up, e_down = randn(5, 8, R, seed=2), randn(5, 8, R, seed=3)
    dense = (beta @ e_up) @ (alpha @ e_down).mT
    optimum = torch.linalg.svdvals(dense)[:, p:].square().sum(-1).sqrt()
    up, down = share.truncate_core(e_up, e_down, torch.full((5,), p), R)
    error = (dense - (beta @ up) @ (alpha @ down).mT).norm(dim=(-2, -1))
    torch.testing.assert_close(error, optimum, rtol=EXACT, atol=0.0)
    assert not up[..., p:].any()
    assert not down[..., p:].any()
    # Keeping the first columns, as a public walkthrough does, is not it.
    naive = (beta @ e_up[..., :p]) @ (alpha @ e_down[..., :p]).mT
    assert ((dense - naive).norm(dim=(-2, -1)) > 1.1 * optimum).all()


def merged(parts: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Basis and coefficients after taking in parts (n, d, r) one after the other."""
    n, d, _ = parts[0].shape
    basis = torch.zeros(n, d, k, dtype=torch.float64)
    held = torch.zeros(n, k, 0, dtype=torch.float64)
    for part in parts:
        step = share.merge(basis, held, part, k)
        basis, held = step.basis, torch.cat([step.old, step.new], -1)
    return basis, held


@pytest.mark.parametrize("k", [T * R, T * R + 5, D])
def test_merging_one_by_one_with_room_for_all_equals_the_basis_of_all(k: int) -> None:
    parts = [randn(5, D, R, seed=i) for i in range(T)]
    basis, held = merged(parts, k)
    batch, columns = share.fit(torch.cat(parts, -1), k).basis, torch.cat(parts, -1)
    torch.testing.assert_close(basis @ basis.mT, batch @ batch.mT, rtol=0.0, atol=EXACT)
    torch.testing.assert_close(basis @ held, columns, rtol=0.0, atol=EXACT)


def test_merging_with_too_few_directions_is_close_to_the_basis_of_all_and_never_better() -> None:
    # Data of six directions and a little noise: what a merge dropped is missed later.
    parts = [
        randn(20, D, 6) @ randn(20, 6, R, seed=10 + i) + 0.05 * randn(20, D, R, seed=20 + i)
        for i in range(8)
    ]
    columns = torch.cat(parts, -1)
    size = columns.norm(dim=(-2, -1))
    batch = basis_error(share.fit(columns, 6).basis, columns).sqrt() / size
    basis, held = merged(parts, 6)
    stepwise = (columns - basis @ held).norm(dim=(-2, -1)) / size
    gap = stepwise / batch - 1.0
    print(f"batch {float(batch.mean()):.6f}, one by one {float(stepwise.mean()):.6f}")
    assert (gap >= -EXACT).all()
    assert 0.0 < float(gap.mean()) < 0.01


def test_a_merge_adds_the_tail_of_what_it_stacked() -> None:
    basis, held = merged([randn(5, D, R, seed=i) for i in range(2)], 6)
    new = randn(5, D, R, seed=9)
    step = share.merge(basis, held, new, 6)
    stacked = torch.cat([basis @ held, new], -1)
    error = (stacked - step.basis @ torch.cat([step.old, step.new], -1)).square().sum((-2, -1))
    assert (step.tail > 0.1).all()
    torch.testing.assert_close(error, step.tail, rtol=EXACT, atol=0.0)
    torch.testing.assert_close(
        step.tail, torch.linalg.svdvals(stacked)[:, 6:].square().sum(-1), rtol=EXACT, atol=0.0
    )


def test_taking_in_what_lies_in_the_span_keeps_the_basis_orthonormal_and_its_span() -> None:
    basis, held = merged([randn(3, D, R)], 8)
    step = share.merge(basis, held, basis @ randn(3, 8, R, seed=5), 8)
    gram = step.basis.mT @ step.basis
    eye = torch.diag(torch.tensor([1.0] * R + [0.0] * R, dtype=torch.float64)).expand(3, 8, 8)
    torch.testing.assert_close(gram, eye, rtol=0.0, atol=EXACT)
    torch.testing.assert_close(step.basis @ step.basis.mT, basis @ basis.mT, rtol=0.0, atol=EXACT)


def test_the_shorter_way_of_single_precision_finds_the_same_basis_to_its_digits() -> None:
    columns = randn(6, 12, 40) * torch.logspace(0, -3, 12, dtype=torch.float64)[:, None]
    whole, short = share.fit(columns, 5), share.fit(columns, 5, precision=torch.float32)
    left, right = (fit.basis @ fit.basis.mT for fit in (whole, short))
    torch.testing.assert_close(left, right, rtol=0.0, atol=1e-7)
    torch.testing.assert_close(whole.tail, short.tail, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(whole.energy, short.energy, rtol=1e-12, atol=0.0)
    low = randn(6, 12, 3) @ randn(6, 3, 40, seed=1)
    basis = share.fit(low.float().double(), 8, precision=torch.float32).basis
    assert (basis.norm(dim=-2) > 0).sum(-1).tolist() == [3] * 6


def test_canonical_factors_of_a_lower_rank_hold_no_columns_of_rounding() -> None:
    up, down = randn(4, D, 2) @ randn(4, 2, R, seed=2), randn(4, R, M, seed=1)
    left, right = share.canonical(up, down, torch.full((4,), R), R)
    assert not left[..., 2:].any()
    assert not right[:, 2:].any()
    assert relative(distance((up, down), (left, right)), norm(up, down)) <= EXACT
    # Without the floor a direction of size 1e-9 remains, which a basis would take for real.
    assert canonicalise(up, down).up[..., 2:].any()


def test_the_residual_is_the_energy_outside_both_bases_down_to_tiny_shares() -> None:
    beta, alpha = share.fit(randn(3, D, 6), 6).basis, share.fit(randn(3, M, 6, seed=1), 6).basis
    up, down = randn(3, D, R, seed=2), randn(3, R, M, seed=3)
    dense = up @ down
    inside = beta @ (beta.mT @ dense @ alpha) @ alpha.mT
    torch.testing.assert_close(
        share.residual_energy(beta, alpha, up, down), (dense - inside).square().sum((-2, -1))
    )
    torch.testing.assert_close(share.update_energy(up, down), dense.square().sum((-2, -1)))
    up, down = beta @ randn(3, 6, R, seed=4), randn(3, R, 6, seed=5) @ alpha.mT
    nudge = torch.zeros_like(up)
    nudge[:, 0, 0] = 1e-9
    share_of = share.residual_energy(beta, alpha, up + nudge, down) / share.update_energy(up, down)
    assert (share.residual_energy(beta, alpha, up, down) < 1e-25).all()
    assert ((share_of > 1e-22) & (share_of < 1e-17)).all()
