"""Images are read and prepared in pieces, kept on disk where asked, and come out the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nsr_gym.backbones.entrance import Entrance
from nsr_gym.backbones.image_models import ViTPlan
from nsr_gym.backbones.vit import ViTBackbone
from nsr_gym.datasets.cache import FeatureCache
from nsr_gym.datasets.image_tasks import ImagePart, ImageTask, ImageTransform, Segment
from nsr_gym.errors import DataError, InvalidValueError, UnknownNameError
from nsr_gym.learning import prefixes
from nsr_gym.learning.data import Images, TaskData
from nsr_gym.tasks import Task, TaskPool

SIZES = ((23, 9), (11, 4), (17, 9))
"""Training and test images of three tasks."""


def network(seed: int = 0, scale: float = 1.0, adapt: str = r"blocks\.1\.attn\.q") -> ViTBackbone:
    plan = ViTPlan(side=8, patch=4, width=12, depth=2, heads=2, hidden=16)
    weights = plan.folded(plan.initial(3, torch.Generator().manual_seed(seed)))
    weights["patch.weight"] *= scale
    return plan.backbone(weights, entrance=Entrance(), adapt=[adapt])


def image_pool(sizes: tuple[tuple[int, int], ...] = SIZES) -> TaskPool:
    rng = np.random.default_rng(5)
    bytes_ = rng.integers(256, size=(200, 3, 8, 8), dtype=np.uint8)
    tasks = []
    for i, counts in enumerate(sizes):
        parts = [
            ImagePart([Segment(bytes_, rng.permutation(200)[:n], ImageTransform(size=8))])
            for n in counts
        ]
        y_train, y_test = (rng.integers(3, size=n) for n in counts)
        tasks.append(
            ImageTask(
                name=f"t{i}", train=parts[0], y_train=y_train, test=parts[1], y_test=y_test,
                classes=(0, 1, 2),
            )
        )  # fmt: skip
    return TaskPool(name="images", split="test", tasks=tuple(tasks))


def plain(pool: TaskPool) -> TaskPool:
    """The same numbers as arrays in memory."""
    tasks = (
        Task(
            name=task.name, x_train=task.x_train, y_train=task.y_train, x_test=task.x_test,
            y_test=task.y_test, classes=task.classes,
        )
        for task in pool
    )  # fmt: skip
    return TaskPool(name=pool.name, split=pool.split, tasks=tuple(tasks))


def everything(data: TaskData) -> list[Images]:
    """Images asked for in every way: of one task or several, repeated, from all tasks mixed."""
    index = torch.tensor([[10, 0, 3, 3], [9, 10, 1, 2]])
    mixed = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    return [
        data.train(torch.tensor([2, 0]), index),
        data.train(torch.tensor([1]), index[:1]),
        data.train(mixed, index),
        data.test(torch.tensor([1])),
        data.test(torch.tensor([2, 1, 2])),
    ]


def same(a: list[Images], b: list[Images], tolerance: float = 0.0) -> None:
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert (one.valid is None) == (other.valid is None)
        for x, y in zip(one.prefix, other.prefix, strict=True):
            assert x.dtype == y.dtype == torch.float32
            torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of eight images, read four at a time, so that tasks have several."""
    numbers = 4 * 12 * 4  # tokens x width x bytes
    monkeypatch.setattr(prefixes, "_READ", 4)
    monkeypatch.setattr(prefixes, "_PIECE_BYTES", 8 * numbers)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the frozen part was given."""
    calls: list[int] = []
    before = ViTBackbone.prefix

    def counted(self: ViTBackbone, x: Tensor) -> Any:
        calls.append(len(x))
        return before(self, x)

    monkeypatch.setattr(ViTBackbone, "prefix", counted)
    return calls


@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_images_in_pieces_are_those_of_arrays_in_memory(
    kept: str, small_pieces: None, tmp_path: Path
) -> None:
    pool, backbone = image_pool(), network()
    cache = FeatureCache(tmp_path) if kept == "disk" else None
    expected = everything(TaskData(plain(pool), backbone))
    same(everything(TaskData(pool, backbone, cache=cache)), expected, tolerance=1e-6)
    if kept == "disk":
        same(everything(TaskData(plain(pool), backbone, cache=cache)), expected, tolerance=1e-6)


def validated(pool: TaskPool) -> TaskPool:
    """The same tasks, whose test images in reverse are validation images."""
    tasks = []
    for task in pool:
        assert isinstance(task, ImageTask)
        (segment,) = task.test.segments
        val = ImagePart([replace(segment, index=segment.index[::-1].copy())])
        tasks.append(
            ImageTask(
                name=task.name, train=task.train, y_train=task.y_train, test=task.test,
                y_test=task.y_test, classes=task.classes, val=val, y_val=task.y_test[::-1].copy(),
            )
        )  # fmt: skip
    return TaskPool(name=pool.name, split=pool.split, tasks=tuple(tasks))


@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_validation_images_are_kept_like_the_others(
    kept: str, small_pieces: None, prepared: list[int], tmp_path: Path
) -> None:
    pool, backbone = validated(image_pool()), network()
    cache = FeatureCache(tmp_path) if kept == "disk" else None
    data = TaskData(pool, backbone, cache=cache)
    images, test = data.validation(torch.tensor([2])), data.test(torch.tensor([2]))
    assert torch.equal(images.labels, test.labels.flip(1))
    for one, other in zip(images.prefix, test.prefix, strict=True):
        torch.testing.assert_close(one, other.flip(1), atol=1e-6, rtol=1e-6)
    prepared.clear()
    TaskData(pool, backbone, cache=cache).validation(torch.tensor([2]))
    # One image for the shapes of each part; on disk lies the rest.
    assert sum(prepared) == 3 + (17 + 9 + 9 if kept == "memory" else 0)


def test_disk_and_memory_agree_to_the_last_bit(small_pieces: None, tmp_path: Path) -> None:
    pool, backbone = image_pool(), network()
    in_memory = everything(TaskData(pool, backbone))
    for _ in range(2):  # written, then read
        same(everything(TaskData(pool, backbone, cache=FeatureCache(tmp_path))), in_memory)


def test_only_a_few_images_are_read_at_once_and_only_of_tasks_that_are_visited(
    small_pieces: None, prepared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    spans: list[int] = []
    read = ImagePart.read

    def watched(self: ImagePart, start: int = 0, stop: int | None = None) -> Any:
        assert stop is not None
        spans.append(stop - start)
        return read(self, start, stop)

    monkeypatch.setattr(ImagePart, "read", watched)
    data = TaskData(image_pool(), network())
    prepared.clear()  # one image of zeros tells the shapes
    assert spans == []
    data.test(torch.tensor([1, 1]))
    data.train(torch.tensor([1]), torch.zeros(1, 2, dtype=torch.int64))
    assert sum(spans) == sum(prepared) == 11 + 4
    assert max(spans) == max(prepared) == 4


def test_what_is_on_disk_is_not_computed_again(
    small_pieces: None, prepared: list[int], tmp_path: Path
) -> None:
    pool, backbone = image_pool(), network()
    everything(TaskData(pool, backbone, cache=FeatureCache(tmp_path)))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2 * (3 + 2 + 2 + 1 + 3 + 2)  # numbers and a card for each piece
    prepared.clear()
    everything(TaskData(pool, backbone, cache=FeatureCache(tmp_path)))
    assert sum(prepared) == 2  # one image for the shapes of each part
    assert sorted(tmp_path.iterdir()) == files


def test_other_weights_sites_images_and_precision_have_features_of_their_own(
    prepared: list[int], tmp_path: Path
) -> None:
    pool = image_pool()
    for variant in (
        {"backbone": network(seed=1)},
        {"backbone": network(adapt=r"blocks\.1\.mlp\.fc1")},
        {"pool": replace_transform(pool)},
        {"prefix_dtype": "float16"},
    ):
        cache = FeatureCache(tmp_path)
        TaskData(pool, network(), cache=cache).fill(torch.tensor([1]))
        prepared.clear()
        chosen: dict[str, Any] = {"pool": pool, "backbone": network(), "cache": cache} | variant
        TaskData(**chosen).fill(torch.tensor([1]))
        assert sum(prepared) == 2 + 11 + 4, variant


def replace_transform(pool: TaskPool) -> TaskPool:
    """The same images, less a mean."""
    tasks = []
    for task in pool:
        assert isinstance(task, ImageTask)
        parts = [
            ImagePart([replace(s, transform=ImageTransform(size=8, mean=(0.5, 0.5, 0.5)))
                       for s in part.segments])
            for part in (task.train, task.test)
        ]  # fmt: skip
        tasks.append(
            ImageTask(
                name=task.name, train=parts[0], y_train=task.y_train, test=parts[1],
                y_test=task.y_test, classes=task.classes,
            )
        )  # fmt: skip
    return TaskPool(name=pool.name, split=pool.split, tasks=tuple(tasks))


def test_a_damaged_piece_is_refused_and_computed_anew(tmp_path: Path) -> None:
    pool, backbone = image_pool(), network()
    expected = everything(TaskData(pool, backbone, cache=FeatureCache(tmp_path)))
    victim = max(tmp_path.glob("*.npy"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.warns(RuntimeWarning, match="computed anew"):
        again = everything(TaskData(pool, backbone, cache=FeatureCache(tmp_path)))
    same(again, expected)


def test_half_precision_takes_half_the_room_and_rounds_to_eleven_bits(tmp_path: Path) -> None:
    pool, backbone = image_pool(), network()
    sizes = []
    for dtype in ("float32", "float16"):
        folder = tmp_path / dtype
        data = TaskData(pool, backbone, cache=FeatureCache(folder), prefix_dtype=dtype)
        same(everything(data), everything(TaskData(pool, backbone)), tolerance=2**-10)
        sizes.append(sum(np.load(path).nbytes for path in folder.glob("*.npy")))
    assert sizes[0] == 2 * sizes[1] > 0


def test_numbers_beyond_half_precision_are_refused() -> None:
    data = TaskData(image_pool(), network(scale=1e6), prefix_dtype="float16")
    with pytest.raises(InvalidValueError, match=r"beyond 65504.*prefix_dtype='float32'"):
        data.fill(torch.tensor([0]))


def test_another_precision_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="float16"):
        TaskData(image_pool(), network(), prefix_dtype="float61")


def test_a_full_disk_is_named_with_what_can_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FeatureCache, "put", full)
    data = TaskData(image_pool(), network(), cache=FeatureCache(tmp_path))
    with pytest.raises(DataError, match=rf"{tmp_path}.*No space left.*cache=False"):
        data.fill(torch.tensor([0]))


def test_a_task_alone_is_not_padded_to_the_largest_of_the_pool() -> None:
    data = TaskData(image_pool(), network())
    alone, beside = data.test(torch.tensor([1])), data.test(torch.tensor([1, 0]))
    assert alone.labels.shape == (1, 4)
    assert alone.valid is None
    assert beside.labels.shape == (2, 9)
    assert beside.valid is not None
    assert beside.valid.sum(dim=1).tolist() == [4, 9]
    assert torch.equal(beside.prefix[0][0, :4], alone.prefix[0][0])
    assert not beside.prefix[0][0, 4:].any()
