"""What Hugging Face PEFT makes of our files, and we of its: the same function."""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from exchange_samples import RANKS
from safetensors.torch import load_file
from torch import Tensor, nn

from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.backbones.pretrain import digits_backbone
from nsr_gym.bank import PerEntryFactors, TaskKnowledgeBank
from nsr_gym.errors import FileFormatError
from nsr_gym.exchange import export_entry, fuse, import_adapter, import_entry, split_fused
from nsr_gym.exchange.peft_rules import is_target, rank_of, scale_of
from nsr_gym.learning.site_maps import FactoredMap, MergedMap

Make = Callable[..., TaskKnowledgeBank]
Factors = dict[str, tuple[Tensor, Tensor]]
PATTERNS: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 4},
    {"r": 4, "lora_alpha": 16},
    {"r": 4, "lora_alpha": 8, "use_rslora": True},
    {"r": 4, "lora_alpha": 4, "rank_pattern": {"fc2": 2, "^fc3": 1}},
    {"r": 4, "lora_alpha": 4, "rank_pattern": {"fc[23]": 2}, "alpha_pattern": {"c2": 6}},
    {"r": 2, "lora_alpha": 3, "rank_pattern": {"fc.": 4, "fc1": 1}, "alpha_pattern": {".*": 5}},
    {"r": 3, "lora_alpha": 2, "use_rslora": True, "alpha_pattern": {"fc3": 9, "x.fc1": 7}},
]


def ours(backbone: MLPBackbone, factors: Factors, x: Tensor, *, merged: bool) -> Tensor:
    """Logits (n, classes) of one adapter by our own model."""
    one = {name: (up[None].float(), down[None].float()) for name, (up, down) in factors.items()}
    leaves = {name: (up.mT.contiguous(), down) for name, (up, down) in one.items()}
    site_map = MergedMap(backbone, one) if merged else FactoredMap(backbone, leaves)
    prefix = tuple(part[None] for part in backbone.prefix(x))
    return backbone.head(backbone.forward(prefix, site_map))[0]


def images(backbone: MLPBackbone) -> Tensor:
    g = torch.Generator().manual_seed(11)
    return torch.rand(64, backbone.input_shape[0], generator=g)


def wrapped(peft: ModuleType, backbone: MLPBackbone, folder: Path) -> nn.Module:
    """The module as PEFT adapts it; any warning of PEFT's is an error here."""
    model: nn.Module = peft.PeftModel.from_pretrained(backbone.to_module(), str(folder))
    return model.eval()


@pytest.mark.parametrize("profile", ["peft", "serving"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("ranks", [RANKS, {"fc1": 3, "fc2": 0, "fc3": 4}])
def test_logits_are_those_of_peft(
    bank_of: Make, backbone: MLPBackbone, peft: ModuleType, tmp_path: Path, profile: str,
    dtype: str, ranks: dict[str, int],
) -> None:  # fmt: skip
    bank = bank_of(ranks)
    export_entry(bank, 1, tmp_path / "out", row=1, profile=profile, dtype=dtype)
    factors = import_adapter(tmp_path / "out", backbone=backbone).padded()
    x = images(backbone)
    with torch.no_grad():
        theirs = wrapped(peft, backbone, tmp_path / "out")(x)
        bare = backbone.to_module()(x)
    assert (theirs - bare).abs().max() > 0.1
    for merged in (False, True):
        assert (ours(backbone, factors, x, merged=merged) - theirs).abs().max() <= 1e-5
    if dtype == "float32":
        held = {name: (up[0], down[0]) for name, (up, down) in bank.factors([1], rows=[1]).items()}
        assert (ours(backbone, held, x, merged=True) - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("profile", ["peft", "serving"])
def test_the_shipped_backbone_exports_to_peft(
    peft: ModuleType, tmp_path: Path, profile: str
) -> None:
    digits = digits_backbone()
    store = PerEntryFactors(
        sites={site.name: (site.d_out, site.d_in) for site in digits.sites}, max_rank=8
    )
    bank = TaskKnowledgeBank(embedding_dim=4, store=store)
    g = torch.Generator().manual_seed(2)
    bank.reserve(
        embedding=np.ones(4), rank=8,
        factors={
            site.name: (
                0.05 * torch.randn(1, site.d_out, 8, generator=g),
                0.05 * torch.randn(1, 8, site.d_in, generator=g),
            )
            for site in digits.sites
        },
    )  # fmt: skip
    export_entry(bank, 0, tmp_path / "out", profile=profile, backbone=digits)
    x = images(digits)
    held = {name: (up[0], down[0]) for name, (up, down) in bank.factors([0]).items()}
    with torch.no_grad():
        theirs = wrapped(peft, digits, tmp_path / "out")(x)
    assert theirs.abs().max() > 1.0
    assert (ours(digits, held, x, merged=True) - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("profile", ["peft", "serving"])
def test_saved_again_by_peft_it_is_the_same_adapter(
    bank_of: Make, backbone: MLPBackbone, peft: ModuleType, tmp_path: Path, profile: str
) -> None:
    export_entry(bank_of(), 1, tmp_path / "out", row=1, profile=profile)
    wrapped(peft, backbone, tmp_path / "out").save_pretrained(str(tmp_path / "again"))
    first = load_file(tmp_path / "out" / "adapter_model.safetensors")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    mine = import_adapter(tmp_path / "out", backbone=backbone)
    foreign = import_adapter(tmp_path / "again", backbone=backbone)
    assert not foreign.exact
    assert foreign.ranks == mine.ranks == RANKS
    for name in RANKS:
        for left, right in zip(mine.factors[name], foreign.factors[name], strict=True):
            assert torch.allclose(left, right, atol=2e-6)
    # With its record beside it, it is known for what it is.
    record = (tmp_path / "out" / "nsr_entry.json").read_text()
    (tmp_path / "again" / "nsr_entry.json").write_text(record)
    known = import_adapter(tmp_path / "again", backbone=backbone)
    assert known.exact
    for name in RANKS:
        for left, right in zip(mine.factors[name], known.factors[name], strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize("settings", PATTERNS)
def test_an_adapter_of_peft_comes_in_with_its_scales(
    backbone: MLPBackbone, bank_of: Make, peft: ModuleType, tmp_path: Path,
    settings: dict[str, Any],
) -> None:  # fmt: skip
    config = peft.LoraConfig(target_modules=["fc1", "fc2", "fc3"], **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*keys did not match any targeted module.*")
        model = peft.get_peft_model(backbone.to_module(), config)
    g = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=g)
    model.save_pretrained(str(tmp_path / "theirs"))
    x = images(backbone)
    with torch.no_grad():
        theirs = model.eval()(x)
    adapter = import_adapter(tmp_path / "theirs", backbone=backbone)
    for name, layer in model.base_model.model.named_modules():
        if hasattr(layer, "scaling"):
            assert adapter.scales[name] == layer.scaling["default"]
            delta = adapter.factors[name][0] @ adapter.factors[name][1]
            assert torch.allclose(delta, layer.get_delta_weight("default"), atol=1e-5)
    assert (ours(backbone, adapter.padded(), x, merged=True) - theirs).abs().max() <= 1e-5
    # Into a bank and out of it: still the same function.
    bank = bank_of()
    made = import_entry(bank, tmp_path / "theirs", row=1, embedding=np.ones(6))
    export_entry(bank, int(made.slot[0]), tmp_path / "ours", row=1, profile="serving")
    with torch.no_grad():
        back = wrapped(peft, backbone, tmp_path / "ours")(x)
    assert (back - theirs).abs().max() <= 1e-5


def test_an_alpha_pattern_left_out_gives_what_peft_makes_of_it(
    bank_of: Make, backbone: MLPBackbone, peft: ModuleType, tmp_path: Path
) -> None:
    """The trap: PEFT loads it without a warning, four times too strong in one layer."""
    export_entry(bank_of(), 1, tmp_path / "out", row=1)
    right = import_adapter(tmp_path / "out", backbone=backbone)
    path = tmp_path / "out" / "adapter_config.json"
    config = json.loads(path.read_text())
    del config["alpha_pattern"]
    path.write_text(json.dumps(config))
    wrong = import_adapter(tmp_path / "out", backbone=backbone)
    assert wrong.scales == {"fc1": 1.0, "fc2": 2.0, "fc3": 4.0}
    assert not wrong.exact
    x = images(backbone)
    with torch.no_grad():
        theirs = wrapped(peft, backbone, tmp_path / "out")(x)
    assert (ours(backbone, wrong.padded(), x, merged=True) - theirs).abs().max() <= 1e-5
    assert (ours(backbone, right.padded(), x, merged=True) - theirs).abs().max() > 0.1


@pytest.mark.parametrize(
    "targets",
    [
        {"target_modules": ["fc1", "b.fc2"]},
        {"target_modules": r".*\.0\.fc\d"},
        {"target_modules": ["fc1", "fc2"], "layers_to_transform": [1]},
        {"target_modules": ["fc1", "fc2"], "layers_to_transform": 0, "layers_pattern": "b"},
        {"target_modules": ["fc1", "fc2"], "layers_to_transform": [0, 1], "layers_pattern": ["a"]},
        {"target_modules": ["fc1", "fc2"], "exclude_modules": ["0.fc1"]},
        {"target_modules": ["fc1", "fc2"], "exclude_modules": r"m\.a\..*"},
    ],
)
def test_layers_ranks_and_scales_are_chosen_as_peft_chooses_them(
    peft: ModuleType, targets: dict[str, Any]
) -> None:
    def block() -> nn.Module:
        return nn.ModuleDict({"fc1": nn.Linear(8, 8), "fc2": nn.Linear(8, 8)})

    groups = {"a": nn.ModuleList([block(), block()]), "b": nn.ModuleList([block()])}
    model = nn.ModuleDict({"m": nn.ModuleDict(groups)})
    patterns: dict[str, Any] = {
        "rank_pattern": {"a.0.fc1": 2, "fc2": 3, "^m.b": 5},
        "alpha_pattern": {"1.fc.": 7, r"^m\.a\.0\.fc2": 1},
    }
    settings = {"r": 4, "lora_alpha": 6, **targets, **patterns}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*keys did not match any targeted module.*")
        adapted = peft.inject_adapter_in_model(peft.LoraConfig(**settings), model)
    layers = {name: m for name, m in adapted.named_modules() if hasattr(m, "scaling")}
    linear = [
        f"m.{group}.{i}.{name}"
        for group, count in (("a", 2), ("b", 1))
        for i in range(count)
        for name in ("fc1", "fc2")
    ]
    config = json.loads(json.dumps(settings))
    assert sorted(layers) == [name for name in linear if is_target(config, name)]
    assert 0 < len(layers) < len(linear)
    for name, layer in layers.items():
        assert rank_of(config, name) == layer.r["default"]
        assert scale_of(config, name) == layer.scaling["default"]


def test_a_fused_layer_of_peft_splits_into_its_parts(peft: ModuleType) -> None:
    """timm's one `qkv` against the three layers of other libraries."""
    g = torch.Generator().manual_seed(0)
    block = nn.ModuleDict({"qkv": nn.Linear(6, 15)})
    adapted = peft.inject_adapter_in_model(
        peft.LoraConfig(r=2, lora_alpha=2, target_modules=["qkv"]), block
    )
    layer = adapted["qkv"]
    up, down = layer.lora_B["default"].weight.data, layer.lora_A["default"].weight.data
    up.copy_(torch.randn(up.shape, generator=g))
    whole = layer.get_delta_weight("default")
    sizes = {"q": 5, "k": 5, "v": 5}
    parts = split_fused(up, down, sizes)
    assert torch.equal(torch.cat([a @ b for a, b in parts.values()]), whole)
    again = fuse(parts, sizes, rank=2)
    assert torch.allclose(again.up @ again.down, whole, atol=1e-5)


def test_weights_stored_the_other_way_round_are_said_to_be(
    peft: ModuleType, tmp_path: Path
) -> None:
    """GPT-2's layers keep their weights as (d_in, d_out); an update is the same map there."""
    from transformers.pytorch_utils import Conv1D

    g = torch.Generator().manual_seed(0)
    bank = TaskKnowledgeBank(
        embedding_dim=2, store=PerEntryFactors(sites={"c": (5, 6)}, max_rank=3)
    )
    up, down = torch.randn(1, 5, 3, generator=g), torch.randn(1, 3, 6, generator=g)
    bank.reserve(embedding=np.ones(2), rank=3, factors={"c": (up, down)})
    export_entry(bank, 0, tmp_path / "out", fan_in_fan_out=True)
    base = nn.Sequential(OrderedDict(c=Conv1D(nf=5, nx=6))).requires_grad_(False)
    x = torch.randn(7, 6, generator=g)
    bare = base(x)
    model = peft.PeftModel.from_pretrained(base, str(tmp_path / "out"))
    with torch.no_grad():
        assert torch.allclose(model(x) - bare, x @ (up[0] @ down[0]).T, atol=1e-5)
    sites = {"c": (5, 6)}
    assert import_adapter(tmp_path / "out", sites=sites, fan_in_fan_out=True).exact
    with pytest.raises(FileFormatError, match="fan_in_fan_out=True"):
        import_adapter(tmp_path / "out", sites=sites)
