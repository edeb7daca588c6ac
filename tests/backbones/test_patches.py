"""Linear maps on patches are convolutions, laid out or not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nsr_gym.backbones.patches import Patches

CASES = [(side, size, stride) for side in (1, 2, 5, 8) for size in (3, 5) for stride in (1, 2)]


def made(side: int, size: int, stride: int) -> tuple[Patches, Tensor]:
    """Maps of 2 episodes, 3 images each, with 4 channels; down factors of rank 6."""
    rng = torch.Generator().manual_seed(side + 10 * size + 100 * stride)
    maps = torch.randn(2, 3, side, side, 4, generator=rng, dtype=torch.float64)
    down = torch.randn(2, 6, 4 * size**2, generator=rng, dtype=torch.float64)
    return Patches(maps, size, stride), down


@pytest.mark.parametrize(("side", "size", "stride"), CASES)
def test_laid_out_they_are_what_a_kernel_sees(side: int, size: int, stride: int) -> None:
    patches, down = made(side, size, stride)
    weight, bias = down[0], torch.arange(6.0, dtype=torch.float64)
    laid = patches.tensor()
    assert laid.shape == patches.shape
    expected = torch.nn.functional.linear(laid, weight, bias)
    torch.testing.assert_close(patches.convolved(weight, bias), expected)
    assert float(expected.std()) > 0.1


@pytest.mark.parametrize(("side", "size", "stride"), CASES)
def test_projecting_without_laying_out(side: int, size: int, stride: int) -> None:
    patches, down = made(side, size, stride)
    rows = patches.tensor().flatten(1, 2)
    torch.testing.assert_close(patches.project(down), torch.bmm(rows, down.mT))


@pytest.mark.parametrize(("side", "size", "stride"), CASES)
def test_gradients_are_those_of_automatic_differentiation(
    side: int, size: int, stride: int
) -> None:
    patches, down = made(side, size, stride)
    maps, down = patches.maps.requires_grad_(), down.requires_grad_()
    low = torch.bmm(patches.tensor().flatten(1, 2), down.mT)
    grad = torch.linspace(-1.0, 1.0, low.numel(), dtype=torch.float64).view_as(low)
    on_maps, on_down = torch.autograd.grad(low, (maps, down), grad)
    with torch.no_grad():
        found = patches.gradients(grad, down, of_maps=True)
        assert patches.gradients(grad, down)[1] is None
    assert found[1] is not None
    torch.testing.assert_close(found[0], on_down)
    torch.testing.assert_close(found[1], on_maps)

    wide = patches.convolved(down[0], None)
    grad = torch.linspace(-1.0, 1.0, wide.numel(), dtype=torch.float64).view_as(wide)
    (on_maps,) = torch.autograd.grad(wide, maps, grad)
    with torch.no_grad():
        torch.testing.assert_close(patches.backward(grad, down[0]), on_maps)
