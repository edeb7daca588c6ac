"""What the rules decide on observations made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nsr_gym.agents import make_agent
from nsr_gym.agents.thresholds import thresholds

Make = Callable[..., Any]

DISCARD, UPDATE, ADD = range(3)
FULL = 3
S = 8


def bank_view(layout: Any, **fields: Any) -> np.ndarray:
    """Lay out one observation; what is not given is 0, the trial loss of absent entries 1."""
    values = {name: np.zeros((1, size)) for name, size in layout.sizes.items()}
    if "trial_loss" in values:
        values["trial_loss"][:] = 1.0
    for name, given in fields.items():
        values[name][0, : len(np.atleast_1d(given))] = given
    return np.asarray(layout.encode(1, values)[0])


@pytest.mark.parametrize(
    ("similarity", "stored", "recall"),
    [
        ([0.99, 0.5], [1, 1], 1),
        ([0.90, 0.5], [1, 1], 1),  # at the threshold
        ([0.89, 0.5], [1, 1], 0),
        ([], [], 0),
        ([0.99], [0], 0),  # no entry, whatever the number says
        ([0.99], [0.125], 1),  # the least stored rank is an entry
    ],
)
def test_similarity_recalls_the_first_entry_above_its_threshold(
    similarity: list[float], stored: list[float], recall: int, make_env: Make
) -> None:
    agent = make_agent("similarity", make_env(), threshold=float(np.float32(0.90)))
    seen = bank_view(agent.layout, similarity=similarity, stored_rank=stored)
    action, _ = agent.predict(seen)
    assert action.tolist() == [recall, FULL, UPDATE]


@pytest.mark.parametrize(
    ("loss", "recall"),
    [
        ([0.5, 0.4], 2),
        ([0.4, 0.5], 1),
        ([0.9, 0.95], 0),
        ([1.5, 0.2, 0.3], 2),
        ([], 0),
    ],
)
def test_trial_loss_recalls_the_entry_that_fits_best(
    loss: list[float], recall: int, make_env: Make
) -> None:
    agent = make_agent("trial-loss", make_env(), threshold=0.8)
    scaled = agent.layout.scale_loss(np.array(loss))
    seen = bank_view(agent.layout, trial_loss=scaled, stored_rank=np.ones(len(loss)))
    action, _ = agent.predict(seen)
    assert action.tolist() == [recall, FULL, UPDATE]


def test_trial_loss_ignores_places_without_an_entry(make_env: Make) -> None:
    agent = make_agent("trial-loss", make_env(), threshold=0.8)
    seen = bank_view(agent.layout, trial_loss=[0.2, 0.01], stored_rank=[1, 0])
    action, _ = agent.predict(seen)
    assert action[0] == 1
    nothing = bank_view(agent.layout, trial_loss=[0.0] * S)
    assert agent.predict(nothing)[0][0] == 0


@pytest.mark.parametrize(("own", "recall"), [([1, 0], 1), ([0, 0], 0), ([], 0)])
def test_oracle_recalls_its_own_entry(own: list[int], recall: int, make_env: Make) -> None:
    agent = make_agent("oracle", make_env(observe_task_id=True))
    seen = bank_view(agent.layout, same_task=own, stored_rank=[1, 1], similarity=[0.2, 0.99])
    action, _ = agent.predict(seen)
    assert action.tolist() == [recall, FULL, UPDATE]


def test_the_oracle_recalls_on_every_return_and_never_before(make_env: Make) -> None:
    env = make_env(num_tasks=4, cycles=3, observe_task_id=True, view_size=1)
    agent = make_agent("oracle", env)
    observation, _ = env.reset(seed=1)
    over = False
    while not over:
        action, _ = agent.predict(observation)
        observation, _, over, _, info = env.step(action)
        assert info["recall"] == int(info["is_return"])
    assert info["entries"] == 4


@pytest.mark.parametrize(
    ("empty", "loss", "rank", "reserve"),
    [
        (1, 2.3, FULL, UPDATE),  # the first task: learn it and keep it
        (1, 0.1, FULL, UPDATE),  # an empty adapter fits nothing, whatever the loss
        (0, 0.1, 0, DISCARD),  # the kept task is back: lightest direction, then revert
        (0, 2.3, FULL, DISCARD),  # another task: scratch copy at full rank, then revert
    ],
)
def test_pin_one_keeps_the_first_task_and_reverts_every_other(
    empty: int, loss: float, rank: int, reserve: int, make_env: Make
) -> None:
    agent = make_agent("pin-one", make_env(access="memoryless"), threshold=1.0)
    scaled = float(agent.layout.scale_loss(np.array(loss)))
    seen = bank_view(agent.layout, adapter_empty=empty, active_loss=scaled)
    assert agent.predict(seen)[0].tolist() == [0, rank, reserve]


def test_pin_one_holds_the_first_task_to_the_end(make_env: Make) -> None:
    env = make_env(access="memoryless", num_tasks=3, cycles=3, learning_steps=8, updates=3)
    agent = make_agent("pin-one", env)
    observation, _ = env.reset(seed=0)
    kept, over = None, False
    while not over:
        action, _ = agent.predict(observation)
        observation, _, over, _, info = env.step(action)
        first = env.engine.streams[0].visits[0]
        retention = env.engine.retention(np.array([0]))[0]
        kept = retention if kept is None else kept
        np.testing.assert_array_equal(retention, kept)
        assert info["reserve"] == int(info["visit"] == 0)
        if info["task"] == first and info["visit"] > 0:
            assert info["accuracy_before"] > 0.5
            assert info["rank"] == 1


def test_greedy_grants_everything_to_the_newcomer(make_env: Make) -> None:
    agent = make_agent("greedy", make_env(access="memoryless"))
    assert agent.predict(bank_view(agent.layout))[0].tolist() == [0, FULL, UPDATE]


@pytest.mark.parametrize(("tasks", "granted"), [(1, 8), (2, 4), (3, 2), (4, 2), (8, 1), (20, 1)])
def test_uniform_grants_an_equal_share_and_at_least_one(
    tasks: int, granted: int, make_env: Make
) -> None:
    env = make_env(access="memoryless", num_tasks=tasks)
    agent = make_agent("uniform", env)
    action, _ = agent.predict(bank_view(agent.layout))
    assert env.engine.config.ranks[action[1]] == granted
    assert action[2] == UPDATE


@pytest.mark.parametrize(
    ("ranks", "granted"), [([1, 2, 4, 8], 4), ([1, 3, 8], 3), ([1], 1), ([6, 8], 6)]
)
def test_recency_grants_half(ranks: list[int], granted: int, make_env: Make) -> None:
    env = make_env(access="memoryless", ranks=ranks)
    agent = make_agent("recency", env)
    action, _ = agent.predict(bank_view(agent.layout))
    assert ranks[action[1]] == granted


@pytest.mark.parametrize(
    ("share", "granted"), [(0.0, 1), (0.05, 1), (0.125, 1), (0.25, 2), (0.5, 4), (0.99, 8), (1, 8)]
)
def test_loss_proportional_grants_its_share_of_the_rank(
    share: float, granted: int, make_env: Make
) -> None:
    env = make_env(access="memoryless")
    agent = make_agent("loss-proportional", env)
    action, _ = agent.predict(bank_view(agent.layout, active_loss=share))
    assert env.engine.config.ranks[action[1]] == granted


def test_fresh_starts_at_full_rank(make_env: Make) -> None:
    agent = make_agent("fresh", make_env(access="visit"))
    assert agent.predict(bank_view(agent.layout))[0].tolist() == [0, FULL, UPDATE]


def test_thresholds_are_calibrated_and_found_by_the_environment_s_id(make_env: Make) -> None:
    found = thresholds(make_env())
    assert 0.9 < found.similarity < 1.0
    assert found.trial_loss > 0
    assert make_agent("similarity", make_env()).threshold == found.similarity
    assert make_agent("trial-loss", make_env()).threshold == found.trial_loss


def test_similarity_recalls_almost_every_return_with_its_own_threshold(make_vec: Make) -> None:
    env = make_vec(4, num_tasks=5, cycles=3, split="test", learning_steps=1)
    agent = make_agent("similarity", env)
    observation, _ = env.reset(seed=0)
    right = []
    for _ in range(15):
        actions, _ = agent.predict(observation)
        observation, _, _, _, info = env.step(actions)
        right.extend((info["recall"] > 0) == info["is_return"])
    assert np.mean(right) > 0.9
