"""`nsr-gym bank`, from the command line to the files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from nsr_gym.backbones.pretrain import digits_backbone
from nsr_gym.bank import (
    BANKS,
    CountedFactors,
    PerEntryFactors,
    TaskKnowledgeBank,
    load_bank,
    make_store,
    save_bank,
)
from nsr_gym.bank.files import _digest
from nsr_gym.cli import main
from nsr_gym.exchange import verify_bank


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["nsr-gym", "bank", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def digits_bank(*, num_banks: int = 1, capacity: int | None = None) -> TaskKnowledgeBank:
    sites = {site.name: (site.d_out, site.d_in) for site in digits_backbone().sites}
    store = PerEntryFactors(sites=sites, max_rank=8)
    bank = TaskKnowledgeBank(
        embedding_dim=64, num_banks=num_banks, capacity=capacity, store=store, tags=("task",)
    )
    g, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    for task in range(3):
        bank.reserve(
            embedding=rng.normal(size=(num_banks, 64)), rank=3, accuracy=0.5 + task / 10,
            factors={
                name: (
                    0.1 * torch.randn(num_banks, a, 3, generator=g),
                    0.1 * torch.randn(num_banks, 3, b, generator=g),
                )
                for name, (a, b) in sites.items()
            },
            tags={"task": task},
        )  # fmt: skip
        bank.tick()
    return bank


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_bank(digits_bank(), tmp_path / "bank.safetensors")
    return tmp_path / "bank.safetensors"


def test_entries_go_out_and_come_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, file: Path
) -> None:
    assert run(monkeypatch, "list", str(file)) == 0
    shown = capsys.readouterr().out
    assert "3 entries in 1 bank, " in shown
    assert "per-entry store" in shown
    assert "0.700" in shown
    assert run(monkeypatch, "show", str(file), "2") == 0
    shown = capsys.readouterr().out
    assert "128 x 64" in shown
    assert "tag task" in shown
    folder = tmp_path / "adapter"
    out = (str(file), "2", str(folder), "--backbone", "digits", "--licence", "MIT")
    assert run(monkeypatch, "export", *out) == 0
    assert "ranks fc1 3, fc2 3, fc3 3" in capsys.readouterr().out
    assert run(monkeypatch, "verify", str(folder)) == 0
    assert "export of a bank's entry" in capsys.readouterr().out
    assert run(monkeypatch, "import", str(folder), str(file), "--backbone", "digits") == 0
    assert "bank 0, slot 3, rank 3" in capsys.readouterr().out
    bank = load_bank(file)
    assert bank.tags["task"][0, :4].tolist() == [0, 1, 2, 2]
    first, again = bank.factors([2]), bank.factors([3])
    for name in first:
        # What was reserved was not canonical; its update is what stays.
        dense = [up[0] @ down[0] for up, down in (first[name], again[name])]
        assert torch.allclose(*dense, atol=1e-6)
    assert run(monkeypatch, "verify", str(file)) == 0
    assert "bank file of 4 entries" in capsys.readouterr().out


def test_a_bank_file_is_made_of_an_adapter_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, file: Path
) -> None:
    folder, new = tmp_path / "adapter", tmp_path / "new.safetensors"
    options = ("--profile", "serving", "--dtype", "float16", "--module", "fc1=net.0")
    assert run(monkeypatch, "export", str(file), "0", str(folder), *options) == 0
    assert run(monkeypatch, "import", str(folder), str(new)) == 2
    assert "--new makes one" in capsys.readouterr().err
    assert run(monkeypatch, "import", str(folder), str(new), "--new") == 0
    made = load_bank(new)
    assert made.entries.tolist() == [1]
    assert made.store is not None
    assert made.store.max_rank == 8
    assert run(monkeypatch, "import", str(folder), str(new), "--new") == 2
    assert "exists already" in capsys.readouterr().err
    # As a foreign adapter: paths become sites, the embedding comes from a file.
    (folder / "nsr_entry.json").unlink()
    assert run(monkeypatch, "verify", str(folder)) == 0
    assert "foreign adapter" in capsys.readouterr().out
    other = tmp_path / "other.safetensors"
    assert run(monkeypatch, "import", str(folder), str(other), "--new") == 2
    assert "--embedding" in capsys.readouterr().err
    np.save(tmp_path / "embedding.npy", np.ones(7))
    command = ["import", str(folder), str(other), "--new", "--max-rank", "2", "--truncate"]
    command += ["--embedding", str(tmp_path / "embedding.npy"), "--accuracy", "0.9"]
    assert run(monkeypatch, *command) == 0
    made = load_bank(other)
    assert made.rank[0, 0] == 2
    assert made.accuracy[0, 0] == 0.9
    assert set(made.factors([0])) == {"net.0", "fc2", "fc3"}


def test_files_of_many_banks_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "banks.safetensors"
    save_bank(digits_bank(num_banks=3, capacity=3), file)
    assert run(monkeypatch, "list", str(file)) == 0
    assert "9 entries in 3 banks" in capsys.readouterr().out
    assert run(monkeypatch, "list", str(file), "--row", "1") == 0
    assert "3 entries in 1 bank," in capsys.readouterr().out
    folder = tmp_path / "adapter"
    assert run(monkeypatch, "export", str(file), "1", str(folder), "--row", "2") == 0
    assert run(monkeypatch, "import", str(folder), str(file), "--row", "0") == 0
    assert "bank 0, slot 0, rank 3, 1 evicted by lru" in capsys.readouterr().out
    assert load_bank(file).entries.tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["list", "{file}", "--row", "4"], "--row from 0 to 0"),
        (["show", "{file}", "7"], "the slots with entries are [0, 1, 2]"),
        (["export", "{file}", "0", "{out}", "--profile", "vllm"], "no export profile 'vllm'"),
        (["export", "{file}", "0", "{out}", "--module", "fc1"], "--module SITE=PATH"),
        (["export", "{file}", "0", "{out}", "--backbone", "digit"], "Did you mean 'digits'"),
        (["import", "{out}", "{file}"], "no adapter folder"),
        (["import", "{out}", "{file}", "--max-rank", "3"], "--max-rank is for a --new bank"),
        (["import", "{out}", "{file}", "--embedding", "{file}"], "no .npy file"),
        (["verify", "{out}"], "no bank file"),
        (["list", "{out}"], "no bank file"),
    ],
)
def test_mistakes_are_one_clear_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    file: Path, command: list[str], message: str,
) -> None:  # fmt: skip
    before = file.read_bytes()
    filled = [part.format(file=file, out=tmp_path / "out") for part in command]
    assert run(monkeypatch, *filled) == 2
    assert message in capsys.readouterr().err
    assert file.read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_verify_finds_what_is_damaged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, file: Path
) -> None:
    folder = tmp_path / "adapter"
    assert run(monkeypatch, "export", str(file), "0", str(folder)) == 0
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(bytes(content))
    assert run(monkeypatch, "verify", str(file)) == 2
    assert "does not match its hash" in capsys.readouterr().err
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 6}))
    assert run(monkeypatch, "verify", str(folder)) == 2
    assert "scales layers by 2, an export by 1" in capsys.readouterr().err
    tensors = folder / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert run(monkeypatch, "verify", str(folder)) == 2
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("embedding", 0.0, "no unit vector"),
        ("rank", 99, "rank that is not between 1 and 8"),
        ("accuracy", np.nan, "accuracy that is not finite"),
        ("store.factors", np.nan, "not finite"),
        ("store.factors", 1.0, "beyond its rank"),
    ],
)
def test_verify_looks_behind_a_hash_that_fits(
    file: Path, name: str, value: float, message: str
) -> None:
    from safetensors import safe_open

    arrays = load_file(file)
    arrays[name][0, 1] = value
    with safe_open(file, framework="numpy") as opened:
        meta = opened.metadata()
    # What a program with a mistake of its own would write.
    meta["sha256"] = _digest(arrays, meta["bank"])
    save_file(arrays, file, metadata=meta)
    with pytest.raises(ValueError, match=message):
        verify_bank(file)


def test_banks_without_factors_are_listed_and_verified(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for store, said in ((None, "no factors"), ("counted", "counted store")):
        held = CountedFactors(sites={"a": (4, 4)}, max_rank=2) if store else None
        bank = TaskKnowledgeBank(embedding_dim=3, store=held)
        bank.reserve(embedding=np.ones(3))
        save_bank(bank, tmp_path / "bank.safetensors")
        assert run(monkeypatch, "list", str(tmp_path / "bank.safetensors")) == 0
        assert said in capsys.readouterr().out
        assert run(monkeypatch, "show", str(tmp_path / "bank.safetensors"), "0") == 0
        assert "holds no factors" in capsys.readouterr().out
        assert run(monkeypatch, "verify", str(tmp_path / "bank.safetensors")) == 0
        capsys.readouterr()


@pytest.mark.parametrize("kind", sorted(BANKS))
def test_entries_of_every_kind_of_bank_go_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    sites = {"a": (9, 8), "b": (7, 8)}
    options = {"basis_rank": 6} if kind.endswith("basis") else {}
    bank = TaskKnowledgeBank(
        embedding_dim=3, store=make_store(kind, sites=sites, max_rank=3, **options)
    )
    g = torch.Generator().manual_seed(0)
    for _ in range(2):
        bank.reserve(
            embedding=np.ones(3), rank=2,
            factors={
                name: (torch.randn(1, a, 2, generator=g), torch.randn(1, 2, b, generator=g))
                for name, (a, b) in sites.items()
            },
        )  # fmt: skip
    save_bank(bank, tmp_path / "bank.safetensors")
    assert run(monkeypatch, "verify", str(tmp_path / "bank.safetensors")) == 0
    folder, new = tmp_path / "out", tmp_path / "new.safetensors"
    assert run(monkeypatch, "export", str(tmp_path / "bank.safetensors"), "1", str(folder)) == 0
    assert run(monkeypatch, "import", str(folder), str(new), "--new") == 0
    for name, (up, down) in bank.factors([1]).items():
        left, right = load_bank(new).factors([0])[name]
        assert torch.allclose(left @ right, up @ down, atol=1e-5)
