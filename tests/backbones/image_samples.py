"""Tiny image networks, and the ways to apply adapters to them that must agree."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nsr_gym.backbones.base import Backbone, Site
from nsr_gym.backbones.resnet import ResNetBackbone
from nsr_gym.backbones.torchvision_models import vit_tensors
from nsr_gym.backbones.vit import ViTBackbone
from nsr_gym.datasets.vision import load_torchvision

HEADS = 2


def torchvision() -> ModuleType:
    return load_torchvision()


def shaken(module: Any, seed: int = 0) -> Any:
    """The module in evaluation mode, all its tensors random: no zero head, no plain statistics."""
    g = torch.Generator().manual_seed(seed)
    for name, part in module.state_dict().items():
        if part.is_floating_point():
            noise = torch.randn(part.shape, generator=g)
            scale = 0.3 * part.std() if part.numel() > 1 and part.std() > 0 else 0.2
            part.copy_(part + noise * scale)
            if name.endswith("running_var"):
                part.abs_().add_(0.1)
    return module.eval().requires_grad_(False)


def vit_module(depth: int = 3, side: int = 8, patch: int = 4) -> Any:
    """torchvision's own vision transformer, tiny."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = torchvision().models.VisionTransformer(
            image_size=side, patch_size=patch, num_layers=depth, num_heads=HEADS, hidden_dim=12,
            mlp_dim=20, num_classes=5,
        )  # fmt: skip
    return shaken(module)


def vit(module: Any | None = None, **arguments: Any) -> ViTBackbone:
    state = (module or vit_module()).state_dict()
    return ViTBackbone(vit_tensors(state), heads=HEADS, **arguments)


def resnet_module(kind: str = "BasicBlock") -> Any:
    """torchvision's own residual network with few blocks."""
    block = getattr(torchvision().models.resnet, kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return shaken(torchvision().models.ResNet(block, [1, 2, 1, 1], num_classes=5))


def resnet_weights(widths: tuple[int, ...] = (4, 6, 8), blocks: int = 2) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    made: dict[str, Tensor] = {}

    def add(name: str, out: int, channels: int, size: int) -> None:
        made[f"{name}.weight"] = torch.randn(out, channels, size, size, generator=g) * 0.2
        made[f"{name}.bias"] = torch.randn(out, generator=g) * 0.1

    add("stem", widths[0], 3, 3)
    before = widths[0]
    for s, width in enumerate(widths):
        for b in range(blocks):
            add(f"stages.{s}.{b}.conv1", width, before, 3)
            add(f"stages.{s}.{b}.conv2", width, width, 3)
            if before != width:
                add(f"stages.{s}.{b}.shortcut", width, before, 1)
            before = width
    made["head.weight"] = torch.randn(5, before, generator=g)
    made["head.bias"] = torch.randn(5, generator=g)
    return made


def resnet(**arguments: Any) -> ResNetBackbone:
    return ResNetBackbone(resnet_weights(), side=8, **arguments)


def images(*lead: int, side: int = 8, seed: int = 5) -> Tensor:
    return torch.rand(*lead, 3, side, side, generator=torch.Generator().manual_seed(seed))


def factors(
    sites: tuple[Site, ...], n: int, rank: int = 2, seed: int = 7
) -> dict[str, tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return {
        site.name: (
            torch.randn(n, site.d_out, rank, generator=g) * 0.2,
            torch.randn(n, rank, site.d_in, generator=g) * 0.2,
        )
        for site in sites
    }


def frozen_features(backbone: Backbone, x: Tensor) -> Tensor:
    from nsr_gym.backbones.base import FrozenMap

    return backbone.forward(backbone.prefix(x), FrozenMap(backbone))
