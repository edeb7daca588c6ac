"""The lower bound trains one adapter on, the upper one on all tasks seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from short_visits import (
    KEYS,
    MakeWorld,
    assert_differ,
    assert_rows_are_alone,
    assert_same,
    make,
    visit,
)

from nsr_gym.errors import InvalidValueError, StateError
from nsr_gym.learning.adapters import Adapters
from nsr_gym.learning.learner import LoRALearner
from nsr_gym.learning.visit import Visit

ROWS = np.arange(3)
SLOTS = np.zeros(3, dtype=np.int64)
BOUNDS = ("sequential", "joint")


def begun(world: Any, name: str = "sequential", **more: Any) -> LoRALearner:
    learner = make(world, name, **more)
    learner.begin(ROWS)
    return learner


def train(world: Any, learner: LoRALearner, of: Visit, rows: Any = ROWS) -> Adapters:
    trained, _ = learner.learn(world.data, of)
    learner.commit(rows, SLOTS[: len(rows)], None)
    return trained


def test_sequential_training_goes_on_from_its_own_adapter(make_world: MakeWorld) -> None:
    world = make_world()
    learner = begun(world)
    first = train(world, learner, visit(world))
    assert_same(learner.own(ROWS), first, within=0.0)
    later = visit(world, tasks=torch.tensor([1, 3, 0]), numbers=np.ones(3, dtype=np.int64))
    second = train(world, learner, later)
    expected, _ = make(world).learn(world.data, replace(later, start=first))
    assert_same(second, expected, within=0.0)
    assert_same(learner.own(ROWS), second, within=0.0)


@pytest.mark.parametrize("name", BOUNDS)
def test_what_is_recalled_granted_and_frozen_makes_no_difference(
    make_world: MakeWorld, name: str
) -> None:
    world = make_world(distillation=5.0)
    plain = train(world, begun(world, name), visit(world))
    told = visit(
        world, seed=9, recalled=torch.ones(3, dtype=torch.bool), ranks=torch.tensor([1, 2, 3]),
        trainable=torch.zeros(3, 3, dtype=torch.bool),
    )  # fmt: skip
    told.start.keep(torch.tensor([1, 2, 3]))
    assert_same(train(world, begun(world, name), told), plain, within=0.0)
    assert plain.used().tolist() == [3, 3, 3]


@pytest.mark.parametrize("name", BOUNDS)
def test_only_reserved_results_are_kept(make_world: MakeWorld, name: str) -> None:
    world = make_world()
    learner = begun(world, name)
    empty = learner.own(ROWS)
    assert empty.used().tolist() == [0, 0, 0]
    learner.learn(world.data, visit(world))
    assert_same(learner.own(ROWS), empty, within=0.0)
    assert learner.nbytes(ROWS).tolist() == [0, 0, 0]
    trained, _ = learner.learn(world.data, visit(world))
    learner.commit(np.array([2, 0]), SLOTS[:2], None)
    kept = learner.own(ROWS)
    for i, same in enumerate((True, False, True)):
        assert_same(kept[i : i + 1], trained[i : i + 1] if same else empty[i : i + 1], within=0.0)
    assert (learner.nbytes(ROWS) > 0).tolist() == [True, False, True]
    learner.begin(np.array([2]))
    assert learner.own(np.array([2])).used().tolist() == [0]
    assert (learner.nbytes(ROWS) > 0).tolist() == [True, False, False]
    with pytest.raises(StateError, match="episodes of the last visit"):
        learner.commit(np.array([7]), SLOTS[:1], None)


def test_the_first_adapter_follows_from_the_episodes_key(make_world: MakeWorld) -> None:
    world = make_world(learning_rate=1e-12)
    first = train(world, begun(world), visit(world))
    assert all(not (up.abs() > 1e-6).any() for up, _ in first.factors.values())
    assert_same(train(world, begun(world), visit(world, seed=8)), first)
    others = visit(world, keys=KEYS[::-1].copy())
    assert_same(train(world, begun(world), others)[[2, 1, 0]], first)
    wide = train(world, begun(world, options={"init_gain": 6.0}), visit(world))
    sizes = []
    for found, gain in ((first, 2.0), (wide, 6.0)):
        scaled = [d.flatten() * d.shape[2] ** 0.5 / gain for _, d in found.factors.values()]
        sizes.append(torch.cat(scaled))
    torch.testing.assert_close(sizes[0], sizes[1])
    assert float(sizes[0].std()) == pytest.approx(1.0, abs=0.15)
    assert_differ(first[[0]], first[[1]])


def test_sequential_bytes_are_those_of_its_adapter_and_deviations(make_world: MakeWorld) -> None:
    world = make_world()
    learner, uncertain = begun(world), begun(world, modifiers={"badam": {"samples": 1}})
    one = 4 * 3 * sum(site.d_out + site.d_in for site in world.backbone.sites)
    for made, expected in ((learner, one), (uncertain, 2 * one)):
        train(world, made, visit(world))
        assert made.nbytes(ROWS).tolist() == [expected] * 3


def test_joint_training_draws_uniformly_from_the_tasks_seen_and_no_others(
    make_world: MakeWorld,
) -> None:
    world = make_world(sizes=((30, 20), (12, 20), (30, 20), (20, 20)), batch_size=600)
    learner = begun(world, "joint")
    stream = torch.tensor([[2, 0, 3], [1, 0, 3], [2, 1, 3]])
    for number, tasks in enumerate(stream):
        of = visit(world, tasks=tasks, numbers=np.full(3, number))
        prepared = learner.prepare(world.data, of)
        assert prepared.batch_tasks.shape == prepared.batches.shape == of.batches.shape
        for i in range(3):
            seen = set(stream[: number + 1, i].tolist())
            drawn, images = prepared.batch_tasks[i].flatten(), prepared.batches[i].flatten()
            counts = {task: int((drawn == task).sum()) for task in range(4)}
            assert {task for task, count in counts.items() if count} == seen
            for task in seen:  # 3600 draws, four standard deviations
                share = counts[task] / len(drawn)
                assert share == pytest.approx(1 / len(seen), abs=4 * 0.5 / 60)
                size = int(world.data.train_sizes[task])
                assert set(images[drawn == task].tolist()) == set(range(size))
        train(world, learner, of)


def test_joint_training_is_plain_training_on_what_it_draws(make_world: MakeWorld) -> None:
    world = make_world()
    learner = begun(world, "joint")
    train(world, learner, visit(world))
    later = visit(world, tasks=torch.tensor([1, 3, 0]), numbers=np.ones(3, dtype=np.int64))
    drawn = learner.prepare(world.data, later)
    assert (drawn.batch_tasks != later.tasks[:, None, None, None]).flatten(1).any(1).all()
    expected, curve = make(world).learn(
        world.data,
        replace(
            later, start=learner.own(ROWS), batches=drawn.batches, batch_tasks=drawn.batch_tasks
        ),
    )
    trained, measured = learner.learn(world.data, later)
    assert_same(trained, expected, within=0.0)
    assert torch.equal(measured, curve)  # on the visited task's own test images


def test_joint_bytes_count_the_images_of_tasks_seen(make_world: MakeWorld) -> None:
    world = make_world(sizes=((30, 20), (12, 20), (40, 20), (20, 20)))
    learner, plain = begun(world, "joint"), begun(world)
    seen = [set(), set(), set()]
    for number, tasks in enumerate(((2, 0, 3), (1, 0, 2))):
        of = visit(world, tasks=torch.tensor(tasks), numbers=np.full(3, number))
        train(world, learner, of)
        train(world, plain, of)
        for i, task in enumerate(tasks):
            seen[i].add(task)
        images = [
            sum(world.pool[t].x_train.nbytes + world.pool[t].y_train.nbytes for t in tasks_seen)
            for tasks_seen in seen
        ]
        assert (learner.nbytes(ROWS) - plain.nbytes(ROWS)).tolist() == images
    assert seen[1] == {0}  # a task seen twice is kept once


@pytest.mark.parametrize("name", BOUNDS)
def test_an_episode_does_not_depend_on_others(make_world: MakeWorld, name: str) -> None:
    world = make_world()

    def after_a_visit() -> LoRALearner:
        learner = begun(world, name)
        train(world, learner, visit(world))
        return learner

    later = visit(world, tasks=torch.tensor([1, 3, 0]), numbers=np.ones(3, dtype=np.int64))
    assert_rows_are_alone(world, after_a_visit, later)


def test_visits_say_whose_they_are(make_world: MakeWorld) -> None:
    world = make_world()
    with pytest.raises(StateError, match="rows"):
        begun(world).learn(world.data, visit(world, rows=ROWS[:0]))
    with pytest.raises(StateError, match="keys"):
        begun(world, "joint").learn(world.data, visit(world, keys=KEYS[:0]))


@pytest.mark.parametrize("name", BOUNDS)
def test_a_gain_is_positive(make_world: MakeWorld, name: str) -> None:
    with pytest.raises(InvalidValueError, match=f"init_gain of {name}"):
        make(make_world(), name, options={"init_gain": 0})
