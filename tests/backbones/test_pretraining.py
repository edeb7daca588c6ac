"""The weights that ship are what pretraining makes, and nothing else is loaded."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.backbones.pretrain import (
    DIGITS_CARD,
    DIGITS_WEIGHTS,
    Recipe,
    accuracy,
    digits_backbone,
    pretrain_digits,
    pretrain_mlp,
)
from nsr_gym.datasets.digits_parts import digits_parts
from nsr_gym.errors import FileFormatError, InvalidValueError

SHIPPED = resources.files("nsr_gym.backbones") / "weights"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped weights' folder, from which the package loads."""
    folder = tmp_path / "weights"
    shutil.copytree(str(SHIPPED), folder)
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    return folder


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("pretrained") / "new"
    return pretrain_digits(folder), folder


def test_pretraining_reproduces_the_weights_that_ship(
    again: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit on the machine they came from; elsewhere within 1e-4."""
    card, folder = again
    shipped = digits_backbone()
    assert shipped.fingerprint == json.loads((SHIPPED / DIGITS_CARD).read_text())["fingerprint"]
    monkeypatch.setattr(resources, "files", lambda package: folder.parent)
    folder.rename(folder.with_name("weights"))
    made = digits_backbone()
    assert made.fingerprint == card["fingerprint"]
    if made.fingerprint != shipped.fingerprint:
        for name, part in shipped.weights.items():
            torch.testing.assert_close(made.weights[name], part, rtol=0.0, atol=1e-4)


def test_the_card_says_what_the_weights_do() -> None:
    card = json.loads((SHIPPED / DIGITS_CARD).read_text())
    backbone, parts = digits_backbone(), digits_parts()
    assert card["images"] == len(parts.base.y)
    for key, part in (("base_accuracy", parts.base), ("task_test_accuracy", parts.test)):
        measured = accuracy(backbone, part.x, part.y)
        assert measured == pytest.approx(card[key], abs=1.01 / len(part.y))  # one image
    assert [(s.d_out, s.d_in) for s in backbone.sites] == [(128, 64), (128, 128), (64, 128)]
    assert backbone.num_classes == 10
    assert (SHIPPED / DIGITS_WEIGHTS).stat().st_size < 200_000  # type: ignore[attr-defined]


def test_a_run_leaves_weights_and_card_and_nothing_else(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    losses: list[float] = []
    pretrain_digits(tmp_path, lambda epoch, loss: losses.append(loss))
    assert sorted(p.name for p in tmp_path.iterdir()) == [DIGITS_CARD, DIGITS_WEIGHTS]
    assert torch.get_num_threads() == threads
    assert len(losses) == Recipe().epochs
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("position", [100, -1], ids=["header", "values"])
def test_a_flipped_byte_is_refused(installed: Path, position: int) -> None:
    payload = bytearray((installed / DIGITS_WEIGHTS).read_bytes())
    payload[position] ^= 1
    (installed / DIGITS_WEIGHTS).write_bytes(payload)
    with pytest.raises(FileFormatError, match=r"card's hash; reinstall.*nsr-gym pretrain digits"):
        digits_backbone()


def test_a_file_cut_short_is_refused(installed: Path) -> None:
    payload = (installed / DIGITS_WEIGHTS).read_bytes()
    (installed / DIGITS_WEIGHTS).write_bytes(payload[: len(payload) // 2])
    with pytest.raises(FileFormatError, match="card's hash"):
        digits_backbone()


@pytest.mark.parametrize("name", [DIGITS_WEIGHTS, DIGITS_CARD])
def test_a_missing_file_is_named_as_such(installed: Path, name: str) -> None:
    (installed / name).unlink()
    with pytest.raises(FileFormatError, match=r"missing from this installation; reinstall"):
        digits_backbone()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3"])
def test_a_damaged_card_is_refused(installed: Path, text: str) -> None:
    (installed / DIGITS_CARD).write_text(text)
    with pytest.raises(FileFormatError, match=r"card is damaged; reinstall"):
        digits_backbone()


def images(n: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(classes, size=n)
    x = rng.standard_normal((n, 8)) * 0.3
    x[np.arange(n), y] += 2.0
    return x.astype(np.float32), y


def test_own_images_can_be_learned_and_the_seed_decides() -> None:
    x, y = images(200)
    recipe = Recipe(widths=(12, 6), epochs=10, batch_size=20, learning_rate=1e-2)
    made = pretrain_mlp(x, y, num_classes=4, recipe=recipe)
    assert isinstance(made, MLPBackbone)
    assert (made.input_shape, made.feature_dim, made.num_classes) == ((8,), 6, 4)
    assert accuracy(made, x, y) > 0.9
    torch.rand(3)  # the global generator has no say
    assert pretrain_mlp(x, y, num_classes=4, recipe=recipe).fingerprint == made.fingerprint
    other = Recipe(widths=(12, 6), epochs=10, batch_size=20, learning_rate=1e-2, seed=1)
    assert pretrain_mlp(x, y, num_classes=4, recipe=other).fingerprint != made.fingerprint


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((4, 2, 2)), np.zeros(4, dtype=int), r"images \(n, d\).*got \(4, 2, 2\)"),
        (np.zeros((4, 2)), np.zeros(3, dtype=int), r"as many labels"),
        (np.zeros((0, 2)), np.zeros(0, dtype=int), r"got \(0, 2\)"),
        (np.zeros((4, 2)), np.array([0, 1, 2, 3]), "from 0 to 2; got 0 to 3"),
        (np.zeros((4, 2)), np.array([0, -1, 2, 1]), "from 0 to 2; got -1 to 2"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(
    x: np.ndarray, y: np.ndarray, message: str
) -> None:
    with pytest.raises(InvalidValueError, match=message):
        pretrain_mlp(x.astype(np.float32), y, num_classes=3)
