"""What holds for every router that is registered."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from nsr_gym.errors import DataError, InvalidValueError, UnknownNameError
from nsr_gym.routing import ROUTERS, make_router
from nsr_gym.routing.base import Query, Router, Written

BANKS = [0, 1, 2]
TASKS = [0, 1, 2, 3, 4]
CONTROLS = ("random", "sgd")
"""Routers that are not meant to find the right entry."""


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the last places, infinite values included."""
    return torch.allclose(a, b, rtol=1e-10, atol=1e-10)


def taught(world: Any, name: str, banks: list[int] = BANKS, **options: Any) -> Router:
    """Banks of different fill: row i has learned 5 - i tasks."""
    router = world.build(name, banks, **options)
    for task in TASKS:
        rows = [i for i, b in enumerate(banks) if task < 5 - b]
        if rows:
            chosen = [banks[i] for i in rows]
            same = [task] * len(rows)
            router.learn(world.written(chosen, same, same, rows=rows))
    return router


def asked(world: Any) -> Query:
    """Two sets for bank 0, one for 1 and 2; the banks out of order."""
    query: Query = world.query([2, 0, 1, 0], [1, 4, 3, 0])
    return query


def test_answers_have_their_shapes_types_and_ranges(world: Any, name: str) -> None:
    router, query = taught(world, name), asked(world)
    scores, weights = router.scores(query), router.weights(query)
    of_set = router.set_scores(query)
    assert scores.shape == weights.shape == (4, 20, 7)
    assert of_set.shape == (4, 7)
    assert scores.dtype == weights.dtype == of_set.dtype == torch.float64
    assert torch.allclose(weights.sum(-1), torch.ones(4, 20).double())
    assert (weights >= 0).all()
    assert ((of_set >= 0) & (of_set <= 1)).all()
    held = torch.arange(6) < torch.tensor([3, 5, 4, 5])[:, None]
    assert (scores[..., 1:].isfinite() == held[:, None]).all()
    assert not weights[..., 1:][(~held)[:, None].expand(-1, 20, -1)].any()
    assert not of_set[:, 1:][~held].any()
    assert of_set[:, 1:][held].any()
    if not router.soft:
        assert (weights.amax(-1) == 1).all()
        assert torch.equal(weights.argmax(-1), scores.argmax(-1))


def test_an_input_is_decided_by_itself(world: Any, name: str) -> None:
    router, query = taught(world, name), asked(world)
    scores, weights = router.scores(query), router.weights(query)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1)).tolist()
    every = list(range(4))
    shuffled = world.pick(query, every, order)
    assert close(router.scores(shuffled), scores[:, order])
    assert close(router.weights(shuffled), weights[:, order])
    assert close(router.set_scores(shuffled), router.set_scores(query))
    for size in (1, 7):
        parts = [
            world.pick(query, every, list(range(i, min(i + size, 20)))) for i in range(0, 20, size)
        ]
        assert close(torch.cat([router.scores(part) for part in parts], 1), scores)
        assert close(torch.cat([router.weights(part) for part in parts], 1), weights)


def test_a_bank_answers_beside_others_as_it_does_alone(world: Any, name: str) -> None:
    many, query = taught(world, name), asked(world)
    for bank in BANKS:
        # Alone, and with less room: what others have grown to is no matter either.
        alone = world.build(name, [bank], slots=5)
        world.teach(alone, [bank], TASKS[: 5 - bank])
        index = np.flatnonzero(query.rows == bank).tolist()
        part = world.pick(query, index)
        single = Query(part.rows * 0, part.features, part.tasks, part.inputs)
        assert close(alone.scores(single), many.scores(query)[index, :, :6])
        assert close(alone.weights(single), many.weights(query)[index, :, :6])
        assert close(alone.set_scores(single), many.set_scores(query)[index, :6])
        assert alone.nbytes(np.array([0]))[0] == many.nbytes(np.array([bank]))[0]


def test_room_for_more_entries_changes_nothing(world: Any, name: str) -> None:
    router, query = taught(world, name), asked(world)
    before = router.scores(query), router.weights(query), router.set_scores(query)
    router.allocate(11)
    after = router.scores(query), router.weights(query), router.set_scores(query)
    for old, new in zip(before, after, strict=True):
        assert new.shape[-1] == 12
        assert close(new[..., :7], old)
    with pytest.raises(InvalidValueError, match="leave by drop"):
        router.allocate(5)


def test_without_entries_the_backbone_serves(world: Any, name: str) -> None:
    for slots in (0, 6):
        router = world.build(name, BANKS, slots=slots)
        weights = router.weights(asked(world))
        assert (weights[..., 0] == 1).all()
        assert weights.shape == (4, 20, 1 + slots)
        assert not router.set_scores(asked(world)).any()
        assert not router.nbytes(np.array(BANKS)).any()


@pytest.mark.parametrize("router_name", [n for n in ROUTERS if n not in CONTROLS])
def test_tasks_that_differ_are_routed_to_their_entries(world: Any, router_name: str) -> None:
    router = world.teach(world.build(router_name, BANKS), BANKS, TASKS)
    for task in TASKS:
        query = world.query(BANKS, [task] * 3, k=50)
        right = router.weights(query).argmax(-1) == 1 + task
        assert right.double().mean() > 0.9  # chance is 0.2
        assert (router.set_scores(query).argmax(-1) == 1 + task).all()


def test_dropped_entries_are_never_chosen_and_their_slots_can_be_used_again(
    world: Any, name: str
) -> None:
    router = world.teach(world.build(name, BANKS), BANKS, TASKS)
    router.drop(np.array([0, 0, 2]), np.array([1, 3, 0]))
    router.drop(np.array([0, 1]), np.array([1, 5]))  # gone, and never there: passed over
    query = world.query([0, 2, 1], [1, 0, 1])
    scores = router.scores(query)
    gone = torch.zeros(3, 6, dtype=torch.bool)
    gone[0, [1, 3]] = gone[1, 0] = True
    gone[:, 5] = True
    assert ((scores[..., 1:] == -torch.inf) == gone[:, None]).all()
    assert not router.weights(query)[..., 1:][gone[:, None].expand(-1, 20, -1)].any()
    assert not router.set_scores(query)[:, 1:][gone].any()
    router.learn(world.written([0], [3], [1], rows=[0]))
    assert router.scores(query)[0, :, 4].isfinite().all()
    if name not in CONTROLS:
        assert (router.set_scores(world.pick(query, [0]))[0, 1:].argmax()) == 3


def test_a_bank_that_begins_anew_knows_nothing_of_before(world: Any, name: str) -> None:
    router = taught(world, name)
    others = world.pick(asked(world), [0, 2])
    before = router.scores(others)
    router.begin(np.array([0]), world.keys([0]))
    assert not router.nbytes(np.array([0])).any()
    assert torch.equal(router.scores(others), before)
    new = world.build(name, [0])
    for one in (router, new):
        world.teach(one, [0], [2, 1])
    query = world.query([0], [2])
    assert torch.equal(router.scores(query), new.scores(query))


def test_the_state_brings_a_router_back_exactly(world: Any, name: str) -> None:
    router, query = taught(world, name), asked(world)
    state = dict(reversed(router.state().items()))  # a file may bring them in another order
    again = make_router(name, num_banks=3, feature_dim=24)
    again.restore(state)
    assert again.slots == 6
    later = world.written([0, 1, 2], [5, 0, 4], [0, 0, 0])
    for step in ("as saved", "after learning on"):
        assert torch.equal(again.scores(query), router.scores(query)), step
        assert torch.equal(again.weights(query), router.weights(query)), step
        assert torch.equal(again.set_scores(query), router.set_scores(query)), step
        assert again.nbytes(np.array(BANKS)).tolist() == router.nbytes(np.array(BANKS)).tolist()
        for one in (router, again):
            one.learn(later)
    # What was given is a copy: learning on has not changed it.
    third = make_router(name, num_banks=3, feature_dim=24)
    third.restore(state)
    assert not torch.equal(third.scores(query), router.scores(query))


def test_a_state_of_another_size_is_refused(world: Any, name: str) -> None:
    state = taught(world, name).state()
    with pytest.raises(InvalidValueError, match="fit"):
        make_router(name, num_banks=4, feature_dim=24).restore(state)
    with pytest.raises(InvalidValueError, match="lacks"):
        make_router(name, num_banks=3, feature_dim=24).restore({"keys": state["keys"]})


def test_an_entry_that_is_updated_is_still_found(world: Any, name: str) -> None:
    router = world.teach(world.build(name, BANKS), BANKS, TASKS)
    world.teach(router, BANKS, TASKS[::-1], number=7)
    query = world.query(BANKS, [2, 2, 2])
    if name in CONTROLS:
        assert router.weights(query)[..., 1:6].sum() == 60
    else:
        assert (router.set_scores(query).argmax(-1) == 3).all()


def test_what_cannot_be_learned_is_refused(world: Any, name: str) -> None:
    router = world.build(name, BANKS)
    written = world.written([0, 1], [0, 0], [0, 0])

    def but(**changes: Any) -> Written:
        return Written(**(vars(written) | changes))

    with pytest.raises(InvalidValueError, match="different banks"):
        router.learn(but(rows=np.array([1, 1])))
    with pytest.raises(InvalidValueError, match="Call allocate"):
        router.learn(but(slots=np.array([0, 6])))
    with pytest.raises(InvalidValueError, match="Call allocate"):
        router.drop(np.array([0]), np.array([-1]))
    for features in (written.features[..., 1:], written.features[:1], written.features[:, :0]):
        with pytest.raises(InvalidValueError, match="features of shape"):
            router.learn(but(features=features))
    with pytest.raises(DataError, match="finite"):
        router.learn(but(features=written.features / 0))
    assert not router.nbytes(np.array(BANKS)).any()
    query = asked(world)
    with pytest.raises(DataError, match="finite"):
        router.scores(Query(query.rows, query.features * torch.nan, query.tasks, query.inputs))
    if router.needs_inputs:
        with pytest.raises(InvalidValueError, match="factors"):
            router.learn(but(factors={}))
        router.learn(written)
        with pytest.raises(InvalidValueError, match="second"):
            router.scores(
                Query(query.rows, query.features, query.tasks, {"first": query.inputs["first"]})
            )


def test_routers_that_read_no_factors_need_none(world: Any, name: str) -> None:
    router = world.build(name, [0])
    if router.needs_inputs:
        return
    written = world.written([0], [2], [2])
    router.learn(
        Written(written.rows, written.slots, written.features, written.embedding, written.tasks)
    )
    query = world.query([0], [2])
    bare = Query(query.rows, query.features, query.tasks)
    assert (router.weights(bare).argmax(-1) == 3).all()


def test_unknown_names_and_options_are_named(name: str) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'cosine'"):
        make_router("cosin", num_banks=1, feature_dim=3)
    with pytest.raises(UnknownNameError, match=f"{name!r}.*called 'widht'"):
        make_router(name, num_banks=1, feature_dim=3, widht=3)
    for sizes in ({"num_banks": 0, "feature_dim": 3}, {"num_banks": 2, "feature_dim": 0}):
        with pytest.raises(InvalidValueError, match="at least 1"):
            make_router(name, **sizes)


BAD_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("cosine", {"threshold": float("nan")}),
    ("soft_gate", {"temperature": 0.0}),
    ("rls", {"width": 0}),
    ("rls", {"lam": -1.0}),
    ("key_query", {"steps": 0}),
    ("key_query", {"learning_rate": 0.0}),
    ("energy", {"energy": 0.0}),
    ("energy", {"max_directions": 0}),
    ("sgd", {"learning_rate": float("inf")}),
    ("tree", {"pulls": 0}),
    ("tree", {"exploration": -1.0}),
]


@pytest.mark.parametrize(("router_name", "options"), BAD_OPTIONS)
def test_options_out_of_range_are_refused(router_name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match=next(iter(options))):
        make_router(router_name, num_banks=1, feature_dim=3, **options)


def test_every_router_is_registered_under_its_own_name(name: str) -> None:
    assert make_router(name, num_banks=1, feature_dim=3).name == name


def test_listing_routers_loads_no_torch() -> None:
    code = "import sys, nsr_gym.routing as r; assert r.ROUTERS and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
