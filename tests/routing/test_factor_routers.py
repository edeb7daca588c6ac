"""Routers that read nothing but an entry's factors: Arrow, and the tree over directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nsr_gym.errors import InvalidValueError
from nsr_gym.routing.base import Query, Written

BANKS = [0, 1]
TASKS = [0, 1, 2, 3, 4]


def top_direction(up: Tensor, down: Tensor) -> Tensor:
    return torch.linalg.svd(up.double() @ down.double())[2][0]


def similarity(world: Any, query: Query, row: int, task: int) -> Tensor:
    """|v.x| / |x| by a dense SVD, (k, sites)."""
    factors = world.written([BANKS[row]], [0], [task]).factors
    parts = []
    for site, (up, down) in factors.items():
        x = query.inputs[site][row].double()
        parts.append((x @ top_direction(up[0], down[0])).abs() / x.norm(dim=-1))
    return torch.stack(parts, -1)


def test_arrow_scores_by_the_top_singular_vector_of_the_dense_update(world: Any) -> None:
    router = world.teach(world.build("arrow", BANKS), BANKS, TASKS)
    query = world.query(BANKS, [1, 4])
    for row in range(2):
        for task in TASKS:
            wanted = similarity(world, query, row, task).mean(-1)
            assert torch.allclose(router.scores(query)[row, :, 1 + task], wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["arrow", "tree"])
def test_the_way_an_update_was_factored_does_not_matter(world: Any, name: str) -> None:
    plain = world.teach(world.build(name, BANKS), BANKS, TASKS)
    other = world.teach(world.build(name, BANKS), BANKS, TASKS, gauge=3)
    query = world.query(BANKS, [1, 4])
    assert torch.allclose(plain.scores(query), other.scores(query), atol=1e-4)


@pytest.mark.parametrize("name", ["arrow", "tree"])
def test_the_features_are_not_read(world: Any, name: str) -> None:
    router, other = world.build(name, [0]), world.build(name, [0])
    for task in TASKS:
        written = world.written([0], [task], [task])
        router.learn(written)
        other.learn(Written(**(vars(written) | {"features": torch.ones(1, 3, 24)})))
    query = world.query([0], [2])
    assert torch.equal(router.scores(query), other.scores(query))


@pytest.mark.parametrize("name", ["arrow", "tree"])
def test_sites_keep_their_names_order_and_shapes(world: Any, name: str) -> None:
    router = world.teach(world.build(name, [0]), [0], [0])
    written = world.written([0], [1], [1])
    backwards = dict(reversed(written.factors.items()))
    with pytest.raises(InvalidValueError, match="first, second, in this order"):
        router.learn(Written(**(vars(written) | {"factors": backwards})))
    query = world.query([0], [1])
    wrong = query.inputs | {"second": query.inputs["second"][..., 1:]}
    with pytest.raises(InvalidValueError, match="'second' of shape"):
        router.scores(Query(query.rows, query.features, query.tasks, wrong))


def test_an_update_that_is_zero_has_no_direction_and_scores_zero(world: Any) -> None:
    for name in ("arrow", "tree"):
        router = world.teach(world.build(name, [0]), [0], [0])
        written = world.written([0], [1], [1])
        zero = {site: (up * 0, down) for site, (up, down) in written.factors.items()}
        router.learn(Written(**(vars(written) | {"factors": zero})))
        query = world.query([0], [0])
        assert (router.weights(query).argmax(-1) == 1).all()
        assert router.set_scores(query)[0, 2] < router.set_scores(query)[0, 1]


def paths(router: Any, row: int) -> tuple[dict[int, tuple[bool, ...]], int]:
    right, depth = router.branches(np.array([row]))
    levels = int(depth[0])
    held = np.flatnonzero(router.state()["held"][row])
    return {int(s): tuple(right[0, :levels, s].tolist()) for s in held}, levels


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_the_tree_is_balanced_and_tells_every_entry_apart(world: Any, count: int) -> None:
    router = world.teach(world.build("tree", [3, 4]), [3, 4], list(range(count)))
    for row in range(2):
        branches, levels = paths(router, row)
        assert levels == int(np.ceil(np.log2(count)))
        assert len(set(branches.values())) == len(branches) == count
        for level in range(levels):
            for node in {path[:level] for path in branches.values()}:
                below = [path[level] for path in branches.values() if path[:level] == node]
                assert 0 <= below.count(False) - below.count(True) <= 1


def test_the_left_half_is_the_one_more_like_its_node(world: Any) -> None:
    router = world.teach(world.build("tree", [0]), [0], [0, 1, 2, 3])
    # Slot 4 holds a copy of task 2: the two are like each other and unlike the rest.
    router.learn(world.written([0], [4], [2]))
    branches, _ = paths(router, 0)
    left = {s for s, path in branches.items() if not path[0]}
    assert {2, 4} < left
    assert len(left) == 3


def test_an_input_goes_down_the_tree_as_written_out(world: Any) -> None:
    world.noise = 1.5
    router = world.teach(world.build("tree", BANKS), BANKS, TASKS)
    query = world.query(BANKS, [1, 4])
    scores = router.scores(query)
    assert ((scores[..., 1:6] >= 0) & (scores[..., 1:6] <= 1)).all()
    for row in range(2):
        branches, levels = paths(router, row)
        like = torch.stack([similarity(world, query, row, t) for t in TASKS], -1)
        for i in range(20):
            node: tuple[bool, ...] = ()
            for level in range(levels):
                energy = {}
                for side in (False, True):
                    inside = [s for s, p in branches.items() if p[: level + 1] == (*node, side)]
                    values = like[i, level % 2, inside].square()
                    energy[side] = float(values.mean()) if inside else -1.0
                node = (*node, energy[True] > energy[False])
            wanted = []
            for task in TASKS:
                path = branches[task]
                shared = sum(path[: n + 1] == node[: n + 1] for n in range(levels))
                wanted.append((shared + float(like[i, :, task].mean())) / (levels + 1))
            assert np.allclose(scores[row, i, 1:6].numpy(), wanted, atol=1e-5)
            end = next(s for s, p in branches.items() if p == node)
            assert int(scores[row, i].argmax()) == 1 + end


def test_enough_looks_estimate_a_sets_similarity_to_its_own_entry(world: Any) -> None:
    router = world.build("tree", BANKS, pulls=200)
    world.teach(router, BANKS, TASKS)
    query = world.query(BANKS, [1, 4], k=40)
    for row, task in ((0, 1), (1, 4)):
        wanted = similarity(world, query, row, task).mean()
        assert abs(float(router.set_scores(query)[row, 1 + task] - wanted)) < 0.02


def test_one_look_at_a_set_says_the_same_of_all_entries(world: Any) -> None:
    router = world.build("tree", [0], pulls=1)
    world.teach(router, [0], TASKS)
    scores = router.set_scores(world.query([0], [1]))[0, 1:6]
    # Only the root has a look that counts for entries elsewhere.
    assert len(set(scores.tolist())) == 1
    assert scores[0] > 0
