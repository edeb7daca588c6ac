"""The factored, the merged and the dense form of an adapter are one network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nsr_gym.backbones.base import FrozenMap
from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.adapters import Adapters, check_rank
from nsr_gym.learning.site_maps import FactoredMap, MergedMap, _AdaptedLinear

ADAPT = [None, ["fc1"], ["fc2"], ["fc3"], ["fc1", "fc3"], ["fc2", "fc3"]]


def double(*shape: int, seed: int = 0, grad: bool = True) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=grad)


def adapted(*arguments: Any) -> Any:
    return _AdaptedLinear.apply(*arguments)  # type: ignore[no-untyped-call]


def dense_formula(
    x: Tensor, weight: Tensor, bias: Tensor | None, up_t: Tensor, down: Tensor
) -> Tensor:
    merged = weight + up_t.mT @ down
    y = torch.einsum("n...i,noi->n...o", x, merged)
    return y if bias is None else y + bias


@pytest.mark.parametrize("inner", [(), (5,), (2, 3)], ids=["one image", "images", "tokens"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_written_out_gradient_is_the_gradient(inner: tuple[int, ...], with_bias: bool) -> None:
    x, up_t, down = double(3, *inner, 6, seed=1), double(3, 2, 4, seed=2), double(3, 2, 6, seed=3)
    weight = double(4, 6, seed=4, grad=False)
    bias = double(4, seed=5, grad=False) if with_bias else None

    def layer(x: Tensor, up_t: Tensor, down: Tensor) -> Any:
        return adapted(x, None, weight, bias, up_t, down)

    assert torch.autograd.gradcheck(layer, (x, up_t, down))
    torch.testing.assert_close(
        layer(x, up_t, down), dense_formula(x, weight, bias, up_t, down), rtol=1e-12, atol=1e-12
    )
    out = double(*layer(x, up_t, down).shape, seed=6, grad=False)
    ours = torch.autograd.grad(layer(x, up_t, down), (x, up_t, down), out)
    dense = torch.autograd.grad(dense_formula(x, weight, bias, up_t, down), (x, up_t, down), out)
    for a, b in zip(ours, dense, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_known_frozen_output_changes_neither_values_nor_gradients() -> None:
    x, up_t, down = double(3, 9, 6, grad=False), double(3, 2, 4, seed=2), double(3, 2, 6, seed=3)
    weight, bias = double(4, 6, seed=4, grad=False), double(4, seed=5, grad=False)
    part = x[:, 2:7]  # images of one update are a part of a learning step's, not contiguous
    frozen = torch.nn.functional.linear(x, weight, bias)[:, 2:7]
    before = frozen.clone()
    results = []
    for known in (frozen, None):
        y = adapted(part, known, weight, bias, up_t, down)
        results.append((y, *torch.autograd.grad(torch.relu_(y).square().sum(), (up_t, down))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert torch.equal(frozen, before)  # what is cached is not written to


def test_a_site_used_twice_gets_both_gradients() -> None:
    x, up_t, down = double(2, 5, 4, seed=1), double(2, 2, 4, seed=2), double(2, 2, 4, seed=3)
    weight = double(4, 4, seed=4, grad=False)

    def twice(x: Tensor, up_t: Tensor, down: Tensor) -> Any:
        y = adapted(x, None, weight, None, up_t, down)
        return adapted(torch.tanh(y), None, weight, None, up_t, down)

    assert torch.autograd.gradcheck(twice, (x, up_t, down))


@pytest.mark.parametrize("adapt", ADAPT, ids=str)
def test_factored_merged_and_dense_weights_give_the_same_logits(
    adapt: list[str] | None, make_world: Callable[..., Any], dense_forward: Callable[..., Tensor]
) -> None:
    """Also for sites that are a part of the layers, where the layers before are computed once."""
    world = make_world(adapt=adapt)
    adapters, tasks = world.adapters(3, 2), torch.tensor([2, 0, 3])
    images = world.data.test(tasks)
    leaves = {s: (up.mT.contiguous(), down) for s, (up, down) in adapters.factors.items()}
    factored = world.learner.logits(images, FactoredMap(world.backbone, leaves))
    merged = world.learner.logits(images, MergedMap(world.backbone, adapters.factors))
    for i, task in enumerate(tasks):
        x = torch.tensor(world.pool[int(task)].x_test)
        expected = dense_forward(world.dense(adapters, i), x)
        torch.testing.assert_close(factored[i], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(merged[i], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adapt", ADAPT, ids=str)
def test_empty_adapters_are_the_bare_backbone(
    adapt: list[str] | None, make_world: Callable[..., Any], dense_forward: Callable[..., Tensor]
) -> None:
    world = make_world(adapt=adapt)
    images = world.data.test(torch.arange(4))
    empty = Adapters.zeros(world.backbone.sites, 4, 2)
    merged = world.learner.logits(images, MergedMap(world.backbone, empty.factors))
    frozen = world.learner.logits(images, FrozenMap(world.backbone))
    torch.testing.assert_close(merged, frozen, rtol=1e-6, atol=1e-6)
    expected = dense_forward(world.backbone.weights, torch.tensor(world.pool[1].x_test))
    torch.testing.assert_close(frozen[1], expected, rtol=1e-5, atol=1e-5)


def test_measuring_writes_to_nothing_that_is_cached(make_world: Callable[..., Any]) -> None:
    world = make_world()
    images = world.data.test(torch.arange(4))
    before = [part.clone() for part in images.prefix]
    adapters = world.adapters(4, 2)
    first = world.learner.loss(images, adapters), world.learner.loss(images, None)
    again = world.learner.loss(images, adapters), world.learner.loss(images, None)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, images.prefix, strict=True))


def test_keep_clears_every_direction_beyond_the_rank(make_world: Callable[..., Any]) -> None:
    world = make_world()
    adapters, whole = world.adapters(3, 4), world.adapters(3, 4)
    adapters.keep(torch.tensor([0, 2, 4]))
    for site, (up, down) in adapters.factors.items():
        for i, rank in enumerate((0, 2, 4)):
            assert torch.equal(up[i, :, :rank], whole.factors[site][0][i, :, :rank])
            assert torch.equal(down[i, :rank], whole.factors[site][1][i, :rank])
            assert not up[i, :, rank:].any()
            assert not down[i, rank:].any()


def test_reordering_directions_leaves_the_update_as_it_is(make_world: Callable[..., Any]) -> None:
    adapters = make_world().adapters(2, 3)
    order = torch.tensor([[2, 0, 1], [0, 2, 1]])
    for site, (up, down) in adapters.reorder(order).factors.items():
        old_up, old_down = adapters.factors[site]
        torch.testing.assert_close(up @ down, old_up @ old_down)
        assert torch.equal(up[0, :, 0], old_up[0, :, 2])
        assert torch.equal(down[1, 1], old_down[1, 2])


def test_put_overwrites_the_chosen_episodes_alone(make_world: Callable[..., Any]) -> None:
    world = make_world()
    adapters, old, new = (world.adapters(3, 2, seed=s) for s in (1, 1, 9))
    adapters.put(torch.tensor([2, 0]), new[torch.tensor([0, 1])])
    for site, pair in adapters.factors.items():
        for part in (0, 1):
            assert torch.equal(pair[part][2], new.factors[site][part][0])
            assert torch.equal(pair[part][0], new.factors[site][part][1])
            assert torch.equal(pair[part][1], old.factors[site][part][1])


def test_an_episode_with_a_factor_that_is_not_finite_is_found(
    make_world: Callable[..., Any],
) -> None:
    adapters = make_world().adapters(4, 2)
    adapters.factors["fc2"][0][1, 0, 0] = torch.nan
    adapters.factors["fc3"][1][3, 1, 1] = torch.inf
    assert adapters.finite().tolist() == [True, False, True, False]


@pytest.mark.parametrize("rank", [0, -1, 5])
def test_a_rank_that_no_adapter_can_have_is_refused(
    rank: int, make_world: Callable[..., Any]
) -> None:
    sites = make_world().backbone.sites  # the narrowest is fc3, 4 x 5
    with pytest.raises(InvalidValueError, match=r"between 1 and 4.*'fc3', 4 x 5.*got"):
        Adapters.zeros(sites, 1, rank)
    check_rank(sites, 4)
