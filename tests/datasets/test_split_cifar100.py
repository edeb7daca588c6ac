"""Split-CIFAR-100: explicit orders, disjoint splits, test images touched by split test only."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_file_samples import write_cifar100

from nsr_gym.datasets import cifar100_pool, cifar_files, class_orders, loaded_counts
from nsr_gym.datasets.cifar_files import read_cifar100
from nsr_gym.datasets.manifests import class_order, list_hash, train_order
from nsr_gym.errors import DataError, InvalidValueError, UnknownNameError
from nsr_gym.tasks import TaskPool, check_disjoint

Labelled = Counter[tuple[int, bytes]]


def images_of(pool: TaskPool, part: str) -> Labelled:
    """Return how often each image is in a part of the pool's tasks, with its global label."""
    found: Labelled = Counter()
    for task in pool:
        (segment,) = getattr(task, part).segments
        labels = np.array(task.classes)[getattr(task, f"y_{part}")]
        images = (segment.images[i].tobytes() for i in segment.index)
        found.update(zip(labels.tolist(), images, strict=True))
    return found


def images_in(root: Path, part: str) -> Labelled:
    images = read_cifar100(root, part)
    return Counter(zip(images.y.tolist(), (x.tobytes() for x in images.x), strict=True))


def test_orders_are_permutations_with_their_hashes() -> None:
    orders = class_orders()
    assert set(orders) == {"natural", "seed-1993"} | {
        f"{kind}-{i}" for kind in ("random", "train") for i in range(10)
    }
    for order in orders.values():
        assert sorted(order.classes) == list(range(100))
        text = json.dumps(list(order.classes), separators=(",", ":"))
        assert order.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert len({order.sha256 for order in orders.values()}) == 22


def test_the_named_orders_are_those_of_the_published_code() -> None:
    assert class_order("natural").classes == tuple(range(100))
    legacy = np.random.RandomState(1993).permutation(100)
    assert class_order("seed-1993").classes == tuple(legacy.tolist())
    first = class_order("seed-1993").tasks(10)[0]
    assert first == (68, 56, 78, 8, 23, 84, 90, 65, 74, 76)
    for seed in range(10):
        raw = np.asarray(np.random.PCG64(2 * seed + 1).random_raw(100))
        expected = tuple(np.argsort(raw, kind="stable").tolist())
        assert class_order("random", seed).classes == expected


@pytest.mark.parametrize("num_tasks", [5, 10, 20])
def test_no_shipped_order_of_split_train_has_a_task_of_split_test(num_tasks: int) -> None:
    tasks: dict[str, set[frozenset[int]]] = {"train": set(), "test": set()}
    for name, order in class_orders().items():
        side = "train" if name.startswith("train-") else "test"
        tasks[side] |= {frozenset(classes) for classes in order.tasks(num_tasks)}
    assert len(tasks["train"]) == 10 * num_tasks
    assert not tasks["train"] & tasks["test"]


@pytest.mark.parametrize(("order", "num_tasks"), [("natural", 10), ("seed-1993", 20)])
def test_split_test_has_every_official_image_once_in_the_task_of_its_class(
    cifar_root: Path, order: str, num_tasks: int
) -> None:
    pool = cifar100_pool(order=order, num_tasks=num_tasks, val_per_class=0, root=cifar_root)
    assert len(pool) == num_tasks
    assert not pool.validated
    assert tuple(c for task in pool for c in task.classes) == class_order(order).classes
    for part in ("train", "test"):
        assert images_of(pool, part) == images_in(cifar_root, part)


def test_split_train_touches_no_test_image_and_judges_on_images_it_does_not_train_on(
    cifar_root: Path,
) -> None:
    pool = cifar100_pool("train", grouping=3, val_per_class=0, root=cifar_root)
    train, held = images_of(pool, "train"), images_of(pool, "test")
    assert not set(train) & set(held)
    assert train + held == images_in(cifar_root, "train")
    assert [task.classes for task in pool] == list(train_order(3).tasks(10))
    assert all(task.definition["evaluated_on"] == "validation" for task in pool)
    test = cifar100_pool(val_per_class=0, root=cifar_root)
    check_disjoint(pool, test)
    assert not {t.fingerprint for t in pool} & {t.fingerprint for t in test}


def test_thresholds_for_the_published_tasks_are_chosen_on_held_out_images(
    cifar_root: Path,
) -> None:
    chosen = cifar100_pool(evaluate="validation", val_per_class=0, root=cifar_root)
    assert [task.classes for task in chosen] == [t.classes for t in cifar100_pool(root=cifar_root)]
    together = images_of(chosen, "train") + images_of(chosen, "test")
    assert together == images_in(cifar_root, "train")
    held = images_of(cifar100_pool("train", root=cifar_root), "test")
    assert images_of(chosen, "test") == held  # the same images, however they are grouped


def test_what_is_decided_on_is_neither_trained_on_nor_reported(cifar_root: Path) -> None:
    official = images_in(cifar_root, "train")
    smallest = min(Counter(label for label, _ in official.elements()).values())
    chosen: list[tuple[dict[str, Any], int]] = [
        ({}, 2), ({"evaluate": "validation"}, 2), ({"split": "train", "grouping": 2}, 2),
        ({"order": "seed-1993", "num_tasks": 20}, 1),
    ]  # fmt: skip
    decided = []
    for arguments, count in chosen:
        pool = cifar100_pool(**arguments, val_per_class=count, root=cifar_root)
        plain = cifar100_pool(**arguments, val_per_class=0, root=cifar_root)
        assert pool.validated
        train, judged, val = (images_of(pool, part) for part in ("train", "test", "val"))
        assert not set(train) & set(val)
        assert images_of(plain, "train") == train + val
        assert images_of(plain, "test") == judged
        if arguments.get("evaluate", arguments.get("split")) is None:
            assert train + val == official
        else:
            assert not set(judged) & (set(train) | set(val))
            assert train + val + judged == official
        for task in pool:
            assert task.y_val is not None
            assert np.bincount(task.y_val).tolist() == [count] * task.num_classes
            assert task.definition["val_images"] == len(task.y_val)
        decided.append(val)
    # The same images, however classes are grouped and whatever is judged on.
    assert decided[0] == decided[1] == decided[2]
    assert set(decided[3]) < set(decided[0])
    again = cifar100_pool(val_per_class=2, root=cifar_root)
    assert [t.fingerprint for t in again] != [
        t.fingerprint for t in cifar100_pool(val_per_class=1, root=cifar_root)
    ]
    # As many train as are asked for, where there are enough.
    few = cifar100_pool(train_per_class=smallest - 2, val_per_class=2, root=cifar_root)
    assert {n for task in few for n in np.bincount(task.y_train).tolist()} == {smallest - 2}


def test_by_default_a_task_has_validation_images(cifar_root: Path) -> None:
    pool = cifar100_pool(root=cifar_root)
    counts = Counter(label for label, _ in images_in(cifar_root, "train").elements())
    for task in pool:
        assert task.y_val is not None
        expected = [min(20, counts[label] // 2) for label in task.classes]
        assert np.bincount(task.y_val).tolist() == expected


def test_labels_name_the_outputs_of_the_head(cifar_root: Path) -> None:
    pools = {
        labels: cifar100_pool(order="seed-1993", labels=labels, root=cifar_root)
        for labels in ("task", "domain", "class")
    }
    order = class_order("seed-1993").classes
    own = pools["task"][2]
    assert own.classes == order[20:30]
    assert pools["domain"][2].classes == tuple(range(10))
    np.testing.assert_array_equal(pools["domain"][2].y_test, own.y_test)
    every = pools["class"][2]
    assert every.classes == order
    np.testing.assert_array_equal(every.y_test, own.y_test + 20)


def test_the_accepted_copy_gives_the_same_tasks_as_the_official_files(
    tables: None, tmp_path: Path
) -> None:
    pools = []
    for variant in ("official", "reordered-copy"):
        write_cifar100(tmp_path / variant, cifar_files.CIFAR100, variant)
        pools.append(cifar100_pool(root=tmp_path / variant, evaluate="validation"))
    official, copy = pools
    files = [pool[0].definition["files"][0]["train"]["variant"] for pool in pools]
    assert files == ["official", "reordered-copy"]
    x = [read_cifar100(tmp_path / variant, "train").x for variant in files]
    assert not np.array_equal(*x)
    assert official.fingerprint == copy.fingerprint
    np.testing.assert_array_equal(official[4].x_train, copy[4].x_train)


def test_tasks_share_the_bytes_and_counts_say_what_was_loaded(cifar_root: Path) -> None:
    few: dict[str, Any] = {"train_per_class": 3, "test_per_class": 1, "val_per_class": 2}
    pool = cifar100_pool(root=cifar_root, **few)
    assert pool is cifar100_pool(root=cifar_root, **few)
    assert set(loaded_counts(pool)) == {f"cifar100-natural-10-{i}" for i in range(10)}
    for counts in loaded_counts(pool).values():
        assert counts == {"train": 30, "test": 10, "val": 20, "skipped": 0}
    for task in pool:
        assert np.bincount(task.y_train).tolist() == [3] * 10
        segment = task.train.segments[0]  # type: ignore[attr-defined]
        assert np.shares_memory(segment.images, pool[0].train.segments[0].images)  # type: ignore[attr-defined]
    json.dumps([task.definition for task in pool])
    assert pool[1].definition["order_sha256"] == list_hash(list(range(100)))


def test_several_groupings_follow_one_another_and_sizes_are_as_asked(cifar_root: Path) -> None:
    few: dict[str, Any] = {"train_per_class": 1, "test_per_class": 1, "root": cifar_root}
    pool = cifar100_pool("train", groupings=2, size=48, mean=[0.5] * 3, std=[0.25] * 3, **few)
    assert len(pool) == 20
    assert pool[10].classes == train_order(1).tasks(10)[0]
    assert pool.input_shape == (3, 48, 48)
    x = pool[0].x_train
    assert -2.0 <= x.min() < x.max() <= 2.0
    explicit = cifar100_pool(order=list(reversed(range(100))), **few)
    assert explicit[0].classes == tuple(range(99, 89, -1))
    assert explicit[0].definition["order"] == "explicit"


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"num_tasks": 7}, InvalidValueError, "num_tasks as one of"),
        ({"num_tasks": True}, InvalidValueError, "num_tasks as one of"),
        ({"order": "seed-1994"}, UnknownNameError, "seed-1993"),
        ({"order": "train-0"}, UnknownNameError, "no class order"),
        ({"order": "random"}, InvalidValueError, r"seed in 0\.\.9"),
        ({"order": "random", "seed": 10}, InvalidValueError, r"seed in 0\.\.9"),
        ({"seed": 1}, InvalidValueError, "order 'random' only"),
        ({"order": [0] * 100}, InvalidValueError, "each label 0..99 once"),
        ({"order": 3}, InvalidValueError, "each label 0..99 once"),
        ({"grouping": 1}, InvalidValueError, "split 'train'"),
        ({"split": "train", "order": "seed-1993"}, InvalidValueError, "choose `grouping`"),
        ({"split": "train", "grouping": 10}, InvalidValueError, r"grouping in 0\.\.9"),
        ({"split": "train", "groupings": 11}, InvalidValueError, r"grouping in 0\.\.9"),
        ({"split": "train", "groupings": 0}, InvalidValueError, "groupings to be at least 1"),
        ({"split": "train", "evaluate": "test"}, InvalidValueError, "nothing is decided on test"),
        ({"evaluate": "train"}, UnknownNameError, "no evaluation"),
        ({"labels": "classes"}, UnknownNameError, "'class'"),
        ({"split": "val"}, UnknownNameError, "no split"),
        ({"train_per_class": 0}, InvalidValueError, "per class"),
        ({"val_per_class": -1}, InvalidValueError, "val_per_class as a whole number"),
        ({"val_per_class": None}, InvalidValueError, "val_per_class as a whole number"),
        ({"size": 0}, InvalidValueError, "size"),
        ({"mean": [0.5]}, InvalidValueError, "mean"),
        ({"download": "yes"}, InvalidValueError, "download"),
    ],
)
def test_wrong_arguments_are_refused_before_any_data_is_read(
    tmp_path: Path, wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cifar100_pool(**{"root": tmp_path, **wrong})
    with pytest.raises(DataError, match="is missing"):
        cifar100_pool(root=tmp_path)
