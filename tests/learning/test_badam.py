"""BAdam: a Gaussian for every weight, means by Adam's ratio, deviations by its own rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from short_visits import (
    KEYS,
    ByHand,
    MakeWorld,
    assert_differ,
    assert_is,
    assert_rows_are_alone,
    assert_same,
    flat,
    leaves_of,
    make,
    products,
    visit,
)

from nsr_gym.errors import InvalidValueError, StateError

PURPOSE = 0xBADA
OPTIONS = {"deviation": 0.1, "samples": 4}


def noise_of(i: int, number: int = 0) -> np.random.Generator:
    counter = np.array([0, 0, PURPOSE, number], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=KEYS[i], counter=counter))


def test_means_and_deviations_follow_their_rules(make_world: MakeWorld) -> None:
    world = make_world(learning_rate=0.03)
    of = visit(world)
    kept = {
        site: (torch.zeros(up.mT.shape), torch.zeros(down.shape))
        for site, (up, down) in of.start.factors.items()
    }
    of = replace(of, extra={"deviations": kept})
    trained, _ = make(world, modifiers={"badam": OPTIONS}).learn(world.data, of)
    for i in range(3):
        episode, stream, leaves = ByHand(world, of, i), noise_of(i), leaves_of(of.start, i)
        parts = flat(leaves)
        sigmas = [torch.full_like(part, 0.1).detach() for part in parts]
        first, second = ([torch.zeros_like(part).detach() for part in parts] for _ in "mv")
        for t, chosen in enumerate(episode.batches(), start=1):
            mus = [part.detach().clone() for part in parts]
            g, q = ([torch.zeros_like(part) for part in mus] for _ in "gq")
            for _ in range(4):
                noise = []
                for j, part in enumerate(parts):  # up factors are drawn transposed
                    shape = part.shape[::-1] if j % 2 == 0 else part.shape
                    drawn = stream.standard_normal(part.numel(), dtype=np.float32).reshape(shape)
                    noise.append(torch.tensor(drawn).mT if j % 2 == 0 else torch.tensor(drawn))
                with torch.no_grad():
                    for j, part in enumerate(parts):
                        part.copy_(mus[j] + sigmas[j] * noise[j])
                found = torch.autograd.grad(episode.loss(products(leaves), chosen), parts)
                for j, slope in enumerate(found):
                    g[j] += slope / 4
                    q[j] += slope * noise[j] / 4
            with torch.no_grad():
                for j, part in enumerate(parts):
                    first[j] = 0.9 * first[j] + 0.1 * g[j]
                    second[j] = 0.999 * second[j] + 0.001 * g[j] ** 2
                    ratio = first[j] / (1 - 0.9**t) / (second[j] / (1 - 0.999**t)).sqrt()
                    part.copy_(mus[j] - 0.03 / 0.1**2 * sigmas[j] ** 2 * ratio.nan_to_num())
                    grown = sigmas[j] * (1 + (sigmas[j] * q[j] / 2) ** 2).sqrt()
                    sigmas[j] = grown - sigmas[j] ** 2 * q[j] / 2
        assert_is(trained, i, leaves)
        for j, pair in enumerate(kept.values()):
            torch.testing.assert_close(pair[0][i].mT, sigmas[2 * j], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(pair[1][i], sigmas[2 * j + 1], rtol=1e-4, atol=1e-6)
            assert not torch.allclose(pair[1][i], torch.tensor(0.1), atol=1e-4)  # they did move


def test_without_uncertainty_it_is_plain_training(make_world: MakeWorld) -> None:
    """Within 1e-3: at a deviation of 1e-6 only rounding is left."""
    world = make_world()
    of = visit(world)
    sure = make(world, modifiers={"badam": {"deviation": 1e-6, "samples": 2}})
    assert_same(sure.learn(world.data, of)[0], make(world).learn(world.data, of)[0], within=1e-3)


def test_noise_gives_no_direction_that_was_not_granted(make_world: MakeWorld) -> None:
    world = make_world()
    of = visit(world)
    of.start.keep(torch.tensor([1, 3, 2]))
    trained, _ = make(world, modifiers={"badam": OPTIONS}).learn(world.data, of)
    assert trained.used().tolist() == [1, 3, 2]
    assert trained.directions().sum(1).tolist() == [[1] * 3, [3] * 3, [2] * 3]


def test_an_adapter_that_is_trained_on_becomes_more_certain(make_world: MakeWorld) -> None:
    """The learner's own adapter carries the deviations; the next visit starts from them."""
    world = make_world(learning_steps=10)
    rows, learner = np.arange(3), make(world, "sequential", modifiers={"badam": OPTIONS})
    learner.begin(rows)
    assert (learner.free_capacity(rows) == 1.0).all()
    found = []
    for number in range(3):
        of = visit(world, numbers=np.full(3, number))
        learner.learn(world.data, of)
        assert number == 0 or (learner.free_capacity(rows) == found[-1]).all()  # not yet kept
        learner.commit(rows[:2], np.zeros(2, dtype=np.int64), None)
        found.append(learner.free_capacity(rows))
    assert all(one[2] == 1.0 for one in found)  # whose results were not kept
    assert (np.diff(np.array([one[:2] for one in found]), axis=0) < 0).all()
    assert (found[0][:2] < 1.0).all()
    assert make(world, "sequential").free_capacity(rows) is None


def test_an_episodes_noise_is_its_own(make_world: MakeWorld) -> None:
    world = make_world()
    of = visit(world)
    assert_rows_are_alone(world, lambda: make(world, modifiers={"badam": OPTIONS}), of)
    later = replace(of, numbers=np.ones(3, dtype=np.int64))
    learner = make(world, modifiers={"badam": OPTIONS})
    assert_differ(learner.learn(world.data, of)[0], learner.learn(world.data, later)[0])


def test_noise_needs_keys(make_world: MakeWorld) -> None:
    world = make_world()
    of = replace(visit(world), keys=KEYS[:0])
    with pytest.raises(StateError, match="keys and numbers of all 3 episodes"):
        make(world, modifiers={"badam": {}}).learn(world.data, of)


@pytest.mark.parametrize("options", [{"deviation": 0}, {"samples": 0}, {"samples": 1.5}])
def test_options_are_positive(make_world: MakeWorld, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match="of badam"):
        make(make_world(), modifiers={"badam": options})
