"""The image backbones that ship are small, whole, and as good as their cards say."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import pytest
import torch
from image_samples import frozen_features

from nsr_gym.backbones.image_models import PLANS
from nsr_gym.backbones.image_recipes import RECIPES
from nsr_gym.backbones.pretrain_images import image_accuracy
from nsr_gym.backbones.shipped import image_backbone, image_card
from nsr_gym.datasets.packed_files import read_images

WEIGHTS = Path(str(resources.files("nsr_gym.backbones") / "weights"))
SHIPPED = [name for name in PLANS if (WEIGHTS / f"{name}.safetensors").exists()]
DATA = Path(os.environ.get("NSR_GYM_DATA", "")) / "tiny-imagenet-32.npz"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_backbone_is_small_and_has_a_whole_card(name: str) -> None:
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < 8_000_000
    card = image_card(name)
    backbone = image_backbone(name)
    assert backbone.fingerprint == card["sha256"]
    assert (backbone.input_shape, backbone.num_classes) == ((3, 32, 32), card["classes"])
    recipe = RECIPES[name][card["recipe"]]
    assert (card["epochs"], card["batch_size"], card["seed"]) == (
        recipe.epochs, recipe.batch_size, recipe.seed,
    )  # fmt: skip
    assert len(card["history"]) == card["epochs"]
    assert card["val_accuracy"] > 0.15  # thirty times chance among 200 classes
    assert "/" not in card["machine"] + card["data"]
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = frozen_features(backbone, x)
    assert features.shape == (2, backbone.feature_dim)
    assert float((features[0] - features[1]).norm()) > 0.1


@pytest.mark.skipif(not DATA.is_file(), reason="NSR_GYM_DATA has no tiny-imagenet-32.npz")
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_backbone_is_as_good_as_its_card_says(name: str) -> None:
    data, card = read_images(DATA), image_card(name)
    assert card["data_sha256"] == data.sha256
    measured = image_accuracy(image_backbone(name), data.x_val[:2000], data.y_val[:2000])
    assert measured == pytest.approx(card["val_accuracy"], abs=0.04)  # of 10,000; four deviations
