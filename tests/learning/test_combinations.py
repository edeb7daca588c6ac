"""Every learner goes with every modifier, and modifiers with each other."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from short_visits import (
    MakeWorld,
    assert_rows_are_alone,
    assert_same,
    bases,
    entries,
    make,
    visit,
)

from nsr_gym.errors import UnknownNameError
from nsr_gym.learning.adapters import Adapters, summed
from nsr_gym.learning.kinds import LEARNERS, MODIFIERS, learner_class
from nsr_gym.learning.run import Run
from nsr_gym.learning.visit import Visit

LIGHT: dict[str, dict[str, Any]] = {name: {} for name in MODIFIERS} | {"badam": {"samples": 2}}
ALL = {name: LIGHT[name] for name in MODIFIERS}


def suited(world: Any, name: str) -> Visit:
    """A visit with all that a learner of that name needs."""
    kind, more = learner_class(name), {}
    if kind.sums:
        more["others"] = entries(world)
    if kind.needs_basis:
        more["basis"] = bases(world, 3)
    return visit(world, recalled=torch.tensor([True, False, True]), **more)


def begun(world: Any, name: str, modifiers: Any) -> Any:
    learner = make(world, name, modifiers=modifiers)
    learner.begin(np.arange(3))
    return learner


@pytest.mark.parametrize("modifier", MODIFIERS)
@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_trains_with_every_modifier(
    make_world: MakeWorld, name: str, modifier: str
) -> None:
    world = make_world(learning_rate=0.05)
    of = suited(world, name)
    learner = begun(world, name, {modifier: LIGHT[modifier]})
    trained, curve = learner.learn(world.data, of)
    assert trained.finite().all()
    assert curve.shape == (3, 4)
    assert ((curve >= 0.0) & (curve <= 1.0)).all()
    assert trained.rank == of.start.rank
    plain, _ = begun(world, name, {}).learn(world.data, of)
    moved = [
        float((ours - theirs).abs().max())
        for site, pair in trained.factors.items()
        for ours, theirs in zip(pair, plain.factors[site], strict=True)
    ]
    assert max(moved) > 1e-4  # it does something to every learner


@pytest.mark.parametrize("name", LEARNERS)
def test_all_modifiers_together_go_with_every_learner_episode_by_episode(
    make_world: MakeWorld, name: str
) -> None:
    world = make_world(learning_rate=0.02)
    of = suited(world, name)
    assert_rows_are_alone(world, lambda: begun(world, name, ALL), of)


@pytest.mark.parametrize(
    "order", list(permutations(["ema_merge", "rank_gates", "sam"])), ids="-".join
)
def test_the_measured_model_is_the_result_in_any_order(
    make_world: MakeWorld, order: tuple[str, ...]
) -> None:
    world = make_world(sizes=((30, 200),) * 4, learning_rate=0.05)
    of = visit(world, base=summed(entries(world)))
    learner = make(world, modifiers={name: LIGHT[name] for name in order})
    trained, curve = learner.learn(world.data, of)
    found = learner.accuracy(world.data.test(of.tasks), trained, of.base)
    torch.testing.assert_close(curve[:, -1], found, rtol=0, atol=1.01 / 200)


@pytest.mark.parametrize("modifier", MODIFIERS)
def test_modifiers_leave_what_they_are_given_alone(make_world: MakeWorld, modifier: str) -> None:
    world = make_world()
    of, before = visit(world), visit(world)
    make(world, modifiers={modifier: LIGHT[modifier]}).learn(world.data, of)
    assert_same(of.start, before.start, within=0.0)


@pytest.mark.parametrize("name", LEARNERS)
def test_heads_of_their_own_are_trained_and_returned(make_world: MakeWorld, name: str) -> None:
    world, g = make_world(), torch.Generator().manual_seed(0)
    head = torch.randn(3, 3, 4, generator=g), torch.randn(3, 3, generator=g)
    of = suited(world, name)
    of = replace(of, start=Adapters(of.start.factors, head))
    trained, _ = begun(world, name, ALL).learn(world.data, of)
    assert trained.head is not None
    for part, before in zip(trained.head, head, strict=True):
        assert part.isfinite().all()
        assert not torch.equal(part, before)


def private_names(run: Run, kind: type[Run]) -> set[str]:
    """What a modifier or a learner's run keeps on the object that it shares with others."""
    mine = vars(run).keys() | {name for each in kind.__mro__ for name in vars(each)}
    return {n for n in mine if n.startswith("_") and not n.endswith("_")}


def test_parts_of_a_run_use_no_private_name_twice(make_world: MakeWorld) -> None:
    world, owners = make_world(), {}
    for name in (*LEARNERS, *MODIFIERS):
        alone = {name: LIGHT[name]} if name in MODIFIERS else {}
        learner = begun(world, "lora" if alone else name, alone)
        of = learner.prepare(world.data, suited(world, "lora" if alone else name))
        run = learner._run(learner, of, learner._run_options)
        plain = Run(learner, of, {})
        for one in private_names(run, type(run)) - private_names(plain, Run):
            owners.setdefault(one, set()).add(name)
    learners = set(LEARNERS)
    twice = {one: who for one, who in owners.items() if len(who) > 1 and not who <= learners}
    assert owners
    assert twice == {}


def test_unknown_names_and_options_are_refused(make_world: MakeWorld) -> None:
    world = make_world()
    with pytest.raises(UnknownNameError, match="Did you mean 'sam'"):
        make(world, modifiers={"samm": {}})
    with pytest.raises(UnknownNameError, match="Did you mean 'radius'"):
        make(world, modifiers={"sam": {"radios": 1.0}})
    with pytest.raises(UnknownNameError, match="Did you mean 'lambda1'"):
        make(world, "olora", options={"lambda": 1.0})
