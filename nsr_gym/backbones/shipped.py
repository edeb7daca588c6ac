"""The small image backbones that ship with the package, and those made like them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from nsr_gym.backbones.entrance import Entrance
from nsr_gym.backbones.image_models import PLANS, ViTPlan
from nsr_gym.backbones.resnet import ResNetBackbone
from nsr_gym.backbones.vit import ViTBackbone
from nsr_gym.errors import FileFormatError, InvalidValueError, unknown


def image_backbone(
    name: str = "vit-small-32",
    *,
    folder: Path | None = None,
    adapt: Sequence[str] | None = None,
    fused: bool = False,
    device: torch.device | str = "cpu",
) -> ViTBackbone | ResNetBackbone:
    """Load a small backbone for images (3, 32, 32) in [0, 1].

    Weights are stored in half precision and used in single precision. The fingerprint is that
    of the file.

    Args:
        name: `"vit-small-32"` or `"resnet-small-32"`.
        folder: where `nsr-gym pretrain` wrote weights and card; None: those of the package.
        adapt: the adapted sites; None takes query and value of every block, or all convolutions
            of the last stage.
        fused: of the transformer: whether query, key and value are one site.
        device: where to keep the weights.

    Raises:
        UnknownNameError: there is no such backbone.
        InvalidValueError: an argument does not fit the network.
        FileFormatError: weights or card are damaged or missing.
    """
    if name not in PLANS:
        raise unknown("image backbone", name, PLANS)
    plan = PLANS[name]
    if fused and not isinstance(plan, ViTPlan):
        raise InvalidValueError(f"Expected fused=False for {name}, which has no attention.")
    arguments: dict[str, Any] = {"fused": True} if fused else {}
    card, payload = _read(name, folder)
    known = {field.name for field in fields(plan)}
    try:
        made = type(plan)(**{k: _plain(v) for k, v in card["plan"].items() if k in known})
        entrance = Entrance(mean=tuple(card["mean"]), std=tuple(card["std"]))
        tensors = load_tensors(payload)
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise FileFormatError(f"The card of {name} is damaged ({error}){_remedy(name)}") from error
    return made.backbone(
        tensors, entrance=entrance, adapt=adapt, known_fingerprint=card["sha256"],
        device=device, **arguments,
    )  # fmt: skip


def image_card(name: str = "vit-small-32", *, folder: Path | None = None) -> dict[str, Any]:
    """Return a backbone's card: its data, recipe, accuracy, hash, and what it took to make it.

    Args:
        name: of the backbone.
        folder: as in `image_backbone`.

    Raises:
        UnknownNameError: there is no such backbone.
        FileFormatError: weights or card are damaged or missing.
    """
    if name not in PLANS:
        raise unknown("image backbone", name, PLANS)
    return _read(name, folder)[0]


def _read(name: str, folder: Path | None) -> tuple[dict[str, Any], bytes]:
    where: Traversable = folder or resources.files("nsr_gym.backbones") / "weights"
    try:
        payload = (where / f"{name}.safetensors").read_bytes()
        card = json.loads((where / f"{name}.json").read_text())
        expected = card["sha256"]
    except OSError as error:
        missing = "this installation" if folder is None else str(folder)
        raise FileFormatError(
            f"The weights or the card of {name} are missing from {missing}{_remedy(name)}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"The card of {name} is damaged{_remedy(name)}") from error
    if hashlib.sha256(payload).hexdigest() != expected:
        raise FileFormatError(
            f"The weights of {name} do not match their card's hash{_remedy(name)}"
        )
    return card, payload


def _remedy(name: str) -> str:
    return f"; reinstall the package or run `nsr-gym pretrain {name}`."


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
