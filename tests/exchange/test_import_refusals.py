"""What is no plain LoRA for these sites, or is damaged, is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.bank import TaskKnowledgeBank
from nsr_gym.errors import (
    FileFormatError,
    InvalidValueError,
    StateError,
    UnknownNameError,
)
from nsr_gym.exchange import export_entry, import_adapter, import_entry, verify_folder

Make = Callable[..., TaskKnowledgeBank]
PREFIX = "base_model.model."


@pytest.fixture
def export(bank_of: Make, tmp_path: Path) -> Path:
    export_entry(bank_of(), 1, tmp_path / "out", row=1)
    return tmp_path / "out"


@pytest.fixture
def foreign(export: Path) -> Path:
    """The same adapter as if someone else had written it."""
    (export / "nsr_entry.json").unlink()
    return export


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "biases are no part"),
        ({"lora_bias": True}, "bias on B"),
        ({"modules_to_save": ["head"]}, "whole modules"),
        ({"layer_replication": [[0, 2]]}, "replicated"),
        ({"trainable_token_indices": [1]}, "embeddings"),
        ({"target_parameters": ["w"]}, "bare parameters"),
        ({"use_qalora": True}, "sets use_qalora"),
        ({"a_key_of_the_future": 3}, "sets a_key_of_the_future to 3"),
        ({"init_lora_weights": "pissa_niter_16"}, "changes the frozen weights"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"r": 0}, "whole numbers of at least 1"),
        ({"r": True}, "whole numbers"),
        ({"r": None}, "whole numbers"),
        ({"lora_alpha": "4"}, "finite numbers"),
        ({"lora_alpha": float("nan")}, "finite numbers"),
        ({"rank_pattern": [1]}, "rank_pattern as an object"),
        ({"rank_pattern": {"fc2": 2.5}}, "whole numbers"),
        ({"alpha_pattern": {"fc(": 2}}, "no regular expression"),
        ({"target_modules": "fc("}, "no regular expression"),
        ({"target_modules": {"fc1": 1}}, "name or a list of names"),
        ({"layers_to_transform": "0"}, "layers_to_transform as whole numbers"),
        ({"rank_pattern": {}}, r"'fc2' has rank 2 in .* and 4 by r and rank_pattern"),
        ({"target_modules": ["fc1", "fc2"]}, "'fc3', which target_modules .* does not name"),
        ({"exclude_modules": ["fc3"]}, "'fc3', which target_modules"),
    ],
)
def test_configurations_that_mean_something_else_are_refused(
    foreign: Path, backbone: MLPBackbone, changes: dict[str, Any], message: str
) -> None:
    assert import_adapter(foreign, backbone=backbone).rank == 4
    edit_config(foreign, **changes)
    with pytest.raises(FileFormatError, match=message):
        import_adapter(foreign, backbone=backbone)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": False, "a_key_of_the_future": None, "lora_dropout": 0.1},
        {"init_lora_weights": "gaussian", "inference_mode": False, "task_type": "CAUSAL_LM"},
        {"target_modules": r"fc\d"},
        {"target_modules": "all-linear"},
        {"base_model_name_or_path": "some/model", "revision": "main", "peft_version": "9.9"},
    ],
)
def test_what_changes_nothing_is_taken(
    foreign: Path, backbone: MLPBackbone, changes: dict[str, Any]
) -> None:
    before = import_adapter(foreign, backbone=backbone)
    edit_config(foreign, **changes)
    after = import_adapter(foreign, backbone=backbone)
    for name, (up, down) in before.factors.items():
        assert torch.equal(after.factors[name][0], up)
        assert torch.equal(after.factors[name][1], down)


def _rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors[new] = tensors.pop(old)

    return change


def _put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors[name] = value

    return change


A1, B1 = f"{PREFIX}fc1.lora_A.weight", f"{PREFIX}fc1.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename(A1, "fc1.lora_A.weight"), "without an adapter's name|only 'base_model"),
        (_rename(A1, f"{PREFIX}fc1.lora_A.default.weight"), "without an adapter's name"),
        (_put(f"{PREFIX}fc1.lora_B.bias", torch.zeros(10)), "holds 'base_model"),
        (_put(f"{PREFIX}fc1.lora_magnitude_vector", torch.zeros(10)), "lora_magnitude_vector"),
        (_put(f"{PREFIX}emb.lora_embedding_A", torch.zeros(2, 3)), "lora_embedding_A"),
        (lambda t: t.pop(A1), "needs lora_A"),
        (_put(A1, torch.zeros(3, 12)), "needs lora_A"),
        (_put(A1, torch.zeros(4, 13)), r"is for one of \(10, 13\).*another model"),
        (_put(A1, torch.zeros(4, 12, 1)), "expected a matrix"),
        (_put(A1, torch.full((4, 12), torch.nan)), "NaN or infinite"),
        (_put(A1, torch.zeros(4, 12, dtype=torch.int32)), "finite floating-point"),
        (lambda t: [t.pop(A1), t.pop(B1)], "'fc1'.*has no tensors for it"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    foreign: Path, backbone: MLPBackbone, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    edit_tensors(foreign, change)
    with pytest.raises(FileFormatError, match=message):
        import_adapter(foreign, backbone=backbone)


def test_a_module_that_is_no_site_is_refused_with_the_closest(
    foreign: Path, backbone: MLPBackbone
) -> None:
    for letter in "AB":
        edit_tensors(
            foreign,
            _rename(f"{PREFIX}fc1.lora_{letter}.weight", f"{PREFIX}enc.fc1.lora_{letter}.weight"),
        )
    with pytest.raises(UnknownNameError, match=r"'enc\.fc1'.*Did you mean .*'fc1'"):
        import_adapter(foreign, backbone=backbone)
    taken = import_adapter(foreign, backbone=backbone, modules={"fc1": "enc.fc1"})
    assert taken.ranks["fc1"] == 4


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_truncated_files_are_refused(
    foreign: Path, backbone: MLPBackbone, name: str, share: float
) -> None:
    content = (foreign / name).read_bytes()
    (foreign / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(FileFormatError, match="restore it from a copy"):
        import_adapter(foreign, backbone=backbone)


def test_any_changed_byte_of_an_export_is_noticed(export: Path, backbone: MLPBackbone) -> None:
    rng = np.random.default_rng(0)
    for name in ("adapter_model.safetensors", "nsr_entry.json"):
        content = (export / name).read_bytes()
        # Behind the header, whose whitespace and name order mean nothing.
        start = int.from_bytes(content[:8], "little") + 8 if name.endswith("tensors") else 2
        for place in rng.integers(start, len(content) - 2, size=20):
            broken = bytearray(content)
            if broken[place] in b" \n":
                continue  # of the JSON's layout
            broken[place] ^= 1
            (export / name).write_bytes(bytes(broken))
            with pytest.raises(FileFormatError):
                import_adapter(export, backbone=backbone)
        (export / name).write_bytes(content)
    assert import_adapter(export, backbone=backbone).exact


def test_missing_and_pickled_files_are_refused(
    export: Path, backbone: MLPBackbone, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="no adapter folder"):
        import_adapter(tmp_path / "nowhere", backbone=backbone)
    (export / "adapter_model.safetensors").rename(tmp_path / "kept")
    with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors"):
        import_adapter(export, backbone=backbone)
    (export / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(FileFormatError, match="never read here"):
        import_adapter(export, backbone=backbone)
    (tmp_path / "kept").rename(export / "adapter_model.safetensors")
    (export / "named").mkdir()
    (export / "adapter_config.json").rename(export / "named" / "adapter_config.json")
    with pytest.raises(FileNotFoundError, match=r"named adapters in folders: .*named"):
        import_adapter(export, backbone=backbone)
    (export / "named" / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json"):
        import_adapter(export, backbone=backbone)
    (export / "adapter_config.json").write_text("[1]")
    with pytest.raises(FileFormatError, match="expected an object"):
        import_adapter(export, backbone=backbone)


def test_records_of_another_kind_or_version_are_refused(
    export: Path, backbone: MLPBackbone
) -> None:
    path = export / "nsr_entry.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"version": 2}))
    with pytest.raises(FileFormatError, match="later nsr-gym"):
        import_adapter(export, backbone=backbone)
    path.write_text(json.dumps(content | {"licence": "mine"}))
    with pytest.raises(FileFormatError, match="was edited"):
        import_adapter(export, backbone=backbone)


def test_an_export_for_another_backbone_is_refused(
    bank_of: Make, backbone: MLPBackbone, tmp_path: Path
) -> None:
    export_entry(bank_of(), 1, tmp_path / "out", row=1, backbone=backbone, backbone_name="small")
    weights = {name: tensor.clone() for name, tensor in backbone.weights.items()}
    weights["head.bias"] += 1.0
    with pytest.raises(InvalidValueError, match=r"another backbone .*small"):
        import_adapter(tmp_path / "out", backbone=MLPBackbone(weights))
    with pytest.raises(InvalidValueError, match=r"sites=\.\.\. or backbone"):
        import_adapter(tmp_path / "out")


def test_a_head_that_was_changed_is_refused(
    bank_of: Make, backbone: MLPBackbone, tmp_path: Path
) -> None:
    export_entry(bank_of(head=(5, 8)), 1, tmp_path / "out", row=1)
    path = tmp_path / "out" / "nsr_head.safetensors"
    save_file(load_file(path) | {"bias": torch.zeros(5)}, path)
    with pytest.raises(FileFormatError, match="head"):
        import_adapter(tmp_path / "out", backbone=backbone)
    path.unlink()
    assert import_adapter(tmp_path / "out", backbone=backbone).head is None
    with pytest.raises(FileFormatError, match="lacks the head"):
        verify_folder(tmp_path / "out")
    with pytest.raises(InvalidValueError, match="bank without heads"):
        import_entry(bank_of(head=(5, 8)), tmp_path / "out")


def test_a_bank_that_cannot_take_it_stays_as_it_was(bank_of: Make, export: Path) -> None:
    bank = bank_of()
    low = bank_of({"fc1": 1, "fc2": 1, "fc3": 1}, max_rank=5)
    low.limit(capacity=[2, 0])
    with pytest.raises(StateError, match="Bank 1 refuses"):
        import_entry(low, export, row=1)
    with pytest.raises(StateError, match="keeps no factors"):
        import_entry(TaskKnowledgeBank(embedding_dim=6), export)
    (export / "nsr_entry.json").unlink()
    with pytest.raises(InvalidValueError, match="embedding is not known"):
        import_entry(bank, export)
    with pytest.raises(InvalidValueError, match=r"embeddings of shape \(1, 6\)"):
        import_entry(bank, export, embedding=np.ones(5))
    with pytest.raises(UnknownNameError, match="tag"):
        import_entry(bank, export, embedding=np.ones(6), tags={"tsak": 1})
    assert bank.entries.tolist() == [1, 2]


def test_a_rank_above_the_banks_is_refused_unless_cut(
    bank_of: Make, backbone: MLPBackbone, tmp_path: Path
) -> None:
    full = bank_of({"fc1": 5, "fc2": 3, "fc3": 1})
    export_entry(full, 1, tmp_path / "out", row=1)
    bank = bank_of(max_rank=4)
    with pytest.raises(InvalidValueError, match=r"rank 5, the bank takes ranks up to 4.*truncate"):
        import_entry(bank, tmp_path / "out")
    made = import_entry(bank, tmp_path / "out", truncate=True)
    assert bank.rank[0, made.slot[0]] == 4
