"""Pretraining of the small backbones that ship with the suite."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import nn
from torch.nn import functional

from nsr_gym.backbones.base import FrozenMap
from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.errors import FileFormatError, InvalidValueError
from nsr_gym.files import write_whole

DIGITS_WEIGHTS = "digits_mlp.safetensors"
DIGITS_CARD = "digits_mlp.json"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a multilayer perceptron is pretrained.

    Attributes:
        widths: of the hidden layers; the last one is the feature dimension.
        epochs: passes over the base images.
        batch_size: images of one update.
        learning_rate: of Adam.
        seed: of the initial weights and the order of the images.
    """

    widths: tuple[int, ...] = (128, 128, 64)
    epochs: int = 14
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 0


def pretrain_mlp(
    x: np.ndarray,
    y: np.ndarray,
    *,
    num_classes: int,
    recipe: Recipe | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> MLPBackbone:
    """Train a perceptron with ReLU layers and a linear head by cross-entropy.

    Training stops early on purpose: the surer a head is of its own classes, the slower an
    adapter can bring other images to it.

    Args:
        x: (n, d) float32 images.
        y: (n,) int64 labels below `num_classes`.
        num_classes: outputs of the head.
        recipe: the hyper-parameters.
        progress: called after each epoch with its number and mean loss.

    Returns:
        The trained, frozen backbone, every layer a site.

    Raises:
        InvalidValueError: shapes or labels do not fit.
    """
    recipe = recipe or Recipe()
    if x.ndim != 2 or len(x) != len(y) or len(x) == 0:
        raise InvalidValueError(
            f"Expected images (n, d) and as many labels; got {x.shape} and {y.shape}."
        )
    if y.min() < 0 or y.max() >= num_classes:
        raise InvalidValueError(
            f"Expected labels from 0 to {num_classes - 1}; got {y.min()} to {y.max()}."
        )
    rng = np.random.default_rng(recipe.seed)
    widths = (x.shape[1], *recipe.widths, num_classes)
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    for layer in layers:
        bound = layer.in_features**-0.5
        for tensor in layer.parameters():
            tensor.data = torch.tensor(
                rng.uniform(-bound, bound, size=tuple(tensor.shape)), dtype=torch.float32
            )
    parameters = [tensor for layer in layers for tensor in layer.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=recipe.learning_rate)
    images, labels = torch.tensor(x), torch.tensor(y)
    for epoch in range(recipe.epochs):
        order = torch.tensor(rng.permutation(len(x)))
        losses = []
        for batch in order.split(recipe.batch_size):
            hidden = images[batch]
            for layer in layers[:-1]:
                hidden = functional.relu(layer(hidden))
            loss = functional.cross_entropy(layers[-1](hidden), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        if progress is not None:
            progress(epoch + 1, float(np.mean(losses)))
    names = [*(f"fc{i + 1}" for i in range(len(recipe.widths))), "head"]
    return MLPBackbone(
        {
            f"{name}.{part}": getattr(layer, part)
            for name, layer in zip(names, layers, strict=True)
            for part in ("weight", "bias")
        }
    )


def accuracy(backbone: MLPBackbone, x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of images (n, d) that the bare backbone names rightly."""
    with torch.no_grad():
        features = backbone.forward(backbone.prefix(torch.tensor(x)), FrozenMap(backbone))
        return float((backbone.head(features).argmax(-1).numpy() == y).mean())


def pretrain_digits(
    folder: Path, progress: Callable[[int, float], None] | None = None
) -> dict[str, Any]:
    """Train the digits backbone on the base part and write weights and card.

    One thread and a NumPy generator make the run repeatable: on one machine bit by bit,
    on others up to the rounding of their matrix products.

    Args:
        folder: where `digits_mlp.safetensors` and `digits_mlp.json` go.
        progress: called after each epoch with its number and mean loss.

    Returns:
        The card.
    """
    from nsr_gym.datasets.digits_parts import digits_parts

    parts, recipe = digits_parts(), Recipe()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        backbone = pretrain_mlp(
            parts.base.x, parts.base.y, num_classes=10, recipe=recipe, progress=progress
        )
    finally:
        torch.set_num_threads(threads)
    payload = dump_tensors({k: v.contiguous() for k, v in backbone.weights.items()})
    card = {
        "data": "scikit-learn handwritten digits, base part",
        "images": len(parts.base.y),
        "recipe": asdict(recipe),
        "base_accuracy": accuracy(backbone, parts.base.x, parts.base.y),
        "task_test_accuracy": accuracy(backbone, parts.test.x, parts.test.y),
        "fingerprint": backbone.fingerprint,
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(card, indent=2) + "\n"
    write_whole(folder / DIGITS_WEIGHTS, lambda file: file.write_bytes(payload))
    write_whole(folder / DIGITS_CARD, lambda file: file.write_text(text))
    return card


def digits_backbone(device: torch.device | str = "cpu") -> MLPBackbone:
    """Load the digits backbone that ships with the package (64-128-128-64, 10-way head).

    Raises:
        FileFormatError: weights or card are damaged or missing.
    """
    folder = resources.files("nsr_gym.backbones") / "weights"
    remedy = "; reinstall the package or run `nsr-gym pretrain digits`."
    try:
        payload = (folder / DIGITS_WEIGHTS).read_bytes()
        expected = json.loads((folder / DIGITS_CARD).read_text())["sha256"]
    except FileNotFoundError as error:
        raise FileFormatError(
            "The digits backbone's weights are missing from this installation" + remedy
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError("The digits backbone's card is damaged" + remedy) from error
    if hashlib.sha256(payload).hexdigest() != expected:
        raise FileFormatError(
            "The digits backbone's weights do not match their card's hash" + remedy
        )
    return MLPBackbone(load_tensors(payload), device=device)
