"""The small image networks in the form in which they are pretrained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.backbones.entrance import Entrance
from nsr_gym.backbones.resnet import ResNetBackbone
from nsr_gym.backbones.vit import ViTBackbone
from nsr_gym.backbones.vit_layers import attend, embed, pool, transform

Backbones = ViTBackbone | ResNetBackbone


class Plan(Protocol):
    """Shapes of a network, from which it is built, trained and frozen."""

    @property
    def side(self) -> int:
        """Height and width of its images, which have three channels."""
        ...

    def initial(self, classes: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Return new tensors; those that `trainable` denies are no parameters."""
        ...

    def trainable(self, name: str) -> bool:
        """Return whether a tensor is trained by its gradient."""
        ...

    def logits(
        self, weights: Mapping[str, Tensor], images: Tensor, share: float, rng: torch.Generator
    ) -> Tensor:
        """Return logits (n, classes) while training, of normalised images (n, 3, side, side)."""
        ...

    def folded(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the frozen network."""
        ...

    def backbone(
        self, weights: Mapping[str, Tensor], *, entrance: Entrance, **arguments: Any
    ) -> Backbones:
        """Return the frozen network of such tensors."""
        ...


@dataclass(frozen=True, kw_only=True)
class ViTPlan:
    """A vision transformer without class token: features are the mean of its tokens.

    Attributes:
        side: height and width of its images.
        patch: height and width of a patch.
        width: of a token.
        depth: number of blocks.
        heads: of the attention.
        hidden: width of the MLPs.
    """

    side: int = 32
    patch: int = 4
    width: int = 192
    depth: int = 6
    heads: int = 3
    hidden: int = 768

    def initial(self, classes: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Return new tensors: maps normal with Glorot's deviation, positions 0.02, biases zero."""
        made = {
            "patch.weight": _normal((self.width, 3, self.patch, self.patch), rng),
            "patch.bias": torch.zeros(self.width),
            "position": torch.randn((self.side // self.patch) ** 2, self.width, generator=rng)
            * 0.02,
        }
        maps = {f"attn.{part}": (self.width, self.width) for part in "qkvo"}
        maps |= {"mlp.fc1": (self.hidden, self.width), "mlp.fc2": (self.width, self.hidden)}
        norms = ["norm"]
        for i in range(self.depth):
            norms += [f"blocks.{i}.norm1", f"blocks.{i}.norm2"]
            for name, shape in maps.items():
                made[f"blocks.{i}.{name}.weight"] = _normal(shape, rng)
                made[f"blocks.{i}.{name}.bias"] = torch.zeros(shape[0])
        for name in norms:
            made[f"{name}.weight"] = torch.ones(self.width)
            made[f"{name}.bias"] = torch.zeros(self.width)
        return made | _head(classes, self.width)

    def trainable(self, name: str) -> bool:
        """Return that every tensor is trained."""
        return True

    def logits(
        self, weights: Mapping[str, Tensor], images: Tensor, share: float, rng: torch.Generator
    ) -> Tensor:
        """Return logits (n, classes), of a random share of each image's tokens.

        Training on half of the tokens costs half and hurts little, if the last epochs see them
        all (PatchDropout, arXiv 2208.07220).
        """
        x = embed(weights, images)
        if share < 1.0:
            keep = max(1, round(share * x.shape[1]))
            chosen = torch.rand(x.shape[:2], generator=rng).argsort(dim=1)[:, :keep]
            x = x.gather(1, chosen.to(x.device)[:, :, None].expand(-1, -1, x.shape[2]))

        def linear(name: str, x: Tensor) -> Tensor:
            return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

        for i in range(self.depth):
            block = f"blocks.{i}"
            x = attend(weights, block, x, linear, heads=self.heads, eps=_EPS, fused=False)
            x = transform(weights, block, x, linear, eps=_EPS)
        return linear("head", pool(weights, x, eps=_EPS))

    def folded(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors as they are."""
        return {name: part.detach().clone() for name, part in weights.items()}

    def backbone(
        self, weights: Mapping[str, Tensor], *, entrance: Entrance, **arguments: Any
    ) -> ViTBackbone:
        """Return the frozen network."""
        return ViTBackbone(weights, heads=self.heads, eps=_EPS, entrance=entrance, **arguments)


@dataclass(frozen=True, kw_only=True)
class ResNetPlan:
    """A residual network of blocks of two 3 x 3 convolutions, trained with batch normalisation.

    Attributes:
        side: height and width of its images.
        widths: channels of each stage.
        blocks: of each stage.
        stem: kernel size of the first convolution.
        stem_stride: its stride.
    """

    side: int = 32
    widths: tuple[int, ...] = (64, 128, 256)
    blocks: int = 2
    stem: int = 5
    stem_stride: int = 2

    def _convolutions(self) -> dict[str, tuple[int, int, int, int]]:
        """Return convolution -> (channels out, channels in, kernel size, stride)."""
        found = {"stem": (self.widths[0], 3, self.stem, self.stem_stride)}
        before = self.widths[0]
        for s, width in enumerate(self.widths):
            for b in range(self.blocks):
                name, stride = f"stages.{s}.{b}", 2 if s and not b else 1
                found[f"{name}.conv1"] = (width, before, 3, stride)
                found[f"{name}.conv2"] = (width, width, 3, 1)
                if before != width:
                    found[f"{name}.shortcut"] = (width, before, 1, stride)
                before = width
        return found

    def initial(self, classes: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Return new tensors: kernels normal with He's deviation, blocks that start as identity."""
        made = {}
        for name, (out, channels, size, _) in self._convolutions().items():
            kernel = torch.randn(out, channels, size, size, generator=rng)
            made[f"{name}.weight"] = kernel * math.sqrt(2.0 / (channels * size * size))
            last = name.endswith(".conv2")
            made[f"{name}.norm.weight"] = torch.zeros(out) if last else torch.ones(out)
            made[f"{name}.norm.bias"] = torch.zeros(out)
            made[f"{name}.norm.mean"] = torch.zeros(out)
            made[f"{name}.norm.var"] = torch.ones(out)
        return made | _head(classes, self.widths[-1])

    def trainable(self, name: str) -> bool:
        """Return that all but the running statistics are trained."""
        return not name.endswith((".norm.mean", ".norm.var"))

    def logits(
        self, weights: Mapping[str, Tensor], images: Tensor, share: float, rng: torch.Generator
    ) -> Tensor:
        """Return logits (n, classes), and advance the running statistics; `share` has no say."""
        plan = self._convolutions()

        def convolve(name: str, x: Tensor) -> Tensor:
            _, _, size, stride = plan[name]
            x = functional.conv2d(x, weights[f"{name}.weight"], stride=stride, padding=size // 2)
            return functional.batch_norm(
                x, weights[f"{name}.norm.mean"], weights[f"{name}.norm.var"],
                weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"],
                training=True, momentum=_MOMENTUM, eps=_NORM_EPS,
            )  # fmt: skip

        x = convolve("stem", images.contiguous(memory_format=torch.channels_last)).relu()
        for name in [n.removesuffix(".conv1") for n in plan if n.endswith(".conv1")]:
            y = convolve(f"{name}.conv2", convolve(f"{name}.conv1", x).relu())
            x = (y + (convolve(f"{name}.shortcut", x) if f"{name}.shortcut" in plan else x)).relu()
        return functional.linear(x.mean(dim=(2, 3)), weights["head.weight"], weights["head.bias"])

    def folded(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors with the running normalisation folded into the convolutions."""
        made: dict[str, Tensor] = {}
        for name in self._convolutions():
            norm = {part: weights[f"{name}.norm.{part}"] for part in _NORM}
            made |= fold(name, weights[f"{name}.weight"], **norm, eps=_NORM_EPS)
        return made | {
            part: weights[part].detach().clone() for part in ("head.weight", "head.bias")
        }

    def backbone(
        self, weights: Mapping[str, Tensor], *, entrance: Entrance, **arguments: Any
    ) -> ResNetBackbone:
        """Return the frozen network."""
        return ResNetBackbone(
            weights, side=self.side, stem_stride=self.stem_stride, entrance=entrance, **arguments
        )


PLANS: Mapping[str, ViTPlan | ResNetPlan] = {
    "vit-small-32": ViTPlan(),
    "resnet-small-32": ResNetPlan(),
}
"""The networks that ship, by name."""

_EPS = 1e-6
_NORM_EPS = 1e-5
_MOMENTUM = 0.1
_NORM = ("weight", "bias", "mean", "var")


@torch.no_grad()
def fold(
    name: str, kernel: Tensor, *, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor,
    eps: float,
) -> dict[str, Tensor]:  # fmt: skip
    """Fold the normalisation behind a convolution without bias into one with a bias.

    In double precision: the scale of a channel that hardly varies is large.

    Returns:
        `{name}.weight` and `{name}.bias`, float32.
    """
    scale = weight.double() / (var.double() + eps).sqrt()
    return {
        f"{name}.weight": (kernel.double() * scale[:, None, None, None]).float(),
        f"{name}.bias": (bias.double() - mean.double() * scale).float(),
    }


def _normal(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    fan_out, fan_in = shape[0], math.prod(shape[1:])
    return torch.randn(shape, generator=rng) * math.sqrt(2.0 / (fan_in + fan_out))


def _head(classes: int, width: int) -> dict[str, Tensor]:
    return {"head.weight": torch.zeros(classes, width), "head.bias": torch.zeros(classes)}
