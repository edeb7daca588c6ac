"""A visit trains what it says: loss, masks, batches, and accuracies of the right images."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.errors import InvalidValueError
from nsr_gym.learning import data, measuring
from nsr_gym.learning.adapters import Adapters
from nsr_gym.learning.learner import LearnerConfig
from nsr_gym.learning.visit import Visit

TASKS = torch.tensor([2, 0, 3])
RECALLED = torch.tensor([True, False, True])
MakeWorld = Callable[..., Any]


def one_visit_by_autograd(
    world: Any, task: int, start: Adapters, i: int, batches: Tensor, recalled: bool, forward: Any
) -> Adapters:
    """Train episode i of `start` with dense weights, autograd and torch.optim.Adam."""
    config = world.learner.config
    leaves = {
        site: (up[i].clone().requires_grad_(), down[i].clone().requires_grad_())
        for site, (up, down) in start.factors.items()
    }
    optimiser = torch.optim.Adam(
        [leaf for pair in leaves.values() for leaf in pair], lr=config.learning_rate
    )
    images, labels = (torch.tensor(a) for a in (world.pool[task].x_train, world.pool[task].y_train))
    for chosen in batches.flatten(0, 1):
        weights = world.backbone.weights
        for site, (up, down) in leaves.items():
            weights[f"{site}.weight"] = weights[f"{site}.weight"] + up @ down
        logits, heat = forward(weights, images[chosen]), config.temperature
        loss = functional.cross_entropy(logits, labels[chosen])
        if recalled:
            teacher = forward(world.dense(start, i), images[chosen])
            loss = loss + config.distillation * heat**2 * functional.kl_div(
                functional.log_softmax(logits / heat, -1),
                functional.softmax(teacher / heat, -1),
                reduction="batchmean",
            )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Adapters({s: (u.detach()[None], d.detach()[None]) for s, (u, d) in leaves.items()})


def assert_same(a: Adapters, b: Adapters, *, within: float = 1e-4) -> None:
    # Adam divides gradients by their own size, so that rounding of tiny ones counts in full.
    for site, pair in a.factors.items():
        for ours, theirs in zip(pair, b.factors[site], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=within, atol=within)


@pytest.mark.parametrize("adapt", [None, ["fc2"]], ids=str)
def test_learning_is_plain_autograd_with_adam_on_cross_entropy_and_distillation(
    adapt: list[str] | None, make_world: MakeWorld, dense_forward: Any
) -> None:
    world = make_world(adapt=adapt, distillation=3.0, learning_rate=0.03)
    start, batches = world.adapters(3, 2), world.batches(3)
    trained, _ = world.learner.learn(
        world.data, Visit(tasks=TASKS, start=start, batches=batches, recalled=RECALLED)
    )
    without, _ = world.learner.learn(world.data, Visit(tasks=TASKS, start=start, batches=batches))
    for i, (task, recalled) in enumerate(zip(TASKS.tolist(), RECALLED.tolist(), strict=True)):
        expected = one_visit_by_autograd(world, task, start, i, batches[i], recalled, dense_forward)
        assert_same(trained[i : i + 1], expected)
        # The check can fail: leaving the distillation out is seen where it takes part.
        moved = (without.factors["fc2"][0][i] - trained.factors["fc2"][0][i]).abs().max()
        assert (moved > 1e-3) == recalled


@pytest.mark.parametrize("heat", [1.0, 2.0, 5.0])
def test_the_gradient_is_that_of_cross_entropy_and_tempered_divergence(
    heat: float, make_world: MakeWorld
) -> None:
    world = make_world(distillation=0.4, temperature=heat)
    images, generator = world.data.test(TASKS), torch.Generator().manual_seed(0)
    logits = torch.randn(3, 20, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 20, 3, generator=generator)
    learner = world.learner
    pull = 0.4 * heat * RECALLED[:, None]
    learner.logits = lambda images, site_map: teacher
    target = learner._target(images, [(slice(None), None)], pull)
    gradient = learner._gradient(logits, target.double(), pull)

    divergence = functional.kl_div(
        functional.log_softmax(logits / heat, -1),
        functional.softmax(teacher.double() / heat, -1),
        reduction="none",
    ).sum(-1)
    entropy = functional.cross_entropy(logits.movedim(-1, 1), images.labels, reduction="none")
    loss = (entropy + 0.4 * heat**2 * divergence * RECALLED[:, None]).mean(dim=1).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(loss, logits)[0], rtol=1e-5, atol=1e-7)


def test_episodes_in_a_batch_equal_the_same_episodes_alone(make_world: MakeWorld) -> None:
    """Within 1e-4 in the factors and one of 20 images in the accuracies."""
    world = make_world()
    start, batches = world.adapters(3, 3), world.batches(3)
    start.keep(torch.tensor([3, 1, 2]))
    trainable = torch.tensor([[True, True, True], [True, False, False], [False, True, True]])
    together, curves = world.learner.learn(
        world.data,
        Visit(tasks=TASKS, start=start, batches=batches, recalled=RECALLED, trainable=trainable),
    )
    assert curves.shape == (3, world.learner.config.learning_steps + 1)
    for i in range(3):
        row = slice(i, i + 1)
        alone, curve = world.learner.learn(
            world.data,
            Visit(
                tasks=TASKS[row],
                start=start[row],
                batches=batches[row],
                recalled=RECALLED[row],
                trainable=trainable[row],
            ),
        )
        assert_same(together[row], alone)
        torch.testing.assert_close(curves[row], curve, rtol=0.0, atol=1.01 / 20)


@pytest.mark.parametrize(
    ("module", "bound"),
    [(measuring, "_CPU_BLOCK"), (data, "_PREFIX_BYTES")],
    ids=["episodes", "images"],
)
def test_blocks_of_a_measurement_change_nothing(
    module: ModuleType, bound: str, make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    start, batches = world.adapters(3, 2), world.batches(3)
    whole = world.learner.learn(
        world.data, Visit(tasks=TASKS, start=start, batches=batches, recalled=RECALLED)
    )
    test = world.data.test(TASKS)
    loss = world.learner.loss(test, start)
    monkeypatch.setattr(module, bound, 1)  # one at a time
    pieces = world.learner.learn(
        world.data, Visit(tasks=TASKS, start=start, batches=batches, recalled=RECALLED)
    )
    assert_same(whole[0], pieces[0])
    torch.testing.assert_close(whole[1], pieces[1], rtol=0.0, atol=1.01 / 20)
    torch.testing.assert_close(world.learner.loss(test, start), loss, rtol=1e-5, atol=1e-6)


def test_directions_that_are_not_trainable_stay_bit_for_bit(make_world: MakeWorld) -> None:
    world = make_world()
    start = world.adapters(3, 3)
    before = start[torch.arange(3)]
    trainable = torch.tensor([[True, False, True], [False, False, False], [True, True, False]])
    trained, _ = world.learner.learn(
        world.data,
        Visit(
            tasks=TASKS,
            start=start,
            batches=world.batches(3),
            recalled=RECALLED,
            trainable=trainable,
        ),
    )
    for site, (up, down) in trained.factors.items():
        old_up, old_down = start.factors[site]
        for i, direction in np.ndindex(3, 3):
            same = torch.equal(up[i, :, direction], old_up[i, :, direction])
            assert same == (not trainable[i, direction])
            same = torch.equal(down[i, direction], old_down[i, direction])
            assert same == (not trainable[i, direction])
    assert_same(start, before, within=0.0)  # what was passed in is left alone


def test_zero_directions_beyond_the_granted_rank_stay_zero(make_world: MakeWorld) -> None:
    world = make_world()
    start, ranks = world.adapters(3, 4), torch.tensor([1, 4, 2])
    start.keep(ranks)
    trained, _ = world.learner.learn(
        world.data, Visit(tasks=TASKS, start=start, batches=world.batches(3), recalled=RECALLED)
    )
    for site, (up, down) in trained.factors.items():
        for i, rank in enumerate(ranks.tolist()):
            assert not up[i, :, rank:].any()
            assert not down[i, rank:].any()
            assert not torch.equal(up[i, :, :rank], start.factors[site][0][i, :, :rank])


def test_a_smaller_granted_rank_trains_as_if_there_were_no_more_room(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    wide, narrow = world.adapters(3, 4), {}
    wide.keep(torch.full((3,), 2))
    for site, (up, down) in wide.factors.items():
        narrow[site] = up[:, :, :2].contiguous(), down[:, :2].contiguous()
    batches = world.batches(3)
    padded, _ = world.learner.learn(world.data, Visit(tasks=TASKS, start=wide, batches=batches))
    exact, _ = world.learner.learn(
        world.data, Visit(tasks=TASKS, start=Adapters(narrow), batches=batches)
    )
    cut = {s: (up[:, :, :2], down[:, :2]) for s, (up, down) in padded.factors.items()}
    assert_same(Adapters(cut), exact)


def test_a_recall_starts_at_exactly_the_accuracy_of_the_entry(make_world: MakeWorld) -> None:
    """Fresh directions come with a zero up factor, so the recalled model is unchanged."""
    world = make_world(sizes=((30, 200),) * 4)
    entry = world.adapters(3, 2)
    start = Adapters.zeros(world.backbone.sites, 3, 4)
    fresh = world.adapters(3, 4, seed=5)
    for site, (up, down) in start.factors.items():
        up[:, :, :2], down[:, :2] = entry.factors[site]
        down[:, 2:] = fresh.factors[site][1][:, 2:]
    _, curve = world.learner.learn(
        world.data, Visit(tasks=TASKS, start=start, batches=world.batches(3), recalled=RECALLED)
    )
    assert torch.equal(curve[:, 0], world.learner.accuracy(world.data.test(TASKS), entry))


def test_the_last_accuracy_is_that_of_the_trained_adapter(make_world: MakeWorld) -> None:
    world = make_world(sizes=((30, 200),) * 4)
    trained, curve = world.learner.learn(
        world.data, Visit(tasks=TASKS, start=world.adapters(3, 2), batches=world.batches(3))
    )
    assert torch.equal(curve[:, -1], world.learner.accuracy(world.data.test(TASKS), trained))
    assert not torch.equal(curve[:, -1], curve[:, 0])


def test_tasks_of_different_sizes_are_measured_on_their_own_images(
    make_world: MakeWorld, dense_forward: Any
) -> None:
    world = make_world(sizes=((30, 5), (12, 17), (40, 1), (25, 9)))
    tasks, adapters = torch.tensor([1, 2, 0, 3]), world.adapters(4, 2)
    images = world.data.test(tasks)
    accuracy, loss = (m(images, adapters) for m in (world.learner.accuracy, world.learner.loss))
    bare = world.learner.accuracy(images, None)
    for i, task in enumerate(world.pool[int(t)] for t in tasks):
        x, y = torch.tensor(task.x_test), torch.tensor(task.y_test)
        logits = dense_forward(world.dense(adapters, i), x)
        frozen = dense_forward(world.backbone.weights, x)
        assert accuracy[i] == (logits.argmax(-1) == y).double().mean()
        assert bare[i] == (frozen.argmax(-1) == y).double().mean()
        assert float(loss[i]) == pytest.approx(float(functional.cross_entropy(logits, y)), rel=1e-5)
    # Padding takes no part in training either: tasks differ in the images there are.
    sizes = torch.as_tensor(world.data.train_sizes)[tasks]
    batches = world.batches(4) * (sizes[:, None, None, None] - 1) // 11
    trained, curve = world.learner.learn(
        world.data, Visit(tasks=tasks, start=adapters, batches=batches)
    )
    for i in range(4):
        row = slice(i, i + 1)
        alone, _ = world.learner.learn(
            world.data, Visit(tasks=tasks[row], start=adapters[row], batches=batches[row])
        )
        assert_same(trained[row], alone)
    assert torch.equal(curve[:, 0], accuracy)


def test_an_episode_that_diverges_leaves_its_neighbours_alone(make_world: MakeWorld) -> None:
    world = make_world()
    start, batches = world.adapters(3, 2), world.batches(3)
    sound, curves = world.learner.learn(
        world.data, Visit(tasks=TASKS, start=start, batches=batches, recalled=RECALLED)
    )
    start.factors["fc1"][0][1] = torch.nan
    spoilt, spoilt_curves = world.learner.learn(
        world.data, Visit(tasks=TASKS, start=start, batches=batches, recalled=RECALLED)
    )
    assert spoilt.finite().tolist() == [True, False, True]
    for i in (0, 2):
        assert_same(sound[i : i + 1], spoilt[i : i + 1])
        torch.testing.assert_close(curves[i], spoilt_curves[i], rtol=0.0, atol=1.01 / 20)


def test_training_helps(make_world: MakeWorld) -> None:
    world = make_world(learning_steps=20, updates=5)
    start = world.adapters(4, 4, up=0.0)
    tasks = torch.arange(4)
    trained, _ = world.learner.learn(
        world.data, Visit(tasks=tasks, start=start, batches=world.batches(4))
    )
    seen = world.data.train(tasks, torch.arange(30).expand(4, 30))
    before, after = (world.learner.loss(seen, adapters) for adapters in (start, trained))
    assert (after < 0.7 * before).all()


@pytest.mark.parametrize("field", ["learning_steps", "updates", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, True, "3", None, float("nan")])
def test_counts_have_to_be_whole_and_positive(field: str, value: Any) -> None:
    with pytest.raises(InvalidValueError, match=f"{field} to be a whole number of at least 1"):
        LearnerConfig(**{field: value})


@pytest.mark.parametrize("field", ["learning_rate", "temperature", "distillation"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), True, "0.1", None])
def test_other_settings_have_to_be_finite_and_positive(field: str, value: Any) -> None:
    with pytest.raises(InvalidValueError, match=f"{field} to be a .*number.*; got"):
        LearnerConfig(**{field: value})


def test_distillation_alone_may_be_zero(make_world: MakeWorld) -> None:
    for field in ("learning_rate", "temperature"):
        with pytest.raises(InvalidValueError, match=field):
            LearnerConfig(**{field: 0})
    world = make_world(distillation=0)
    start, batches = world.adapters(3, 2), world.batches(3)
    with_recall, _ = world.learner.learn(
        world.data, Visit(tasks=TASKS, start=start, batches=batches, recalled=RECALLED)
    )
    without, _ = world.learner.learn(world.data, Visit(tasks=TASKS, start=start, batches=batches))
    assert_same(with_recall, without, within=0.0)


def test_threads_of_episodes_change_nothing() -> None:
    from nsr_gym.envs.digits import _prepared
    from nsr_gym.learning.learner import LoRALearner

    data, backbone = _prepared("permutation", "train", "cpu")
    learner = LoRALearner(backbone, LearnerConfig(learning_steps=2, updates=2, batch_size=8))
    n, generator = 9, torch.Generator().manual_seed(0)
    start = Adapters.zeros(backbone.sites, n, 4)
    for up, down in start.factors.values():
        up.normal_(std=0.1, generator=generator)
        down.normal_(std=0.1, generator=generator)
    batches = torch.randint(700, (n, 2, 2, 8), generator=generator)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(
                learner.learn(
                    data,
                    Visit(
                        tasks=torch.arange(n),
                        start=start,
                        batches=batches,
                        recalled=torch.arange(n) % 2 == 0,
                        trainable=torch.ones(n, 4, dtype=torch.bool),
                    ),
                )
            )
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    (one, curve), (two, same) = found
    torch.testing.assert_close(same, curve, rtol=0, atol=1e-5)
    for site, pair in one.factors.items():
        torch.testing.assert_close(two.factors[site], pair, rtol=0, atol=1e-5)
