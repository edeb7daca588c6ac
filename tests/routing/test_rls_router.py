"""The analytic router decides as one trained on everything at once; the SGD router forgets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nsr_gym.errors import InvalidValueError
from nsr_gym.routing.base import Query, Router

BANKS = [0, 1, 2]
TASKS = [0, 1, 2, 3, 4]


def routed(router: Router, world: Any, task: int, k: int = 60) -> Tensor:
    """The places of fresh inputs of a task, (banks, k)."""
    return router.weights(world.query(BANKS, [task] * 3, k=k)).argmax(-1)


def accuracy(router: Router, world: Any, task: int) -> float:
    return float((routed(router, world, task) == 1 + task).double().mean())


def joint_places(router: Any, world: Any, bank: int, query: Query, row: int) -> Tensor:
    """What ridge regression on all tasks of a bank at once decides for inputs."""
    x = torch.cat([router.expansion(world.features([bank], [t], 40, 0)[0]) for t in TASKS])
    y = torch.eye(7).double()[1 + torch.tensor(TASKS)].repeat_interleave(40, 0)
    x = torch.cat([x, torch.eye(x.shape[1]).double()])
    w = torch.linalg.lstsq(x, torch.cat([y, torch.zeros(x.shape[1], 7).double()])).solution
    return (router.expansion(query.features[row]) @ w).argmax(-1)


@pytest.mark.parametrize("noise", [0.3, 1.2])
def test_rls_decides_exactly_as_the_joint_router_and_sgd_forgets(world: Any, noise: float) -> None:
    world.noise = noise
    rls = world.teach(world.build("rls", BANKS, width=128), BANKS, TASKS)
    right, total = 0, 0
    for task in TASKS:
        query = world.query(BANKS, [task] * 3, k=60)
        places = rls.weights(query).argmax(-1)
        for row, bank in enumerate(BANKS):
            assert torch.equal(places[row], joint_places(rls, world, bank, query, row))
        right, total = right + int((places == 1 + task).sum()), total + places.numel()
    assert right / total > 0.55  # chance is 0.2

    sgd = world.build("sgd", BANKS)
    for task in TASKS:
        world.teach(sgd, BANKS, [task])
        assert accuracy(sgd, world, task) > 0.9  # it does learn the task at hand
    early = [accuracy(sgd, world, task) for task in TASKS[:3]]
    assert max(early) < 0.5
    assert accuracy(rls, world, 0) > max(early) + 0.3


def test_the_order_of_tasks_does_not_matter(world: Any) -> None:
    forward = world.teach(world.build("rls", BANKS), BANKS, TASKS)
    backward = world.teach(world.build("rls", BANKS), BANKS, TASKS[::-1])
    query = world.query(BANKS, [1, 2, 3])
    assert torch.allclose(forward.scores(query), backward.scores(query), rtol=0, atol=1e-9)


def test_both_forms_score_the_same(world: Any) -> None:
    gram, recursive = (
        world.teach(world.build("rls", BANKS, form=form), BANKS, TASKS)
        for form in ("gram", "recursive")
    )
    for router in (gram, recursive):
        router.drop(np.array([0, 0, 1]), np.array([4, 2, 0]))
    query = world.query(BANKS, [1, 2, 3])
    assert torch.allclose(gram.scores(query), recursive.scores(query), rtol=0, atol=1e-9)
    assert torch.allclose(gram.set_scores(query), recursive.set_scores(query), rtol=0, atol=1e-9)


def test_inputs_of_dropped_entries_go_to_the_backbone(world: Any) -> None:
    for reserve, share in ((True, 0.9), (False, 0.0)):
        router = world.build("rls", BANKS, reserve_backbone=reserve)
        world.teach(router, BANKS, TASKS)
        before = (routed(router, world, 1) == 0).double().mean()
        router.drop(np.array(BANKS), np.array([1, 1, 1]))
        after = (routed(router, world, 1) == 0).double().mean()
        assert before < 0.05
        assert after >= share
        assert reserve or after == 0
        assert accuracy(router, world, 2) > 0.9  # the others stay where they are


def test_dropping_the_same_entry_twice_in_a_call_counts_once(world: Any) -> None:
    once, twice = (world.teach(world.build("rls", BANKS), BANKS, TASKS) for _ in range(2))
    once.drop(np.array([0]), np.array([1]))
    twice.drop(np.array([0, 0]), np.array([1, 1]))
    query = world.query(BANKS, [1, 1, 1])
    assert torch.equal(once.scores(query), twice.scores(query))


def test_inverse_counts_help_the_entry_with_few_inputs(world: Any) -> None:
    world.noise = 1.5
    found = {}
    for weighting in ("none", "inverse_count"):
        router = world.build("rls", BANKS, width=64, weighting=weighting, lam=10.0)
        for task, k in ((0, 400), (1, 400), (2, 10)):
            world.teach(router, BANKS, [task], k=k)
        found[weighting] = accuracy(router, world, 2)
    assert found["inverse_count"] > found["none"] + 0.1


def test_set_scores_are_mean_logits_cut_to_the_unit_interval(world: Any) -> None:
    router = world.teach(world.build("rls", BANKS), BANKS, TASKS)
    router.drop(np.array([0]), np.array([0]))
    query = world.query(BANKS, [0, 1, 2])
    mean = router.scores(query).mean(1).clamp(0, 1)
    assert torch.allclose(router.set_scores(query), mean, atol=1e-14)
    assert mean[0, 0] > 0.5  # the backbone's place took over


def test_bytes_are_a_gram_matrix_and_a_column_for_each_entry(world: Any) -> None:
    router = world.build("rls", BANKS, width=32)
    world.teach(router, BANKS, [0, 1])
    router.drop(np.array([2, 2]), np.array([0, 1]))
    # What the backbone took over is one column.
    wanted = [8 * 32 * (32 + 2), 8 * 32 * (32 + 2), 8 * 32 * (32 + 1)]
    assert router.nbytes(np.array(BANKS)).tolist() == wanted


def test_options_of_the_ridge_are_checked(world: Any) -> None:
    with pytest.raises(InvalidValueError, match="inverse_count"):
        world.build("rls", BANKS, form="recursive", weighting="inverse_count")


def test_the_linear_ablation_uses_no_more_than_the_features_rank(world: Any) -> None:
    for relu in (True, False):
        router = world.teach(world.build("rls", [0], relu=relu, width=128), [0], TASKS)
        gram = router.ridge.gram(torch.zeros(1).long())[0]
        rank = int(torch.linalg.matrix_rank(gram, hermitian=True))
        assert (rank > 24) == relu
