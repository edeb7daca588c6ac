from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from nsr_gym.bank import (
    RETENTION_RULES,
    CountedFactors,
    PerEntryFactors,
    TaskKnowledgeBank,
    load_bank,
    save_bank,
)
from nsr_gym.errors import FileFormatError

ARRAYS = ("occupied", "embedding", "rank", "accuracy", "importance", "clock", "reserved_at",
          "used_at", "times_recalled", "created_order", "used_order", "version")  # fmt: skip

# A writer of banks that tells when it starts on a file and stops there: in the middle of a save.
STUCK = """
import os, sys, time
from pathlib import Path
import numpy as np
from nsr_gym.bank import TaskKnowledgeBank, save_bank

def stuck(handle):
    print("half-way", flush=True)
    time.sleep(60)

os.fsync = stuck
bank = TaskKnowledgeBank(embedding_dim=64, capacity=256)
bank.reserve(embedding=np.ones(64))
save_bank(bank, Path(sys.argv[1]))
"""

# A writer that saves one bank over and over; all its entries carry the same number.
WRITER = """
import sys
from pathlib import Path
import numpy as np
from nsr_gym.bank import TaskKnowledgeBank, save_bank

bank = TaskKnowledgeBank(embedding_dim=64, capacity=512, tags=("writer",))
for _ in range(300):
    bank.reserve(embedding=np.ones(64), tags={"writer": int(sys.argv[2])})
print("ready", flush=True)
for _ in range(int(sys.argv[3])):
    save_bank(bank, Path(sys.argv[1]))
"""


def full_bank() -> TaskKnowledgeBank:
    store = PerEntryFactors(sites={"a": (5, 4), "b": (3, 5)}, max_rank=3, head=(2, 3))
    bank = TaskKnowledgeBank(
        embedding_dim=4, capacity=3, num_banks=2, retention="lfu", capacity_bytes=2000,
        store=store, tags=("task",),
    )  # fmt: skip
    g, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    for i in range(5):
        factors = {
            name: (torch.randn(2, a, 2, generator=g), torch.randn(2, 2, b, generator=g))
            for name, (a, b) in store.sites.items()
        }
        slot = bank.reserve(
            embedding=rng.normal(size=(2, 4)), rank=[1, 2], accuracy=rng.random(2),
            tags={"task": [i, 9 - i]}, factors=factors,
            head=(torch.randn(2, 2, 3, generator=g), torch.randn(2, 2, generator=g)),
        ).slot  # fmt: skip
        bank.mark_recalled(slot)
        bank.tick()
    bank.remove(1, rows=[1])
    return bank


def test_a_bank_comes_back_exactly_with_all_its_counters(tmp_path: Path) -> None:
    bank = full_bank()
    save_bank(bank, tmp_path / "bank.safetensors")
    back = load_bank(tmp_path / "bank.safetensors")
    for name in ARRAYS:
        ours, theirs = getattr(bank, name), getattr(back, name)
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs), name
    assert np.array_equal(bank.tags["task"], back.tags["task"])
    for key in ("capacity", "capacity_bytes", "retention", "num_banks", "embedding_dim"):
        assert getattr(bank, key) == getattr(back, key)
    assert bank.nbytes().tolist() == back.nbytes().tolist()
    for slot, rows in (([0, 0], [0, 1]), ([2, 2], [0, 1])):
        ours, theirs = bank.factors(slot, rows=rows), back.factors(slot, rows=rows)
        for site in ours:
            assert torch.equal(ours[site][0], theirs[site][0])
            assert torch.equal(ours[site][1], theirs[site][1])
    assert [p.name for p in tmp_path.iterdir()] == ["bank.safetensors"]


@pytest.mark.parametrize("retention", sorted(RETENTION_RULES))
def test_a_loaded_bank_goes_on_like_the_saved_one(tmp_path: Path, retention: str) -> None:
    bank = TaskKnowledgeBank(embedding_dim=4, capacity=3, num_banks=2, retention=retention)
    rng = np.random.default_rng(2)
    for _ in range(3):
        bank.reserve(embedding=rng.normal(size=(2, 4)), accuracy=rng.random(2))
    bank.mark_recalled([2, 0])
    bank.tick()
    bank.replace([0, 1], embedding=rng.normal(size=(2, 4)), accuracy=rng.random(2))
    save_bank(bank, tmp_path / "b")
    back = load_bank(tmp_path / "b")
    for _ in range(8):
        entry: dict[str, Any] = {"embedding": rng.normal(size=(2, 4)), "accuracy": rng.random(2)}
        pick = rng.integers(0, 3, size=2)
        ours, theirs = (b.reserve(**entry) for b in (bank, back))
        assert ours.slot.tolist() == theirs.slot.tolist()
        for b in (bank, back):
            b.mark_recalled(pick)
            b.tick()
        assert all(np.array_equal(getattr(bank, n), getattr(back, n)) for n in ARRAYS)


def test_a_bank_of_capacity_zero_comes_back(tmp_path: Path) -> None:
    save_bank(TaskKnowledgeBank(embedding_dim=4, capacity=0), tmp_path / "b")
    back = load_bank(tmp_path / "b")
    assert back.reserve(embedding=np.ones(4)).slot == -1


@pytest.mark.parametrize("store", [None, CountedFactors(sites={"a": (4, 4)}, max_rank=2)])
def test_banks_without_factors_and_grown_banks_come_back(
    tmp_path: Path, store: CountedFactors | None
) -> None:
    bank = TaskKnowledgeBank(embedding_dim=3, store=store)
    for row in np.random.default_rng(1).normal(size=(40, 3)):
        bank.reserve(embedding=row)
    save_bank(bank, tmp_path / "b")
    back = load_bank(tmp_path / "b")
    assert back.entries.tolist() == [40]
    assert np.array_equal(bank.embedding, back.embedding)
    assert back.reserve(embedding=[1, 0, 0]).slot == 40


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bank"
    save_bank(full_bank(), path)
    whole = path.read_bytes()
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match="damaged"):
            load_bank(path)


def test_a_flipped_byte_is_never_taken_for_content(tmp_path: Path) -> None:
    path = tmp_path / "bank"
    save_bank(full_bank(), path)
    whole = path.read_bytes()
    data = 8 + int.from_bytes(whole[:8], "little")
    for place in (*range(data), *range(data, len(whole), 29), len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(FileFormatError):
            load_bank(path)


def test_files_of_other_kinds_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "other"
    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(FileFormatError, match=r"none that `save_bank` wrote.*new bank"):
        load_bank(path)
    save_torch_file({"x": torch.zeros(3, dtype=torch.bfloat16)}, path)  # a type NumPy lacks
    with pytest.raises(FileFormatError, match="none that `save_bank` wrote"):
        load_bank(path)
    for content in (b"", b"PK\x03\x04 a zip, a torch file or so", b"\x80\x04}.", b"hello\n" * 100):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match="no bank file"):
            load_bank(path)
    with pytest.raises(FileNotFoundError, match="no bank file"):
        load_bank(tmp_path / "missing")


def test_a_file_of_a_future_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bank"
    save_bank(full_bank(), path)
    with safe_open(path, framework="numpy") as file:
        meta = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(arrays, path, metadata=meta | {"version": "2"})
    with pytest.raises(FileFormatError, match=r"version '2'.*later nsr-gym"):
        load_bank(path)


def test_a_description_that_makes_no_bank_is_refused(tmp_path: Path) -> None:
    from nsr_gym.bank.files import _digest

    path = tmp_path / "bank"
    save_bank(full_bank(), path)
    with safe_open(path, framework="numpy") as file:
        meta = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for change in ({"retention": "none"}, {"num_banks": 3}, {"store": {"kind": "pickle"}}):
        text = json.dumps(json.loads(meta["bank"]) | change)
        save_file(arrays, path, metadata=meta | {"bank": text, "sha256": _digest(arrays, text)})
        with pytest.raises(FileFormatError, match="does not describe a bank"):
            load_bank(path)


def test_a_kill_in_the_middle_of_a_save_leaves_the_previous_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "bank"
    bank = full_bank()
    save_bank(bank, path)
    before = path.read_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, str(path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half-way\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == before
    assert np.array_equal(load_bank(path).version, bank.version)
    save_bank(bank, path)  # what the killed process left behind is in nobody's way
    assert load_bank(path).entries.tolist() == bank.entries.tolist()


def test_kills_at_any_time_and_two_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "bank"
    for delay in (0.05, 0.063, 0.081):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(path), str(i), "1000000"],
                stdout=subprocess.PIPE,
            )
            for i in range(2)
        ]
        try:
            for writer in writers:
                assert writer.stdout is not None
                writer.stdout.readline()
            while not path.exists():
                time.sleep(0.001)
            for _ in range(3):
                assert len(set(load_bank(path).tags["writer"][0, :300].tolist())) == 1
            time.sleep(delay)
        finally:
            for writer in writers:
                writer.kill()
                writer.communicate()
        assert len(set(load_bank(path).tags["writer"][0, :300].tolist())) == 1


def test_a_save_that_fails_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bank"
    bank = full_bank()
    save_bank(bank, path)
    before = path.read_bytes()

    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_bank(bank, path)
    assert [p.name for p in tmp_path.iterdir()] == ["bank"]
    assert path.read_bytes() == before
    with pytest.raises(OSError, match="No such file"):
        save_bank(bank, tmp_path / "missing" / "bank")
