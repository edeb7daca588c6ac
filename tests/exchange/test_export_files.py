"""What an export writes, when it refuses, and that it is whole or not at all."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from exchange_samples import RANKS
from safetensors import safe_open
from safetensors.torch import load_file

from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.bank import CountedFactors, TaskKnowledgeBank, save_bank
from nsr_gym.errors import InvalidValueError, StateError, UnknownNameError
from nsr_gym.exchange import export_entry, import_adapter
from nsr_gym.files import TEMPORARY

Make = Callable[..., TaskKnowledgeBank]

# An exporter that tells when its files are written and stops there, before they are renamed.
STUCK = """
import os, sys, time
from pathlib import Path
from nsr_gym.bank import load_bank
from nsr_gym.exchange import export_entry

def stuck(handle):
    print("half-way", flush=True)
    time.sleep(60)

os.fsync = stuck
export_entry(load_bank(sys.argv[1]), 1, Path(sys.argv[2]), row=1, overwrite=True)
"""


def config_of(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "adapter_config.json").read_text())
    return content


def test_the_peft_profile_follows_the_export_rule(bank_of: Make, tmp_path: Path) -> None:
    modules = {"fc1": "net.0.fc", "fc2": "net.1.fc"}
    export_entry(bank_of(), 1, tmp_path / "out", row=1, modules=modules, base_model="some/model")
    config = config_of(tmp_path / "out")
    assert config["r"] == config["lora_alpha"] == 4
    assert config["rank_pattern"] == {r"^net\.1\.fc": 2, "^fc3": 1}
    assert config["alpha_pattern"] == config["rank_pattern"]
    assert config["target_modules"] == ["fc3", "net.0.fc", "net.1.fc"]
    assert config["base_model_name_or_path"] == "some/model"
    assert config["bias"] == "none"
    path = tmp_path / "out" / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    shapes = {name: tuple(t.shape) for name, t in load_file(path).items()}
    assert shapes == {
        "base_model.model.net.0.fc.lora_A.weight": (4, 12),
        "base_model.model.net.0.fc.lora_B.weight": (10, 4),
        "base_model.model.net.1.fc.lora_A.weight": (2, 10),
        "base_model.model.net.1.fc.lora_B.weight": (9, 2),
        "base_model.model.fc3.lora_A.weight": (1, 9),
        "base_model.model.fc3.lora_B.weight": (8, 1),
    }


def test_layers_without_an_update_are_nowhere_in_the_peft_profile(
    bank_of: Make, backbone: MLPBackbone, tmp_path: Path
) -> None:
    export_entry(bank_of({"fc1": 2, "fc2": 0, "fc3": 4}), 1, tmp_path / "out", row=1)
    config = config_of(tmp_path / "out")
    assert config["target_modules"] == ["fc1", "fc3"]
    assert config["rank_pattern"] == {"^fc1": 2}
    names = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert not any("fc2" in name for name in names)
    adapter = import_adapter(tmp_path / "out", backbone=backbone)
    assert adapter.ranks == {"fc1": 2, "fc2": 0, "fc3": 4}


def test_a_name_at_the_end_of_another_path_does_not_make_an_export_incomplete(
    bank_of: Make, backbone: MLPBackbone, tmp_path: Path
) -> None:
    modules = {"fc1": "fc", "fc2": "inner.fc"}
    bank = bank_of({"fc1": 2, "fc2": 0, "fc3": 1})
    export_entry(bank, 1, tmp_path / "out", row=1, modules=modules)
    assert import_adapter(tmp_path / "out", backbone=backbone).ranks["fc2"] == 0


@pytest.mark.parametrize(("asked", "rank"), [(None, 4), (8, 8)])
def test_the_serving_profile_has_one_rank(
    bank_of: Make, tmp_path: Path, asked: int | None, rank: int
) -> None:
    bank = bank_of({"fc1": 4, "fc2": 0, "fc3": 1})
    export_entry(
        bank, 1, tmp_path / "out", row=1, profile="serving", serving_rank=asked, dtype="float16"
    )
    config = config_of(tmp_path / "out")
    assert config["r"] == config["lora_alpha"] == rank
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["target_modules"] == ["fc1", "fc2", "fc3"]
    assert config["modules_to_save"] is None
    for name, tensor in load_file(tmp_path / "out" / "adapter_model.safetensors").items():
        assert tensor.shape[0 if "lora_A" in name else 1] == rank
        assert tensor.dtype == torch.float16
        assert tensor.is_contiguous()


def test_the_record_says_what_the_bank_knew(
    bank_of: Make, backbone: MLPBackbone, tmp_path: Path
) -> None:
    bank = bank_of()
    record = export_entry(
        bank, 1, tmp_path / "out", row=1, backbone=backbone, backbone_name="small", task="rot-90",
        stream="abc", parents=["slot-0"], licence="MIT", energy_kept=0.97,
    )  # fmt: skip
    text = json.loads((tmp_path / "out" / "nsr_entry.json").read_text())
    assert text["format"] == "nsr-gym-entry"
    assert text["fingerprint"] == backbone.fingerprint == record.fingerprint
    assert text["licence"] == "MIT"
    assert text["parents"] == ["slot-0"]
    assert text["counters"]["times_recalled"] == 1
    assert np.float32(text["embedding"]).tolist() == bank.embedding[1, 1].tolist()
    for name, site in record.sites.items():
        up, down = (part[0] for part in bank.factors([1], rows=[1])[name])
        dense = torch.linalg.svdvals(up @ down)[: RANKS[name]]
        np.testing.assert_allclose(site.singular_values, dense.numpy(), rtol=1e-4)
        assert (site.d_out, site.d_in, site.rank) == (len(up), down.shape[1], RANKS[name])


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    bank_of: Make, backbone: MLPBackbone, tmp_path: Path
) -> None:
    bank, out = bank_of(), tmp_path / "out"
    with pytest.raises(UnknownNameError, match=r"no export profile 'pefft'.*'peft'"):
        export_entry(bank, 1, out, row=1, profile="pefft")
    with pytest.raises(UnknownNameError, match="tensor type 'float8'"):
        export_entry(bank, 1, out, row=1, dtype="float8")
    with pytest.raises(UnknownNameError, match=r"no site 'fc9'.*fc1"):
        export_entry(bank, 1, out, row=1, modules={"fc9": "x"})
    with pytest.raises(InvalidValueError, match="module of its own"):
        export_entry(bank, 1, out, row=1, modules={"fc1": "x", "fc2": "x"})
    with pytest.raises(InvalidValueError, match="hold an entry"):
        export_entry(bank, 7, out, row=1)
    with pytest.raises(InvalidValueError, match="from 0 to 1"):
        export_entry(bank, 1, out, row=2)
    with pytest.raises(InvalidValueError, match="serving_rank between 4"):
        export_entry(bank, 1, out, row=1, profile="serving", serving_rank=3)
    with pytest.raises(InvalidValueError, match="serving_rank is for"):
        export_entry(bank, 1, out, row=1, serving_rank=8)
    with pytest.raises(InvalidValueError, match=r"share in \[0, 1\]"):
        export_entry(bank, 1, out, row=1, energy_kept=1.5)
    with pytest.raises(InvalidValueError, match="zero at every site"):
        export_entry(bank_of(dict.fromkeys(RANKS, 0)), 1, out, row=1)
    part = MLPBackbone(backbone.weights, adapt=["fc1", "fc2"])
    with pytest.raises(InvalidValueError, match="backbone with the entry's sites"):
        export_entry(bank, 1, out, row=1, backbone=part)
    big = {
        site.name: (torch.eye(site.d_out, 4) * 1e5, torch.eye(4, site.d_in) * 1e5)
        for site in backbone.sites
    }
    with pytest.raises(InvalidValueError, match="more than float16 can hold"):
        export_entry(bank_of(factors=big), 1, out, row=1, dtype="float16")
    counted = TaskKnowledgeBank(
        embedding_dim=3, store=CountedFactors(sites={"fc1": (4, 4)}, max_rank=2)
    )
    counted.reserve(embedding=np.ones(3))
    with pytest.raises(StateError, match="holds no factors"):
        export_entry(counted, 0, out)
    bare = TaskKnowledgeBank(embedding_dim=3)
    bare.reserve(embedding=np.ones(3))
    with pytest.raises(StateError, match="keeps no factors"):
        export_entry(bare, 0, out)
    with pytest.raises(FileNotFoundError):
        export_entry(bank, 1, tmp_path / "no" / "folder", row=1)
    assert list(tmp_path.iterdir()) == []


def test_only_an_earlier_export_is_overwritten(bank_of: Make, tmp_path: Path) -> None:
    bank, out = bank_of(head=(5, 8)), tmp_path / "out"
    export_entry(bank, 1, out, row=1)
    with pytest.raises(StateError, match="overwrite=True"):
        export_entry(bank, 0, out, row=1)
    export_entry(bank_of(), 0, out, row=1, overwrite=True)
    assert not (out / "nsr_head.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(StateError, match=r"holds notes\.txt"):
        export_entry(bank, 1, out, row=1, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StateError, match="holds file"):
        export_entry(bank, 1, tmp_path / "file", row=1, overwrite=True)


def test_the_same_entry_gives_the_same_bytes(bank_of: Make, tmp_path: Path) -> None:
    hashes = []
    for name in ("a", "b"):
        export_entry(bank_of(), 1, tmp_path / name, row=1)
        files = sorted((tmp_path / name).iterdir())
        hashes.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("there", [False, True])
def test_a_killed_export_leaves_what_was_there(
    bank_of: Make, backbone: MLPBackbone, tmp_path: Path, there: bool
) -> None:
    bank, out = bank_of(), tmp_path / "out"
    save_bank(bank, tmp_path / "bank.safetensors")
    if there:
        export_entry(bank, 0, out, row=1)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(tmp_path / "bank.safetensors"), str(out)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half-way\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert out.exists() == there
    if there:
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert import_adapter(out, backbone=backbone).exact
    assert any(path.name.startswith(f"{TEMPORARY}out.") for path in tmp_path.iterdir())
    export_entry(bank, 1, out, row=1, overwrite=True)
    assert import_adapter(out, backbone=backbone).exact
