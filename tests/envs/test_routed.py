"""Accuracy without a task identity: every test image is answered by the entry named for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from nsr_gym.backbones.base import FrozenMap
from nsr_gym.backbones.pretrain import Recipe, pretrain_mlp
from nsr_gym.datasets import pool_from_arrays
from nsr_gym.envs import ContinualEnv, routed_accuracy
from nsr_gym.envs.dynamics import Visits
from nsr_gym.envs.starts import entries_of
from nsr_gym.errors import InvalidValueError, UnknownNameError
from nsr_gym.learning import data
from nsr_gym.learning.site_maps import MergedMap, MixedMap
from nsr_gym.routing import ROUTERS

Make = Callable[..., Any]
ADD = 2


def filled(make_env: Make, **arguments: Any) -> Any:
    """Return an environment in which every task has an entry."""
    chosen = {"num_tasks": 3, "cycles": 1, "support_size": 32, "learning_steps": 4, "updates": 3}
    env = make_env(**(chosen | arguments))
    env.reset(seed=0)
    for _ in range(chosen["num_tasks"]):
        env.step(np.array([0, 3, ADD]))
    return env


def own_accuracy(env: Any) -> np.ndarray:
    """The accuracy of each task's own entry on it."""
    engine = env.engine
    bank, found = engine.memory.bank, []
    for task in engine.members[0]:
        slot = int(np.flatnonzero(bank.tags["task"][0] == task)[0])
        adapters, base = engine.dynamics._in_use(bank, np.array([0]), np.array([slot]))
        found.append(engine.dynamics.test_accuracy(np.array([task]), adapters, base)[0])
    return np.array(found)


@pytest.mark.parametrize("head", ["frozen", "trained"])
def test_the_oracle_gives_every_task_its_own_entry(head: str, make_env: Make) -> None:
    env = filled(make_env, head=head)
    routed = routed_accuracy(env, "oracle")
    np.testing.assert_allclose(routed.accuracy[0], own_accuracy(env), atol=0.0051)
    assert (routed.right == 1.0).all()


def test_permuted_digits_are_told_apart_by_what_enters_the_network(make_env: Make) -> None:
    env = filled(make_env)
    oracle = routed_accuracy(env, "oracle").accuracy
    for router in ("ncm", "rls", "energy", "key_query"):
        routed = routed_accuracy(env, router)
        assert routed.right.mean() > 0.9
        np.testing.assert_allclose(routed.accuracy.mean(), oracle.mean(), atol=0.05)
    for router in ("random", "sgd"):
        assert routed_accuracy(env, router).accuracy.mean() < oracle.mean() - 0.1


@pytest.mark.parametrize("router", [*ROUTERS])
def test_a_router_that_was_told_answers_as_one_that_reads_the_bank(
    router: str, make_env: Make
) -> None:
    env = filled(make_env, router=router)
    told, read = routed_accuracy(env), routed_accuracy(env, router)
    np.testing.assert_array_equal(told.accuracy, read.accuracy)
    np.testing.assert_array_equal(told.right, read.right)


def test_an_answer_does_not_depend_on_the_batch_it_stands_in(make_env: Make) -> None:
    """No votes over class-ordered test batches: images one by one, or all, or shuffled."""
    env = filled(make_env, router="rls")
    finder, dynamics = env.engine.memory.finder, env.engine.dynamics
    task = np.array([env.engine.members[0, 1]])
    images = dynamics.data.test(torch.tensor(task))
    visits = Visits(np.array([0]), task, np.array([0]))
    whole = finder.router.weights(finder.query(visits, images)).argmax(-1)[0]
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    for chosen in (order, order[:7], order[:1]):
        part = type(images)(tuple(p[:, chosen] for p in images.prefix), images.labels[:, chosen])
        named = finder.router.weights(finder.query(visits, part)).argmax(-1)[0]
        assert torch.equal(named, whole[chosen])


@pytest.mark.parametrize(
    ("router", "arguments"),
    [
        ("rls", {}),
        ("oracle", {"head": "trained"}),
        ("arrow", {}),  # mixes entries, and asks for what enters the sites
        ("ncm", {"bank": "additive"}),
        ("ncm", {"learner": "sequential", "head": "trained"}),
    ],
    ids=str,
)
def test_images_are_answered_in_pieces_that_fit_into_memory(
    router: str, arguments: dict[str, Any], make_env: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = filled(make_env, **arguments)
    dynamics = env.engine.dynamics
    whole = routed_accuracy(env, router)
    prefix = dynamics.data.test(torch.tensor([0])).prefix
    image = sum(part[0, 0].numel() * part.element_size() for part in prefix)
    monkeypatch.setattr(data, "_PREFIX_BYTES", 60 * image)  # of 200 images: 60, 60, 60, 20
    seen, forward = [], dynamics.learner.backbone.forward

    def watched(prefix: Any, site_map: Any) -> torch.Tensor:
        seen.append(prefix[0].shape[1])
        return forward(prefix, site_map)

    monkeypatch.setattr(dynamics.learner.backbone, "forward", watched)
    cut = routed_accuracy(env, router)
    assert set(seen) == {20, 60}
    np.testing.assert_array_equal(cut.accuracy, whole.accuracy)
    np.testing.assert_array_equal(cut.right, whole.right)


def test_episodes_with_fewer_tasks_than_there_may_be(make_env: Make) -> None:
    env = make_env("NSR/MixedDigits-v0", num_tasks=[2, 4], learning_steps=1, updates=1)
    engine, seen = env.engine, set()
    for seed in range(6):
        env.reset(seed=seed)
        env.step(np.array([0, 3, ADD]))
        tasks, found = int(engine.num_tasks[0]), routed_accuracy(env, "ncm")
        for values in (found.accuracy[0], found.right[0]):
            assert np.isnan(values).tolist() == [i >= tasks for i in range(4)]
        seen.add(tasks)
    assert min(seen) < 4


def test_weights_of_one_pick_an_entry_and_weights_of_zero_the_backbone(make_env: Make) -> None:
    env = filled(make_env)
    dynamics, bank = env.engine.dynamics, env.engine.memory.bank
    images, rows = dynamics.data.test(torch.tensor([0])), np.array([0])
    entries, learner = entries_of(bank, rows), dynamics.learner
    weights = torch.zeros(1, 200, bank.slots)
    weights[:, :100, 1] = 1.0
    mixed = learner.logits(images, MixedMap(learner.backbone, entries, weights))
    picked = {s: (up[:, 1], down[:, 1]) for s, (up, down) in entries.items()}
    alone = learner.logits(images, MergedMap(learner.backbone, picked))
    frozen = learner.logits(images, FrozenMap(learner.backbone))
    torch.testing.assert_close(mixed[:, :100], alone[:, :100], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed[:, 100:], frozen[:, 100:], rtol=1e-4, atol=1e-4)
    assert (alone - frozen).abs().max() > 0.1


def test_with_heads_of_their_own_a_wrong_entry_is_a_wrong_class() -> None:
    rng = np.random.default_rng(0)
    tasks, weights = {}, rng.normal(size=(12, 4))
    for i in range(3):
        x = rng.normal(size=(150, 12)).astype(np.float32)
        y = (x @ weights).argmax(axis=1) + 4 * i  # the same images, other classes
        tasks[f"task-{i}"] = x[:100], y[:100], x[100:], y[100:]
    pool = pool_from_arrays(tasks, split="test")
    backbone = pretrain_mlp(x, y % 4, num_classes=4, recipe=Recipe(widths=(32, 16), epochs=40))
    env = ContinualEnv(
        pool, backbone, head="trained", num_tasks=3, cycles=1, ranks=[1, 2, 4], support_size=16
    )
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.array([0, 2, ADD]))
    oracle, wrong = routed_accuracy(env, "oracle"), routed_accuracy(env, "random")
    assert oracle.accuracy.min() > 0.6
    assert (wrong.accuracy <= wrong.right).all()
    assert wrong.accuracy.mean() < 0.6 * oracle.accuracy.mean()


def test_where_one_model_answers_everything_routing_has_no_say(make_env: Make) -> None:
    env = filled(make_env, bank="additive")
    found = [routed_accuracy(env, router).accuracy for router in ("oracle", "random")]
    np.testing.assert_array_equal(*found)


def test_environments_without_adapters_to_name_are_refused(make_env: Make) -> None:
    with pytest.raises(InvalidValueError, match="live"):
        routed_accuracy(make_env("NSR/CyclicDigitsRecorded-v0"))
    with pytest.raises(InvalidValueError, match="bank"):
        routed_accuracy(make_env(access="visit"))
    with pytest.raises(InvalidValueError, match="lorahub"):
        routed_accuracy(make_env(router="lorahub"))
    with pytest.raises(UnknownNameError, match="ncm"):
        routed_accuracy(make_env(), "nmc")
