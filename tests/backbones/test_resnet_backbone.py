"""The frozen residual network is torchvision's in evaluation mode; convolutions are linear maps."""

from __future__ import annotations

import pytest
import torch
from image_samples import (
    factors,
    frozen_features,
    images,
    resnet,
    resnet_module,
    resnet_weights,
)
from torch import Tensor

from nsr_gym.backbones.base import FrozenMap, Site
from nsr_gym.backbones.entrance import Entrance
from nsr_gym.backbones.resnet import ResNetBackbone
from nsr_gym.backbones.torchvision_models import resnet_tensors
from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.site_maps import CapturingMap, FactoredMap, MergedMap


@pytest.mark.parametrize("kind", ["BasicBlock", "Bottleneck"])
@pytest.mark.parametrize("adapt", [None, [".*"]], ids=["last stage", "all"])
def test_logits_are_torchvisions(kind: str, adapt: list[str] | None) -> None:
    """As convolutions and, where sites are, as linear maps on patches."""
    module, x = resnet_module(kind), images(2, side=40)
    backbone = ResNetBackbone(
        resnet_tensors(module.state_dict()), side=40, stem_stride=2, stem_pool=True, adapt=adapt
    )
    logits, expected = backbone.head(frozen_features(backbone, x)), module(x)
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_what_a_backbone_says_of_itself() -> None:
    backbone = resnet()
    assert backbone.sites == (
        Site("stages.2.0.conv1", 8, 54), Site("stages.2.0.conv2", 8, 72),
        Site("stages.2.0.shortcut", 8, 6), Site("stages.2.1.conv1", 8, 72),
        Site("stages.2.1.conv2", 8, 72),
    )  # fmt: skip
    assert (backbone.input_shape, backbone.feature_dim, backbone.num_classes) == ((3, 8, 8), 8, 5)
    assert backbone.prefix(images(2))[0].shape == (2, 16, 6)
    for site in resnet(adapt=[".*"]).sites:
        weight, bias = resnet(adapt=[".*"]).weight(site.name)
        assert weight.shape == (site.d_out, site.d_in)
        assert bias is not None
        assert bias.shape == (site.d_out,)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
def test_leading_dimensions_are_the_callers_business(lead: tuple[int, ...]) -> None:
    backbone = resnet(adapt=["stages.1.1.conv2", "stages.2.0.*"])
    x = images(*lead)
    features = frozen_features(backbone, x)
    assert features.shape == (*lead, 8)
    flat = frozen_features(backbone, x.reshape(-1, 3, 8, 8))
    torch.testing.assert_close(features.reshape(-1, 8), flat)


@pytest.mark.parametrize("site", [f"stages.{s}.{b}.conv2" for s in range(3) for b in range(2)])
def test_wherever_the_frozen_part_ends_the_features_are_the_same(site: str) -> None:
    whole, part, x = resnet(adapt=["stages.0.0.conv1"]), resnet(adapt=[site]), images(4)
    torch.testing.assert_close(frozen_features(part, x), frozen_features(whole, x))
    seen = CapturingMap(FrozenMap(part))
    part.forward(part.prefix(x[None]), seen)
    assert list(seen.inputs) == [site]


@pytest.mark.parametrize("adapt", [None, ["stages.1.0.*"], [".*shortcut", ".*0.1.conv1"]])
def test_adapters_equal_kernels_they_are_added_to(adapt: list[str] | None) -> None:
    backbone, x = resnet(adapt=adapt), images(3, 4)
    made = factors(backbone.sites, n=3)
    prefix = backbone.prefix(x)
    leaves = {s: (up.mT.contiguous(), down) for s, (up, down) in made.items()}
    factored = backbone.forward(prefix, FactoredMap(backbone, leaves))
    merged = backbone.forward(prefix, MergedMap(backbone, made))
    for i in range(3):
        dense = backbone.weights
        for site, (up, down) in made.items():
            kernel = dense[f"{site}.weight"]
            dense[f"{site}.weight"] = kernel + (up[i] @ down[i]).reshape(kernel.shape)
        expected = frozen_features(ResNetBackbone(dense, side=8), x[i])
        assert not torch.allclose(expected, frozen_features(backbone, x[i]), atol=1e-2)
        torch.testing.assert_close(factored[i], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(merged[i], expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_kernels() -> None:
    backbone, x = resnet(adapt=["stages.1.0.conv1", "stages.2.0.shortcut"]), images(1, 3)
    made = factors(backbone.sites, n=1)
    leaves = {
        s: (up.mT.contiguous().requires_grad_(), down.clone().requires_grad_())
        for s, (up, down) in made.items()
    }
    backbone.forward(backbone.prefix(x), FactoredMap(backbone, leaves)).square().sum().backward()
    dense = resnet_weights()
    updates = {
        s: (up.clone().requires_grad_(), down.clone().requires_grad_())
        for s, (up, down) in made.items()
    }

    def convolve(name: str, x: Tensor, stride: int) -> Tensor:
        kernel = dense[f"{name}.weight"]
        if name in updates:
            up, down = updates[name]
            kernel = kernel + (up[0] @ down[0]).reshape(kernel.shape)
        edge = kernel.shape[-1] // 2
        return torch.nn.functional.conv2d(x, kernel, dense[f"{name}.bias"], stride, edge)

    y = convolve("stem", x[0], 1).relu()
    for s in range(3):
        for b in range(2):
            name, stride = f"stages.{s}.{b}", 2 if s and not b else 1
            inner = convolve(f"{name}.conv2", convolve(f"{name}.conv1", y, stride).relu(), 1)
            if f"{name}.shortcut.weight" in dense:
                y = convolve(f"{name}.shortcut", y, stride)
            y = (inner + y).relu()
    y.mean(dim=(2, 3)).square().sum().backward()
    for site, (up_t, down) in leaves.items():
        up, other = updates[site]
        assert up_t.grad is not None
        assert up.grad is not None
        assert down.grad is not None
        assert float(down.grad.norm()) > 0
        torch.testing.assert_close(up_t.grad.mT, up.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(down.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_the_fingerprint_is_of_the_function() -> None:
    backbone = resnet()
    assert resnet(adapt=["stages.0.*"]).fingerprint == backbone.fingerprint
    moved = resnet_weights()
    moved["stem.bias"][0] += 1e-6
    others = [
        ResNetBackbone(moved, side=8),
        ResNetBackbone(resnet_weights(), side=16),
        ResNetBackbone(resnet_weights(), side=8, stem_stride=2),
        resnet(entrance=Entrance(mean=(0.5,) * 3, std=(0.2,) * 3)),
    ]
    assert len({backbone.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert backbone.to("cpu") is backbone
    assert not any(part.requires_grad for part in backbone.weights.values())


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("stem.bias", None, r"residual network: missing stem\.bias"),
        ("more", torch.zeros(1), "unknown more"),
        ("head.bias", None, r"missing head\.bias"),
        ("stages.0.0.conv2.weight", None, r"missing stages\.0\.0\.conv2\.weight"),
        ("stages.1.0.conv1.weight", torch.zeros(6, 5, 3, 3), r"\(channels out, 4, k, k\)"),
        ("stages.1.0.conv1.weight", torch.zeros(6, 4, 2, 2), "k odd"),
        ("stages.1.0.conv1.bias", torch.zeros(5), r"of shape \(6,\); got \(5,\)"),
        ("head.weight", torch.zeros(5, 7), r"head.weight of shape \(5, 8\)"),
    ],
)
def test_what_does_not_make_a_network_is_refused(
    name: str, part: Tensor | None, message: str
) -> None:
    made = resnet_weights()
    if part is None:
        del made[name]
    else:
        made[name] = part
    with pytest.raises(InvalidValueError, match=message):
        ResNetBackbone(made, side=8)


def test_blocks_that_do_not_follow_each_other_are_refused() -> None:
    made = {n.replace("stages.1.", "stages.4."): part for n, part in resnet_weights().items()}
    with pytest.raises(InvalidValueError, match=r"without gaps; got stages\.0\.0"):
        ResNetBackbone(made, side=8)
    narrow = resnet_weights()
    for part in ("weight", "bias"):
        del narrow[f"stages.1.0.shortcut.{part}"]
    with pytest.raises(InvalidValueError, match=r"stages\.1\.0 to end with the 4 channels"):
        ResNetBackbone(narrow, side=8)


def test_a_block_that_halves_its_maps_needs_a_shortcut() -> None:
    made = resnet_weights((4, 4))
    for part in ("weight", "bias"):
        made.pop(f"stages.1.0.shortcut.{part}", None)
    with pytest.raises(InvalidValueError, match=r"stages\.1\.0\.shortcut\.weight.*halves"):
        ResNetBackbone(made, side=8)
