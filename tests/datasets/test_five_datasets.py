"""5-Datasets: manifests say order, preprocessing and splits; the offline five say what they are."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_file_samples import random_images, write_letters

from nsr_gym.datasets import five_datasets_pool, five_manifests, image_files, loaded_counts
from nsr_gym.datasets.manifests import halves_grouping
from nsr_gym.errors import DataError, InvalidValueError, UnknownNameError
from nsr_gym.tasks import TaskPool, check_disjoint

OFFICIAL = ("five_datasets/l2p_torch", "five_datasets/l2p_jax", "five_datasets/gpm")


def images_of(pool: TaskPool, part: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for task in pool:
        for segment in getattr(task, part).segments:
            found.update(hashlib.sha256(segment.images[i].data).hexdigest() for i in segment.index)
    return found


@pytest.mark.parametrize(
    ("manifest", "order"),
    [
        ("five_datasets/l2p_torch", ["svhn", "mnist", "cifar10", "notmnist", "fashion_mnist"]),
        ("five_datasets/l2p_jax", ["cifar10", "mnist", "svhn", "notmnist", "fashion_mnist"]),
        ("five_datasets/gpm", ["cifar10", "mnist", "svhn", "fashion_mnist", "notmnist"]),
    ],
)
def test_tasks_are_the_data_sets_in_the_order_of_the_manifest(
    official_root: Path, manifest: str, order: list[str]
) -> None:
    pool = five_datasets_pool(manifest=manifest, size=32, val_per_class=2, root=official_root)
    assert [task.name for task in pool] == [f"{manifest}-{name}" for name in order]
    assert [task.classes for task in pool] == [tuple(range(10 * i, 10 * i + 10)) for i in range(5)]
    counts = {task.split("-")[-1]: c for task, c in loaded_counts(pool).items()}
    assert counts == {
        "cifar10": {"train": 80, "test": 20, "val": 20, "skipped": 0},
        "mnist": {"train": 60, "test": 30, "val": 20, "skipped": 0},
        "svhn": {"train": 70, "test": 20, "val": 20, "skipped": 0},
        "fashion_mnist": {"train": 60, "test": 30, "val": 20, "skipped": 0},
        "notmnist": {"train": 60, "test": 20, "val": 20, "skipped": 2},
    }


def test_l2p_jax_deals_notmnist_anew_and_the_others_keep_its_folders(official_root: Path) -> None:
    tests = {
        name: images_of(
            TaskPool(name="p", split="test", tasks=(five(name, official_root)["notmnist"],)), "test"
        )
        for name in OFFICIAL
    }
    folder = [random_images(400 + i, 2, (1, 28, 28)) for i in range(10)]
    official = {hashlib.sha256(image.data).hexdigest() for image in np.concatenate(folder)}
    assert set(tests["five_datasets/l2p_torch"]) == set(tests["five_datasets/gpm"]) == official
    assert set(tests["five_datasets/l2p_jax"]) != official


def five(manifest: str, root: Path, **arguments: Any) -> dict[str, Any]:
    pool = five_datasets_pool(manifest=manifest, root=root, **arguments)
    return {task.definition["datasets"][0]: task for task in pool}


def test_preprocessing_is_that_of_the_manifest(official_root: Path) -> None:
    l2p = five("five_datasets/l2p_torch", official_root, train_per_class=1, test_per_class=1)
    assert l2p["mnist"].input_shape == (3, 224, 224)
    x = l2p["mnist"].x_test
    assert 0.0 <= x.min() < x.max() <= 1.0
    np.testing.assert_array_equal(x[:, 0], x[:, 2])
    gpm = five("five_datasets/gpm", official_root)
    grey = gpm["notmnist"].x_test
    assert grey.shape == (20, 3, 32, 32)
    black = np.float32(-0.4254) / np.float32(0.4501)  # padded first, normalised then
    np.testing.assert_allclose(grey[:, :, :2], black, rtol=1e-6)
    np.testing.assert_allclose(grey[:, :, :, -2:], black, rtol=1e-6)
    colour = gpm["svhn"]
    segment = colour.train.segments[0]
    raw = segment.images[segment.index] / np.float32(255)
    mean, std = np.array([0.4377, 0.4438, 0.4728]), np.array([0.198, 0.201, 0.197])
    expected = (raw - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(colour.x_train, expected, atol=1e-5)


def test_the_original_notmnist_is_dealt_where_there_are_no_folders(official_root: Path) -> None:
    shutil.rmtree(official_root / "notMNIST")
    write_letters(official_root, image_files.NOTMNIST, "all", 20, 900)
    letters = five("five_datasets/gpm", official_root, val_per_class=3)["notmnist"]
    assert [len(letters.y_train), len(letters.y_test), len(letters.y_val)] == [150, 20, 30]
    assert letters.definition["files"][0]["train"]["variant"] == "small"


def test_a_missing_data_set_names_itself_and_how_to_get_it(official_root: Path) -> None:
    shutil.rmtree(official_root / "FashionMNIST")
    with pytest.raises(DataError, match=r"FashionMNIST.*fetch\('fashion-mnist'"):
        five_datasets_pool(root=official_root)


def test_notmnist_names_both_its_folders_and_has_no_download(official_root: Path) -> None:
    shutil.rmtree(official_root / "notMNIST")
    with pytest.raises(DataError, match=r"notMNIST is missing.*notMNIST_small"):
        five_datasets_pool(root=official_root)
    with pytest.raises(DataError, match=r"notMNIST_small.*has no download in torchvision"):
        five_datasets_pool(root=official_root, download=True)


def test_the_offline_five_say_that_gtsrb_stands_in_for_svhn(offline_root: Path) -> None:
    pool = five_datasets_pool(manifest="offline5", root=offline_root)
    names = [task.definition["datasets"][0] for task in pool]
    assert names == ["gtsrb10", "mnist", "cifar10", "notmnist", "fashion_mnist"]
    for task in pool:
        assert "GTSRB" in task.definition["source"]
        assert "no results on 5-Datasets" in task.definition["source"]
        assert task.definition["kind"] == "offline5"
        assert task.name.startswith("offline5-")
        assert np.bincount(task.y_test).min() == np.bincount(task.y_test).max()
    assert pool.input_shape == (3, 32, 32)
    assert not pool[1].x_test[:, :, :2].any()  # padded
    json.dumps([task.definition for task in pool])


@pytest.mark.parametrize("grouping", [0, 7])
def test_split_train_pairs_halves_and_touches_no_test_image(
    offline_root: Path, grouping: int
) -> None:
    arguments: dict[str, Any] = {"manifest": "offline5", "root": offline_root}
    arguments["val_per_class"] = 2
    test = five_datasets_pool(**arguments)
    train = five_datasets_pool("train", grouping=grouping, **arguments)
    check_disjoint(train, test)
    seen = images_of(train, "train") + images_of(train, "test") + images_of(train, "val")
    assert seen == images_of(test, "train") + images_of(test, "val")
    assert images_of(train, "val") == images_of(test, "val")
    assert images_of(train, "val").total() == 2 * 50
    for one, other in (("train", "test"), ("train", "val"), ("test", "val")):
        assert not set(images_of(train, one)) & set(images_of(train, other))
    assert not set(seen) & set(images_of(test, "test"))
    wholes = {frozenset(task.classes) for task in test}
    for task in train:
        assert len({c // 10 for c in task.classes}) == 2
        assert frozenset(task.classes) not in wholes
        assert task.definition["evaluated_on"] == "validation"
        assert task.num_classes == 10
    assert sorted(c for task in train for c in task.classes) == list(range(50))


def test_shipped_groupings_are_ten_different_ones() -> None:
    groupings = [halves_grouping(i) for i in range(10)]
    assert len({grouping.tasks for grouping in groupings}) == 10
    for grouping in groupings:
        for first, second in grouping.tasks:
            assert first[0] != second[0]
            assert (len(set(first[1])), len(set(second[1]))) == (5, 5)


def test_labels_name_the_outputs_of_the_head(offline_root: Path) -> None:
    arguments: dict[str, Any] = {"manifest": "offline5", "root": offline_root}
    own = five_datasets_pool("train", grouping=1, **arguments)
    domain = five_datasets_pool("train", grouping=1, labels="domain", **arguments)
    every = five_datasets_pool("train", grouping=1, labels="class", **arguments)
    for a, b, c in zip(own, domain, every, strict=True):
        assert b.classes == tuple(range(10))
        assert c.classes == tuple(range(50))
        np.testing.assert_array_equal(a.y_train, b.y_train)
        np.testing.assert_array_equal(np.array(a.classes)[a.y_train], c.y_train)


def test_manifests_hold_out_their_own_share_and_state_their_source() -> None:
    manifests = five_manifests()
    assert set(manifests) == {*OFFICIAL, "offline5"}
    assert manifests["five_datasets/gpm"].validation == 0.05
    assert manifests["five_datasets/l2p_jax"].notmnist_test == 0.2
    for manifest in manifests.values():
        assert len(set(manifest.datasets)) == 5
        assert manifest.source
    assert set(manifests["five_datasets/gpm"].normalise) == set(
        manifests["five_datasets/gpm"].datasets
    )


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"manifest": "l2p_torch"}, UnknownNameError, "five_datasets/l2p_torch"),
        ({"grouping": 2}, InvalidValueError, "split 'train'"),
        ({"split": "train", "grouping": 10}, InvalidValueError, r"grouping in 0\.\.9"),
        ({"split": "train", "evaluate": "test"}, InvalidValueError, "nothing is decided on test"),
        ({"labels": "x"}, UnknownNameError, "kind of labels"),
        ({"size": -1}, InvalidValueError, "size"),
        ({"test_per_class": 1.5}, InvalidValueError, "per class"),
        ({"val_per_class": 1.5}, InvalidValueError, "val_per_class"),
    ],
)
def test_wrong_arguments_are_refused_before_any_data_is_read(
    tmp_path: Path, wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        five_datasets_pool(**{"root": tmp_path, **wrong})
