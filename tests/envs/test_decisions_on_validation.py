"""What is decided while tasks are learned rests on validation images, what is reported does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_file_samples import own_tables, write_cifar100, write_offline_five
from playable import TINY_IMAGES

from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.backbones.pretrain import Recipe, pretrain_mlp
from nsr_gym.datasets import cifar_files, packed_files
from nsr_gym.envs import ContinualEnv, ContinualVectorEnv
from nsr_gym.envs.starts import adapters_of
from nsr_gym.errors import StateError
from nsr_gym.learning.kinds import LEARNERS, MODIFIERS, learner_class
from nsr_gym.tasks import Task, TaskPool

UPDATE, ADD = 1, 2
SETTINGS: dict[str, Any] = {
    "num_tasks": 3, "cycles": 2, "learning_steps": 3, "updates": 4, "support_size": 16,
    "ranks": [1, 2, 4], "learning_rate": 0.05,
}  # fmt: skip

Make = Callable[..., Any]


def linear(seed: int) -> Task:
    """Vectors of 12 numbers, labelled by a linear map."""
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(150, 12)).astype(np.float32), rng.normal(size=(12, 4))
    y = (x @ w).argmax(axis=1)
    return Task(
        name=f"t{seed}", x_train=x[:100], y_train=y[:100], x_test=x[100:], y_test=y[100:],
        classes=tuple(range(4)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def backbone() -> MLPBackbone:
    task = linear(99)
    recipe = Recipe(widths=(16, 8), epochs=2)
    return pretrain_mlp(task.x_train, task.y_train, num_classes=4, recipe=recipe)


def pool(kind: str) -> TaskPool:
    """Three tasks: without validation images, with the test images, or with others."""
    tasks = [linear(seed) for seed in range(3)]
    if kind == "test images":
        tasks = [replace(t, x_val=t.x_test, y_val=t.y_test) for t in tasks]
    if kind == "others":
        tasks = [replace(t, x_val=t.x_train[:20], y_val=t.y_train[:20]) for t in tasks]
    return TaskPool(name="linear", split="test", tasks=tuple(tasks))


def play(kind: str, backbone: MLPBackbone, n: int, **arguments: Any) -> dict[str, np.ndarray]:
    """Play n episodes that recall on returns.

    Returns:
        Curves (V, n, L + 1), bytes (V, n), and the accuracy of the entry written in each visit.
    """
    env = ContinualVectorEnv(pool(kind), backbone, n, **SETTINGS | arguments)
    env.reset(seed=list(range(n)))
    bank, rows = env.engine.memory.bank, np.arange(n)
    found: dict[str, list[np.ndarray]] = {"curve": [], "bytes": [], "entry": []}
    for visit in range(6):
        action = [0, 2, ADD] if visit < 3 else [1, 2, UPDATE]
        *_, info = env.step(np.tile(action, (n, 1)))
        newest = np.where(bank.occupied[rows], bank.reserved_at[rows], -1).argmax(axis=1)
        assert (info["reserve"] == action[2]).all()
        found["curve"].append(info["curve"])
        found["bytes"].append(info["bytes"])
        found["entry"].append(bank.accuracy[rows, newest])
    env.close()
    return {name: np.array(values) for name, values in found.items()}


def bank_for(learner: str) -> str:
    kind = learner_class(learner)
    return "additive" if kind.sums else "shared_basis" if kind.needs_basis else "per_task"


PARTS = [
    *({"learner": name, "bank": bank_for(name)} for name in LEARNERS),
    *({"modifiers": [name]} for name in MODIFIERS),
    {"bank": "additive"},
    {"head": "trained"},
    {"modifiers": list(MODIFIERS), "head": "trained"},
]


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_it_is_what_ends_the_curve_on_other_images_whatever_learns(
    parts: dict[str, Any], backbone: MLPBackbone
) -> None:
    plain, same, other = (play(k, backbone, 2, **parts) for k in ("none", "test images", "others"))
    for name in ("curve", "bytes"):
        np.testing.assert_array_equal(same[name], plain[name])
        np.testing.assert_array_equal(other[name], plain[name])
    for one in (plain, same):
        np.testing.assert_array_equal(one["entry"], one["curve"][:, :, -1])
    assert (other["entry"] != plain["entry"]).any()
    np.testing.assert_allclose(other["entry"] * 20, np.rint(other["entry"] * 20), atol=1e-9)


@pytest.mark.parametrize("learner", ["lora", "sdlora", "lora_sub_drs"])
def test_threads_measure_each_episode_s_own(
    learner: str, backbone: MLPBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    found = play("test images", backbone, 8, learner=learner, bank=bank_for(learner))
    np.testing.assert_array_equal(found["entry"], found["curve"][:, :, -1])
    assert np.unique(found["entry"]).size > 4


@pytest.mark.parametrize("validated", [False, True])
def test_the_bank_gives_up_what_validation_images_say_is_worst(
    validated: bool, backbone: MLPBackbone
) -> None:
    tasks = [linear(seed) for seed in range(3)]
    if validated:  # every validation image of the first task has a wrong label
        tasks = [
            replace(t, x_val=t.x_test, y_val=(t.y_test + (i == 0)) % 4)
            for i, t in enumerate(tasks)
        ]  # fmt: skip
    env = ContinualEnv(
        TaskPool(name="p", split="test", tasks=tuple(tasks)), backbone,
        **SETTINGS | {"capacity": 2, "retention": "importance", "updates": 16},
    )  # fmt: skip
    env.reset(seed=2)
    reached = {}
    for _ in range(3):
        *_, info = env.step(np.array([0, 2, ADD]))
        reached[info["task_name"]] = info["accuracy_after"]
    bank = env.engine.memory.bank
    kept = {f"t{task}" for task in bank.tags["task"][0, bank.occupied[0]]}
    # Of the two that are held when the third comes, test images say that the other is worse.
    assert list(reached) == ["t2", "t0", "t1"]
    assert 0.5 < reached["t2"] < reached["t0"]
    assert kept == {"t1", "t2" if validated else "t0"}
    env.close()


@pytest.fixture(params=["NSR/SplitCIFAR100-v0", "NSR/FiveDatasets-v0"])
def images(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_env: Make
) -> Callable[..., Any]:
    """Make tiny environments on images."""
    own_tables(monkeypatch)
    write_cifar100(tmp_path, cifar_files.CIFAR100, "official")
    write_offline_five(tmp_path, packed_files.FIVE_SMALL)
    manifest = {} if "CIFAR" in request.param else {"manifest": "offline5"}

    def make(**arguments: Any) -> Any:
        chosen = TINY_IMAGES | manifest | {
            "root": str(tmp_path), "weights": "DEFAULT", "learning_rate": 3e-3, "updates": 24,
            "batch_size": 16, "train_per_class": 3, "test_per_class": 2, "val_per_class": 2,
        }  # fmt: skip
        return make_env(request.param, **chosen | arguments)

    return make


@pytest.mark.parametrize(
    "asked", [{"split": "test"}, {"split": "test", "evaluate": "validation"}, {"split": "train"}]
)
def test_the_observation_shows_the_accuracy_of_entries_on_validation_images(
    asked: dict[str, Any], images: Callable[..., Any]
) -> None:
    env = images(**asked)
    env.reset(seed=0)
    engine = env.engine
    dynamics, bank, layout = engine.dynamics, engine.memory.bank, engine.layout
    assert dynamics.data.validated
    reported = []
    for _ in range(3):
        observation, _, _, _, info = env.step(np.array([0, 3, ADD]))
        reported.append(info["accuracy_after"])
    held = np.flatnonzero(bank.occupied[0])
    rows, tasks = np.zeros(len(held), dtype=np.int64), bank.tags["task"][0, held]
    entries = adapters_of(bank, rows, held)
    held_out = dynamics.data.validation(dynamics.tensor(tasks))
    expected = dynamics.learner.accuracy(held_out, entries).cpu().numpy()
    # An entry is what was trained, up to the rounding of its canonical form.
    np.testing.assert_allclose(bank.accuracy[0, held], expected, atol=1.01 / 20)
    assert (bank.accuracy[0, held] == expected).any()
    assert not np.array_equal(bank.accuracy[0, held], dynamics.test_accuracy(tasks, entries))
    shown = layout.read(observation, "accuracy")[:3]
    assert sorted(shown) == pytest.approx(sorted(bank.accuracy[0, held]))
    assert sorted(reported) != pytest.approx(sorted(shown))


def test_without_validation_images_it_is_the_test_accuracy(images: Callable[..., Any]) -> None:
    env = images(split="test", val_per_class=0)
    env.reset(seed=0)
    *_, info = env.step(np.array([0, 3, ADD]))
    bank, dynamics = env.engine.memory.bank, env.engine.dynamics
    assert bank.accuracy[0, 0] == info["accuracy_after"]
    assert not dynamics.data.validated
    assert "accuracy" not in dynamics.result(np.array([0]))
    with pytest.raises(StateError):
        dynamics.data.validation(dynamics.tensor(np.array([0])))


def test_only_visits_with_a_bank_are_measured_twice(
    backbone: MLPBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    for access, expected in (("bank", 1), ("memoryless", 0)):
        env = ContinualEnv(pool("others"), backbone, access=access, **SETTINGS)
        env.reset(seed=0)
        learner, sizes = env.engine.dynamics.learner, []
        inner = type(learner).accuracy

        def counted(self: Any, images: Any, *rest: Any, sizes: list[int] = sizes) -> Any:
            sizes.append(images.labels.shape[1])
            return inner(self, images, *rest)  # noqa: B023

        monkeypatch.setattr(type(learner), "accuracy", counted)
        env.step(np.array([0, 2, 1]))
        monkeypatch.undo()
        assert sizes.count(20) == expected
        assert sizes.count(50) == SETTINGS["learning_steps"] + 1
        env.close()
