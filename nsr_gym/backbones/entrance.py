"""What happens to images before the first layer: another size, other units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.errors import InvalidValueError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Entrance:
    """Takes images in [0, 1] to what a network was trained on.

    A part of the frozen network, so that one pool of images in [0, 1] serves all backbones, and
    small images can be kept small where a network wants large ones.

    Attributes:
        mean: of each channel, subtracted; empty: nothing is.
        std: of each channel, divided by; empty: nothing is.
        side: height and width of the images that come, where they are to be resized
            (bilinearly) to the network's; None: they come as the network takes them.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    side: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if len(self.mean) != len(self.std) or any(not s > 0 for s in self.std):
            raise InvalidValueError(
                "Expected as many means as standard deviations, the latter positive; got "
                f"{self.mean} and {self.std}."
            )
        if self.side is not None and self.side < 1:
            raise InvalidValueError(f"Expected a positive image side; got {self.side}.")

    def check(self, channels: int) -> None:
        """Refuse statistics of another number of channels.

        Raises:
            InvalidValueError: they do not fit.
        """
        if self.mean and len(self.mean) != channels:
            raise InvalidValueError(
                f"Expected mean and std of {channels} channels; got {len(self.mean)}."
            )

    def __call__(self, images: Tensor, side: int) -> Tensor:
        """Return images (N, C, side, side) of images (N, C, H, W) in [0, 1]."""
        if images.shape[-1] != side:
            images = functional.interpolate(
                images, size=(side, side), mode="bilinear", align_corners=False
            )
        if not self.mean:
            return images
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).view(shape)
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device).view(shape)
        return (images - mean) / std
