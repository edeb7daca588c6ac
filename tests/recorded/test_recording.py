"""Recording: what is in a table was measured on live visits, and killed work is not lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nsr_gym.envs import ContinualVectorEnv
from nsr_gym.envs.live import LiveDynamics
from nsr_gym.envs.recording import Recorder
from nsr_gym.envs.recording_plan import RecordingPlan
from nsr_gym.errors import FileFormatError, InvalidValueError, StateError
from nsr_gym.files import TEMPORARY
from nsr_gym.outcome_files import load_table, save_table
from nsr_gym.outcomes import OutcomeTable, join_tables

MakeEnv = Callable[..., ContinualVectorEnv]


def test_an_entry_starts_a_return_where_its_last_visit_ended(table: OutcomeTable) -> None:
    for q in range(2):
        first = table.fresh[:, q, :, -1]  # (T, D), after training at a rank from nothing
        np.testing.assert_array_equal(first, table.end[:, q, 0, : table.fresh_chains])
        later = table.own[:, q, 0, :, q, -1]  # (T, C), after a return at the entry's rank
        np.testing.assert_array_equal(later, table.end[:, q, 1])


def test_recalls_help_and_other_tasks_do_not_know_the_task(table: OutcomeTable) -> None:
    own, foreign = table.own[:, 1, :, :, 1, 0].mean(), table.foreign[:, :, 1, 1, 0].mean()
    assert own > foreign + 0.2
    assert table.own_loss.mean() < table.foreign_loss.mean()


def test_levels_go_on_and_foreign_starts_become_the_nearest_life(table: OutcomeTable) -> None:
    q = np.arange(2)
    same = np.moveaxis(table.next_level[:, q, :, :, q], 0, 1)
    np.testing.assert_array_equal(
        same, np.broadcast_to(np.array([1, 2, 2])[None, None, :, None], same.shape)
    )
    assert (table.next_level <= np.minimum(np.arange(3) + 1, 2)[:, None, None]).all()
    reached = table.foreign[..., -1]
    t, _, _, rank = np.indices(reached.shape)
    chosen = np.abs(table.end[t, rank, 0, table.foreign_chain] - reached)
    for chain in range(3):
        assert (chosen <= np.abs(table.end[t, rank, 0, chain] - reached) + 1e-7).all()


def test_unrecorded_sources_are_stood_for_by_recorded_ones(table: OutcomeTable) -> None:
    assert (np.diag(table.source_index) == -1).all()
    for t, row in enumerate(table.sources):
        assert table.source_index[t, row].tolist() == [0, 1]
    off = ~np.eye(len(table.pool), dtype=bool)
    assert table.source_index[off].min() >= 0


def test_a_round_trip_changes_nothing_but_rounding(table: OutcomeTable, tmp_path: Path) -> None:
    save_table(table, tmp_path / "again")
    again = load_table(tmp_path / "again")
    for name in ("fresh", "own", "foreign", "bare_accuracy", "sources"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))
    np.testing.assert_allclose(again.own_loss, table.own_loss, atol=1e-3)
    np.testing.assert_allclose(again.embedding, table.embedding, atol=1e-4)
    assert again.pool == table.pool
    rows = pd.read_parquet(tmp_path / "again" / "visits.parquet")
    assert set(rows["rank"]) == {1, 4}
    assert rows["correct_0"].max() <= 200


def test_a_killed_recording_goes_on_and_ends_the_same(
    table: OutcomeTable, tmp_path: Path, small_env: MakeEnv, plan: RecordingPlan
) -> None:
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Recorder(small_env().engine, plan, tmp_path / "parts", stop).record()
    kept = sorted(path.name for path in (tmp_path / "parts").glob("*.safetensors"))
    assert kept
    # What kill -9 leaves of a file that was being written.
    (tmp_path / "parts" / f"{TEMPORARY}fresh-4.safetensors.x").touch()
    progress: list[int] = []
    recorder = Recorder(
        small_env().engine, plan, tmp_path / "parts", lambda done, total: progress.append(done)
    )
    save_table(recorder.record(), tmp_path / "table")
    assert progress[0] < progress[-1] == recorder.total
    recorder.remove_parts()
    assert not (tmp_path / "parts").exists()
    again = load_table(tmp_path / "table")
    for name in ("fresh", "own", "foreign", "own_loss", "embedding"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))


def test_no_finished_visits_are_trained_again_after_a_kill(
    tmp_path: Path, small_env: MakeEnv, plan: RecordingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    visits: list[int] = []
    train = LiveDynamics.train

    def counted(self: LiveDynamics, *given: Any, **told: Any) -> Any:
        visits.append(len(given[0]))
        if len(visits) == 5:  # in the middle of the first rank's part
            raise KeyboardInterrupt
        return train(self, *given, **told)

    monkeypatch.setattr(LiveDynamics, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        Recorder(small_env().engine, plan, tmp_path).record()
    assert not (tmp_path / "fresh-1.safetensors").exists()
    recorder = Recorder(small_env().engine, plan, tmp_path)
    recorder.record()
    assert sum(visits) == recorder.total + visits[4]
    recorder.remove_parts()
    assert not tmp_path.exists()


def test_parts_of_another_recording_are_refused(
    tmp_path: Path, small_env: MakeEnv, plan: RecordingPlan
) -> None:
    Recorder(small_env().engine, plan, tmp_path)
    with pytest.raises(StateError, match="another recording"):
        Recorder(small_env(learning_rate=0.02).engine, plan, tmp_path)


def test_damaged_parts_are_named(tmp_path: Path, small_env: MakeEnv, plan: RecordingPlan) -> None:
    recorder = Recorder(small_env().engine, plan, tmp_path)
    (tmp_path / "supports.safetensors").write_bytes(b"half of it")
    with pytest.raises(FileFormatError, match=r"supports\.safetensors.*remove it"):
        recorder.record()
    (tmp_path / "recording.json").write_text("{")
    with pytest.raises(StateError, match="another recording"):
        Recorder(small_env().engine, plan, tmp_path)


@pytest.mark.parametrize(
    ("part", "argument"), [("test", "test_per_class"), ("validation", "val_per_class")]
)
def test_tasks_with_different_numbers_of_images_are_refused(
    part: str, argument: str, tmp_path: Path, small_env: MakeEnv, plan: RecordingPlan
) -> None:
    engine = small_env().engine
    pool, tasks = engine.dynamics.pool, []
    for i, task in enumerate(pool):
        less = {"x_val": task.x_train[: 9 + i], "y_val": task.y_train[: 9 + i]}
        if part == "test":
            less = {"x_test": task.x_test[i:], "y_test": task.y_test[i:]}
        tasks.append(replace(task, **less))
    engine.dynamics.pool = replace(pool, tasks=tuple(tasks))
    with pytest.raises(InvalidValueError, match=rf"equally many {part} images.*{argument}"):
        Recorder(engine, plan, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"levels": 0}, "levels"),
        ({"levels": 3, "branches": (3,)}, "branches"),
        ({"foreign_chains": 9}, "foreign_chains"),
        ({"supports": 1.5}, "supports"),
    ],
)
def test_plans_that_make_no_sense_are_refused(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(InvalidValueError, match=match):
        RecordingPlan(**arguments)  # type: ignore[arg-type]


def test_too_few_tasks_are_refused(tmp_path: Path, small_env: MakeEnv) -> None:
    with pytest.raises(InvalidValueError, match="more than 8 tasks"):
        Recorder(small_env().engine, RecordingPlan(), tmp_path)


@pytest.mark.parametrize("damage", ["missing", "flipped", "card", "newer", "nested", "settings"])
def test_damaged_tables_are_refused(table_folder: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "table"
    shutil.copytree(table_folder, folder)
    losses, card = folder / "losses.parquet", folder / "table.json"
    if damage == "missing":
        losses.unlink()
    elif damage == "flipped":
        content = bytearray(losses.read_bytes())
        content[len(content) // 2] ^= 1
        losses.write_bytes(content)
    elif damage == "card":
        card.write_text(card.read_text()[:-100])
    elif damage == "settings":
        card.write_text(json.dumps(json.loads(card.read_text()) | {"settings": None}))
    elif damage == "nested":
        card.write_text("[" * 100_000)
    else:
        card.write_text(json.dumps(json.loads(card.read_text()) | {"format": 2}))
    with pytest.raises(FileFormatError, match="record it again"):
        load_table(folder)


def test_a_card_with_other_sources_than_the_visits_is_refused(
    table_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "table"
    shutil.copytree(table_folder, folder)
    content = json.loads((folder / "table.json").read_text())
    first = content["provenance"]["sources"][0]
    first[-1] = next(task for task in range(1, 4) if task not in first)
    (folder / "table.json").write_text(json.dumps(content))
    with pytest.raises(FileFormatError, match="other sources"):
        load_table(folder)


def test_tables_recorded_alike_can_be_joined(table: OutcomeTable) -> None:
    joined = join_tables([table, table], "twice")
    assert len(joined.pool) == 2 * len(table.pool)
    np.testing.assert_array_equal(joined.sources[len(table.pool) :], table.sources + 4)
    other = replace(table, settings=dict(table.settings) | {"updates": 9})
    with pytest.raises(InvalidValueError, match="recorded alike"):
        join_tables([table, other], "never")
