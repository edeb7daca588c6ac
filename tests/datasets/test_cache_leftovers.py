"""Writers of features that were killed, and entries that may not be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from damaged_files import NPZ, npy

from nsr_gym.datasets import FeatureCache, FeatureKey
from nsr_gym.errors import FileFormatError

KEY = FeatureKey(data="d", backbone="b", preprocessing={})
FEATURES = np.arange(600.0).reshape(200, 3)
DAY = 24 * 3600

# Writes half of the values, or half of the card beside them, says so and stops there.
FILL = """
import sys, time
from pathlib import Path
import numpy as np
from nsr_gym.datasets import FeatureCache, FeatureKey

folder, where = sys.argv[1:]
save, write_text = np.save, Path.write_text

def stop():
    print("half", flush=True)
    time.sleep(600)

def half_the_values(file, features, **arguments):
    save(file, features[:100], **arguments)
    file.flush()
    stop()

def half_the_card(path, text):
    write_text(path, text[: len(text) // 2])
    stop()

if where == "values":
    np.save = half_the_values
else:
    Path.write_text = half_the_card
key = FeatureKey(data="d", backbone="b", preprocessing={})
FeatureCache(folder).get_or_compute(key, lambda: np.arange(600.0).reshape(200, 3))
"""


def killed_fill(folder: Path, where: str) -> Path:
    """Fill a cache in another process, kill it half way, and return the file that it left."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", FILL, str(folder), where],
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"
        writer.kill()  # SIGKILL
    (left,) = folder.glob(".tmp-*")
    assert left.stat().st_size > 0
    return left


def never() -> np.ndarray:
    raise AssertionError("computed again")


@pytest.mark.parametrize("where", ["values", "card"])
def test_after_a_killed_fill_the_next_one_is_right_and_leftovers_go_after_a_day(
    tmp_path: Path, where: str
) -> None:
    left = killed_fill(tmp_path, where)
    assert FeatureCache(tmp_path).get(KEY) is None
    np.testing.assert_array_equal(
        FeatureCache(tmp_path).get_or_compute(KEY, lambda: FEATURES), FEATURES
    )
    assert left.exists()  # it may be that of a writer who is still at it
    old = time.time() - DAY - 60
    os.utime(left, (old, old))
    other = FeatureKey(data="e", backbone="b", preprocessing={})
    FeatureCache(tmp_path).put(other, FEATURES + 1)
    assert not list(tmp_path.glob(".tmp-*"))
    assert len(list(tmp_path.iterdir())) == 4
    np.testing.assert_array_equal(FeatureCache(tmp_path).get_or_compute(KEY, never), FEATURES)


def test_files_of_live_writers_and_of_others_stay(tmp_path: Path) -> None:
    name = KEY.sha256
    ages = {
        f".tmp-{name}.0123456789abcdef.npy.old": 1.01,
        f".tmp-{name}.json.old": 30,
        f".tmp-{name}.0123456789abcdef.npy.live": 0.9,
        ".tmp-notes": 30,
        f".tmp-{name[:20]}.npy": 30,
        f"{name}.json.mine": 30,
    }
    for file, age in ages.items():
        (tmp_path / file).write_text("x")
        past = time.time() - age * DAY
        os.utime(tmp_path / file, (past, past))
    FeatureCache(tmp_path).remove_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == set(list(ages)[2:])
    FeatureCache(tmp_path / "nowhere").remove_leftovers()


def test_a_leftover_that_may_not_be_removed_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / f".tmp-{KEY.sha256}.json.x"
    left.write_text("x")
    os.utime(left, (0, 0))
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == left:
            raise PermissionError("not yours")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    np.testing.assert_array_equal(FeatureCache(tmp_path).put(KEY, FEATURES), FEATURES)
    assert left.exists()


@pytest.mark.parametrize("kind", ["json", "npy"])
def test_an_entry_that_may_not_be_read_is_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    FeatureCache(tmp_path).put(KEY, FEATURES)
    (path,) = tmp_path.glob(f"*.{kind}")
    opened = Path.open if kind == "json" else Path.stat

    def refuse(one: Path, *arguments: object, **named: object) -> object:
        if one == path:
            raise PermissionError(13, "Permission denied", str(one))
        return opened(one, *arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open" if kind == "json" else "stat", refuse)
        with pytest.raises(FileFormatError, match=f"{path} cannot be read .*denied") as error:
            FeatureCache(tmp_path).get(KEY)
        assert "damaged" not in str(error.value)
        assert "JSON" not in str(error.value)
    np.testing.assert_array_equal(FeatureCache(tmp_path).get_or_compute(KEY, never), FEATURES)


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4,"),
        npy("if x:\n    y\n  z\n"),
        NPZ["encrypted"],
    ],
    ids=["open bracket", "indentation", "several arrays"],
)
def test_values_with_a_damaged_head_are_computed_anew(tmp_path: Path, content: bytes) -> None:
    FeatureCache(tmp_path).put(KEY, FEATURES)
    (path,) = tmp_path.glob("*.npy")
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="damaged or foreign"):
        FeatureCache(tmp_path).get(KEY)
    with pytest.warns(RuntimeWarning, match="computed anew"):
        found = FeatureCache(tmp_path).get_or_compute(KEY, lambda: FEATURES)
    np.testing.assert_array_equal(found, FEATURES)


def test_a_card_nested_beyond_reason_is_refused(tmp_path: Path) -> None:
    FeatureCache(tmp_path).put(KEY, FEATURES)
    (path,) = tmp_path.glob("*.json")
    path.write_text("[" * 100_000)
    with pytest.raises(FileFormatError, match="no JSON"):
        FeatureCache(tmp_path).get(KEY)
    path.write_text(json.dumps([1]))
    with pytest.raises(FileFormatError, match="a field is missing"):
        FeatureCache(tmp_path).get(KEY)
