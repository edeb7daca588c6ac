"""Image benchmarks as environments: on tiny files made on the spot, and on the real ones."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from image_file_samples import own_tables, write_cifar100, write_offline_five
from playable import TINY_IMAGES
from safetensors.torch import save
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3
from torch import Tensor

from nsr_gym.backbones import torchvision_models
from nsr_gym.backbones.entrance import Entrance
from nsr_gym.backbones.image_models import ViTPlan
from nsr_gym.backbones.vit import ViTBackbone
from nsr_gym.datasets import cifar_files, packed_files
from nsr_gym.datasets.image_tasks import ImagePart, ImageTask, ImageTransform, Segment
from nsr_gym.datasets.sources import VARIABLE
from nsr_gym.envs import ContinualEnv, EpisodeConfig, FiveDatasetsEnv, SplitCIFAR100Env
from nsr_gym.envs import images as environments
from nsr_gym.envs.image_arguments import FUSED_ADAPT, CifarArguments, FiveArguments
from nsr_gym.envs.image_tables import described
from nsr_gym.envs.images import IMAGE_DEFAULTS
from nsr_gym.errors import DataError, FileFormatError, InvalidValueError, UnknownNameError
from nsr_gym.evaluation.rollout import play
from nsr_gym.learning import data
from nsr_gym.tasks import TaskPool

CIFAR, FIVE = "NSR/SplitCIFAR100-v0", "NSR/FiveDatasets-v0"
PLAN = ViTPlan(side=32, patch=16, width=12, depth=2, heads=2, hidden=16)
TOLERANCE = 1e-5
"""Of measured numbers in another batch: sums of float32 in another order."""

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `nsr-gym pretrain` writes it, of a tiny network."""
    folder = tmp_path_factory.mktemp("weights")
    rng = torch.Generator().manual_seed(0)
    payload = save(PLAN.folded(PLAN.initial(3, rng)))
    (folder / "vit-small-32.safetensors").write_bytes(payload)
    card = {
        "plan": asdict(PLAN),
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    (folder / "vit-small-32.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(params=["tiny", "real"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data: tiny files, or the real ones where they are at hand."""
    if request.param == "real":
        folder = Path(os.environ.get(VARIABLE) or "/nowhere").expanduser()
        for name in ("cifar-100-python/train", "five_datasets_small.npz"):
            if not (folder / name).exists():
                pytest.skip(f"{VARIABLE} names no folder with {name}")
        return folder
    own_tables(monkeypatch)
    write_cifar100(tmp_path, cifar_files.CIFAR100, "official")
    write_offline_five(tmp_path, packed_files.FIVE_SMALL)
    return tmp_path


@pytest.fixture
def arguments(root: Path, weights: Path) -> Callable[[str], dict[str, Any]]:
    """Arguments of a tiny episode on that data."""

    def of(env_id: str) -> dict[str, Any]:
        chosen = TINY_IMAGES | {
            "root": str(root), "weights": str(weights), "backbone": "vit-small-32",
            "adapt": ["blocks.1.attn.[qv]"],
        }  # fmt: skip
        return chosen | ({"manifest": "offline5"} if env_id == FIVE else {})

    return of


@pytest.mark.parametrize("env_id", [CIFAR, FIVE])
def test_checkers_find_nothing(
    env_id: str, arguments: Callable[[str], dict[str, Any]], make_env: Make
) -> None:
    env = make_env(env_id, **arguments(env_id))
    check_env(env, skip_render_check=True)
    check_env_of_sb3(env)


def test_split_test_has_the_tasks_visits_and_heads_of_the_published_protocol(
    root: Path, weights: Path
) -> None:
    for env_id, tasks, more in ((CIFAR, 10, {}), (FIVE, 5, {"manifest": "offline5"})):
        env = gym.make(
            env_id, root=str(root), weights=str(weights), backbone="vit-small-32", cache=False,
            support_size=1,
            adapt=["blocks.1.attn.[qv]"], train_per_class=1, test_per_class=1, split="test", **more,
        )  # fmt: skip
        engine = env.unwrapped.engine  # type: ignore[attr-defined]
        config, pool = engine.config, engine.dynamics.pool
        assert (config.num_tasks, config.cycles, config.schedule) == (tasks, 5, "cyclic")
        assert config.head == "trained"
        assert len(pool) == tasks
        assert pool.num_classes == 10
        # Each task has a head of its own classes, and together they are all classes, each once.
        assert sorted(c for task in pool for c in task.classes) == list(range(10 * tasks))
        assert {task.definition["evaluated_on"] for task in pool} == {"test"}
        env.close()


@pytest.mark.parametrize("asked", [5, 7, 20])
def test_classes_are_dealt_to_as_many_tasks_as_an_episode_needs(
    asked: int, arguments: Callable[[str], dict[str, Any]], make_env: Make
) -> None:
    env = make_env(CIFAR, **arguments(CIFAR) | {"num_tasks": asked, "batch_size": 2})
    dealt = {5: 5, 7: 10, 20: 20}[asked]
    assert len(env.engine.dynamics.pool) == dealt
    assert env.engine.dynamics.pool.num_classes == 100 // dealt


def test_an_order_changes_the_tasks_and_a_seed_only_when_they_come(
    arguments: Callable[[str], dict[str, Any]], make_env: Make
) -> None:
    chosen = arguments(CIFAR) | {"split": "test"}
    env = make_env(CIFAR, **chosen)
    assert env.reset(seed=0)[1]["stream"] != env.reset(seed=1)[1]["stream"]
    natural = {task.classes for task in env.engine.dynamics.pool}
    for order, seed in (("seed-1993", None), ("random", 3), (list(range(99, -1, -1)), None)):
        other = make_env(CIFAR, **chosen | {"order": order, "order_seed": seed})
        assert natural.isdisjoint(task.classes for task in other.engine.dynamics.pool)


def test_train_split_shows_no_test_image_and_validation_none_either(
    arguments: Callable[[str], dict[str, Any]], make_env: Make
) -> None:
    for env_id in (CIFAR, FIVE):
        for more in ({"split": "train"}, {"split": "test", "evaluate": "validation"}):
            pool = make_env(env_id, **arguments(env_id) | more).engine.dynamics.pool
            assert {task.definition["evaluated_on"] for task in pool} == {"validation"}
            assert all("test" not in files for task in pool for files in task.definition["files"])


@pytest.mark.parametrize("env_id", [CIFAR, FIVE])
def test_a_recalled_entry_answers_as_when_it_was_reserved(
    env_id: str, arguments: Callable[[str], dict[str, Any]]
) -> None:
    table = play(
        env_id, "oracle", [0, 1], routers=["oracle"],
        arguments=arguments(env_id) | {
            "learning_rate": 0.05, "updates": 4, "batch_size": 16, "train_per_class": 6,
            "test_per_class": 3, "split": "train",
        },
    )  # fmt: skip
    returns = 0
    for _, visits in table.groupby(["seed", "task"]):
        before, after = visits["accuracy_before"].to_numpy(), visits["accuracy_after"].to_numpy()
        np.testing.assert_allclose(before[1:], after[:-1], atol=1e-6)
        returns += len(visits) - 1
    assert returns == 2 * 3
    assert table["accuracy_after"].nunique() > 2
    # Answered by its own task's entry, an image gets the answer that the task would get.
    last = table[table["visit"] == table["visit"].max()]
    own = [np.mean(accuracies) for accuracies in last["retention"]]
    np.testing.assert_allclose(last["routed.oracle"], own, atol=1e-6)
    assert (last["right.oracle"] == 1.0).all()


def test_episodes_side_by_side_are_those_played_alone(
    arguments: Callable[[str], dict[str, Any]], make_env: Make, make_vec: Make
) -> None:
    vector = make_vec(2, FIVE, **arguments(FIVE))
    observation, _ = vector.reset(seed=[3, 4])
    singles = [make_env(FIVE, **arguments(FIVE)) for _ in range(2)]
    alone = [env.reset(seed=seed)[0] for env, seed in zip(singles, (3, 4), strict=True)]
    np.testing.assert_allclose(observation, np.stack(alone), atol=TOLERANCE)
    for action in ([0, 1, 1], [1, 2, 2], [0, 3, 1]):
        observation, reward, *_ = vector.step(np.array([action, action]))
        steps = [env.step(np.array(action)) for env in singles]
        np.testing.assert_allclose(observation, np.stack([s[0] for s in steps]), atol=TOLERANCE)
        np.testing.assert_allclose(reward, [s[1] for s in steps], atol=TOLERANCE)


def test_frozen_work_is_done_once_for_all_processes_and_changes_nothing(
    arguments: Callable[[str], dict[str, Any]],
    make_env: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images: list[int] = []
    prefix = ViTBackbone.prefix

    def counted(self: ViTBackbone, x: Tensor) -> Any:
        images.append(len(x))
        return prefix(self, x)

    monkeypatch.setattr(ViTBackbone, "prefix", counted)

    def first_visit(folder: Path | bool) -> tuple[Any, int]:
        environments._prepared.cache_clear()  # as in another process
        images.clear()
        env = make_env(CIFAR, **arguments(CIFAR) | {"cache": folder})
        env.reset(seed=0)
        return env.step(np.array([0, 1, 1])), sum(images)

    (seen, reward, *_), first = first_visit(tmp_path / "features")
    (seen_again, reward_again, *_), second = first_visit(tmp_path / "features")
    (seen_in_memory, *_), third = first_visit(False)
    assert first == third > 20
    assert second == 3  # one image that tells the shapes of each part
    assert reward == reward_again
    np.testing.assert_array_equal(seen, seen_again)
    np.testing.assert_array_equal(seen, seen_in_memory)


def test_features_lie_beside_the_data_unless_told_otherwise(tmp_path: Path) -> None:
    beside = CifarArguments(root=str(tmp_path)).features()
    assert beside is not None
    assert beside.folder == tmp_path / "features"
    chosen = CifarArguments(root=str(tmp_path), cache=str(tmp_path / "own")).features()
    assert chosen is not None
    assert chosen.folder == tmp_path / "own"
    assert CifarArguments(cache=False).features() is None


def test_where_data_is_missing_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fetch\('cifar-100'"):
        gym.make(CIFAR, root=str(tmp_path))
    with pytest.raises(DataError, match=r"fetch\('svhn'"):
        gym.make(FIVE, root=str(tmp_path))
    with pytest.raises(DataError, match=r"unpack\.py"):
        gym.make(FIVE, root=str(tmp_path), manifest="offline5")


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"backbon": "resnet18"}, UnknownNameError, "'backbone'"),
        ({"dynamics": "recoded"}, UnknownNameError, "'recorded'"),
        ({"backbone": "vit-smal-32"}, UnknownNameError, "'vit-small-32'"),
        ({"adapt": "blocks.1.attn.q"}, InvalidValueError, "list of names"),
        ({"adapt": ["blocks.7.attn.q"]}, InvalidValueError, "No site matches"),
        ({"cache": True}, InvalidValueError, "False"),
        ({"root": 3}, InvalidValueError, "root as a string"),
        ({"order": "natral"}, UnknownNameError, "'natural'"),
        ({"cache": ""}, InvalidValueError, "cache as a folder"),
        ({"division": 7}, InvalidValueError, r"\(5, 10, 20\)"),
        ({"division": 10.0}, InvalidValueError, r"\(5, 10, 20\)"),
        ({"num_tasks": 21}, InvalidValueError, "at most 20"),
        ({"prefix_dtype": "float8"}, UnknownNameError, "float16"),
        ({"prefix_dtype": ["float16"]}, UnknownNameError, "float16"),
        ({"weights_sha256": "0123"}, FileFormatError, "hash 0123"),
        ({"weights_sha256": "0123", "weights": None}, InvalidValueError, "random weights"),
        ({"evaluate": "train"}, UnknownNameError, "evaluation"),
        ({"fused": 1}, InvalidValueError, "fused to be a bool"),
        ({"fused": True, "backbone": "resnet18"}, InvalidValueError, "fused=False for resnet18"),
        ({"fused": True}, InvalidValueError, r"No site matches 'blocks\.1\.attn\.\[qv\]'.*\.qkv"),
        ({"adapt": ["blocks.1.attn.qkv"]}, InvalidValueError, "Expected fused=True"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_answered(
    given: dict[str, Any],
    error: type[Exception],
    text: str,
    arguments: Callable[[str], dict[str, Any]],
) -> None:
    with pytest.raises(error, match=text):
        gym.make(CIFAR, **arguments(CIFAR) | {"split": "test"} | given)


@pytest.mark.parametrize("manifest", [None, ["offline5"], "offlin5"])
def test_a_manifest_that_does_not_exist_is_answered(manifest: Any) -> None:
    with pytest.raises(UnknownNameError, match="'offline5'"):
        gym.make(FIVE, manifest=manifest)


@pytest.mark.parametrize("name", ["vit-small-32", "resnet-small-32", "resnet18"])
def test_adapters_sit_on_the_last_block_so_that_the_rest_is_frozen_work(name: str) -> None:
    backbone = CifarArguments(backbone=name, weights=None).network("cpu")
    known = {re.sub(r"(\.attn\.\w|\.conv\d|\.mlp.*|\.norm.*|\.shortcut)?\.\w+$", "", name)
             for name in backbone.weights}  # fmt: skip
    last = max(block for block in known if block.startswith(("blocks", "stages")))
    assert {site.name.removeprefix(last).split(".")[1] for site in backbone.sites} < {
        "attn", "conv1", "conv2",
    }  # fmt: skip
    assert all(site.name.startswith(last) for site in backbone.sites)


def test_an_entry_is_counted_with_its_head(
    arguments: Callable[[str], dict[str, Any]], make_env: Make
) -> None:
    env = make_env(CIFAR, **arguments(CIFAR))
    env.reset(seed=0)
    bank = env.engine.memory.bank
    _, _, _, _, info = env.step(np.array([0, 1, 1]))  # rank 2
    kinds = {kind: int(value[0]) for kind, value in bank.bytes_by_kind(rows=[0]).items()}
    width, sites, classes = PLAN.width, 2, 20
    assert kinds["factors"] == 4 * sites * 2 * (width + width)
    assert kinds["head"] == 4 * classes * (width + 1)
    assert info["bytes"] == sum(kinds.values())


@pytest.mark.parametrize("env_id", [CIFAR, FIVE])
def test_query_key_and_value_can_be_one_site(
    env_id: str, arguments: Callable[[str], dict[str, Any]], make_env: Make
) -> None:
    asked = arguments(env_id) | {"fused": True, "adapt": ["blocks.1.attn.qkv"]}
    env = make_env(env_id, **asked)
    (site,) = env.engine.dynamics.learner.backbone.sites
    assert (site.name, site.d_out, site.d_in) == ("blocks.1.attn.qkv", 3 * PLAN.width, PLAN.width)
    env.reset(seed=0)
    bank, steps = env.engine.memory.bank, []
    for number in range(6):
        action = np.array([min(number // 3, 1), 1, 1])  # fresh in the first cycle, rank 2
        steps.append(env.step(action))
    assert [step[2] for step in steps] == [False] * 5 + [True]
    assert {step[4]["rank"] for step in steps} == {2}
    assert all(np.isfinite(step[4]["curve"]).all() for step in steps)
    kinds = {kind: int(value[0]) for kind, value in bank.bytes_by_kind(rows=[0]).items()}
    entries = steps[-1][4]["entries"]
    assert kinds["factors"] == entries * 4 * 2 * (site.d_out + site.d_in)
    # What enters attention is the same, so that the frozen work is too.
    apart = make_env(env_id, **arguments(env_id)).engine.dynamics.learner.backbone
    whole = env.engine.dynamics.learner.backbone
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert whole.fingerprint == apart.fingerprint
    torch.testing.assert_close(whole.prefix(images), apart.prefix(images), rtol=0, atol=0)


def test_fused_sites_are_those_of_the_last_block_unless_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = CifarArguments(backbone="vit-small-32", fused=True)
    for weights in ("DEFAULT", None):
        network = replace(small, weights=weights).network("cpu")
        assert [site.name for site in network.sites] == ["blocks.5.attn.qkv"]
    assert described(small, EpisodeConfig())["adapt"] == list(FUSED_ADAPT["vit-small-32"])
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        torchvision_models, "torchvision_backbone", lambda name, **given: asked.append(given)
    )
    for name in ("vit_b_16", "vit_b_32"):
        CifarArguments(backbone=name, fused=True).network("cpu")
        CifarArguments(backbone=name).network("cpu")
    assert [given["fused"] for given in asked] == [True, False] * 2
    assert {given["adapt"] for given in asked[::2]} == {(r"blocks\.11\.attn\.qkv",)}


def shuffled(order: np.random.Generator | None) -> TaskPool:
    """Three tasks whose test images come by class, or in another order."""
    rng = np.random.default_rng(1)
    images = rng.integers(256, size=(300, 3, 32, 32), dtype=np.uint8)
    # Classes that can be learned: each brighter than the one before.
    labels = np.arange(300) % 3
    images = (images // 4 + 60 * labels[:, None, None, None]).astype(np.uint8)
    tasks = []
    for i in range(3):
        train, test = np.arange(100 * i, 100 * i + 60), np.arange(100 * i + 60, 100 * i + 100)
        test = test[np.argsort(labels[test], kind="stable")]
        if order is not None:
            test = order.permutation(test)
        parts = [ImagePart([Segment(images, index, ImageTransform())]) for index in (train, test)]
        tasks.append(
            ImageTask(
                name=f"t{i}", train=parts[0], y_train=labels[train], test=parts[1],
                y_test=labels[test], classes=(3 * i, 3 * i + 1, 3 * i + 2),
            )
        )  # fmt: skip
    return TaskPool(name="bright", split="test", tasks=tuple(tasks))


def measured(pool: TaskPool, router: str) -> list[np.ndarray]:
    """Task-incremental curves and class-incremental accuracies of one episode."""
    backbone = PLAN.backbone(
        PLAN.folded(PLAN.initial(3, torch.Generator().manual_seed(2))), entrance=Entrance(),
        adapt=["blocks.1.attn.[qv]"],
    )  # fmt: skip
    env = ContinualEnv(
        pool, backbone, num_tasks=3, cycles=2, head="trained", learning_steps=3, updates=2,
        batch_size=8, support_size=8, learning_rate=0.05,
    )  # fmt: skip
    env.reset(seed=0)
    curves = [env.step(np.array([min(v // 3, 1), 1, 1]))[4]["curve"] for v in range(6)]
    found = env.unwrapped.engine.routed(router)
    env.close()
    return [np.stack(curves), found.accuracy, found.right]


@pytest.mark.parametrize("router", ["cosine", "ncm", "energy", "rls", "oracle"])
def test_order_and_batching_of_test_images_change_no_accuracy(
    router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_class = measured(shuffled(None), router)
    assert by_class[0].max() > 0.5  # something was learned
    mixed = measured(shuffled(np.random.default_rng(7)), router)
    monkeypatch.setattr(data, "_PREFIX_BYTES", 1)  # image by image
    one_by_one = measured(shuffled(None), router)
    for expected, *others in zip(by_class, mixed, one_by_one, strict=True):
        for other in others:
            np.testing.assert_allclose(other, expected, atol=1e-12)


def test_the_documentation_names_every_argument_and_every_other_default() -> None:
    EpisodeConfig.from_arguments(IMAGE_DEFAULTS)
    cifar, five = SplitCIFAR100Env.__doc__ or "", FiveDatasetsEnv.__doc__ or ""
    for field in fields(CifarArguments):
        said = repr(field.default).replace("'", '"')
        assert f"| `{field.name}` | " in cifar, field.name
        assert re.search(rf"\| `{field.name}` \| `?{re.escape(said)}`? \|", cifar), field.name
    own = {field.name for field in fields(FiveArguments)} - {f.name for f in fields(CifarArguments)}
    assert own == {"manifest"}
    assert "`manifest`" in five
    for name, value in IMAGE_DEFAULTS.items():
        said = f"`{name}` {value!r}".replace("'trained'", '`"trained"`')
        assert said in " ".join(cifar.split()), said
        assert said in " ".join(five.split()), said
