"""The perceptron refuses what does not fit and names its layers as sites."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nsr_gym.backbones.base import FrozenMap, Site, select_sites
from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.errors import InvalidValueError

SITES = {
    name: Site(name, 4, 4) for name in ("blocks.0.q", "blocks.0.v", "blocks.1.q", "blocks.1.v")
}


def weights(*widths: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    names = [*(f"fc{i + 1}" for i in range(len(widths) - 2)), "head"]
    made = {}
    for name, d_in, d_out in zip(names, widths[:-1], widths[1:], strict=True):
        made[f"{name}.weight"] = torch.randn(d_out, d_in, generator=g)
        made[f"{name}.bias"] = torch.randn(d_out, generator=g)
    return made


def without(name: str) -> dict[str, Tensor]:
    made = weights(6, 5, 4, 3)
    del made[name]
    return made


def with_tensor(name: str, *shape: int) -> dict[str, Tensor]:
    return weights(6, 5, 4, 3) | {name: torch.zeros(shape)}


def test_what_a_backbone_says_of_itself() -> None:
    backbone = MLPBackbone(weights(6, 5, 4, 3))
    assert backbone.sites == (Site("fc1", 5, 6), Site("fc2", 4, 5))
    assert (backbone.input_shape, backbone.feature_dim, backbone.num_classes) == ((6,), 4, 3)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "fc1.weight.*got none"),
        (without("fc1.bias"), "fc1.weight, fc1.bias.*got"),
        (without("fc2.weight"), "got"),
        (without("head.weight"), "got"),
        (with_tensor("fc4.weight", 4, 4), "got.*fc4.weight"),
        (with_tensor("extra", 2), "got.*extra"),
        (with_tensor("fc2.weight", 4, 6), r"fc2.weight of shape \(outputs, 5\).*got \(4, 6\)"),
        (with_tensor("fc1.bias", 4), r"fc1.weight.*got \(5, 6\) and \(4,\)"),
        (with_tensor("head.weight", 3, 5), r"head.weight of shape \(outputs, 4\)"),
        (with_tensor("fc1.weight", 5), r"fc1.weight of shape.*got \(5,\)"),
    ],
)  # fmt: skip
def test_weights_that_do_not_make_a_network_are_refused(
    tensors: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(InvalidValueError, match=message):
        MLPBackbone(tensors)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
def test_leading_dimensions_are_the_callers_business(lead: tuple[int, ...]) -> None:
    backbone = MLPBackbone(weights(6, 5, 4, 3), adapt=["fc2"])
    x = torch.randn(*lead, 6, generator=torch.Generator().manual_seed(1))
    features = backbone.forward(backbone.prefix(x), FrozenMap(backbone))
    assert features.shape == (*lead, 4)
    assert backbone.head(features).shape == (*lead, 3)
    flat = backbone.forward(backbone.prefix(x.reshape(-1, 6)), FrozenMap(backbone))
    torch.testing.assert_close(features.reshape(-1, 4), flat)


def test_adapting_fewer_layers_moves_the_prefix_and_not_the_features() -> None:
    tensors, x = weights(6, 5, 5, 4, 3), torch.randn(7, 6, generator=torch.Generator())
    whole = MLPBackbone(tensors)
    expected = whole.forward(whole.prefix(x), FrozenMap(whole))
    for adapt in (["fc1"], ["fc2"], ["fc3"], ["fc[13]"]):
        backbone = MLPBackbone(tensors, adapt=adapt)
        features = backbone.forward(backbone.prefix(x), FrozenMap(backbone))
        torch.testing.assert_close(features, expected)
    deep = MLPBackbone(tensors, adapt=["fc3"])
    assert deep.prefix(x)[0].shape == (7, 5)


def test_the_fingerprint_is_of_the_values() -> None:
    tensors = weights(6, 5, 4, 3)
    same = MLPBackbone({name: part.clone() for name, part in reversed(tensors.items())})
    assert same.fingerprint == MLPBackbone(tensors).fingerprint
    tensors["fc2.bias"][1] += 1e-6
    assert same.fingerprint != MLPBackbone(tensors).fingerprint


def test_a_backbone_that_is_there_already_is_not_copied() -> None:
    backbone = MLPBackbone(weights(6, 5, 4, 3), adapt=["fc2"])
    assert backbone.to("cpu") is backbone
    if torch.cuda.is_available():
        moved = backbone.to("cuda")
        assert moved.device.type == "cuda"
        assert (moved.sites, moved.fingerprint) == (backbone.sites, backbone.fingerprint)


def test_weights_need_no_gradient() -> None:
    tensors = {name: part.requires_grad_() for name, part in weights(6, 5, 4, 3).items()}
    backbone = MLPBackbone(tensors)
    assert not any(part.requires_grad for part in backbone.weights.values())


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (None, list(SITES)),
        (["blocks.1.v", "blocks.0.q"], ["blocks.0.q", "blocks.1.v"]),
        ([r"blocks\.\d+\.q"], ["blocks.0.q", "blocks.1.q"]),
        ([r".*\.q", "blocks.0.*"], ["blocks.0.q", "blocks.0.v", "blocks.1.q"]),
    ],
)
def test_sites_are_chosen_by_name_or_expression_in_the_order_of_the_network(
    wanted: list[str] | None, chosen: list[str]
) -> None:
    assert [site.name for site in select_sites(SITES, wanted)] == chosen


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["q"], "No site matches 'q'; the sites are blocks.0.q"),  # matched whole
        (["blocks.0.q", "head"], "No site matches 'head'"),
        ([], "at least one site"),
        (["("], r"'\(' is no"),
    ],
)
def test_a_choice_of_no_site_is_refused(wanted: list[str], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        select_sites(SITES, wanted)


def test_the_choice_is_checked_when_the_backbone_is_built() -> None:
    with pytest.raises(InvalidValueError, match="No site matches 'fc9'; the sites are fc1, fc2"):
        MLPBackbone(weights(6, 5, 4, 3), adapt=["fc9"])
