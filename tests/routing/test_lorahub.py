"""The gradient-free search over a bank's weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nsr_gym.errors import InvalidValueError
from nsr_gym.routing.lorahub import search

Floats = NDArray[np.float64]
TARGETS = np.array([[0.8, -0.4, 0.0], [0.0, 0.0, 1.2], [-0.5, 0.5, 0.5]])


def bowl(rows: slice = slice(None)) -> Any:
    return lambda w: np.square(w - TARGETS[rows]).sum(1)


def cost(w: Floats, penalty: float = 0.05) -> Floats:
    return np.asarray(bowl()(w) + penalty * np.abs(w).mean(1))


def test_the_search_gets_near_the_minimum() -> None:
    w = search(bowl(), n=3, entries=3, evaluations=300, penalty=0.0)
    assert (bowl()(w) < 1e-2).all()
    few = search(bowl(), n=3, entries=3)
    assert (cost(few) < 0.6 * cost(np.zeros((3, 3)))).all()


def test_the_result_is_never_worse_than_zero_weights_and_within_the_bound() -> None:
    for seed in range(20):
        w = search(bowl(), n=3, entries=3, evaluations=7, seed=seed)
        assert (cost(w) <= cost(np.zeros((3, 3)))).all()
    steep = search(lambda w: -w.sum(1), n=2, entries=4, evaluations=200, bound=0.7, penalty=0.0)
    assert np.abs(steep).max() <= 0.7
    assert steep.min() > 0.6


def test_zero_weights_stay_where_nothing_is_better() -> None:
    assert not search(lambda w: np.abs(w).sum(1), n=2, entries=3).any()
    assert not search(bowl(), n=3, entries=3, evaluations=1).any()
    bad = search(lambda w: np.where(w.any(1), np.nan, 1.0), n=2, entries=3)
    assert not bad.any()


def test_weights_with_a_finite_loss_are_better_than_zero_weights_without_one() -> None:
    w = search(lambda w: np.where(w.any(1), bowl()(w), np.nan), n=3, entries=3)
    assert w.any(1).all()


def test_a_penalty_keeps_weights_small() -> None:
    free = search(bowl(), n=3, entries=3, evaluations=200, penalty=0.0)
    held = search(bowl(), n=3, entries=3, evaluations=200, penalty=6.0)
    assert np.abs(held).sum() < 0.5 * np.abs(free).sum()


def test_loss_is_called_as_often_as_said_and_first_at_zero() -> None:
    seen: list[Floats] = []

    def loss(w: Floats) -> Floats:
        seen.append(w.copy())
        return np.asarray(bowl()(w))

    search(loss, n=3, entries=3, evaluations=40)
    assert len(seen) == 40
    assert not seen[0].any()


def test_a_row_is_searched_as_it_is_alone_whatever_room_others_have() -> None:
    seeds = np.array([4, 9, 4])
    together = search(bowl(), n=3, entries=3, seed=seeds)
    for i in range(3):
        alone = search(bowl(slice(i, i + 1)), n=1, entries=3, seed=seeds[i])
        assert np.array_equal(alone[0], together[i])
    exists = np.array([[True, True, True, False, False]] * 3)

    def wide(w: Floats) -> Floats:
        return np.asarray(np.square(w[:, :3] - TARGETS).sum(1))

    with_room = search(wide, n=3, entries=exists, seed=seeds)
    assert np.array_equal(with_room[:, :3], together)
    assert not with_room[:, 3:].any()
    assert not np.array_equal(together, search(bowl(), n=3, entries=3, seed=seeds + 1))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n": 0}, "n as"),
        ({"entries": 0}, "entries as"),
        ({"entries": np.ones((2, 3))}, "entries as"),
        ({"evaluations": 0}, "evaluations"),
        ({"bound": 0.0}, "bound"),
        ({"penalty": -1.0}, "penalty"),
        ({"loss": lambda w: 0.0}, "losses"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(arguments: dict[str, Any], match: str) -> None:
    usual: dict[str, Any] = {"loss": bowl(), "n": 3, "entries": 3}
    given = usual | arguments
    with pytest.raises(InvalidValueError, match=match):
        search(given.pop("loss"), **given)
