"""Image tasks keep bytes, make the numbers of published pipelines, and know their content."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from image_file_samples import random_images

from nsr_gym.datasets.image_tasks import ImagePart, ImageTask, ImageTransform, Segment
from nsr_gym.datasets.selecting import Part, Selection, deal_parts
from nsr_gym.datasets.sources import LabelledImages
from nsr_gym.datasets.vision import load_torchvision
from nsr_gym.errors import DataError, InvalidValueError
from nsr_gym.tasks import Task, TaskPool

PLAIN = ImageTransform()
COLOUR = random_images(1, 12)
GREY = random_images(2, 9, (1, 28, 28))
PARTS: tuple[Part, ...] = ("train", "held", "val")
PLAIN_HASH = "27386071b736c0dcfab3154c27da52e01297b36f07c84d13774e2111b7753910"


def part(*which: int, images: Any = COLOUR, transform: ImageTransform = PLAIN) -> ImagePart:
    return ImagePart([Segment(images, np.array(which, dtype=np.int64), transform)])


def task(**changes: Any) -> ImageTask:
    arguments: dict[str, Any] = {
        "name": "t",
        "train": part(0, 3, 5),
        "y_train": np.array([0, 1, 1]),
        "test": part(2),
        "y_test": np.array([0]),
        "classes": (7, 9),
    }
    return ImageTask(**{**arguments, **changes})


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize(
    "made",
    [
        ImageTransform(size=224, resize=256),  # l2p-pytorch, HiDe-Prompt
        ImageTransform(size=32, pad=2, mean=(0.1, 0.1, 0.1), std=(0.2752, 0.2752, 0.2752)),
        ImageTransform(size=35, resize=38, mean=(0.4, 0.5, 0.6)),
    ],
)
def test_numbers_are_those_of_the_published_pipeline_in_torchvision(
    images: Any, made: ImageTransform
) -> None:
    t = load_torchvision().transforms
    side = made.resize or made.size
    steps = [
        t.Pad(made.pad),
        t.Grayscale(3) if images.shape[1] == 1 else t.Lambda(lambda image: image),
        t.Resize((side, side), interpolation=t.InterpolationMode.BICUBIC),
        t.CenterCrop(made.size),
        t.ToTensor(),
        t.Normalize(made.mean or (0.0,) * 3, made.std or (1.0,) * 3),
    ]
    # Without resizing, torchvision's Resize is the identity, and so is ours.
    from PIL import Image

    pictures = [
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        for image in images
    ]
    expected = np.stack([t.Compose(steps)(picture).numpy() for picture in pictures])
    np.testing.assert_array_equal(made(images), expected)


def test_a_transform_with_impossible_numbers_is_refused() -> None:
    for wrong in (
        {"size": 0},
        {"size": 224, "resize": 200},
        {"pad": -1},
        {"size": 32.0},
        {"mean": (0.5,)},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (0.5, float("nan"), 0.5)},
    ):
        with pytest.raises(InvalidValueError, match="Expected"):
            ImageTransform(**wrong)  # type: ignore[arg-type]


def test_pieces_of_a_part_are_what_the_whole_holds_across_data_sets() -> None:
    padded = ImageTransform(pad=2, mean=(0.1, 0.2, 0.3))
    mixed = ImagePart(
        [Segment(COLOUR, np.array([4, 1, 1]), PLAIN), Segment(GREY, np.array([8, 0]), padded)]
    )
    whole = mixed.read()
    assert whole.shape == mixed.shape == (5, 3, 32, 32)
    np.testing.assert_array_equal(whole[1], COLOUR[1].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(whole[3], padded(GREY[8:9])[0])
    for start in range(6):
        for stop in range(start, 7):
            np.testing.assert_array_equal(mixed.read(start, stop), whole[start:stop])
    with pytest.raises(DataError, match="one size"):
        ImagePart([*mixed.segments, Segment(GREY, np.array([0]), ImageTransform(size=28))])


def test_an_image_task_is_a_task_whose_numbers_are_made_anew_and_cannot_be_written() -> None:
    lazy = task()
    plain = Task(
        name="t",
        x_train=COLOUR[[0, 3, 5]] / np.float32(255),
        y_train=np.array([0, 1, 1]),
        x_test=COLOUR[[2]] / np.float32(255),
        y_test=np.array([0]),
        classes=(7, 9),
    )
    for name in ("x_train", "y_train", "x_test", "y_test"):
        mine, its = getattr(lazy, name), getattr(plain, name)
        np.testing.assert_array_equal(mine, its)
        assert mine.dtype == its.dtype
        assert not mine.flags.writeable
    assert (lazy.classes, lazy.num_classes) == (plain.classes, plain.num_classes)
    assert lazy.input_shape == plain.input_shape
    assert lazy.x_train is not lazy.x_train
    assert TaskPool(name="p", split="test", tasks=(lazy,)).input_shape == (3, 32, 32)


def test_the_content_hash_sees_every_byte_label_class_and_transform_and_nothing_else() -> None:
    copy = COLOUR.copy()
    copy[3, 1, 4, 4] ^= 1
    other = ImageTransform(mean=(0.0, 0.0, 0.1))
    first = task().content_hash
    changed = [
        task(train=part(0, 3, 5, images=copy)),
        task(train=part(3, 0, 5)),
        task(train=part(0, 3, 5, transform=other)),
        task(test=part(3)),
        task(y_train=np.array([0, 1, 0])),
        task(y_test=np.array([1])),
        task(classes=(7, 8)),
    ]
    assert len({first, *(one.content_hash for one in changed)}) == 8
    assert task(name="other").content_hash == first
    assert task(name="other").fingerprint != task().fingerprint
    moved = COLOUR[::-1].copy()  # the same images elsewhere
    elsewhere = task(train=part(11, 8, 6, images=moved), test=part(9, images=moved))
    assert elsewhere.content_hash == first


def test_a_task_survives_being_sent_to_a_worker_and_stays_unwritable() -> None:
    again = pickle.loads(pickle.dumps(task()))
    assert again.fingerprint == task().fingerprint
    assert not again.y_train.flags.writeable
    assert not again.train.segments[0].images.flags.writeable


@pytest.mark.parametrize(
    "wrong",
    [
        {"y_train": np.array([0, 1])},
        {"y_test": np.array([2])},
        {"y_test": np.array([-1])},
        {"classes": (7, 7)},
        {"test": part(0, transform=ImageTransform(size=16))},
        {"val": part(1), "y_val": np.array([2])},
        {"val": part(1), "y_val": np.array([0, 1])},
        {"val": part(0, transform=ImageTransform(size=16)), "y_val": np.array([0])},
        {"val": part(1)},
        {"y_val": np.array([0])},
    ],
)
def test_labels_and_images_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="Task 't': expected"):
        task(**wrong)


def test_a_validation_part_is_content_and_none_leaves_the_hash_as_it_was() -> None:
    plain, validated = task(), task(val=part(1, 4), y_val=np.array([1, 0]))
    assert (plain.x_val, plain.y_val, plain.validated) == (None, None, False)
    assert validated.validated
    assert validated.x_val is not None
    np.testing.assert_array_equal(validated.x_val, part(1, 4).read())
    others = [task(val=part(4, 1), y_val=np.array([1, 0])), task(val=part(1), y_val=np.array([1]))]
    hashes = {one.content_hash for one in (plain, validated, *others)}
    assert len(hashes) == 4
    # Of tasks written down before there were validation parts.
    assert plain.content_hash == task(val=None, y_val=None).content_hash
    assert plain.content_hash == PLAIN_HASH
    again = pickle.loads(pickle.dumps(validated))
    assert again.content_hash == validated.content_hash
    assert not again.y_val.flags.writeable
    assert not again.val.segments[0].images.flags.writeable


def labelled(x: Any, y: Any) -> LabelledImages:
    return LabelledImages(np.array(x), np.array(y, dtype=np.int64))


def test_held_out_images_are_a_share_of_each_class_and_the_rest_trains() -> None:
    y = np.arange(600) % 3
    selection = Selection(labelled(random_images(3, 600, (1, 4, 4)), y))
    for label in range(3):
        held = selection.of_class(label, "held", share=0.1)
        rest = selection.of_class(label, share=0.1)
        assert (len(held), len(rest)) == (20, 180)
        assert sorted([*held, *rest]) == np.flatnonzero(y == label).tolist()
    index, place = selection.of_classes([2, 0], share=0.1)
    assert len(index) == 360
    np.testing.assert_array_equal(np.array([2, 0])[place], y[index])
    # Mixed: the first images are a fair sample of the classes.
    assert 30 < place[:100].sum() < 70


def test_the_order_of_the_files_does_not_matter() -> None:
    x, y = random_images(4, 60, (1, 4, 4)), np.arange(60) % 2
    shuffled = np.random.default_rng(0).permutation(60)
    one, other = Selection(labelled(x, y)), Selection(labelled(x[shuffled], y[shuffled]))
    for which in PARTS:
        a, _ = one.of_classes([0, 1], which, share=0.25, val=6, per_class=5)
        b, _ = other.of_classes([0, 1], which, share=0.25, val=6, per_class=5)
        np.testing.assert_array_equal(x[a], x[shuffled][b])
        assert len(a) == 10


def test_equal_images_of_a_class_are_never_on_both_sides() -> None:
    x = np.repeat(random_images(5, 8, (1, 4, 4)), 3, axis=0)
    selection = Selection(labelled(x, np.zeros(24)))
    for count in range(1, 24):
        if count > 21:
            with pytest.raises(DataError, match="no image is left to train on"):
                selection.of_class(0, share=count / 24)
            continue
        held = {x[i].tobytes() for i in selection.of_class(0, "held", share=count / 24)}
        rest = {x[i].tobytes() for i in selection.of_class(0, share=count / 24)}
        assert not held & rest
        assert len(held) + len(rest) == 8


def test_validation_images_are_taken_from_what_is_not_held_out_and_leave_half_of_it() -> None:
    x = random_images(7, 30, (1, 4, 4))
    selection = Selection(labelled(x, np.zeros(30)))
    for share, val, expected in (
        (0.0, 0, None), (0.0, 4, (26, 0, 4)), (0.2, 4, (20, 6, 4)), (0.2, 20, (12, 6, 12)),
    ):  # fmt: skip
        if expected is None:
            with pytest.raises(DataError, match="no image is left to decide on of 30"):
                selection.of_class(0, "val", share=share, val=val)
            continue
        sides = [
            selection.of_class(0, which, share=share, val=val).tolist()
            for which in PARTS
            if which != "held" or share
        ]
        assert tuple(map(len, sides)) == tuple(n for n in expected if n)
        assert sorted(i for side in sides for i in side) == list(range(30))
    # The same images decide, whatever is held out to judge on.
    both = [set(selection.of_class(0, "val", share=s, val=4).tolist()) for s in (0.0, 0.2)]
    assert both[0] == both[1]
    copies = Selection(labelled(np.repeat(x[:8], 3, axis=0), np.zeros(24)))
    for val in range(1, 13):
        sides = [{copies.images.x[i].tobytes() for i in copies.of_class(0, which, val=val)}
                 for which in ("train", "val")]  # fmt: skip
        assert not sides[0] & sides[1]
        assert len(sides[0] | sides[1]) == 8


def test_a_class_too_small_to_be_divided_is_refused() -> None:
    selection = Selection(labelled(random_images(8, 3, (1, 4, 4)), [0, 1, 1]))
    assert [len(selection.of_class(1, which, val=5)) for which in ("train", "val")] == [1, 1]
    with pytest.raises(DataError, match="Class 0: no image is left to train on of 1"):
        selection.of_class(0, val=5)


def test_a_set_without_parts_is_dealt_by_class_and_content() -> None:
    x, y = random_images(6, 100, (1, 4, 4)), np.arange(100) % 10
    train, test = deal_parts(labelled(x, y), 0.2)
    assert np.bincount(train.y).tolist() == [8] * 10
    assert np.bincount(test.y).tolist() == [2] * 10
    assert {i.tobytes() for i in [*train.x, *test.x]} == {i.tobytes() for i in x}
    with pytest.raises(InvalidValueError, match="per class"):
        Selection(train).of_classes([0], per_class=0)
