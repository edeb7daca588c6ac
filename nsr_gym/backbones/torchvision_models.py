"""Backbones pretrained on ImageNet, from torchvision's files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nsr_gym.backbones.entrance import IMAGENET_MEAN, IMAGENET_STD, Entrance
from nsr_gym.backbones.image_models import fold
from nsr_gym.backbones.resnet import ResNetBackbone
from nsr_gym.backbones.vit import ViTBackbone
from nsr_gym.backbones.weight_files import read_weights
from nsr_gym.errors import DataError, FileFormatError, InvalidValueError, unknown

_HEADS = {"vit_b_16": 12, "vit_b_32": 12}
_RESNETS = ("resnet18", "resnet50")
TORCHVISION_NAMES = (*_HEADS, *_RESNETS)
_SHAPES = {
    "vit_b_16": (768, 12, 16),
    "vit_b_32": (768, 12, 32),
    "resnet18": (512, 8, 7),
    "resnet50": (2048, 16, 7),
}
_SIDE = 224
_LN_EPS, _BN_EPS = 1e-6, 1e-5


def torchvision_backbone(
    name: str,
    *,
    weights: Literal["DEFAULT"] | Path | str | None,
    sha256: str | None = None,
    adapt: Sequence[str] | None = None,
    fused: bool = False,
    image_side: int = _SIDE,
    num_classes: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ViTBackbone | ResNetBackbone:
    """Return one of torchvision's networks as a frozen backbone.

    It takes images in [0, 1] and normalises them with ImageNet's statistics itself.

    Args:
        name: `"vit_b_16"`, `"vit_b_32"`, `"resnet18"` or `"resnet50"`.
        weights: a file of torchvision's (a state dict, `.pth` or `.safetensors`); `"DEFAULT"`
            for torchvision's best, which is downloaded once into torch's own cache and
            compared with the hash in its name; None for random weights, to try things out.
        sha256: what a local file must hash to, or the first digits of it.
        adapt: the adapted sites; None takes query and value of every block, or all convolutions
            of the last stage.
        fused: of a transformer: whether query, key and value are one site.
        image_side: height and width of the images that come. Smaller or larger ones are resized
            to 224 (bilinearly) inside the network, so that small images stay small in memory.
        num_classes: outputs of a new head, all zero, instead of ImageNet's 1000; 0: no head.
        seed: of random weights.
        device: where to keep the weights.

    Raises:
        UnknownNameError: there is no such network.
        InvalidValueError: an argument does not fit the network.
        FileFormatError: the file is missing, has another hash, or is of another network.
        DataError: the download failed.
        MissingDependencyError: torchvision is needed (not for a local file) and cannot be used.
    """
    if name not in TORCHVISION_NAMES:
        raise unknown("torchvision backbone", name, TORCHVISION_NAMES)
    if name in _RESNETS and fused:
        raise InvalidValueError(f"Expected fused=False for {name}, which has no attention.")
    if sha256 is not None and (weights is None or weights == "DEFAULT"):
        raise InvalidValueError(
            "Expected sha256 together with a local file; downloads have hashes of their own."
        )
    if weights is None:
        state = _random(name, seed)
    elif weights == "DEFAULT":
        state = _download(name)
    else:
        state = read_weights(Path(weights), sha256)
    entrance = Entrance(
        mean=IMAGENET_MEAN, std=IMAGENET_STD, side=None if image_side == _SIDE else image_side
    )
    try:
        tensors = vit_tensors(state) if name in _HEADS else resnet_tensors(state)
        if num_classes is not None:
            tensors = {n: part for n, part in tensors.items() if not n.startswith("head.")}
        backbone: ViTBackbone | ResNetBackbone
        if name in _HEADS:
            backbone = ViTBackbone(
                tensors, heads=_HEADS[name], adapt=adapt, fused=fused, eps=_LN_EPS,
                entrance=entrance, device=device,
            )  # fmt: skip
        else:
            backbone = ResNetBackbone(
                tensors, side=_SIDE, stem_stride=2, stem_pool=True, adapt=adapt,
                entrance=entrance, device=device,
            )  # fmt: skip
    except KeyError as error:
        raise FileFormatError(
            f"Expected torchvision's tensors of {name}; there is no {error}. Is the file of "
            "another network?"
        ) from error
    shape = _shape(backbone)
    if shape != _SHAPES[name]:
        raise FileFormatError(
            f"Expected weights of {name} (feature width, blocks, first kernel {_SHAPES[name]}); "
            f"these have {shape}. Is the file of another network?"
        )
    if num_classes:
        return backbone.with_head(torch.zeros(num_classes, backbone.feature_dim))
    return backbone


def _shape(backbone: ViTBackbone | ResNetBackbone) -> tuple[int, int, int]:
    first = "patch" if isinstance(backbone, ViTBackbone) else "stem"
    kernel = int(backbone.weights[f"{first}.weight"].shape[-1])
    return backbone.feature_dim, backbone.depth, kernel


def vit_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of torchvision's `VisionTransformer` to those of `ViTBackbone`.

    Its `in_proj` of each block, query, key and value on top of each other, is split in three.

    Raises:
        KeyError: a tensor is missing.
    """
    made = {
        "patch.weight": state["conv_proj.weight"],
        "patch.bias": state["conv_proj.bias"],
        "class_token": state["class_token"].reshape(-1),
        "position": state["encoder.pos_embedding"][0],
    }
    depth = len({n for n in state if re.fullmatch(r"encoder\.layers\.[^.]+\.ln_1\.weight", n)})
    for part in ("weight", "bias"):
        made[f"norm.{part}"] = state[f"encoder.ln.{part}"]
        if "heads.head.weight" in state:
            made[f"head.{part}"] = state[f"heads.head.{part}"]
        for i in range(depth):
            theirs, ours = f"encoder.layers.encoder_layer_{i}", f"blocks.{i}"
            thirds = state[f"{theirs}.self_attention.in_proj_{part}"].chunk(3)
            for map_, third in zip("qkv", thirds, strict=True):
                made[f"{ours}.attn.{map_}.{part}"] = third
            made[f"{ours}.attn.o.{part}"] = state[f"{theirs}.self_attention.out_proj.{part}"]
            made[f"{ours}.norm1.{part}"] = state[f"{theirs}.ln_1.{part}"]
            made[f"{ours}.norm2.{part}"] = state[f"{theirs}.ln_2.{part}"]
            # Files of before torchvision 0.12 call the MLP's maps linear_1 and linear_2.
            old = f"{theirs}.mlp.linear_1.weight" in state
            for name, number in (("fc1", "linear_1" if old else "0"),
                                 ("fc2", "linear_2" if old else "3")):  # fmt: skip
                made[f"{ours}.mlp.{name}.{part}"] = state[f"{theirs}.mlp.{number}.{part}"]
    return made


def resnet_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold and rename the tensors of torchvision's `ResNet` to those of `ResNetBackbone`.

    Its batch normalisation, as in evaluation mode, goes into the convolutions before it.

    Raises:
        KeyError: a tensor is missing.
    """
    made = _folded(state, "stem", "conv1", "bn1")
    if "fc.weight" in state:
        made |= {"head.weight": state["fc.weight"], "head.bias": state["fc.bias"]}
    blocks = {m[0] for name in state if (m := re.match(r"layer\d+\.\d+", name))}
    for block in blocks or {"layer1.0"}:
        stage, number = block.removeprefix("layer").split(".")
        ours = f"stages.{int(stage) - 1}.{number}"
        for j in (1, 2, 3):
            if j < 3 or f"{block}.conv3.weight" in state:
                made |= _folded(state, f"{ours}.conv{j}", f"{block}.conv{j}", f"{block}.bn{j}")
        if f"{block}.downsample.0.weight" in state:
            theirs = f"{block}.downsample"
            made |= _folded(state, f"{ours}.shortcut", f"{theirs}.0", f"{theirs}.1")
    return made


def _folded(state: Mapping[str, Tensor], ours: str, conv: str, norm: str) -> dict[str, Tensor]:
    return fold(
        ours, state[f"{conv}.weight"], weight=state[f"{norm}.weight"], bias=state[f"{norm}.bias"],
        mean=state[f"{norm}.running_mean"], var=state[f"{norm}.running_var"], eps=_BN_EPS,
    )  # fmt: skip


def _models() -> Any:
    from nsr_gym.datasets.vision import load_torchvision

    return load_torchvision().models


def _random(name: str, seed: int) -> dict[str, Tensor]:
    models = _models()
    # torchvision draws from the global generator; what it held before comes back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(models.get_model(name, weights=None).state_dict())


def _download(name: str) -> dict[str, Tensor]:
    best = _models().get_model_weights(name).DEFAULT
    try:
        return dict(
            torch.hub.load_state_dict_from_url(
                best.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
        )
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"Expected to fetch {best.url} once; that failed ({error}). Without a network, give "
            "the file itself, `weights=FILE`."
        ) from error
