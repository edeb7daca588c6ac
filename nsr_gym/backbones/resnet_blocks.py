"""The blocks of a residual network, as the names and shapes of its tensors have them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from nsr_gym.backbones.weight_files import check_names, check_shape
from nsr_gym.errors import InvalidValueError

SHORTCUT = "shortcut"


@dataclass(frozen=True)
class Step:
    """A convolution of a block.

    Attributes:
        name: of its site.
        side: height and width of the maps that enter it.
        stride: of the convolution.
        last: whether nothing of the block follows it before the sum.
    """

    name: str
    side: int
    stride: int
    last: bool


@dataclass(frozen=True)
class Block:
    """A residual block.

    Attributes:
        name: `stages.{s}.{b}`.
        path: its convolutions, one after the other.
        shortcut: the 1 x 1 convolution beside them; None: what enters is added as it is.
    """

    name: str
    path: tuple[Step, ...]
    shortcut: Step | None

    @property
    def steps(self) -> tuple[Step, ...]:
        """All its convolutions, in the order in which they are called."""
        return self.path if self.shortcut is None else (*self.path, self.shortcut)


def read_blocks(weights: Mapping[str, Tensor], side: int) -> list[Block]:
    """Return the blocks, in order, of tensors that make a network.

    Args:
        weights: of `ResNetBackbone`.
        side: height and width of the maps that enter the first block.

    Raises:
        InvalidValueError: a tensor is missing or the shapes do not fit each other.
    """
    blocks = []
    for name in _names(weights):
        convs, stride, here = _convolutions(weights, name), _stride(name), side
        halving = convs[len(convs) // 2 if len(convs) == 3 else 0]
        path = []
        for conv in convs:
            step = Step(f"{name}.{conv}", here, stride if conv == halving else 1, conv == convs[-1])
            path.append(step)
            here = -(-here // step.stride)
        shortcut = None
        if f"{name}.{SHORTCUT}.weight" in weights:
            shortcut = Step(f"{name}.{SHORTCUT}", side, stride, True)
        elif here != side:
            raise InvalidValueError(
                f"Expected {name}.{SHORTCUT}.weight: the block halves its maps, so that what "
                "enters it cannot be added as it is."
            )
        blocks.append(Block(name, tuple(path), shortcut))
        side = here
    return blocks


def _stride(block: str) -> int:
    _, stage, number = block.split(".")
    return 2 if number == "0" and stage != "0" else 1


def _convolutions(weights: Mapping[str, Tensor], block: str) -> list[str]:
    return [f"conv{j}" for j in (1, 2, 3) if f"{block}.conv{j}.weight" in weights]


def _names(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the blocks, in order, of tensors that make a network."""
    found = {m[1] for name in weights if (m := re.match(r"(stages\.\d+\.\d+)\.", name))}
    blocks = sorted(found, key=lambda block: tuple(map(int, block.split(".")[1:])))
    names = ["stem.weight", "stem.bias"]
    for block in blocks or ["stages.0.0"]:
        maps = {"conv1", "conv2", *_convolutions(weights, block)}
        maps |= {SHORTCUT} if f"{block}.{SHORTCUT}.weight" in weights else set()
        names += [f"{block}.{conv}.{part}" for conv in maps for part in ("weight", "bias")]
    names += ["head.weight", "head.bias"] if {"head.weight", "head.bias"} & set(weights) else []
    check_names("residual network", weights, names)
    places = [(int(s), int(b)) for _, s, b in (block.split(".") for block in blocks)]
    follows = all(after in ((s, b + 1), (s + 1, 0)) for (s, b), after in pairwise(places))
    if places[:1] != [(0, 0)] or not follows:
        raise InvalidValueError(
            f"Expected stages and blocks that count from 0 without gaps; got {', '.join(blocks)}."
        )
    width = _check_kernel(weights, "stem", None)
    for block in blocks:
        inner = width
        for conv in _convolutions(weights, block):
            inner = _check_kernel(weights, f"{block}.{conv}", inner)
        if f"{block}.{SHORTCUT}.weight" in weights:
            width = _check_kernel(weights, f"{block}.{SHORTCUT}", width)
        if inner != width:
            raise InvalidValueError(
                f"Expected {block} to end with the {width} channels of what it is added to; it "
                f"has {inner}."
            )
    if "head.weight" in weights:
        check_shape("head.weight", weights["head.weight"], (len(weights["head.bias"]), width))
    return blocks


def _check_kernel(weights: Mapping[str, Tensor], name: str, channels: int | None) -> int:
    kernel = weights[f"{name}.weight"]
    if (
        kernel.ndim != 4
        or kernel.shape[2] != kernel.shape[3]
        or kernel.shape[2] % 2 == 0
        or channels not in (None, kernel.shape[1])
    ):
        raise InvalidValueError(
            f"Expected {name}.weight of shape (channels out, {channels or 'channels in'}, k, k) "
            f"with k odd; got {tuple(kernel.shape)}."
        )
    check_shape(f"{name}.bias", weights[f"{name}.bias"], (len(kernel),))
    return len(kernel)
