"""Pretraining on images learns, goes on where it stopped, and leaves files that load."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_samples import frozen_features
from rich.console import Console
from safetensors.torch import load_file

from nsr_gym import cli, cli_pretrain, cli_shared
from nsr_gym.backbones import image_models, pretrain_images
from nsr_gym.backbones.entrance import Entrance
from nsr_gym.backbones.image_data import batches, channels
from nsr_gym.backbones.image_models import ResNetPlan, ViTPlan
from nsr_gym.backbones.image_recipes import RECIPES, ImageRecipe
from nsr_gym.backbones.pretrain_images import image_accuracy
from nsr_gym.backbones.shipped import image_backbone, image_card
from nsr_gym.datasets.packed_files import ImageSet, read_images
from nsr_gym.errors import (
    DataError,
    FileFormatError,
    InvalidValueError,
    StateError,
    UnknownNameError,
)

PLANS: dict[str, Any] = {
    "vit-small-32": ViTPlan(side=8, patch=4, width=8, depth=2, heads=2, hidden=16),
    "resnet-small-32": ResNetPlan(side=8, widths=(4, 8), blocks=1, stem=3, stem_stride=1),
}
RECIPE = ImageRecipe(epochs=3, batch_size=16, learning_rate=1e-2, share=0.5, whole=1, mixup=0.2)


def arrays(n: int = 96, m: int = 48, side: int = 8) -> dict[str, Any]:
    """Images of three classes, which differ in the brightest channel."""
    rng = np.random.default_rng(0)
    made = {}
    for part, size in (("train", n), ("val", m)):
        y = np.arange(size) % 3
        x = rng.integers(0, 120, (size, side, side, 3))
        x[np.arange(size), :, :, y] += 100
        made[f"x_{part}"], made[f"y_{part}"] = x.astype(np.uint8), y.astype(np.int64)
    return made


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "three.npz"
    np.savez(path, **arrays())
    return path


@pytest.fixture(scope="module")
def data(file: Path) -> ImageSet:
    return read_images(file)


def pretrain(model: str, data: ImageSet, folder: Path, **arguments: Any) -> dict[str, Any]:
    return pretrain_images.pretrain_images(
        model, data, folder=folder,
        **({"recipe": RECIPE, "plan": PLANS[model], "data_name": "three", "machine": "a test"}
           | arguments),
    )  # fmt: skip


@pytest.mark.parametrize("model", PLANS)
def test_images_are_learned_and_the_files_load(model: str, data: ImageSet, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=8, mixup=0.0)
    card = pretrain(model, data, tmp_path, recipe=recipe)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{model}.json",
        f"{model}.safetensors",
    ]
    assert card["val_accuracy"] > 0.8
    assert card["history"][-1]["loss"] < 0.8 * card["history"][0]["loss"]
    backbone = image_backbone(model, folder=tmp_path)
    assert image_accuracy(backbone, data.x_val, data.y_val) == pytest.approx(
        card["val_accuracy"], abs=1e-4
    )
    weights = tmp_path / f"{model}.safetensors"
    assert {part.dtype for part in load_file(weights).values()} == {torch.float16}
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert backbone.fingerprint == digest == card["sha256"]
    assert image_card(model, folder=tmp_path) == json.loads(json.dumps(card))
    assert (backbone.input_shape, backbone.num_classes) == ((3, 8, 8), 3)
    assert (card["data"], card["data_sha256"], card["images"]) == ("three", data.sha256, 96)


class _Stop(Exception):
    pass


@pytest.mark.parametrize("model", PLANS)
def test_a_run_that_was_stopped_ends_at_the_same_bits(
    model: str, data: ImageSet, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = pretrain(model, data, whole)
    seen: list[int] = []

    def stop(done: int, total: int, word: str) -> None:
        assert total == 18
        seen.append(done)
        if len(seen) == 9:  # in the middle of the second epoch
            raise _Stop

    with pytest.raises(_Stop):
        pretrain(model, data, parts, progress=stop)
    assert [path.name for path in parts.iterdir()] == [f"{model}.checkpoint.safetensors"]
    card = pretrain(model, data, parts, progress=stop)
    assert seen == [*range(1, 10), *range(7, 19)]
    assert card["sha256"] == expected["sha256"]
    assert card["history"] == expected["history"]
    torch.rand(3)  # the global generator has no say, the recipe's seed has
    assert pretrain(model, data, tmp_path / "again")["sha256"] == expected["sha256"]
    other = pretrain(model, data, tmp_path / "other", recipe=replace(RECIPE, seed=1))
    assert other["sha256"] != expected["sha256"]


def stopped(data: ImageSet, folder: Path) -> Path:
    """A folder with the checkpoint of a run that was stopped in its second epoch."""

    def stop(done: int, total: int, word: str) -> None:
        if done == 7:
            raise _Stop

    with pytest.raises(_Stop):
        pretrain("vit-small-32", data, folder, progress=stop)
    return folder / "vit-small-32.checkpoint.safetensors"


def test_a_checkpoint_of_another_run_is_not_gone_on_with(data: ImageSet, tmp_path: Path) -> None:
    stopped(data, tmp_path)
    with pytest.raises(StateError, match=r"another recipe\. Delete .*checkpoint"):
        pretrain("vit-small-32", data, tmp_path, recipe=replace(RECIPE, weight_decay=0.1))
    with pytest.raises(StateError, match="another data"):
        pretrain("vit-small-32", replace(data, sha256="0" * 64), tmp_path)
    with pytest.raises(StateError, match="another plan"):
        pretrain("vit-small-32", data, tmp_path, plan=ViTPlan(side=8, width=12))


def test_a_damaged_checkpoint_is_refused(data: ImageSet, tmp_path: Path) -> None:
    path = stopped(data, tmp_path)
    payload = path.read_bytes()
    for content in (payload[: len(payload) // 2], b"", b"\x10" + bytes(40)):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"is damaged .*Delete .*begin anew"):
            pretrain("vit-small-32", data, tmp_path)


def test_training_that_diverges_is_said_to(data: ImageSet, tmp_path: Path) -> None:
    recipe = replace(RECIPE, learning_rate=1e30, bfloat16=False)
    with pytest.raises(StateError, match="diverged; lower"):
        pretrain("vit-small-32", data, tmp_path, recipe=recipe)


def test_what_is_trained_is_what_is_frozen() -> None:
    """Training's forward pass and the backbone's are one function, batch statistics apart."""
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for plan in PLANS.values():
        g = torch.Generator().manual_seed(2)
        weights = plan.initial(3, g)
        weights["head.weight"] = torch.randn(weights["head.weight"].shape, generator=g)
        for _ in range(300):  # running statistics come to be those of this one batch
            logits = plan.logits(weights, x, 1.0, g)
        backbone = plan.backbone(plan.folded(weights), entrance=Entrance())
        # A running variance divides by n - 1, a batch's own by n.
        torch.testing.assert_close(
            backbone.head(frozen_features(backbone, x)), logits, rtol=0.02, atol=0.02
        )


@pytest.mark.parametrize("model", PLANS)
def test_shipped_sizes_fit_the_package(model: str) -> None:
    """Below 8 MB in half precision, at the size that ships."""
    plan = image_models.PLANS[model]
    weights = plan.folded(plan.initial(200, torch.Generator().manual_seed(0)))
    assert 2 * sum(part.numel() for part in weights.values()) < 8_000_000
    backbone = plan.backbone(weights, entrance=Entrance())
    assert backbone.input_shape == (3, 32, 32)
    assert frozen_features(backbone, torch.zeros(1, 3, 32, 32)).shape == (1, backbone.feature_dim)
    assert set(RECIPES[model]) == {"cpu", "gpu"}


def test_a_share_of_the_tokens_costs_accuracy_nothing_where_all_are_alike() -> None:
    plan = PLANS["vit-small-32"]
    weights = plan.initial(3, torch.Generator().manual_seed(0))
    weights["head.weight"] = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    weights["position"] = torch.zeros_like(weights["position"])
    flat, g = torch.full((2, 3, 8, 8), 0.3), torch.Generator().manual_seed(2)
    all_, some = (plan.logits(weights, flat, share, g) for share in (1.0, 0.5))
    torch.testing.assert_close(some, all_)
    x = torch.rand(2, 3, 8, 8, generator=g)
    assert not torch.allclose(plan.logits(weights, x, 0.5, g), plan.logits(weights, x, 1.0, g))


def test_an_epoch_is_every_image_once_flipped_and_moved() -> None:
    n, side = 203, 8
    x = torch.zeros(n, 3, side, side, dtype=torch.uint8)
    x[:, :, 3, 2] = torch.arange(1, n + 1, dtype=torch.uint8)[:, None]  # one bright pixel
    drawn = list(batches(x, torch.arange(n), 8, torch.Generator().manual_seed(0)))
    assert [len(labels) for _, labels in drawn] == [8] * 25
    labels = torch.cat([labels for _, labels in drawn])
    assert len(set(labels.tolist())) == 200
    assert labels.tolist() != sorted(labels.tolist())
    places = set()
    for images, names in drawn:
        for image, name in zip(images, names, strict=True):
            for row, column in image[0].nonzero().tolist():
                assert float(image[0, row, column]) == pytest.approx((int(name) + 1) / 255)
                places.add((row, column))
            assert int((image > 0).sum()) in (0, 3)  # moved out of the image, or in all channels
    rows, columns = (set(side) for side in zip(*places, strict=True))
    assert rows == set(range(8))  # 3 moved by -4 (out) to 4
    assert columns == set(range(8))  # 2 by -4 (out) to 4, or flipped, 5 by as much


def test_channel_statistics_are_those_of_all_pixels(data: ImageSet) -> None:
    mean, std = channels(data.x_train)
    scaled = data.x_train.reshape(-1, 3).astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=0), atol=6e-4)
    np.testing.assert_allclose(std, scaled.std(axis=0), atol=6e-4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x_val": None}, DataError, "no x_val"),
        ({"x_train": np.zeros((96, 8, 8, 3), np.float32)}, DataError, r"x_train.*float32"),
        ({"x_val": np.zeros((48, 4, 4, 3), np.uint8)}, DataError, r"x_val.*\(48, 4, 4, 3\)"),
        ({"y_train": np.zeros(95, np.int64)}, DataError, r"96 images.*got \(95,\)"),
        ({"y_val": np.zeros(48, np.int32)}, DataError, "int32"),
        ({"y_val": np.full(48, 3)}, DataError, "from 0 to 2 in y_val"),
        ({"y_train": np.full(96, -1)}, DataError, "y_train"),
        ({"y_train": np.array([{}] * 96)}, FileFormatError, "cannot be read"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused(
    change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    made = {name: part for name, part in (arrays() | change).items() if part is not None}
    np.savez(tmp_path / "wrong.npz", **made)
    with pytest.raises(error, match=message):
        read_images(tmp_path / "wrong.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"text", "array"], ids=str)
def test_files_of_something_else_are_refused(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with path.open("wb") as target:
            np.save(target, np.zeros(3))
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_images(path)
    with pytest.raises(FileFormatError, match="there is none"):
        read_images(tmp_path / "nowhere.npz")


@pytest.mark.parametrize(
    "change",
    [{"epochs": 0}, {"batch_size": 1.5}, {"learning_rate": float("nan")}, {"mixup": -0.1},
     {"share": 0.0}, {"share": 1.5}, {"warmup": 1.0}, {"smoothing": 1.0}, {"seed": -1}],
    ids=str,
)  # fmt: skip
def test_a_recipe_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match="Expected"):
        replace(RECIPE, **change)


def test_names_and_images_that_do_not_fit_are_refused(data: ImageSet, tmp_path: Path) -> None:
    folder = tmp_path / "never"
    with pytest.raises(UnknownNameError, match="vit-small-32"):
        pretrain_images.pretrain_images(
            "vit-small", data, recipe="cpu", folder=folder, data_name="", machine=""
        )
    with pytest.raises(UnknownNameError, match="recipe of vit-small-32 'tpu'"):
        pretrain("vit-small-32", data, folder, recipe="tpu")
    with pytest.raises(InvalidValueError, match=r"32 x 32 .*got 96 of 8 x 8"):
        pretrain("vit-small-32", data, folder, plan=None)
    with pytest.raises(InvalidValueError, match="at least 512 images"):
        pretrain("vit-small-32", data, folder, recipe="gpu")
    assert not folder.exists()


@pytest.fixture
def made(data: ImageSet, tmp_path: Path) -> Path:
    pretrain("vit-small-32", data, tmp_path, recipe=replace(RECIPE, epochs=1))
    return tmp_path


def test_damaged_or_missing_files_are_not_loaded(made: Path) -> None:
    weights, card = made / "vit-small-32.safetensors", made / "vit-small-32.json"
    payload, text = weights.read_bytes(), card.read_text()
    weights.write_bytes(payload[:-1] + bytes([payload[-1] ^ 1]))
    with pytest.raises(FileFormatError, match=r"card's hash.*nsr-gym pretrain vit-small-32"):
        image_backbone(folder=made)
    weights.write_bytes(payload)
    for wrong in ("", "[]", "{}", text.replace('"depth": 2', '"depth": "two"')[:-20]):
        card.write_text(wrong)
        with pytest.raises(FileFormatError, match="card of vit-small-32 is damaged"):
            image_backbone(folder=made)
    card.write_text(json.dumps({"sha256": json.loads(text)["sha256"]}))
    with pytest.raises(FileFormatError, match="card of vit-small-32 is damaged"):
        image_backbone(folder=made)
    card.unlink()
    with pytest.raises(FileFormatError, match="missing from"):
        image_backbone(folder=made)
    with pytest.raises(UnknownNameError, match="vit-small-32"):
        image_backbone("vit-small", folder=made)


def test_sites_of_a_shipped_backbone_can_be_chosen(made: Path) -> None:
    assert len(image_backbone(folder=made).sites) == 4
    last = image_backbone(folder=made, adapt=[r"blocks\.1\..*"], fused=True)
    assert last.sites[0].name == "blocks.1.attn.qkv"
    with pytest.raises(InvalidValueError, match="has no attention"):
        image_backbone("resnet-small-32", folder=made, fused=True)


Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["nsr-gym", "pretrain", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return status, " ".join((out + err).split())

    return run


def test_the_command_trains_and_says_what_came_of_it(
    file: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "resnet-small-32"
    monkeypatch.setattr(pretrain_images, "PLANS", PLANS)
    monkeypatch.setattr(pretrain_images, "RECIPES", {name: {"cpu": RECIPE}})
    status, text = call(name, "--data", file, "--output", tmp_path, "--threads", "1")
    assert status == 0, text
    card = image_card(name, folder=tmp_path)
    assert f'"sha256": "{card["sha256"]}"' in text
    assert (card["data"], card["recipe"]) == ("three.npz", "cpu")
    assert "1 threads" in card["machine"]
    assert str(tmp_path) not in json.dumps(card)


def test_every_epoch_is_reported_once_it_is_kept(data: ImageSet, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    figures: list[dict[str, float]] = []

    def report(epoch: int, total: int, of: Any) -> None:
        told.append((epoch, total))
        figures.append(dict(of))
        if epoch == 2:
            raise _Stop

    with pytest.raises(_Stop):
        pretrain("vit-small-32", data, tmp_path, report=report)
    # The second epoch was kept before it was told, so that the third comes next.
    card = pretrain("vit-small-32", data, tmp_path, report=report)
    assert told == [(1, 3), (2, 3), (3, 3)]
    seconds = [of.pop("seconds") for of in figures]
    assert figures == card["history"]
    assert min(seconds) > 0
    assert card["seconds"] == round(sum(seconds))


def test_piped_output_gets_a_line_for_every_epoch_and_a_terminal_a_bar(
    file: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "resnet-small-32"
    monkeypatch.setattr(pretrain_images, "PLANS", PLANS)
    monkeypatch.setattr(pretrain_images, "RECIPES", {name: {"cpu": RECIPE}})
    status, text = call(name, "--data", file, "--output", tmp_path / "piped", "--threads", "1")
    assert status == 0, text
    number = r"(\d\.\d{3})"
    line = rf"{name}: epoch (\d) of 3, loss {number}, validation accuracy {number}, \d+ s"
    found = re.findall(line, text)
    history = image_card(name, folder=tmp_path / "piped")["history"]
    assert [int(epoch) for epoch, *_ in found] == [1, 2, 3]
    np.testing.assert_allclose(
        np.array(found, dtype=float)[:, 1:],
        [[of["loss"], of["val_accuracy"]] for of in history],
        atol=6e-4,
    )
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    for module in (cli_pretrain, cli_shared):
        monkeypatch.setattr(module, "errors", screen)
    status, text = call(name, "--data", file, "--output", tmp_path / "seen", "--threads", "1")
    assert status == 0, text
    assert isinstance(screen.file, io.StringIO)
    assert "epoch 1 of 3" not in text + screen.file.getvalue()
    assert "18/18" in screen.file.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vit-small-32"], "tiny-imagenet-32.npz; there is none. Say where"),
        (["vit-small-32", "--data", "nowhere.npz"], "there is none. Say where"),
        (["vit-small-32", "--data", "FILE", "--recipe", "tpu"], "recipe of vit-small-32 'tpu'"),
        (["vit-small-32", "--data", "FILE", "--device", "abacus"], "got 'abacus'"),
        (["vit-small-32", "--data", "FILE"], "got 96 of 8 x 8"),
        (["vit-small"], "no backbone recipe 'vit-small'"),
        (["digits", "--data", "FILE"], "no --data, --recipe"),
    ],
    ids=str,
)
def test_the_command_refuses_what_does_not_fit(
    arguments: list[str], message: str, file: Path, tmp_path: Path, call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NSR_GYM_DATA", str(tmp_path))
    status, text = call(*[str(file) if part == "FILE" else part for part in arguments])
    assert status == 2
    assert message in text
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []
