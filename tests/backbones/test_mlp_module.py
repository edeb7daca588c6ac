"""The frozen perceptron as an ordinary module."""

from __future__ import annotations

import torch

from nsr_gym.backbones.base import FrozenMap
from nsr_gym.backbones.pretrain import digits_backbone


def test_the_module_is_the_same_function_with_the_same_names() -> None:
    backbone = digits_backbone()
    module = backbone.to_module()
    x = torch.rand(3, 5, 64, generator=torch.Generator().manual_seed(0))
    features = backbone.forward(backbone.prefix(x), FrozenMap(backbone))
    assert torch.equal(module(x), backbone.head(features))
    state = module.state_dict()
    assert state.keys() == backbone.weights.keys()
    assert [name for name, _ in module.named_children()] == ["fc1", "fc2", "fc3", "head"]
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_changing_the_module_leaves_the_backbone_alone() -> None:
    backbone = digits_backbone()
    module = backbone.to_module()
    before = backbone.weights["fc1.weight"].clone()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    assert torch.equal(backbone.weights["fc1.weight"], before)
    assert torch.equal(module.state_dict()["fc1.weight"], before + 1.0)
