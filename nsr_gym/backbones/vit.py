"""A frozen vision transformer whose attention and MLP maps adapters modify."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.backbones.base import Prefix, Site, SiteMap, select_sites
from nsr_gym.backbones.entrance import Entrance
from nsr_gym.backbones.heads import Head
from nsr_gym.backbones.vit_layers import attend, embed, pool, transform
from nsr_gym.backbones.weight_files import check_names, check_shape, fingerprint
from nsr_gym.errors import InvalidValueError

DEFAULT_SITES = (r"blocks\.\d+\.attn\.[qv]",)
"""Query and value of every block, as in the paper (arXiv 2606.30067) and LoRA's (2106.09685)."""
FUSED_SITES = (r"blocks\.\d+\.attn\.qkv",)

_CHUNK = {"cpu": 64}
_LARGE_CHUNK = 256
"""Images that go through frozen layers at once, by device. It bounds the memory of a task's prefix,
and on a CPU keeps activations in the cache (measured at 64 tokens of width 192: a block takes
0.65 s for 1,000 images in parts of 64, and 0.99 s for all at once)."""


class ViTBackbone(Head):
    """A pre-norm vision transformer for square images, with a frozen linear head or without.

    The sites of block i are `blocks.{i}.attn.q`, `.k`, `.v`, `.o`, `blocks.{i}.mlp.fc1` and
    `.fc2`; with `fused`, `blocks.{i}.attn.qkv` stands for the first three. Every site sees
    its input as (..., tokens, d_in).

    The prefix is one tensor (N, tokens, width): the residual stream in front of the first half
    block that holds an adapted site.

    Attributes:
        sites: the adapted maps.
        input_shape: `(C, side, side)` of the images, in [0, 1] where the entrance normalises.
        depth: number of blocks.
        feature_dim: the width.
        num_classes: outputs of the head, 0 without one.
        fingerprint: SHA-256 over names, shapes and values of all weights and what else the
            function depends on.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        heads: int,
        adapt: Sequence[str] | None = None,
        fused: bool = False,
        eps: float = 1e-6,
        entrance: Entrance | None = None,
        known_fingerprint: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Build the network from its tensors.

        Args:
            weights: `patch.weight` (width, C, p, p), `patch.bias`, `position` (tokens, width),
                maybe `class_token` (width,), for every block i `blocks.{i}.norm1.weight`,
                `.bias`, the same of `norm2`, `attn.q`, `attn.k`, `attn.v`, `attn.o`, `mlp.fc1`
                and `mlp.fc2`, then of `norm` and maybe `head`.
            heads: of the attention.
            adapt: names or regular expressions of the maps that adapters modify; None takes
                query and value of every block.
            fused: whether query, key and value are one site.
            eps: of the layer normalisation.
            entrance: what happens to images before the first layer; None: nothing does.
            known_fingerprint: where the weights come from a file whose hash is known.
            device: where to keep the weights.

        Raises:
            InvalidValueError: a tensor is missing or the shapes do not fit each other.
        """
        self.device = torch.device(device)
        self.heads, self.eps, self.fused = heads, eps, fused
        self.entrance = entrance or Entrance()
        width, depth, classes = _check(weights, heads)
        self._weights = {
            name: part.detach().to(self.device, torch.float32) for name, part in weights.items()
        }
        self.depth, self.feature_dim, self.num_classes = depth, width, classes
        self.fingerprint = known_fingerprint or fingerprint(
            self._weights, heads=heads, eps=eps, entrance=asdict(self.entrance)
        )
        kernel = self._weights["patch.weight"]
        patches = len(self._weights["position"]) - ("class_token" in weights)
        self._side = round(patches**0.5) * int(kernel.shape[-1])
        side = self.entrance.side or self._side
        self.input_shape: tuple[int, ...] = (int(kernel.shape[1]), side, side)
        self.entrance.check(self.input_shape[0])
        self._fuse()
        available = {}
        for i in range(depth):
            for name in _site_names(i, fused):
                d_out, d_in = self.weight(name)[0].shape
                available[name] = Site(name, int(d_out), int(d_in))
        default = FUSED_SITES if fused else DEFAULT_SITES
        self.sites = select_sites(available, default if adapt is None else adapt)
        self._adapted = {site.name for site in self.sites}
        first = self.sites[0].name
        self._first = 2 * int(first.split(".")[1]) + (".mlp." in first)

    @property
    def _chunk(self) -> int:
        return _CHUNK.get(self.device.type, _LARGE_CHUNK)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors, by name (those the constructor takes)."""
        return dict(self._weights)

    def to(self, device: torch.device | str) -> ViTBackbone:
        """Return this backbone on `device` (itself, where it is there already)."""
        if torch.device(device) == self.device:
            return self
        return type(self)(
            self._weights, heads=self.heads, adapt=[site.name for site in self.sites],
            fused=self.fused, eps=self.eps, entrance=self.entrance,
            known_fingerprint=self.fingerprint, device=device,
        )  # fmt: skip

    def weight(self, site: str) -> tuple[Tensor, Tensor | None]:
        """Return the frozen weight (d_out, d_in) and bias (d_out,) of a site."""
        if site.endswith(".attn.qkv"):
            return self._fused[site]
        return self._weights[f"{site}.weight"], self._weights[f"{site}.bias"]

    @torch.no_grad()
    def prefix(self, x: Tensor) -> Prefix:
        """Return the tokens (..., tokens, width) of images (..., C, side, side)."""
        images = x.reshape(-1, *self.input_shape)
        tokens = torch.cat([self._before(part) for part in images.split(self._chunk)])
        return (tokens.view(*x.shape[:-3], *tokens.shape[1:]),)

    def forward(self, prefix: Prefix, site_map: SiteMap) -> Tensor:
        """Return features (..., width) from a prefix (..., tokens, width)."""
        (tokens,) = prefix
        for half in range(self._first, 2 * self.depth):
            tokens = self._half(half, tokens, site_map)
        return pool(self._weights, tokens, eps=self.eps)

    def _before(self, images: Tensor) -> Tensor:
        tokens = embed(self._weights, self.entrance(images, self._side))
        for half in range(self._first):
            tokens = self._half(half, tokens, None)
        return tokens

    def _half(self, half: int, tokens: Tensor, site_map: SiteMap | None) -> Tensor:
        block, second = f"blocks.{half // 2}", half % 2

        def linear(name: str, x: Tensor) -> Tensor:
            if site_map is not None and name in self._adapted:
                return site_map(name, x)
            return functional.linear(x, *self.weight(name))

        if second:
            adapted = (
                site_map is not None and {f"{block}.mlp.fc1", f"{block}.mlp.fc2"} & self._adapted
            )
            if adapted or torch.is_grad_enabled():
                return transform(self._weights, block, tokens, linear, eps=self.eps)
            parts = tokens.flatten(0, -3).split(self._chunk) if tokens.ndim > 2 else [tokens]
            done = [transform(self._weights, block, x, linear, eps=self.eps) for x in parts]
            return torch.cat(done).view(tokens.shape)
        single = {f"{block}.attn.{part}" for part in "qkv"}
        # One product instead of three, unless one of the three is a site by itself.
        fused = self.fused or site_map is None or not single & self._adapted
        return attend(
            self._weights, block, tokens, linear, heads=self.heads, eps=self.eps, fused=fused
        )

    def _fuse(self) -> None:
        """Put query, key and value of each block into one tensor, and keep views of it."""
        self._fused: dict[str, tuple[Tensor, Tensor]] = {}
        width = self.feature_dim
        for i in range(self.depth):
            attn = f"blocks.{i}.attn"
            whole = []
            for part in ("weight", "bias"):
                names = [f"{attn}.{map_}.{part}" for map_ in "qkv"]
                fused = torch.cat([self._weights[name] for name in names])
                self._weights |= zip(names, fused.split(width), strict=True)
                whole.append(fused)
            self._fused[f"{attn}.qkv"] = (whole[0], whole[1])


_PARTS = ("weight", "bias")
_MAPS = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.fc1", "mlp.fc2")


def _site_names(block: int, fused: bool) -> list[str]:
    maps = ("attn.qkv", *_MAPS[3:]) if fused else _MAPS
    return [f"blocks.{block}.{name}" for name in maps]


def _check(weights: Mapping[str, Tensor], heads: int) -> tuple[int, int, int]:
    """Return width, depth and number of classes of tensors that make a network."""
    blocks = [re.match(r"blocks\.(\d+)\.", name) for name in weights]
    depth = 1 + max((int(found[1]) for found in blocks if found), default=0)
    layers = ["patch", "norm"]
    for i in range(depth):
        layers += [f"blocks.{i}.{name}" for name in ("norm1", "norm2", *_MAPS)]
    names = [f"{layer}.{part}" for layer in layers for part in _PARTS] + ["position"]
    names += ["class_token"] if "class_token" in weights else []
    names += ["head.weight", "head.bias"] if {"head.weight", "head.bias"} & set(weights) else []
    check_names("vision transformer", weights, names)
    kernel, position = weights["patch.weight"], weights["position"]
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3] or position.ndim != 2:
        raise InvalidValueError(
            "Expected patch.weight of shape (width, channels, patch, patch) and position of shape "
            f"(tokens, width); got {tuple(kernel.shape)} and {tuple(position.shape)}."
        )
    width = int(kernel.shape[0])
    if heads < 1 or width % heads:
        raise InvalidValueError(
            f"Expected a number of heads that divides the width {width}; got {heads}."
        )
    patches = len(position) - ("class_token" in weights)
    if patches < 1 or round(patches**0.5) ** 2 != patches:
        raise InvalidValueError(
            f"Expected positions of a square of patches; got {patches} beside the class token."
        )
    hidden = int(weights["blocks.0.mlp.fc1.weight"].shape[0])
    shapes: dict[str, tuple[int, ...]] = {name: (width,) for name in names}
    shapes |= {"patch.weight": tuple(kernel.shape), "position": (len(position), width)}
    for i in range(depth):
        shapes |= {f"blocks.{i}.{name}.weight": (width, width) for name in _MAPS[:4]}
        shapes[f"blocks.{i}.mlp.fc1.weight"] = (hidden, width)
        shapes[f"blocks.{i}.mlp.fc1.bias"] = (hidden,)
        shapes[f"blocks.{i}.mlp.fc2.weight"] = (width, hidden)
    classes = int(weights["head.weight"].shape[0]) if "head.weight" in weights else 0
    shapes |= {"head.weight": (classes, width), "head.bias": (classes,)}
    for name in names:
        check_shape(name, weights[name], shapes[name])
    return width, depth, classes
