"""The augmented triplet loss against a double loop, and prototypes against plain means."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.learning.prototypes import Known, Prototypes, class_means, nearest_class
from nsr_gym.learning.triplet import augmented_triplet

EPISODES, IMAGES, WIDTH, KNOWN = 3, 9, 6, 5


def draw(seed: int = 0) -> tuple[Tensor, Tensor, Known]:
    """Features, labels of three classes, and prototypes of four of which some are missing."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(EPISODES, IMAGES, WIDTH, generator=g, dtype=torch.float64) + 0.5
    labels = torch.randint(3, (EPISODES, IMAGES), generator=g)
    known = Known(
        torch.randn(EPISODES, KNOWN, WIDTH, generator=g, dtype=torch.float64) * 4 + 2,
        torch.randint(4, (EPISODES, KNOWN), generator=g),
        torch.rand(EPISODES, KNOWN, generator=g) < 0.7,
    )
    return features, labels, known


def by_double_loop(
    features: Tensor, labels: Tensor, margin: float, known: Known | None, episode: int
) -> float:
    unit = functional.normalize(features[episode], dim=-1).tolist()
    said = labels[episode].tolist()
    total = 0.0
    for i, anchor in enumerate(unit):
        same, other = [], []
        for j, image in enumerate(unit):
            (same if said[j] == said[i] else other).append(math.dist(anchor, image))
        positive = max(same)
        negative = min(other) if other else positive + margin
        if known is not None:
            for j, value in enumerate(known.values[episode]):
                if known.valid[episode, j] and int(known.classes[episode, j]) != said[i]:
                    stored = (value / value.norm()).tolist()
                    negative = min(negative, math.dist(anchor, stored))
        total += max(0.0, positive - negative + margin)
    return total / len(unit)


@pytest.mark.parametrize("margin", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("with_known", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_that_of_a_double_loop(margin: float, with_known: bool, seed: int) -> None:
    """Acceptance check 4.9.4, with an episode of one class, and with an image alone in its."""
    features, labels, drawn = draw(seed)
    labels[0] = 1
    labels[1, 0] = 3
    known = drawn if with_known else None
    found = augmented_triplet(features, labels, margin, known)
    expected = [by_double_loop(features, labels, margin, known, i) for i in range(EPISODES)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert found[2] > 0


def test_prototypes_of_other_classes_push_and_those_of_the_own_class_do_not() -> None:
    features, labels, _ = draw()
    labels[:] = 1
    values = features[:, :1] * 2.0  # right on an image, of another length
    valid = torch.ones(EPISODES, 1, dtype=torch.bool)
    losses = [
        augmented_triplet(
            features, labels, 0.5, Known(values, torch.full((EPISODES, 1), c), valid & use)
        )
        for c, use in ((1, True), (0, True), (0, False))
    ]
    assert not losses[0].any()
    assert (losses[1] > 0.05).all()
    assert not losses[2].any()


@pytest.mark.parametrize("margin", [0.3, 2.0])
def test_gradients_are_those_of_finite_differences(margin: float) -> None:
    features, labels, known = draw(5)
    features.requires_grad_()
    assert augmented_triplet(features, labels, margin, known).min() > 0
    assert torch.autograd.gradcheck(
        lambda x: augmented_triplet(x, labels, margin, known), (features,)
    )


def test_the_same_image_twice_has_a_finite_gradient() -> None:
    features, labels, known = draw()
    features[:, 1] = features[:, 0]
    labels[:, 1] = labels[:, 0]
    labels[2] = 1  # and an episode of one class
    features.requires_grad_()
    augmented_triplet(features, labels, 1.0, known).sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert features.grad.any()


def test_an_episode_has_the_same_loss_alone() -> None:
    features, labels, known = draw()
    together = augmented_triplet(features, labels, 1.0, known)
    for i in range(EPISODES):
        row = torch.tensor([i])
        alone = augmented_triplet(features[row], labels[row], 1.0, known.take(row))
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-13)


def test_class_means_leave_padding_out_and_say_which_classes_there_are() -> None:
    features, labels, _ = draw()
    labels[1] = 2
    weights = torch.ones(EPISODES, IMAGES).double()
    weights[:, 6:] = 0
    means = class_means(features, labels, weights, 4)
    for i in range(EPISODES):
        for c in range(4):
            chosen = features[i, :6][labels[i, :6] == c]
            assert bool(means.valid[i, c]) == bool(len(chosen))
            if len(chosen):
                torch.testing.assert_close(means.values[i, c], chosen.mean(dim=0))
    assert means.valid[1].tolist() == [False, False, True, False]


def test_the_nearest_prototype_on_the_sphere_names_the_class() -> None:
    features, _, known = draw()
    found = nearest_class(features, known)
    for i in range(EPISODES):
        usable = known.valid[i].nonzero()[:, 0]
        unit = functional.normalize(known.values[i, usable], dim=-1)
        for j in range(IMAGES):
            distances = (functional.normalize(features[i, j], dim=0) - unit).norm(dim=1)
            assert found[i, j] == known.classes[i, usable[distances.argmin()]]


def test_prototypes_stay_with_their_slots() -> None:
    kept = Prototypes(num_episodes=EPISODES, num_classes=3, dimension=WIDTH, device="cpu")
    rows = torch.arange(EPISODES)
    assert kept.of(rows).values.shape == (EPISODES, 0, WIDTH)
    features, labels, _ = draw()
    features = features.float()
    weights = torch.ones(EPISODES, IMAGES)
    first = class_means(features, labels, weights, 3)
    second = class_means(features + 1, labels.clamp(max=1), weights, 3)
    kept.put(rows, torch.tensor([0, 1, 4]), first)
    kept.put(rows[1:], torch.tensor([0, 4]), second.take(rows[1:]))
    known = kept.of(rows)
    assert known.values.shape == (EPISODES, 5 * 3, WIDTH)
    held = known.valid.view(EPISODES, 5, 3).any(dim=2)
    assert held.nonzero().tolist() == [[0, 0], [1, 0], [1, 1], [2, 4]]
    # The last slot of episode 2 was taken over: what was there before is gone.
    assert torch.equal(known.values[2, 12:], second.values[2])
    assert torch.equal(known.valid[2, 12:], second.valid[2])
    assert known.classes[0].tolist() == [0, 1, 2] * 5
    assert torch.equal(kept.nbytes(rows), known.valid.sum(dim=1) * WIDTH * 4)
    kept.begin(rows[:1])
    assert kept.of(rows).valid.any(dim=1).tolist() == [False, True, True]
