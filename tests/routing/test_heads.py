"""Classifiers on frozen features: the bounds without an adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nsr_gym.errors import InvalidValueError, UnknownNameError
from nsr_gym.routing.heads import ClassMeans, FeatureClassifier, RidgeClassifier

D, CLASSES, E = 12, 4, 3
ROWS = np.arange(E)
Make = Callable[[], FeatureClassifier]


def made(kind: type[FeatureClassifier], **options: Any) -> Make:
    return lambda: kind(num_banks=E, feature_dim=D, num_classes=CLASSES, **options)


KINDS: dict[str, Make] = {
    "ridge": made(RidgeClassifier, width=64),
    "recursive": made(RidgeClassifier, width=64, form="recursive"),
    "weighted": made(RidgeClassifier, width=64, weighting="inverse_count"),
    "cosine": made(ClassMeans),
    "euclidean": made(ClassMeans, metric="euclidean"),
}


@pytest.fixture(params=list(KINDS))
def make(request: pytest.FixtureRequest) -> Make:
    return KINDS[request.param]


def draw(seed: int, k: int) -> tuple[Tensor, Tensor]:
    """Classes lie around different points in every episode."""
    g = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(E, CLASSES, D, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(CLASSES, (E, k), generator=g)
    noise = 0.7 * torch.randn(E, k, D, generator=g)
    return centres[torch.arange(E)[:, None], labels] + noise, labels


def test_classes_that_differ_are_told_apart(make: Make) -> None:
    head = make()
    head.fit(ROWS, *draw(0, 80))
    x, y = draw(1, 50)
    assert (head.predict(ROWS, x) == y).double().mean() > 0.9


def test_batches_and_order_do_not_matter(make: Make) -> None:
    x, y = draw(0, 60)
    whole, parts = make(), make()
    whole.update(ROWS, x, y)
    for i in torch.randperm(60, generator=torch.Generator().manual_seed(2)).split(7):
        parts.update(ROWS, x[:, i], y[:, i])
    test = draw(1, 20)[0]
    assert torch.allclose(whole.logits(ROWS, test), parts.logits(ROWS, test), atol=1e-8)


def test_classes_that_come_later_do_not_displace_earlier_ones(make: Make) -> None:
    x, y = draw(0, 120)
    head = make()
    for label in range(CLASSES):
        for row in range(E):
            own = y[row] == label
            head.update(np.array([row]), x[row, own][None], y[row, own][None])
    test, wanted = draw(1, 50)
    assert (head.predict(ROWS, test) == wanted).double().mean() > 0.9


def test_classes_never_seen_are_never_predicted(make: Make) -> None:
    x, y = draw(0, 60)
    head = make()
    head.update(ROWS, x, y.clamp(max=1))
    logits = head.logits(ROWS, draw(1, 30)[0])
    assert (logits[..., 2:] == -torch.inf).all()
    assert logits[..., :2].isfinite().all()


def test_an_episode_answers_as_it_does_alone_and_begins_anew(make: Make) -> None:
    head, (x, y), test = make(), draw(0, 40), draw(1, 10)[0]
    head.update(ROWS, x, y)
    one = make()
    one.update(np.array([0]), x[1:2], y[1:2])
    together = head.logits(np.array([2, 1, 1]), test)
    assert torch.allclose(one.logits(np.array([0]), test[1:2])[0], together[1], atol=1e-10)
    assert head.nbytes(np.array([1])).tolist() == one.nbytes(np.array([0])).tolist()
    before = head.logits(ROWS, test)
    head.begin(np.array([1]))
    assert head.nbytes(ROWS)[1] == 0 < head.nbytes(ROWS)[0]
    assert not head.logits(np.array([1]), test[:1]).any()
    assert torch.equal(head.logits(ROWS, test)[[0, 2]], before[[0, 2]])
    head.fit(np.array([1]), x[1:2], y[1:2])
    assert torch.allclose(head.logits(ROWS, test), before, atol=1e-10)


def test_class_means_are_what_they_say() -> None:
    x, y = draw(0, 40)
    z = draw(1, 6)[0].double()
    cosine, euclidean = KINDS["cosine"](), KINDS["euclidean"]()
    for head in (cosine, euclidean):
        head.update(ROWS, x[:, :15], y[:, :15])
        head.update(ROWS, x[:, 15:], y[:, 15:])
    for row in range(E):
        for label in range(CLASSES):
            own = x[row, y[row] == label].double()
            near = -(z[row] - own.mean(0)).norm(dim=-1)
            assert torch.allclose(euclidean.logits(ROWS, z)[row, :, label], near)
            mean = torch.nn.functional.normalize(own, dim=-1).mean(0)
            angle = torch.nn.functional.cosine_similarity(z[row], mean[None], dim=-1)
            assert torch.allclose(cosine.logits(ROWS, z)[row, :, label], angle)
    assert euclidean.nbytes(ROWS).tolist() == [8 * D * CLASSES] * E


def test_what_does_not_fit_is_refused(make: Make) -> None:
    head, (x, y) = make(), draw(0, 10)
    with pytest.raises(InvalidValueError, match="appear twice"):
        head.update(np.array([0, 0, 1]), x, y)
    for features, labels in ((x[..., 1:], y), (x, y[:, 1:]), (x[:2], y)):
        with pytest.raises(InvalidValueError, match="Expected features"):
            head.update(ROWS, features, labels)
    with pytest.raises(InvalidValueError, match="Expected features"):
        head.predict(ROWS, x[:2])
    for labels in (y - 9, y + 9):
        with pytest.raises(InvalidValueError, match="labels between"):
            head.update(ROWS, x, labels)
    with pytest.raises(UnknownNameError, match="euclidean"):
        ClassMeans(num_banks=1, feature_dim=2, num_classes=2, metric="euclid")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="num_classes"):
        RidgeClassifier(num_banks=1, feature_dim=2, num_classes=0)
