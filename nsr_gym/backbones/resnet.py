"""A frozen residual network whose convolutions adapters modify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.backbones.base import Prefix, Site, SiteMap, select_sites
from nsr_gym.backbones.entrance import Entrance
from nsr_gym.backbones.heads import Head
from nsr_gym.backbones.patches import Patches
from nsr_gym.backbones.resnet_blocks import Block, Step, read_blocks
from nsr_gym.backbones.weight_files import fingerprint

_CHUNK = 256
"""Images that go through the frozen blocks at once: bounds the memory of a task's prefix."""


class ResNetBackbone(Head):
    """Residual blocks with their normalisation folded in, and a frozen linear head or none.

    Blocks are those of He et al. (arXiv 1512.03385): two 3 x 3 convolutions, or 1 x 1, 3 x 3,
    1 x 1 ("bottleneck"), as the tensors have it. The first block of every stage but the first
    halves height and width, in its 3 x 3 convolution (as torchvision does; He et al. do it in
    the first).

    A convolution is a linear map on patches: site `stages.{s}.{b}.conv{j}` (and `.shortcut`)
    has d_in = C kh kw, and sees its input as `Patches` (..., positions, d_in), a patch's
    channels slowest, as `weight.flatten(1)` has them. Adapters on a site with d_in above its C
    are thus convolutions of low rank. Between sites, maps lie with channels last.

    The prefix holds what enters the first adapted convolution, (N, positions, C), and that
    convolution's frozen output (N, positions, d_out), so that training computes the thin
    products of its adapter alone. Where it is the last of its block, what the block adds to it
    is in the frozen output already; elsewhere it is a third part, unless it is the first.

    Attributes:
        sites: the adapted convolutions.
        input_shape: `(C, side, side)` of the images, in [0, 1] where the entrance normalises.
        depth: number of blocks.
        feature_dim: channels of the last stage.
        num_classes: outputs of the head, 0 without one.
        fingerprint: SHA-256 over names, shapes and values of all weights and what else the
            function depends on.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        side: int = 32,
        stem_stride: int = 1,
        stem_pool: bool = False,
        adapt: Sequence[str] | None = None,
        entrance: Entrance | None = None,
        known_fingerprint: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Build the network from its tensors.

        Args:
            weights: `stem.weight` (d, C, k, k), `stem.bias`, for every block b of stage s
                `stages.{s}.{b}.conv1.weight`, `.bias`, ..., maybe `stages.{s}.{b}.shortcut`
                (1 x 1), and maybe `head.weight` and `head.bias`.
            side: height and width of the images that the stem takes.
            stem_stride: of the first convolution.
            stem_pool: whether a 3 x 3 maximum at every second position follows the stem.
            adapt: names or regular expressions of the convolutions that adapters modify; None
                takes all of the last stage.
            entrance: what happens to images before the first layer; None: nothing does.
            known_fingerprint: where the weights come from a file whose hash is known.
            device: where to keep the weights.

        Raises:
            InvalidValueError: a tensor is missing or the shapes do not fit each other.
        """
        self.device = torch.device(device)
        self.entrance = entrance or Entrance()
        self._plan = {"side": side, "stem_stride": stem_stride, "stem_pool": stem_pool}
        entering = -(-side // stem_stride)
        self._blocks = read_blocks(weights, -(-entering // 2) if stem_pool else entering)
        self.depth = len(self._blocks)
        # Convolutions with channels last, like the maps: their patches then lie in one piece.
        self._weights = {
            name: part.detach()
            .to(self.device, torch.float32)
            .contiguous(memory_format=_format(part))
            for name, part in weights.items()
        }
        last = self._blocks[-1]
        self.feature_dim = len(weights[f"{last.path[-1].name}.bias"])
        self.num_classes = len(weights["head.weight"]) if "head.weight" in weights else 0
        self.fingerprint = known_fingerprint or fingerprint(
            self._weights, entrance=asdict(self.entrance), **self._plan
        )
        incoming = self.entrance.side or side
        self.input_shape: tuple[int, ...] = (
            int(weights["stem.weight"].shape[1]),
            incoming,
            incoming,
        )
        self.entrance.check(self.input_shape[0])
        available = {}
        for block in self._blocks:
            for step in block.steps:
                kernel = weights[f"{step.name}.weight"]
                available[step.name] = Site(step.name, len(kernel), int(kernel[0].numel()))
        default = (rf"stages\.{last.name.split('.')[1]}\..*",)
        self.sites = select_sites(available, default if adapt is None else adapt)
        self._adapted = {site.name for site in self.sites}
        self._flat = {
            name: self._weights[f"{name}.weight"].flatten(1).contiguous() for name in self._adapted
        }
        self._entry = self.sites[0].name
        entered = self._entry.rpartition(".")[0]
        self._first = [block.name for block in self._blocks].index(entered)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors, by name (those the constructor takes)."""
        return dict(self._weights)

    def to(self, device: torch.device | str) -> ResNetBackbone:
        """Return this backbone on `device` (itself, where it is there already)."""
        if torch.device(device) == self.device:
            return self
        return type(self)(
            self._weights, side=int(self._plan["side"]), stem_stride=self._plan["stem_stride"],
            stem_pool=bool(self._plan["stem_pool"]), adapt=[site.name for site in self.sites],
            entrance=self.entrance, known_fingerprint=self.fingerprint, device=device,
        )  # fmt: skip

    def weight(self, site: str) -> tuple[Tensor, Tensor | None]:
        """Return the frozen weight (d_out, C kh kw) and bias (d_out,) of a site."""
        return self._flat[site], self._weights[f"{site}.bias"]

    @torch.no_grad()
    def prefix(self, x: Tensor) -> Prefix:
        """Return what images (..., C, side, side) come to before the first adapter's effect.

        Returns:
            Two or three tensors (..., positions, channels), see the class.
        """
        images = x.reshape(-1, *self.input_shape)
        chunks = [self._enter(self._before(part)) for part in images.split(_CHUNK)]
        parts = [torch.cat(part) for part in zip(*chunks, strict=True)]
        return tuple(part.view(*x.shape[:-3], *part.shape[1:]) for part in parts)

    def forward(self, prefix: Prefix, site_map: SiteMap) -> Tensor:
        """Return features (..., feature_dim) from a prefix."""
        maps = self._leave(prefix, site_map)
        for block in self._blocks[self._first + 1 :]:
            maps = self._block(block, maps, site_map)
        return maps.mean(dim=-2)

    def _before(self, images: Tensor) -> Tensor:
        """Return what enters the first block with an adapter."""
        images = self.entrance(images, int(self._plan["side"]))
        maps = _stem(self._weights, images, int(self._plan["stem_stride"]))
        if self._plan["stem_pool"]:
            maps = functional.max_pool2d(maps, 3, stride=2, padding=1)
        maps = maps.permute(0, 2, 3, 1).flatten(1, 2)
        for block in self._blocks[: self._first]:
            maps = self._block(block, maps, None)
        return maps

    def _enter(self, x: Tensor) -> Prefix:
        """Do what is frozen in the first block with an adapter."""
        block = self._blocks[self._first]
        path, shortcut = block.path, block.shortcut
        if shortcut is not None and shortcut.name == self._entry:
            return x, self._convolve(x, shortcut, None) + self._path(x, path, None)
        at = self._at(block)
        inner = self._path(x, path[:at], None) if at else x
        frozen = self._convolve(inner, path[at], None)
        if shortcut is None or shortcut.name in self._adapted:
            rest = x
        else:
            rest = self._convolve(x, shortcut, None)
        if self._sums(block):
            return inner, frozen + rest
        return (inner, frozen) if rest is inner else (inner, frozen, rest)

    def _leave(self, prefix: Prefix, site_map: SiteMap) -> Tensor:
        """Go on from `_enter` to the end of the block."""
        inner, frozen, *others = prefix
        block = self._blocks[self._first]
        path, shortcut = block.path, block.shortcut
        if shortcut is not None and shortcut.name == self._entry:
            return functional.relu_(self._convolve(inner, shortcut, site_map, frozen))
        at = self._at(block)
        y = self._convolve(inner, path[at], site_map, frozen)
        if self._sums(block):
            return functional.relu_(y)
        rest = others[0] if others else inner
        if path[at + 1 :]:
            y = self._path(functional.relu_(y), path[at + 1 :], site_map)
        if shortcut is not None and shortcut.name in self._adapted:
            rest = self._convolve(rest, shortcut, site_map)
        return functional.relu_(y + rest)

    def _at(self, block: Block) -> int:
        return [step.name for step in block.path].index(self._entry)

    def _sums(self, block: Block) -> bool:
        """Whether what the block adds to its last convolution is frozen with it."""
        shortcut = block.shortcut
        frozen = shortcut is None or shortcut.name not in self._adapted
        return frozen and block.path[-1].name == self._entry

    def _block(self, block: Block, x: Tensor, site_map: SiteMap | None) -> Tensor:
        y = self._path(x, block.path, site_map)
        shortcut = block.shortcut
        rest = x if shortcut is None else self._convolve(x, shortcut, site_map)
        return functional.relu_(y + rest)

    def _path(self, x: Tensor, steps: Sequence[Step], site_map: SiteMap | None) -> Tensor:
        """Convolve maps one after the other; all but a block's last are rectified."""
        for step in steps:
            x = self._convolve(x, step, site_map)
            if not step.last:
                x = functional.relu_(x)
        return x

    def _convolve(
        self, x: Tensor, step: Step, site_map: SiteMap | None, frozen: Tensor | None = None
    ) -> Tensor:
        """Convolve maps (..., side side, C) to (..., positions, d_out)."""
        kernel = self._weights[f"{step.name}.weight"]
        size, stride = int(kernel.shape[-1]), step.stride
        lead = x.shape[:-2]
        maps = x.reshape(-1, step.side, step.side, x.shape[-1])
        if site_map is None or step.name not in self._adapted:
            bias = self._weights[f"{step.name}.bias"]
            out = functional.conv2d(maps.permute(0, 3, 1, 2), kernel, bias, stride, size // 2)
            return out.permute(0, 2, 3, 1).reshape(*lead, -1, len(kernel))
        if size == 1:
            pixels = maps[:, ::stride, ::stride].reshape(*lead, -1, x.shape[-1])
            return site_map(step.name, pixels, frozen)
        patches = Patches(x.view(*lead, step.side, step.side, -1), size, stride)
        return site_map(step.name, patches, frozen)


def _stem(weights: Mapping[str, Tensor], images: Tensor, stride: int) -> Tensor:
    kernel = weights["stem.weight"]
    padding = int(kernel.shape[-1]) // 2
    images = images.contiguous(memory_format=torch.channels_last)
    return functional.relu_(
        functional.conv2d(images, kernel, weights["stem.bias"], stride, padding)
    )


def _format(part: Tensor) -> torch.memory_format:
    return torch.channels_last if part.ndim == 4 else torch.contiguous_format
