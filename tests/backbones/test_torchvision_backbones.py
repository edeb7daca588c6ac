"""torchvision's networks come over whole: their logits, their files, their sizes."""

from __future__ import annotations

import hashlib
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from image_samples import frozen_features, images, resnet_module, torchvision, vit_module
from safetensors.torch import save_file

from nsr_gym.backbones import torchvision_models
from nsr_gym.backbones.torchvision_models import torchvision_backbone
from nsr_gym.backbones.vit import ViTBackbone
from nsr_gym.backbones.weight_files import read_weights
from nsr_gym.bank import TaskKnowledgeBank, make_store
from nsr_gym.errors import DataError, FileFormatError, InvalidValueError, UnknownNameError
from nsr_gym.learning.adapters import Adapters

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(x: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    return (x - mean) / std


def module_of(name: str, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torchvision().models.get_model(name, weights=None).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vit_b_16() -> ViTBackbone:
    made = torchvision_backbone("vit_b_16", weights=None)
    assert isinstance(made, ViTBackbone)
    return made


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_features_of_residual_networks_are_torchvisions(name: str) -> None:
    module, x = module_of(name), images(2, side=224)
    backbone = torchvision_backbone(name, weights=None)
    logits = backbone.head(frozen_features(backbone, x))
    expected = module(normalised(x))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert float(expected.std()) > 0.1


def test_features_of_vit_b_16_are_torchvisions(vit_b_16: ViTBackbone) -> None:
    """Its head is zero before training, so that a random one is put on both."""
    module, x = module_of("vit_b_16"), images(1, side=224)
    head = torch.randn(7, 768, generator=torch.Generator().manual_seed(0)) * 0.1
    module.heads = torch.nn.Linear(768, 7, bias=False)
    module.heads.weight.data = head
    ours = vit_b_16.with_head(head)
    logits = ours.head(frozen_features(ours, x))
    with torch.no_grad():
        expected = module(normalised(x))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert float(expected.std()) > 0.1


def test_an_entry_of_rank_two_on_q_and_v_has_the_abstracts_bytes(vit_b_16: ViTBackbone) -> None:
    """0.29 MB per task (arXiv 2606.30067): 12 blocks, q and v, 2 x (768 + 768) float32."""
    adapters = Adapters.zeros(vit_b_16.sites, n=1, rank=2)
    for up, down in adapters.factors.values():
        up.fill_(1.0)
        down.fill_(1.0)
    sites = {site.name: (site.d_out, site.d_in) for site in vit_b_16.sites}
    store = make_store("per_task", sites=sites, max_rank=2)
    bank = TaskKnowledgeBank(embedding_dim=vit_b_16.feature_dim, num_banks=1, store=store)
    bank.reserve(embedding=torch.ones(1, 768).numpy(), rank=2, factors=adapters.factors)
    assert int(bank.bytes_by_kind()["factors"][0]) == 294_912
    assert len(sites) == 24


def test_random_weights_leave_the_global_generator_alone_and_follow_the_seed() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    made = [torchvision_backbone("resnet18", weights=None, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(2), expected)
    assert made[0].fingerprint == made[1].fingerprint != made[2].fingerprint


def saved(tmp_path: Path, name: str) -> tuple[Path, str]:
    path = tmp_path / f"{name}.pth"
    torch.save(module_of(name).state_dict(), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_local_file_is_taken_if_its_hash_is_the_one_asked_for(tmp_path: Path) -> None:
    path, digest = saved(tmp_path, "resnet18")
    expected = torchvision_backbone("resnet18", weights=None)
    for known in (None, digest, digest[:8]):
        made = torchvision_backbone("resnet18", weights=path, sha256=known)
        assert made.fingerprint == expected.fingerprint
    state = {name: part.clone() for name, part in read_weights(path).items()}
    save_file(state, tmp_path / "resnet18.safetensors")
    other = torchvision_backbone("resnet18", weights=str(tmp_path / "resnet18.safetensors"))
    assert other.fingerprint == expected.fingerprint
    with pytest.raises(FileFormatError, match=f"with SHA-256 {'0' * 8} in .*; it has {digest}"):
        torchvision_backbone("resnet18", weights=path, sha256="0" * 8)
    with pytest.raises(InvalidValueError, match="8 to 64 lower-case hexadecimal"):
        torchvision_backbone("resnet18", weights=path, sha256="abc")
    with pytest.raises(FileFormatError, match="of another network"):
        torchvision_backbone("resnet50", weights=path)
    with pytest.raises(FileFormatError, match=r"tensors of vit_b_16; there is no 'conv_proj"):
        torchvision_backbone("vit_b_16", weights=path)


def test_small_images_are_resized_inside_and_heads_replaced(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, "resnet18")
    made = torchvision_backbone("resnet18", weights=path, image_side=32, num_classes=10)
    assert (made.input_shape, made.num_classes) == ((3, 32, 32), 10)
    x = images(2, side=32)
    large = torch.nn.functional.interpolate(x, (224, 224), mode="bilinear")
    whole = torchvision_backbone("resnet18", weights=path)
    features = frozen_features(made, x)
    torch.testing.assert_close(features, frozen_features(whole, large), rtol=1e-4, atol=1e-5)
    assert not made.head(features).any()
    assert torchvision_backbone("resnet18", weights=path, num_classes=0).num_classes == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"no tensors at all", "cannot be read"),
        ({"conv1.weight": [1, 2]}, "name -> tensor"),
        ([torch.zeros(1)], "got list"),
    ],
    ids=["empty", "text", "lists", "no names"],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(FileFormatError, match=message):
        read_weights(path)
    path.rename(tmp_path / "weights.safetensors")
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_weights(tmp_path / "weights.safetensors")
    with pytest.raises(FileFormatError, match="there is none"):
        read_weights(path)


class _Code:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_a_file_that_would_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"conv1.weight": _Code()}, tmp_path / "weights.pth")
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_weights(tmp_path / "weights.pth")
    assert "run" not in capsys.readouterr().out


def test_downloads_are_of_the_best_weights_and_checked_or_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def fetch(url: str, **arguments: Any) -> Any:
        asked.append((url, arguments))
        if len(asked) > 1:
            raise urllib.error.URLError("no route to host")
        return module_of("resnet18").state_dict()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    made = torchvision_backbone("resnet18", weights="DEFAULT")
    assert made.fingerprint == torchvision_backbone("resnet18", weights=None).fingerprint
    (url, arguments) = asked[0]
    assert url == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert arguments["check_hash"]
    assert arguments["weights_only"]
    with pytest.raises(DataError, match=r"fetch https.*no route to host.*weights=FILE"):
        torchvision_backbone("resnet18", weights="DEFAULT")


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("vit_b_8", {}, UnknownNameError, "vit_b_16"),
        ("resnet18", {"fused": True}, InvalidValueError, "has no attention"),
        ("resnet18", {"sha256": "0" * 64}, InvalidValueError, "together with a local file"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_built(
    name: str, arguments: dict[str, Any], error: type[Exception], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torchvision_models, "_random", lambda *_: pytest.fail("built"))
    with pytest.raises(error, match=message):
        torchvision_backbone(name, weights=None, **arguments)


def test_the_tiny_networks_of_the_tests_are_no_published_ones(tmp_path: Path) -> None:
    """A file with the right names and the wrong sizes is not taken for the network."""
    for name, module in (("vit_b_32", vit_module()), ("resnet18", resnet_module())):
        torch.save(module.state_dict(), tmp_path / "tiny.pth")
        with pytest.raises((FileFormatError, InvalidValueError)):
            torchvision_backbone(name, weights=tmp_path / "tiny.pth")
