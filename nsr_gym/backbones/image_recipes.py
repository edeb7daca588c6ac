"""Recipes by which the small image backbones are pretrained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from nsr_gym.errors import InvalidValueError


@dataclass(frozen=True, kw_only=True)
class ImageRecipe:
    """How an image backbone is pretrained: AdamW, warm-up and cosine, flips and crops.

    Attributes:
        epochs: passes over the images.
        batch_size: images of one update.
        learning_rate: the highest, after the warm-up.
        weight_decay: of matrices and kernels.
        warmup: share of all updates in which the rate rises.
        smoothing: of the labels.
        mixup: both parameters of the beta distribution that pairs of images are mixed by; 0:
            none are.
        share: of a transformer's tokens that the epochs before the last `whole` see.
        whole: last epochs, which see all tokens.
        bfloat16: whether products are made in it (weights and moments are float32).
        seed: of the initial weights and all that is drawn.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    smoothing: float = 0.1
    mixup: float = 0.0
    share: float = 1.0
    whole: int = 0
    bfloat16: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("whole", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InvalidValueError(
                    f"Expected {name} to be a whole number of at least {least}; got {value!r}."
                )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "float" and not (
                isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
            ):
                raise InvalidValueError(
                    f"Expected {field.name} to be a finite number of at least 0; got {value!r}."
                )
        if not 0 < self.share <= 1 or self.warmup >= 1 or self.smoothing >= 1:
            raise InvalidValueError(
                "Expected share in (0, 1], warmup and smoothing below 1; got "
                f"{self.share}, {self.warmup} and {self.smoothing}."
            )


RECIPES: Mapping[str, Mapping[str, ImageRecipe]] = {
    "vit-small-32": {
        "cpu": ImageRecipe(epochs=15, share=0.5, whole=3),
        "gpu": ImageRecipe(epochs=100, batch_size=512, mixup=0.2),
    },
    "resnet-small-32": {
        "cpu": ImageRecipe(epochs=12, learning_rate=2e-3),
        "gpu": ImageRecipe(epochs=60, batch_size=512, learning_rate=4e-3, mixup=0.2),
    },
}
"""Model -> recipe. `"cpu"` takes two cores about an hour (residual network: less)."""
