"""Recorded twins of the image environments, on tables recorded here from tiny files."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from image_file_samples import own_tables, write_cifar100, write_offline_five
from playable import TINY_IMAGES
from safetensors.torch import save

from nsr_gym import outcomes
from nsr_gym.backbones.image_models import ViTPlan
from nsr_gym.cli import main
from nsr_gym.datasets import cifar_files, packed_files
from nsr_gym.envs import RecordedEnv, check_vector_env
from nsr_gym.errors import InvalidValueError, NsrGymError, StateError, UnknownNameError
from nsr_gym.evaluation.fidelity import measure_fidelity
from nsr_gym.outcome_files import load_table, save_table
from nsr_gym.outcomes import VALIDATION, join_tables

CIFAR, FIVE = "NSR/SplitCIFAR100Recorded-v0", "NSR/FiveDatasetsRecorded-v0"
POOLS = {CIFAR: "split-cifar100-5", FIVE: "offline5"}
PLAN = ViTPlan(side=32, patch=16, width=12, depth=2, heads=2, hidden=16)
FRESH_ADD, RECALL_UPDATE = [0, 1, 2], [1, 1, 1]

Arguments = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of tiny files, and a tiny network as `nsr-gym pretrain` writes it."""
    folder = tmp_path_factory.mktemp("data")
    payload = save(PLAN.folded(PLAN.initial(3, torch.Generator().manual_seed(0))))
    card = {
        "plan": asdict(PLAN),
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    (folder / "vit-small-32.safetensors").write_bytes(payload)
    (folder / "vit-small-32.json").write_text(json.dumps(card))
    with pytest.MonkeyPatch.context() as patch:
        own_tables(patch)
        write_cifar100(folder, cifar_files.CIFAR100, "official")
        write_offline_five(folder, packed_files.FIVE_SMALL)
        yield folder


@pytest.fixture(scope="module")
def arguments(root: Path) -> Arguments:
    """Arguments that the tables below were recorded with."""

    def of(env_id: str) -> dict[str, Any]:
        chosen = TINY_IMAGES | {
            "num_tasks": 5, "root": str(root), "weights": str(root), "backbone": "vit-small-32",
            "adapt": ["blocks.1.attn.[qv]"], "val_per_class": 1, "ranks": [2, 8], "split": "test",
            "learning_rate": 0.05,
        }  # fmt: skip
        return chosen | ({"manifest": "offline5"} if env_id == FIVE else {})

    return of


@pytest.fixture(scope="module")
def tables(
    root: Path, arguments: Arguments, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A folder of shipped tables: of each environment, recorded by the command."""
    folder = tmp_path_factory.mktemp("tables")
    for env_id, pool in POOLS.items():
        record(env_id, folder / f"{pool}-test", arguments(env_id))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcomes, "TABLES", folder)
        yield folder


def record(env_id: str, output: Path, chosen: dict[str, Any]) -> None:
    command = [
        "nsr-gym", "record", env_id.replace("Recorded", ""), "--output", str(output),
        "--fresh-chains", "2", "--foreign-chains", "1", "--levels", "3", "--branch", "0",
        "--branch", "2", "--sources", "2", "--supports", "3", "--batch", "8",
    ]  # fmt: skip
    for name, value in chosen.items():
        command += ["--set", f"{name}={json.dumps(value)}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            main()
    assert not stopped.value.code


def played(chosen: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the twin: of those that were recorded all but where the data lies."""
    return {name: value for name, value in chosen.items() if name not in ("root", "cache")}


@pytest.fixture
def twin(tables: Path, arguments: Arguments) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def make(env_id: str, **more: Any) -> Any:
        made.append(gym.make(env_id, **played(arguments(env_id)) | more).unwrapped)
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.mark.parametrize("env_id", [CIFAR, FIVE])
def test_a_twin_plays_the_episodes_of_the_live_environment(
    env_id: str, twin: Callable[..., Any], arguments: Arguments
) -> None:
    recorded, live = twin(env_id), gym.make(env_id, dynamics="live", **arguments(env_id)).unwrapped
    assert recorded.observation_space == live.observation_space
    assert recorded.action_space == live.action_space
    there, here = ([t.fingerprint for t in env.engine.dynamics.pool] for env in (recorded, live))
    assert there == here
    _, info = live.reset(seed=5)
    _, same = recorded.reset(seed=5)
    assert info["stream"] == same["stream"]
    for action in (FRESH_ADD, RECALL_UPDATE, FRESH_ADD):
        info, same = live.step(action)[4], recorded.step(action)[4]
        assert list(same) == list(info)
        assert [np.asarray(v).dtype for v in same.values()] == [
            np.asarray(v).dtype for v in info.values()
        ]
        for name in ("task_name", "is_return", "entries", "bytes", "visit", "cycle", "rank"):
            assert same[name] == info[name], name
    live.close()


@pytest.mark.parametrize("env_id", [CIFAR, FIVE])
def test_a_twin_is_the_same_single_and_side_by_side(
    env_id: str, tables: Path, arguments: Arguments
) -> None:
    check_vector_env(env_id, tolerance=0.0, **played(arguments(env_id)))


def test_a_twin_needs_no_data_and_no_torch(tables: Path, arguments: Arguments) -> None:
    code = (
        "import json, sys, pathlib, gymnasium as gym, nsr_gym\n"
        "from nsr_gym import outcomes\n"
        "outcomes.TABLES = pathlib.Path(sys.argv[1])\n"
        "chosen = json.loads(sys.argv[2]) | {'root': '/nowhere'}\n"
        "env = gym.make_vec(sys.argv[3], 3, vectorization_mode=None, **chosen)\n"
        "env.reset(seed=0)\n"
        "for _ in range(12):\n"
        "    env.step(env.action_space.sample())\n"
        "assert not {'torch', 'sklearn', 'PIL'} & set(sys.modules)\n"
    )
    for env_id in POOLS:
        chosen = json.dumps(played(arguments(env_id)))
        command = [sys.executable, "-c", code, str(tables), chosen, env_id]
        assert subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize("env_id", [CIFAR, FIVE])
def test_a_table_says_what_it_was_recorded_with(
    env_id: str, tables: Path, arguments: Arguments
) -> None:
    table = load_table(tables / f"{POOLS[env_id]}-test")
    said, asked = table.provenance["images"], arguments(env_id)
    assert json.loads(json.dumps(said)) == said
    assert {"root", "cache", "download", "prefix_dtype"}.isdisjoint(said)
    for name in ("backbone", "adapt", "train_per_class", "val_per_class"):
        assert said[name] == asked[name]
    assert said["evaluate"] == "test"
    assert said["image_size"] == 32
    if env_id == CIFAR:
        assert said["division"] == 5
    card = json.loads((Path(asked["weights"]) / "vit-small-32.json").read_text())
    assert table.provenance["backbone"] == card["sha256"]


@pytest.mark.parametrize(
    ("env_id", "given", "error", "text"),
    [
        (CIFAR, {"backbone": "vit_b_16"}, InvalidValueError, "backbone='vit-small-32'.*vit_b_16"),
        (CIFAR, {"weights": None}, InvalidValueError, "weights=.*got None.*RecordedEnv"),
        (CIFAR, {"adapt": ["blocks.1.attn.q"]}, InvalidValueError, r"adapt=\['blocks.1.attn"),
        (CIFAR, {"order": "seed-1993"}, InvalidValueError, "order='natural'.*seed-1993"),
        (CIFAR, {"grouping": 1}, InvalidValueError, "grouping=0"),
        (CIFAR, {"train_per_class": 3}, InvalidValueError, "train_per_class=2"),
        (CIFAR, {"test_per_class": None}, InvalidValueError, "test_per_class=1"),
        (CIFAR, {"val_per_class": 0}, InvalidValueError, "val_per_class=1"),
        (CIFAR, {"evaluate": "validation"}, InvalidValueError, "evaluate='test'"),
        (CIFAR, {"image_size": 64}, InvalidValueError, "image_size=32"),
        (CIFAR, {"weights_sha256": "0123"}, InvalidValueError, "weights with the hash"),
        (CIFAR, {"head": "frozen"}, InvalidValueError, "head='trained'"),
        (CIFAR, {"ranks": [1, 8]}, InvalidValueError, r"\[2, 8\]"),
        (CIFAR, {"num_tasks": 10}, StateError, r"split-cifar100-5-test.*num_tasks=10"),
        (CIFAR, {"division": 20}, StateError, r"'split-cifar100-20'.*division=20"),
        (CIFAR, {"split": "train"}, StateError, "split 'train'.*live"),
        (FIVE, {"manifest": "five_datasets/l2p_torch"}, StateError, r"l2p_torch.*record"),
        (FIVE, {"manifest": "offlin5"}, UnknownNameError, "'offline5'"),
        (FIVE, {"manifest": ["offline5"]}, UnknownNameError, "'offline5'"),
        (FIVE, {"prefix_dtype": "float8"}, UnknownNameError, "float16"),
        (FIVE, {"num_tasks": 6}, InvalidValueError, "at most 5"),
        (FIVE, {"dynamics": "recoded"}, UnknownNameError, "'recorded'"),
    ],
)
def test_what_was_not_recorded_is_refused(
    env_id: str, given: dict[str, Any], error: type[NsrGymError], text: str,
    twin: Callable[..., Any],
) -> None:  # fmt: skip
    with pytest.raises(error, match=text):
        twin(env_id, **given)


def test_the_same_data_otherwise_said_is_accepted(twin: Callable[..., Any], tables: Path) -> None:
    same = {"division": 5, "image_size": 32, "evaluate": "test", "prefix_dtype": "float16"}
    digits = load_table(tables / "split-cifar100-5-test").provenance["backbone"][:8]
    env = twin(CIFAR, num_tasks=3, **same, weights_sha256=digits.upper())
    assert len(env.engine.dynamics.pool) == 5
    env.reset(seed=0)
    assert len(env.engine.streams[0].tasks) == 3


@pytest.mark.parametrize("env_id", [CIFAR, FIVE])
def test_entries_show_what_was_recorded_on_validation_images(
    env_id: str, twin: Callable[..., Any], tables: Path
) -> None:
    table = load_table(tables / f"{POOLS[env_id]}-test")
    assert table.validated
    differ = 0
    for seed in range(5):
        env = twin(env_id, num_tasks=5, division=5) if env_id == CIFAR else twin(env_id)
        _, info = env.reset(seed=seed)
        a, b = (table.pool.index(name) for name in env.engine.streams[0].tasks[:2])
        info = env.step(FRESH_ADD)[4]
        chain = int(env.engine.dynamics.fresh_chain(np.array([0]), np.array([0]))[0])
        bank = env.engine.memory.bank
        assert table.fresh_validation is not None
        shown = bank.accuracy[0, bank.occupied[0]].tolist()
        assert shown == pytest.approx([table.fresh_validation[a, 1, chain]])
        differ += shown[0] != pytest.approx(info["accuracy_after"])
        env.step([1, 0, 2])  # the second task from the first one's entry, at the lower rank
        g = table.source_index[b, a]
        assert table.foreign_validation is not None
        slot = int(np.flatnonzero(bank.tags["task"][0] == b)[0])
        assert bank.accuracy[0, slot] == pytest.approx(table.foreign_validation[b, g, 1, 0])
    assert differ > 0


def test_what_is_recorded_at_the_end_of_visits_lies_beside_the_curves(tables: Path) -> None:
    table = load_table(tables / "offline5-test")
    for name, curves in zip(VALIDATION, ("fresh", "own", "foreign"), strict=True):
        found = getattr(table, name)
        assert found.shape == getattr(table, curves).shape[:-1]
        assert not np.isnan(found).any()  # levels that were not recorded are stood for
        images = table.provenance["validation_images"]
        np.testing.assert_allclose(found * images, np.rint(found * images), atol=1e-5)
    assert np.unique(table.fresh_validation).size > 1


def test_validation_accuracies_survive_files_and_joins(tables: Path, tmp_path: Path) -> None:
    table = load_table(tables / "offline5-test")
    save_table(table, tmp_path / "again")
    again = load_table(tmp_path / "again")
    joined = join_tables([table, table], "twice")
    for name in VALIDATION:
        once = getattr(table, name)
        np.testing.assert_array_equal(getattr(again, name), once)
        np.testing.assert_array_equal(getattr(joined, name), np.concatenate([once, once]))
    without = replace(table, **dict.fromkeys(VALIDATION))
    with pytest.raises(InvalidValueError, match="recorded alike"):
        join_tables([table, without], "never")


def test_a_table_without_validation_images_shows_test_accuracies(
    tables: Path, arguments: Arguments, tmp_path: Path
) -> None:
    record(FIVE, tmp_path / "plain", arguments(FIVE) | {"val_per_class": 0})
    table = load_table(tmp_path / "plain")
    assert not table.validated
    assert "validation_images" not in table.provenance
    env = RecordedEnv(tmp_path / "plain")
    env.reset(seed=0)
    info = env.step(FRESH_ADD)[4]
    bank = env.engine.memory.bank
    assert bank.accuracy[0, bank.occupied[0]] == pytest.approx(info["accuracy_after"])


def test_a_table_of_ones_own_is_played_by_its_folder(tables: Path) -> None:
    env = RecordedEnv(tables / "offline5-test")
    config = env.engine.config
    assert (config.num_tasks, config.ranks, config.head) == (5, (2, 8), "trained")
    assert (config.split, config.learning_rate) == ("test", 0.05)
    env.reset(seed=0)
    assert 0.0 <= env.step(FRESH_ADD)[1] <= 1.0


def test_recorded_and_live_are_compared_with_one_another(
    tables: Path, arguments: Arguments
) -> None:
    found, table = measure_fidelity(
        FIVE, ("oracle", "fresh", "random"), [0], arguments=arguments(FIVE) | {"cycles": 2}
    )
    assert set(found.agents["agent"]) == {"oracle", "fresh", "random"}
    assert table.groupby("dynamics").size().nunique() == 1
