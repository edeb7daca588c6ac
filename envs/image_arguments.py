"""What environments on images take beside the arguments of an episode: data, backbone, cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsr_gym.datasets.cifar100 import NUM_TASKS, cifar100_pool
from nsr_gym.datasets.five import five_datasets_pool
from nsr_gym.datasets.image_pools import VAL_PER_CLASS
from nsr_gym.datasets.manifests import five_manifest, five_manifests
from nsr_gym.datasets.sources import data_root
from nsr_gym.envs.arguments import Arguments, check_choices
from nsr_gym.envs.config import EpisodeConfig
from nsr_gym.errors import FileFormatError, InvalidValueError
from nsr_gym.tasks import TaskPool

if TYPE_CHECKING:
    from nsr_gym.backbones.resnet import ResNetBackbone
    from nsr_gym.backbones.vit import ViTBackbone
    from nsr_gym.datasets.cache import FeatureCache

ADAPT: dict[str, tuple[str, ...]] = {
    "vit-small-32": (r"blocks\.5\.attn\.[qv]",),
    "resnet-small-32": (r"stages\.2\.1\.conv2",),
    "vit_b_16": (r"blocks\.11\.attn\.[qv]",),
    "vit_b_32": (r"blocks\.11\.attn\.[qv]",),
    "resnet18": (r"stages\.3\.1\.conv2",),
    "resnet50": (r"stages\.3\.2\.conv[123]",),
}
"""Backbone -> the sites that adapters modify unless asked otherwise: those of the last block, so
that all blocks before it are frozen work that is done once for each image."""

FUSED_ADAPT: dict[str, tuple[str, ...]] = {
    "vit-small-32": (r"blocks\.5\.attn\.qkv",),
    "vit_b_16": (r"blocks\.11\.attn\.qkv",),
    "vit_b_32": (r"blocks\.11\.attn\.qkv",),
}
"""The same with `fused`: query, key and value of the last block as one site."""

_SMALL = ("vit-small-32", "resnet-small-32")
_SMALL_SIDE, _LARGE_SIDE = 32, 224
_SHIPPED = "DEFAULT"


@dataclass(frozen=True, kw_only=True)
class ImageArguments(Arguments):
    """Data and backbone of an environment on images, in plain JSON values.

    Attributes:
        grouping: split train only: which shipped grouping of the classes, 0 to 9.
        train_per_class: at most so many training images of each class; None: all.
        test_per_class: the same for test images.
        val_per_class: so many training images of each class are held out to measure the
            accuracies on that the observation shows of entries; 0: none, test images are used.
        evaluate: what accuracies are measured on: `"test"` (official test images) or
            `"validation"` (held out of the training images); None: test images for split test,
            validation images for split train.
        root: where the data lies; None: `NSR_GYM_DATA`, else `~/.cache/nsr-gym-data`.
        download: whether to download missing official files through torchvision.
        backbone: a name of `ADAPT`.
        weights: `"DEFAULT"` (those that ship, or torchvision's best), a local path (a folder
            that `nsr-gym pretrain` wrote, or a file of torchvision's), or None for random ones.
        weights_sha256: what the weights' file must hash to, or the first digits of it.
        adapt: names or regular expressions of the adapted sites; None: see `ADAPT`.
        fused: of a vision transformer: whether query, key and value are one site, `attn.qkv`, as
            in adapters of timm's networks; `adapt` None is then filled in from `FUSED_ADAPT`.
        image_size: side of the images in pixels; None: 32 for the small backbones, 224 for
            torchvision's.
        cache: folder of cached features; None: `features` where the data lies; False: none is
            used, and features are kept in memory.
        prefix_dtype: how features are kept, `"float32"` or `"float16"`.
    """

    grouping: int = 0
    train_per_class: int | None = 500
    test_per_class: int | None = 20
    val_per_class: int = VAL_PER_CLASS
    evaluate: str | None = None
    root: str | None = None
    download: bool = False
    backbone: str = "resnet-small-32"
    weights: str | None = _SHIPPED
    weights_sha256: str | None = None
    adapt: tuple[str, ...] | None = None
    fused: bool = False
    image_size: int | None = None
    cache: str | bool | None = None
    prefix_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Check names and types; what data and backbones take is checked where they are read.

        Raises:
            UnknownNameError: a backbone or a type of features that does not exist.
            InvalidValueError: a value of another type, a hash of random weights, or `fused` that
                does not fit backbone or sites.
        """
        check_choices(self, {"backbone": tuple(ADAPT), "prefix_dtype": ("float16", "float32")})
        # Paths become strings: what describes an environment is plain JSON.
        for name in ("root", "weights", "weights_sha256"):
            value: Any = getattr(self, name)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
            elif value is not None and not isinstance(value, str):
                raise InvalidValueError(f"Expected {name} as a string or None; got {value!r}.")
        cache: Any = self.cache
        if isinstance(cache, os.PathLike):
            object.__setattr__(self, "cache", cache := os.fspath(cache))
        if not (cache is None or cache is False or (isinstance(cache, str) and cache)):
            raise InvalidValueError(
                f"Expected cache as a folder, None (the default folder) or False; got {cache!r}."
            )
        if self.weights is None and self.weights_sha256 is not None:
            raise InvalidValueError(
                "Expected weights_sha256=None with weights=None: random weights have no file; got "
                f"{self.weights_sha256!r}."
            )
        object.__setattr__(self, "adapt", _names("adapt", self.adapt))
        self._check_fused()

    @property
    def side(self) -> int:
        """Height and width of the images in pixels."""
        if self.image_size is not None:
            return self.image_size
        return _SMALL_SIDE if self.backbone in _SMALL else _LARGE_SIDE

    @property
    def folder(self) -> Path:
        """Where the data lies."""
        return data_root(self.root)

    def pool(self, config: EpisodeConfig) -> TaskPool:
        """Return the tasks of the configuration's split.

        Raises:
            DataError: files are missing, partial, unreadable or unknown; the message says how
                to get them.
            NsrGymError: an argument out of range.
        """
        raise NotImplementedError

    def _check_fused(self) -> None:
        if not isinstance(self.fused, bool):
            raise InvalidValueError(f"Expected fused to be a bool; got {self.fused!r}.")
        if self.fused and self.backbone not in FUSED_ADAPT:
            raise InvalidValueError(
                f"Expected fused=False for {self.backbone}, which has no attention; it is for "
                f"{', '.join(FUSED_ADAPT)}."
            )
        if self.fused and self.adapt is None:
            object.__setattr__(self, "adapt", FUSED_ADAPT[self.backbone])
        named = [name for name in self.adapt or () if name.endswith("qkv")]
        if named and not self.fused and self.backbone in FUSED_ADAPT:
            raise InvalidValueError(
                f"Expected fused=True with adapt={named}: query, key and value are one site only "
                'then. Or name them apart, such as "blocks.0.attn.[qkv]".'
            )

    def features(self) -> FeatureCache | None:
        """Return where features are kept on disk; None: nowhere."""
        from nsr_gym.datasets.cache import FeatureCache

        if self.cache is False:
            return None
        named = isinstance(self.cache, str)
        return FeatureCache(str(self.cache) if named else self.folder / "features")

    def network(self, device: str) -> ViTBackbone | ResNetBackbone:
        """Return the frozen backbone.

        Raises:
            FileFormatError: weights are missing, damaged, or have another hash.
            NsrGymError: an argument does not fit the network.
        """
        from nsr_gym.backbones.shipped import image_backbone
        from nsr_gym.backbones.torchvision_models import torchvision_backbone

        adapt = ADAPT[self.backbone] if self.adapt is None else self.adapt
        if self.backbone not in _SMALL:
            return torchvision_backbone(
                self.backbone, weights=self.weights, sha256=self.weights_sha256, adapt=adapt,
                fused=self.fused, image_side=self.side, device=device,
            )  # fmt: skip
        if self.weights is None:
            return _random(self.backbone, adapt, self.fused, device)
        folder = None if self.weights == _SHIPPED else Path(self.weights)
        found = image_backbone(
            self.backbone, folder=folder, adapt=adapt, fused=self.fused, device=device
        )
        if self.weights_sha256 and not found.fingerprint.startswith(self.weights_sha256.lower()):
            raise FileFormatError(
                f"Expected weights of {self.backbone} with the hash {self.weights_sha256}; these "
                f"have {found.fingerprint}."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class CifarArguments(ImageArguments):
    """Those of Split-CIFAR-100.

    Attributes:
        order: of the classes, split test only: `"natural"`, `"seed-1993"`, `"random"` with
            `order_seed`, or all 100 labels.
        order_seed: for order `"random"`, 0 to 9.
        division: into how many tasks the classes are dealt, 5, 10 or 20; None: the least that
            gives `num_tasks`.
        groupings: split train only: how many groupings are taken, from `grouping` on.
    """

    order: str | tuple[int, ...] = "natural"
    order_seed: int | None = None
    division: int | None = None
    groupings: int = 1

    def __post_init__(self) -> None:
        """Check names and types; see `ImageArguments`."""
        super().__post_init__()
        order: Any = self.order
        if isinstance(order, list):
            object.__setattr__(self, "order", tuple(order))

    def divided(self, config: EpisodeConfig) -> int:
        """Return into how many tasks the classes are dealt."""
        if self.division is not None:
            return self.division
        return min((m for m in NUM_TASKS if m >= config.num_tasks), default=NUM_TASKS[-1])

    def pool(self, config: EpisodeConfig) -> TaskPool:
        """Return the tasks of the configuration's split; see `ImageArguments`."""
        return cifar100_pool(
            config.split, num_tasks=self.divided(config), order=self.order, seed=self.order_seed,
            grouping=self.grouping, groupings=self.groupings, evaluate=self.evaluate,
            size=self.side, train_per_class=self.train_per_class,
            test_per_class=self.test_per_class, val_per_class=self.val_per_class,
            root=self.folder, download=self.download,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FiveArguments(ImageArguments):
    """Those of 5-Datasets.

    Attributes:
        manifest: composition, order and preprocessing, a name of
            `nsr_gym.datasets.five_manifests`.
    """

    manifest: str = "five_datasets/l2p_torch"

    def __post_init__(self) -> None:
        """Check names and types; see `ImageArguments`."""
        super().__post_init__()
        check_choices(self, {"manifest": tuple(five_manifests())})

    def pool(self, config: EpisodeConfig) -> TaskPool:
        """Return the tasks of the configuration's split; see `ImageArguments`.

        A manifest's own mean and std are left out: backbones bring those that they were trained
        with.
        """
        chosen = five_manifest(self.manifest)
        # The manifest's own size comes with its crop.
        size = None if self.image_size is None and self.side == chosen.size else self.side
        return five_datasets_pool(
            config.split, manifest=self.manifest, grouping=self.grouping, evaluate=self.evaluate,
            size=size, normalise=False, train_per_class=self.train_per_class,
            test_per_class=self.test_per_class, val_per_class=self.val_per_class,
            root=self.folder, download=self.download,
        )  # fmt: skip


def _names(argument: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    names: tuple[Any, ...] = ()
    if isinstance(value, Sequence) and not isinstance(value, str):
        names = tuple(value)
    if not names or not all(isinstance(name, str) for name in names):
        raise InvalidValueError(
            f"Expected {argument} as a list of names or regular expressions, or None; got "
            f"{value!r}."
        )
    return names


def _random(
    name: str, adapt: Sequence[str], fused: bool, device: str
) -> ViTBackbone | ResNetBackbone:
    import torch

    from nsr_gym.backbones.entrance import Entrance
    from nsr_gym.backbones.image_models import PLANS

    plan = PLANS[name]
    tensors = plan.folded(plan.initial(1, torch.Generator().manual_seed(0)))
    arguments: dict[str, Any] = {"fused": True} if fused else {}
    return plan.backbone(tensors, entrance=Entrance(), adapt=adapt, device=device, **arguments)
