"""An entry that went out comes back bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from exchange_samples import RANKS, canonical_factors
from safetensors.torch import load_file, save_file

from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.bank import TaskKnowledgeBank
from nsr_gym.exchange import export_entry, import_adapter, import_entry

Make = Callable[..., TaskKnowledgeBank]


@pytest.mark.parametrize("profile", ["peft", "serving"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    "ranks", [RANKS, {"fc1": 0, "fc2": 3, "fc3": 1}, {"fc1": 4, "fc2": 4, "fc3": 4}]
)
def test_a_bank_gets_the_same_bytes_back(
    bank_of: Make, tmp_path: Path, profile: str, dtype: str, ranks: dict[str, int]
) -> None:
    bank = bank_of(ranks, dtype=dtype)
    before = bank.factors([1], rows=[1])
    export_entry(bank, 1, tmp_path / "out", row=1, profile=profile)
    other = bank_of(ranks, dtype=dtype)
    made = import_entry(other, tmp_path / "out", row=0)
    assert made.slot.tolist() == [1]
    after = other.factors([1], rows=[0])
    for name in before:
        for left, right in zip(before[name], after[name], strict=True):
            assert left.numpy().tobytes() == right.numpy().tobytes()
    assert other.rank[0, 1] == bank.rank[1, 1] == 4
    assert other.accuracy[0, 1] == 0.75
    assert {name: column[0, 1] for name, column in other.tags.items()} == {"task": 0, "origin": -1}
    np.testing.assert_allclose(other.embedding[0, 1], bank.embedding[1, 1], atol=1e-7, rtol=0)


@pytest.mark.parametrize("profile", ["peft", "serving"])
def test_factors_of_an_import_are_those_of_the_file_and_of_the_bank(
    bank_of: Make, backbone: MLPBackbone, tmp_path: Path, profile: str
) -> None:
    bank = bank_of()
    export_entry(bank, 1, tmp_path / "out", row=1, profile=profile, backbone=backbone)
    adapter = import_adapter(tmp_path / "out", backbone=backbone)
    assert adapter.exact
    assert adapter.ranks == RANKS
    assert adapter.rank == 4
    assert adapter.record is not None
    assert adapter.record.fingerprint == backbone.fingerprint
    for name, (up, down) in canonical_factors(backbone, RANKS).items():
        assert torch.equal(adapter.factors[name][0], up[:, : RANKS[name]])
        assert torch.equal(adapter.factors[name][1], down[: RANKS[name]])
        assert adapter.padded(7)[name][0].shape == (up.shape[0], 7)


def test_factors_that_are_not_canonical_go_out_canonical_and_mean_the_same(
    bank_of: Make, backbone: MLPBackbone, tmp_path: Path
) -> None:
    g = torch.Generator().manual_seed(1)
    raw = {
        site.name: (
            torch.randn(site.d_out, 4, generator=g), torch.randn(4, site.d_in, generator=g)
        )
        for site in backbone.sites
    }  # fmt: skip
    bank = bank_of(factors=raw)
    export_entry(bank, 1, tmp_path / "out", row=1)
    adapter = import_adapter(tmp_path / "out", backbone=backbone)
    for name, (up, down) in raw.items():
        left, right = adapter.factors[name]
        assert torch.allclose(left @ right, up @ down, atol=1e-5)
        assert not torch.allclose(left, up, atol=1e-2)
        gram = left.T @ left
        assert torch.allclose(gram, torch.diag(gram.diagonal()), atol=1e-5)
        assert torch.allclose(gram, right @ right.T, atol=1e-5)


def test_however_an_adapter_is_factored_the_same_comes_in(
    bank_of: Make, backbone: MLPBackbone, tmp_path: Path
) -> None:
    export_entry(bank_of(), 1, tmp_path / "a", row=1)
    same = import_adapter(tmp_path / "a", backbone=backbone).factors
    (tmp_path / "a" / "nsr_entry.json").unlink()
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors, g = load_file(path), torch.Generator().manual_seed(9)
    for name in ("fc1", "fc2", "fc3"):
        key = f"base_model.model.{name}.lora_"
        r = RANKS[name]
        gauge = torch.randn(r, r, generator=g, dtype=torch.float64) + 3 * torch.eye(r)
        up, down = tensors[f"{key}B.weight"], tensors[f"{key}A.weight"]
        tensors[f"{key}B.weight"] = (up.double() @ gauge).float()
        tensors[f"{key}A.weight"] = torch.linalg.solve(gauge, down.double()).float().contiguous()
        assert not torch.allclose(tensors[f"{key}B.weight"], up, atol=1e-2)
    save_file(tensors, path)
    adapter = import_adapter(tmp_path / "a", backbone=backbone)
    assert not adapter.exact
    assert adapter.ranks == RANKS
    for name, (up, down) in same.items():
        assert torch.allclose(adapter.factors[name][0], up, atol=1e-5)
        assert torch.allclose(adapter.factors[name][1], down, atol=1e-5)


def test_module_paths_are_kept_and_found_again(
    bank_of: Make, backbone: MLPBackbone, tmp_path: Path
) -> None:
    modules = {"fc1": "encoder.0.fc", "fc2": "encoder.1.fc", "fc3": "encoder.10.fc"}
    bank = bank_of()
    export_entry(bank, 1, tmp_path / "out", row=1, modules=modules)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["encoder.0.fc", "encoder.1.fc", "encoder.10.fc"]
    by_record = import_adapter(tmp_path / "out", backbone=backbone)
    told = import_adapter(tmp_path / "out", backbone=backbone, modules=modules)
    (tmp_path / "out" / "nsr_entry.json").unlink()
    foreign = import_adapter(tmp_path / "out", backbone=backbone, modules=modules)
    assert by_record.ranks == told.ranks == foreign.ranks == RANKS
    assert by_record.exact
    assert told.exact
    assert not foreign.exact


def test_a_head_travels_in_a_file_of_its_own(bank_of: Make, tmp_path: Path) -> None:
    bank = bank_of(head=(5, 8))
    record = export_entry(bank, 1, tmp_path / "out", row=1)
    assert record.head == (5, 8)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(".lora_" in name for name in tensors)
    other = bank_of(head=(5, 8))
    import_entry(other, tmp_path / "out", row=0)
    for left, right in zip(
        bank.store.read_head(np.array([1]), np.array([1])),  # type: ignore[union-attr]
        other.store.read_head(np.array([0]), np.array([1])),  # type: ignore[union-attr]
        strict=True,
    ):
        assert torch.equal(left, right)


def test_truncation_keeps_the_leading_directions_and_says_what_it_dropped(
    bank_of: Make, backbone: MLPBackbone, tmp_path: Path
) -> None:
    export_entry(bank_of(), 1, tmp_path / "out", row=1)
    whole = import_adapter(tmp_path / "out", backbone=backbone)
    cut = import_adapter(tmp_path / "out", backbone=backbone, max_rank=2)
    assert cut.ranks == {"fc1": 2, "fc2": 2, "fc3": 1}
    assert cut.rank == 2
    assert not cut.exact
    error = total = 0.0
    for name in RANKS:
        full = whole.factors[name][0] @ whole.factors[name][1]
        error += float((full - cut.factors[name][0] @ cut.factors[name][1]).square().sum())
        total += float(full.square().sum())
    assert cut.discarded_share == pytest.approx(error / total, rel=1e-4)
    assert cut.discarded_share > 0.01
    small = bank_of({"fc1": 1, "fc2": 1, "fc3": 1}, max_rank=4)
    made = import_entry(small, tmp_path / "out", row=0, truncate=True)
    assert small.rank[0, made.slot[0]] == 4
