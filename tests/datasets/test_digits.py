"""The digits: disjoint real images, and task families that are the same everywhere."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

from nsr_gym.datasets.digits import (
    FAMILIES,
    MIXED,
    PARTIAL_PIXELS,
    digits_pool,
    mixed_pool,
    mixed_positions,
    pixel_permutation,
    rotation_matrix,
)
from nsr_gym.datasets.digits_parts import digits_parts
from nsr_gym.errors import InvalidValueError, UnknownNameError
from nsr_gym.tasks import check_disjoint


def test_the_parts_are_disjoint_and_are_all_of_the_1797_images() -> None:
    parts = digits_parts()
    sizes = [len(part.y) for part in (parts.base, parts.train, parts.test)]
    assert sizes == [897, 700, 200]
    index = np.concatenate([parts.base.index, parts.train.index, parts.test.index])
    assert sorted(index.tolist()) == list(range(1797))
    images = np.concatenate([parts.base.x, parts.train.x, parts.test.x])
    assert len(np.unique(images, axis=0)) == 1797  # no image hides twice under two indices


def test_the_parts_are_stratified_and_hold_the_images_they_name() -> None:
    parts = digits_parts()
    pixels, labels = load_digits(return_X_y=True)
    for part in (parts.base, parts.train, parts.test):
        np.testing.assert_array_equal(part.x, (pixels[part.index] / 16.0).astype(np.float32))
        np.testing.assert_array_equal(part.y, labels[part.index])
        assert part.x.dtype == np.float32
        assert 0.0 <= part.x.min() < part.x.max() <= 1.0
    assert set(np.bincount(parts.train.y)) == {70}
    assert set(np.bincount(parts.test.y)) == {20}
    assert np.bincount(parts.base.y).min() == 84


def test_the_first_images_of_a_part_are_a_mixture_of_classes() -> None:
    parts = digits_parts()
    for part in (parts.base, parts.train, parts.test):
        assert len(set(part.y[:64].tolist())) == 10


def test_nobody_can_write_to_the_cached_parts() -> None:
    with pytest.raises(ValueError, match="read-only"):
        digits_parts().train.x[0, 0] = 1.0


# A change of these values is a change of the data: every recorded result would lose its meaning.
PINNED = {
    "parts": "6f965f8f8964b5c0",
    "permutation-train": "e9fb7f65497a0ba5",
    "permutation-test": "3598606c562227be",
    "rotation-train": "7b520f093aa214ab",
    "rotation-test": "c9e906878b856ca3",
    "labels-train": "1df19dc2cb362c88",
    "labels-test": "cdd4934649b71006",
    "partial-train": "b3f471adf3e15195",
    "partial-test": "a1b50981728416fc",
}


def test_the_data_is_the_same_on_every_machine() -> None:
    parts = digits_parts()
    digest = hashlib.sha256()
    for part in (parts.base, parts.train, parts.test):
        digest.update(part.index.astype("<i8").tobytes())
    found = {"parts": digest.hexdigest()[:16]}
    for kind in FAMILIES:
        for split in ("train", "test"):
            found[f"{kind}-{split}"] = digits_pool(kind, split, 4).fingerprint[:16]
    assert found == PINNED


def test_no_rotated_pixel_is_near_a_rounding_boundary() -> None:
    # The last bits of a product differ between processors; no pixel may turn on them.
    parts = digits_parts()
    images = np.concatenate([parts.train.x, parts.test.x]).astype(np.float64)
    for split in ("train", "test"):
        for task in digits_pool("rotation", split):
            levels = images @ rotation_matrix(task.definition["angle"]) * 1024.0
            assert np.abs(levels - np.floor(levels) - 0.5).min() > 1e-9


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_train_and_test_pools_share_no_task(kind: str) -> None:
    size = min(50, FAMILIES[kind].limit)
    train, test = digits_pool(kind, "train"), digits_pool(kind, "test")
    assert (len(train), len(test)) == (size, size)
    check_disjoint(train, test)
    definitions = {json.dumps(task.definition) for pool in (train, test) for task in pool}
    assert len(definitions) == 2 * size
    for task in (*train, *test):
        assert task.x_train.shape == (700, 64)
        assert task.x_test.shape == (200, 64)
        assert 0.0 <= task.x_train.min() < task.x_train.max() <= 1.0
        assert task.classes == tuple(range(10))
        assert task.definition["kind"] == kind


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_a_larger_pool_begins_with_the_smaller_one_and_pools_are_cached(kind: str) -> None:
    small, large = digits_pool(kind, "test", 3), digits_pool(kind, "test", 7)
    assert [t.fingerprint for t in large][:3] == [t.fingerprint for t in small]
    assert digits_pool(kind, "test", 3) is small


def test_a_permutation_task_moves_the_pixels_as_its_definition_says() -> None:
    parts = digits_parts()
    for task in digits_pool("permutation", "train", 3):
        pixels = pixel_permutation(task.definition["seed"])
        assert sorted(pixels.tolist()) == list(range(64))
        np.testing.assert_array_equal(task.x_train, parts.train.x[:, pixels])
        np.testing.assert_array_equal(task.x_test, parts.test.x[:, pixels])
        np.testing.assert_array_equal(task.y_test, parts.test.y)


def test_a_partial_task_moves_only_as_many_pixels_as_its_definition_says() -> None:
    parts = digits_parts()
    for i, task in enumerate(digits_pool("partial", "train", 8)):
        pixels = task.definition["pixels"]
        assert pixels == PARTIAL_PIXELS[i % len(PARTIAL_PIXELS)]
        # Every pixel is some old pixel; at most the chosen ones, and most of them, have moved.
        stayed = (task.x_train == parts.train.x).all(axis=0)
        assert 0 < (~stayed).sum() <= pixels
        assert (~stayed).sum() > pixels / 4 or pixels < 8
        np.testing.assert_array_equal(np.sort(task.x_train, axis=1), np.sort(parts.train.x, axis=1))
        np.testing.assert_array_equal(task.y_test, parts.test.y)


def test_the_mixed_pool_is_all_families_one_after_another() -> None:
    for split in ("train", "test"):
        pool, positions = mixed_pool(split), mixed_positions()
        assert list(positions) == list(MIXED)
        assert set(MIXED) == set(FAMILIES)
        assert (pool.name, pool.split) == ("digits-mixed", split)
        assert len(pool) == sum(map(len, positions.values())) == 186
        for kind, places in positions.items():
            own = digits_pool(kind, split)
            assert [pool[i].fingerprint for i in places] == [task.fingerprint for task in own]


def test_a_label_task_renames_the_classes_and_shares_the_images() -> None:
    parts = digits_parts()
    for task in digits_pool("labels", "train", 3):
        labels = np.array(task.definition["labels"])
        assert labels.tolist() != list(range(10))
        np.testing.assert_array_equal(task.y_train, labels[parts.train.y])
        assert np.shares_memory(task.x_train, parts.train.x)


def test_the_rotation_matrix_rotates_counterclockwise() -> None:
    image = digits_parts().test.x[0].reshape(8, 8)
    quarter = (image.reshape(-1) @ rotation_matrix(90.0)).reshape(8, 8)
    np.testing.assert_allclose(quarter, np.rot90(image), atol=1e-12)
    np.testing.assert_allclose(rotation_matrix(0.0), np.eye(64), atol=1e-12)


def test_rotation_tasks_turn_the_image_and_small_pools_cover_the_circle() -> None:
    pools = {split: digits_pool("rotation", split) for split in ("train", "test")}
    angles = {k: [task.definition["angle"] for task in pool] for k, pool in pools.items()}
    assert sorted(angles["train"] + angles["test"]) == [2.5 + 5.0 * i for i in range(72)]
    for order in angles.values():
        gaps = np.diff(np.sort(order[:10]), append=np.sort(order[:10])[0] + 360.0)
        assert gaps.max() < 90.0
    task = pools["train"][1]
    turned = digits_parts().test.x @ rotation_matrix(task.definition["angle"])
    np.testing.assert_allclose(task.x_test, turned, atol=1e-3)


def test_a_kind_split_or_size_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'rotation'"):
        digits_pool("rotations")
    with pytest.raises(UnknownNameError, match="no split 'valid'"):
        digits_pool("rotation", "valid")
    with pytest.raises(InvalidValueError, match=r"'rotation' has 1 to 36 tasks per split, got.*37"):
        digits_pool("rotation", "test", 37)
    for size in (0, 2.0, True):
        with pytest.raises(InvalidValueError, match="1 to 1000"):
            digits_pool("labels", "test", size)  # type: ignore[arg-type]
