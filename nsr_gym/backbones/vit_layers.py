"""The layers of a vision transformer as functions of its tensors.

The frozen backbone and the pretraining run through the same functions. The network is the
pre-norm ViT of Dosovitskiy et al. (arXiv 2010.11929), with names like timm's. Where torchvision
keeps query, key and value in one `in_proj`, they are three maps here, since adapters sit on each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

Weights = Mapping[str, Tensor]


class Linear(Protocol):
    """Applies a linear map of the network by its name."""

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """Return the map's output for x (..., d_in)."""
        ...


def embed(weights: Weights, images: Tensor) -> Tensor:
    """Turn images into tokens: patches through a linear map, class token, positions.

    Args:
        weights: `patch.weight` (width, C, p, p), `patch.bias`, `position` (tokens, width), and
            `class_token` (width,) where there is one; it comes first.
        images: (N, C, H, W).

    Returns:
        (N, tokens, width).
    """
    kernel = weights["patch.weight"]
    tokens = functional.conv2d(images, kernel, weights["patch.bias"], stride=kernel.shape[-1])
    tokens = tokens.flatten(2).mT
    if "class_token" in weights:
        first = weights["class_token"].expand(len(tokens), 1, -1)
        tokens = torch.cat([first, tokens], dim=1)
    return tokens + weights["position"]


def norm(weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    """Apply layer normalisation `name` to x (..., width)."""
    weight = weights[f"{name}.weight"]
    return functional.layer_norm(x, weight.shape, weight, weights[f"{name}.bias"], eps)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Return the heads' answers side by side, (..., tokens, width), of as large q, k and v."""

    def split(x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-2], heads, x.shape[-1] // heads).transpose(1, 2)

    asked, keys, values = split(q), split(k), split(v)
    if q.device.type == "cpu" and q.dtype != torch.float32 and q.requires_grad:
        # On a CPU the gradient of the fused kernel in half precision takes six times as long.
        with torch.autocast("cpu", enabled=False):
            answer = functional.scaled_dot_product_attention(
                asked.float(), keys.float(), values.float()
            ).to(q.dtype)
    else:
        answer = functional.scaled_dot_product_attention(asked, keys, values)
    return answer.transpose(1, 2).reshape(q.shape)


def attend(
    weights: Weights, block: str, x: Tensor, linear: Linear, *, heads: int, eps: float, fused: bool
) -> Tensor:
    """Do the first half of a block, x + o(attention(norm1(x))).

    Args:
        weights: for the normalisation.
        block: name of the block, such as `"blocks.3"`.
        x: (..., tokens, width).
        linear: applies the maps `attn.q`, `attn.k`, `attn.v` (or `attn.qkv`) and `attn.o`.
        heads: of the attention.
        eps: of the normalisation.
        fused: whether one map makes query, key and value.

    Returns:
        (..., tokens, width).
    """
    inner = norm(weights, f"{block}.norm1", x, eps)
    if fused:
        q, k, v = linear(f"{block}.attn.qkv", inner).chunk(3, dim=-1)
    else:
        q, k, v = (linear(f"{block}.attn.{part}", inner) for part in "qkv")
    return x + linear(f"{block}.attn.o", attention(q, k, v, heads))


def transform(weights: Weights, block: str, x: Tensor, linear: Linear, *, eps: float) -> Tensor:
    """Do the second half of a block, x + fc2(gelu(fc1(norm2(x)))), x (..., tokens, width)."""
    inner = linear(f"{block}.mlp.fc1", norm(weights, f"{block}.norm2", x, eps))
    return x + linear(f"{block}.mlp.fc2", functional.gelu(inner))


def pool(weights: Weights, x: Tensor, *, eps: float) -> Tensor:
    """Return features (..., width) of the last block's x (..., tokens, width).

    The normalised class token, or where there is none the mean of the normalised tokens.
    """
    if "class_token" in weights:
        return norm(weights, "norm", x[..., 0, :], eps)
    return norm(weights, "norm", x, eps).mean(dim=-2)
