"""DualGPM protects what it should, in both modes and both energy conventions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nsr_gym.errors import InvalidValueError, UnknownNameError
from nsr_gym.learning.dualgpm import DualGPM

CONVENTIONS = ("covariance", "activations")
EPISODES, WIDTH = 3, 12
ROWS = torch.arange(EPISODES)


def task_inputs(task: int, *, episodes: int = EPISODES, width: int = WIDTH) -> Tensor:
    """Inputs (E, 40, d) whose energy falls off, in other directions for every task and episode."""
    g = torch.Generator().manual_seed(task)
    scale = 0.5 ** torch.arange(width, dtype=torch.float64)
    x = torch.randn(episodes, 40, width, generator=g, dtype=torch.float64) * scale
    turn = torch.randn(episodes, width, width, generator=g, dtype=torch.float64)
    return x @ torch.linalg.qr(turn).Q


def covariance(x: Tensor) -> Tensor:
    return x.mT @ x / x.shape[1]


def energy_kept(c: Tensor, p: Tensor, convention: str) -> Tensor:
    """Share of the energy within the projector, from singular values alone."""
    if convention == "activations":
        # Squared singular values of the inputs are eigenvalues of their covariance.
        root = torch.linalg.cholesky(c + 1e-14 * torch.eye(c.shape[-1], dtype=c.dtype))
    else:
        root = c
    left = torch.linalg.svdvals(root - p @ root).square().sum(-1)
    return 1.0 - left / torch.linalg.svdvals(root).square().sum(-1)


def gpm_by_hand(tasks: list[np.ndarray], eps: float, convention: str) -> np.ndarray:
    """GPM of one episode that only ever appends, by the SVD of residuals: P after all tasks."""
    width = tasks[0].shape[1]
    basis = np.zeros((width, 0))
    for x in tasks:
        matrix = x.T / len(x) ** 0.5 if convention == "activations" else x.T @ x / len(x)
        residual = matrix - basis @ (basis.T @ matrix)
        u, s, _ = np.linalg.svd(residual)
        total, left = np.square(matrix).sum(), np.square(residual).sum()
        count = 0
        while left > (1 - eps) * total:
            left -= s[count] ** 2
            count += 1
        basis = np.hstack([basis, u[:, :count]])
    return basis @ basis.T


def learned(memory: DualGPM, tasks: int) -> None:
    for task in range(tasks):
        memory.store(ROWS, memory.updated(covariance(task_inputs(task)), ROWS))


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("eps", [0.5, 0.9, 0.97])
def test_both_modes_protect_what_appending_alone_would(convention: Any, eps: float) -> None:
    """Also across the switch from "remove" to "retain", and with at most d/2 stored vectors."""
    memory = DualGPM(num_episodes=EPISODES, dimension=WIDTH, energy=convention, eps=eps)
    modes = []
    for task in range(8):
        inputs = [task_inputs(t) for t in range(task + 1)]
        update = memory.updated(covariance(inputs[-1]), ROWS)
        memory.store(ROWS, update)
        modes.append(update.retain.clone())
        assert (update.counts <= WIDTH // 2).all()
        stored = update.vectors[:, :, : WIDTH // 2]
        assert torch.equal((stored != 0).any(dim=1).sum(dim=1), update.counts)
        p = memory.protected(ROWS)
        for i in range(EPISODES):
            expected = gpm_by_hand([x[i].numpy() for x in inputs], eps, convention)
            np.testing.assert_allclose(p[i].numpy(), expected, atol=1e-10)
            assert memory.free_dimension(ROWS)[i] == WIDTH - round(float(np.trace(expected)))
    assert not modes[0].all()
    assert modes[-1].all()  # both modes took part


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_energy_kept_is_at_least_eps_after_each_update(convention: Any) -> None:
    memory = DualGPM(
        num_episodes=EPISODES, dimension=WIDTH, energy=convention, eps=0.6, lame=0.99, horizon=6
    )
    for task in range(7):
        eps = memory.eps(ROWS)
        assert eps.tolist() == pytest.approx([0.6 + 0.39 * min(task / 6, 1)] * EPISODES)
        c = covariance(task_inputs(task))
        before = energy_kept(c, memory.protected(ROWS), convention)
        memory.store(ROWS, memory.updated(c, ROWS))
        p = memory.protected(ROWS)
        assert (energy_kept(c, p, convention) >= eps - 1e-10).all()
        assert (before < eps).any() or task > 3  # there was something to add


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_no_direction_more_is_protected_than_eps_needs(convention: Any) -> None:
    memory = DualGPM(num_episodes=EPISODES, dimension=WIDTH, energy=convention, eps=0.99)
    c = covariance(task_inputs(0))
    update = memory.updated(c, ROWS)
    assert (update.counts > 1).all()
    for i, count in enumerate(update.counts.tolist()):
        fewer = update.vectors[i, :, : count - 1]
        assert energy_kept(c[i], fewer @ fewer.mT, convention) < 0.99


def test_the_released_convention_protects_fewer_directions_than_that_of_gpm() -> None:
    free = []
    for convention in CONVENTIONS:
        memory = DualGPM(num_episodes=EPISODES, dimension=WIDTH, energy=convention, eps=0.95)
        learned(memory, 3)
        free.append(memory.free_dimension(ROWS))
    assert (free[0] > free[1]).all()


@pytest.mark.parametrize("tasks", [0, 1, 3, 8])
def test_designed_directions_avoid_what_is_protected_and_lead_what_is_left(tasks: int) -> None:
    """Acceptance check 5.9.1: max |D M| <= 1e-10."""
    memory = DualGPM(num_episodes=EPISODES, dimension=WIDTH, eps=0.8)
    learned(memory, tasks)
    c = covariance(task_inputs(99))
    p, free = memory.protected(ROWS), memory.free_dimension(ROWS)
    designed = memory.design(c, ROWS, 4)
    assert (designed @ p).abs().max() <= 1e-10
    for i in range(EPISODES):
        rows = designed[i, : int(free[i])]
        torch.testing.assert_close(
            rows @ rows.mT, torch.eye(len(rows), dtype=torch.float64), rtol=0, atol=1e-12
        )
        u, s, _ = torch.linalg.svd(c[i] - p[i] @ c[i])
        clear = int((s[: len(rows)] > 1e-6 * s[0]).sum())
        overlap = (u[:, :clear] * rows[:clear].mT).sum(dim=0).abs()
        torch.testing.assert_close(overlap, torch.ones_like(overlap), rtol=0, atol=1e-6)


def test_no_more_directions_are_designed_than_are_free() -> None:
    memory = DualGPM(num_episodes=EPISODES, dimension=WIDTH, eps=0.97)
    learned(memory, 5)
    free = memory.free_dimension(ROWS)
    assert (free > 0).any()
    assert (free < WIDTH).all()
    designed = memory.design(covariance(task_inputs(99)), ROWS, WIDTH + 2)
    assert designed.shape == (EPISODES, WIDTH + 2, WIDTH)
    assert torch.equal(designed.any(dim=2).sum(dim=1), free)


def test_inputs_without_any_energy_change_nothing() -> None:
    memory = DualGPM(num_episodes=EPISODES, dimension=WIDTH)
    learned(memory, 1)
    before = memory.protected(ROWS)
    memory.store(ROWS, memory.updated(torch.zeros(EPISODES, WIDTH, WIDTH).double(), ROWS))
    torch.testing.assert_close(memory.protected(ROWS), before, rtol=0, atol=1e-12)


def test_an_episode_is_protected_the_same_alone_and_starts_anew_alone() -> None:
    together = DualGPM(num_episodes=EPISODES, dimension=WIDTH)
    alone = DualGPM(num_episodes=1, dimension=WIDTH)
    for task in range(3):
        c = covariance(task_inputs(task))
        # Episode 0 misses the second task, so that the episodes differ in their mode.
        rows = ROWS[1:] if task == 1 else ROWS
        together.store(rows, together.updated(c[rows], rows))
        alone.store(ROWS[:1], alone.updated(c[1:2], ROWS[:1]))
    torch.testing.assert_close(
        together.protected(ROWS[1:2]), alone.protected(ROWS[:1]), rtol=0, atol=1e-10
    )
    kept = together.protected(ROWS[1:])
    together.begin(ROWS[:1])
    assert together.free_dimension(ROWS[:1]).tolist() == [WIDTH]
    assert not together.protected(ROWS[:1]).any()
    assert torch.equal(together.protected(ROWS[1:]), kept)


def test_bytes_are_those_of_the_stored_vectors() -> None:
    memory = DualGPM(num_episodes=EPISODES, dimension=WIDTH, eps=0.9)
    assert memory.nbytes(ROWS).tolist() == [0] * EPISODES
    learned(memory, 2)
    free = memory.free_dimension(ROWS)
    expected = torch.minimum(free, WIDTH - free) * WIDTH * 8
    assert torch.equal(memory.nbytes(ROWS), expected)


def test_a_schedule_needs_its_horizon_and_shares_lie_in_the_unit_interval() -> None:
    with pytest.raises(InvalidValueError, match="horizon"):
        DualGPM(num_episodes=1, dimension=4, lame=1.0)
    for share in (0.0, 1.1, -1, "1", True, float("nan")):
        with pytest.raises(InvalidValueError, match=r"eps to be a share in \(0, 1\]"):
            DualGPM(num_episodes=1, dimension=4, eps=share)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="energy convention"):
        DualGPM(num_episodes=1, dimension=4, energy="variance")  # type: ignore[arg-type]
