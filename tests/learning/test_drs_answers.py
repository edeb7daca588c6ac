"""LoRA subtraction pushes prototypes apart, keeps them, and answers by the nearest one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from additive_samples import EPISODES, ROWS, TASKS, Setting, dense, drs_setting
from torch import Tensor
from torch.nn import functional

from nsr_gym.errors import InvalidValueError, StateError, UnknownNameError
from nsr_gym.learning.adapters import summed
from nsr_gym.learning.drs import ProjectedRun
from nsr_gym.learning.triplet import augmented_triplet

MakeWorld = Callable[..., Any]


@pytest.fixture
def make_setting(make_world: MakeWorld) -> Callable[..., Setting]:
    return partial(drs_setting, make_world)


MakeSetting = Callable[..., Setting]


def test_the_triplet_loss_takes_part_with_its_weight_and_the_stored_prototypes(
    make_setting: MakeSetting,
) -> None:
    setting = make_setting(triplet=0.7, margin=2.0)
    # An earlier visit leaves prototypes in episodes 1 and 2.
    setting.learner.learn(setting.data, setting.visit)
    setting.learner.commit(ROWS[1:], np.array([0, 3]), None)
    prepared = setting.learner.prepare(setting.data, setting.visit)
    run = ProjectedRun(setting.learner, prepared, {})
    images = setting.data.train(TASKS, setting.visit.batches[:, 0, 0])
    found = run.gradients(images, torch.zeros_like)  # without the loss on the logits
    known = setting.learner.prototypes.of(torch.arange(EPISODES))
    assert known.valid.any(dim=1).tolist() == [False, True, True]
    features = setting.backbone.forward(images.prefix, run.site_map())
    loss = 0.7 * augmented_triplet(features, images.labels, 2.0, known).sum()
    expected = torch.autograd.grad(loss, run.leaves)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert max(part.abs().max() for part in expected) > 1e-3
    off = make_setting(triplet=0.0)
    run = ProjectedRun(off.learner, off.learner.prepare(off.data, off.visit), {})
    assert run.extra_loss(features, images) is None


def class_mean_answers(
    setting: Setting, features: Any, i: int, x: Tensor, kept: list[tuple[int, Tensor]]
) -> Tensor:
    """Nearest class mean of episode i, from the visit's images and kept (class, mean) pairs."""
    task = setting.world.pool[int(TASKS[i])]
    chosen = setting.visit.batches[i].flatten().unique()
    seen = features(torch.tensor(task.x_train)[chosen].double())
    labels = torch.tensor(task.y_train)[chosen]
    pairs = [*kept, *((c, seen[labels == c].mean(dim=0)) for c in labels.unique().tolist())]
    unit = functional.normalize(torch.stack([mean for _, mean in pairs]), dim=-1)
    nearest = torch.cdist(functional.normalize(features(x), dim=-1), unit).argmin(dim=1)
    return torch.tensor([c for c, _ in pairs])[nearest]


def test_a_visit_is_measured_by_prototypes_of_its_own_images_and_stored_ones(
    make_setting: MakeSetting,
) -> None:
    setting = make_setting()
    learner, visit = setting.learner, setting.visit
    learner.learn(setting.data, visit)
    learner.commit(ROWS[1:2], np.array([1]), None)
    stored = learner.prototypes.of(torch.tensor([1]))
    pairs = [
        (int(c), v)
        for c, v, ok in zip(stored.classes[0], stored.values[0], stored.valid[0], strict=True)
        if ok
    ]
    assert len(pairs) > 1
    _, curve = learner.learn(setting.data, visit)
    for i in range(EPISODES):
        weights = dense(setting, 1, i)

        def features(x: Tensor, weights: dict[str, Tensor] = weights) -> Tensor:
            for layer in ("fc1", "fc2", "fc3"):
                x = torch.relu(x @ weights[f"{layer}.weight"].mT + weights[f"{layer}.bias"])
            return x

        task = setting.world.pool[int(TASKS[i])]
        x, y = torch.tensor(task.x_test).double(), torch.tensor(task.y_test)
        said = class_mean_answers(setting, features, i, x, pairs if i == 1 else [])
        assert curve[i, 0] == (said == y).double().mean()


def test_reserved_prototypes_are_class_means_under_the_trained_model_and_answer_later(
    make_setting: MakeSetting,
) -> None:
    setting = make_setting()
    learner, visit = setting.learner, setting.visit
    images = setting.data.test(TASKS)
    base = summed(visit.others or {})
    by_head = learner.accuracy(images, visit.start, base)
    assert torch.equal(learner.accuracy(images, visit.start, base, ROWS), by_head)  # none yet
    trained, curve = learner.learn(setting.data, visit)
    head_after = learner.accuracy(images, trained, base)
    assert torch.equal(learner.accuracy(images, trained, base, ROWS), head_after)
    learner.commit(ROWS[:2], np.array([2, 0]), None)
    later = learner.accuracy(images, trained, base, ROWS)
    # What answers then is what the visit's last measurement answered with.
    assert torch.equal(later[:2], curve[:2, -1])
    assert later[2] == head_after[2]
    assert not torch.equal(later[:2], head_after[:2])
    means = learner.prototypes.of(torch.arange(EPISODES))
    assert learner.nbytes(ROWS).tolist() == [
        int(n) * setting.backbone.feature_dim * 4 for n in means.valid.sum(dim=1)
    ]
    learner.begin(ROWS[:1])
    assert learner.accuracy(images, trained, base, ROWS)[0] == head_after[0]
    assert learner.nbytes(ROWS)[0] == 0 < learner.nbytes(ROWS)[1]


def test_the_head_answers_where_it_is_asked_to(make_setting: MakeSetting) -> None:
    setting = make_setting(classifier="head")
    trained, curve = setting.learner.learn(setting.data, setting.visit)
    setting.learner.commit(ROWS, ROWS, None)
    base = summed(setting.visit.others or {})
    by_head = setting.learner.accuracy(setting.data.test(TASKS), trained, base)
    assert torch.equal(curve[:, -1], by_head)


@pytest.mark.parametrize("i", range(EPISODES))
def test_an_episode_learns_the_same_alone(i: int, make_setting: MakeSetting) -> None:
    together, alone = make_setting(double=False), make_setting(double=False)
    row = slice(i, i + 1)
    for slot in range(2):  # the second time with prototypes
        trained, curves = together.learner.learn(together.data, together.visit)
        one, curve = alone.learner.learn(alone.data, alone.visit[row])
        together.learner.commit(ROWS, np.full(EPISODES, slot), None)
        alone.learner.commit(ROWS[row], np.array([slot]), None)
        for site, pair in one.factors.items():
            for ours, theirs in zip(pair, trained.factors[site], strict=True):
                torch.testing.assert_close(ours, theirs[row], rtol=0, atol=1e-3)
        torch.testing.assert_close(curve, curves[row], rtol=0, atol=1.01 / 20)
    assert together.learner.nbytes(ROWS)[i] == alone.learner.nbytes(ROWS)[i] > 0


def test_results_of_no_or_another_visit_are_refused(make_setting: MakeSetting) -> None:
    setting = make_setting()
    with pytest.raises(StateError, match="last visit"):
        setting.learner.commit(ROWS, ROWS, None)
    setting.learner.learn(setting.data, setting.visit[:2])
    with pytest.raises(StateError, match="last visit"):
        setting.learner.commit(ROWS[2:], ROWS[2:], None)


@pytest.mark.parametrize(
    "options",
    [
        {"eps": 0.0}, {"recalled_sign": 2}, {"normalise": 1}, {"project_up": "no"},
        {"triplet": -0.1}, {"margin": float("nan")}, {"samples": 1.5},
    ],
    ids=str,
)  # fmt: skip
def test_options_out_of_range_are_refused(
    options: dict[str, Any], make_setting: MakeSetting
) -> None:
    with pytest.raises(InvalidValueError, match=r"Expected .* to be .*; got"):
        make_setting(**options)


def test_unknown_names_are_refused(make_setting: MakeSetting) -> None:
    with pytest.raises(UnknownNameError, match=r"classifier.*'nmc'.*'ncm'"):
        make_setting(classifier="nmc")
    with pytest.raises(UnknownNameError, match="marginal"):
        make_setting(marginal=1.0)


def test_a_head_of_its_own_answers_where_there_are_no_prototypes(
    make_setting: MakeSetting,
) -> None:
    setting = make_setting(double=False)
    g = torch.Generator().manual_seed(0)
    head = (torch.randn(EPISODES, 3, 4, generator=g), torch.randn(EPISODES, 3, generator=g))
    start = dataclasses.replace(setting.visit.start, head=head)
    visit = dataclasses.replace(setting.visit, start=start)
    images, base = setting.data.test(TASKS), summed(setting.visit.others or {})
    by_own_head = setting.learner.accuracy(images, start, base)
    assert torch.equal(setting.learner.accuracy(images, start, base, ROWS), by_own_head)
    assert not torch.equal(by_own_head, setting.learner.accuracy(images, visit.start, None))
    trained, _ = setting.learner.learn(setting.data, visit)
    assert trained.head is not None
    assert (trained.head[0] - head[0]).abs().amax(dim=(1, 2)).min() > 1e-3
