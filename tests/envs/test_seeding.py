"""One seed, one episode: alone, in a batch of any size, and whatever was played before."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

Make = Callable[..., Any]


def play(env: Any, actions: np.ndarray, **reset: Any) -> list[Any]:
    """Play given actions (V, [n,] 3); observations, rewards and curves."""
    observation, info = env.reset(**reset)
    out = [(observation, 0.0, info["stream"])]
    for action in actions:
        observation, reward, _, _, info = env.step(action)
        out.append((observation, reward, info["curve"]))
    return out


@pytest.mark.parametrize("access", ["bank", "memoryless", "visit"])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_an_episode_is_the_same_alone_and_in_any_batch(
    n: int, access: str, make_env: Make, make_vec: Make
) -> None:
    single, batch = make_env(access=access), make_vec(n, access=access)
    rng = np.random.default_rng(0)
    actions = rng.integers(single.action_space.nvec, size=(6, n, 3))
    row = n // 2
    alone = play(single, actions[:, row], seed=40 + row)
    together = play(batch, actions, seed=40)
    for one, all_ in zip(alone, together, strict=True):
        for a, b in zip(one, all_, strict=True):
            if isinstance(a, str):
                assert a == b[row]
            elif isinstance(b, np.ndarray):
                np.testing.assert_allclose(a, b[row], rtol=0, atol=1e-5)


def test_the_same_seed_gives_the_same_episode_bit_for_bit(make_env: Make) -> None:
    actions = np.random.default_rng(1).integers([9, 4, 3], size=(6, 3))
    for one, other in zip(
        play(make_env(), actions, seed=5), play(make_env(), actions, seed=5), strict=True
    ):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_unseeded_reset_goes_on_with_the_generator(make_env: Make) -> None:
    one, other = make_env(), make_env()
    streams = []
    for env in (one, other):
        env.reset(seed=9)
        streams.append([env.reset()[1]["stream"] for _ in range(3)])
    assert streams[0] == streams[1]
    assert len(set(streams[0])) == 3


def test_the_next_episode_does_not_depend_on_how_the_last_was_played(make_env: Make) -> None:
    one, other = make_env(), make_env()
    one.reset(seed=2)
    other.reset(seed=2)
    for action in ([0, 3, 2], [1, 0, 1], [8, 2, 0]):
        other.step(np.array(action))
    actions = np.array([[0, 3, 1], [1, 2, 1]])
    for a, b in zip(play(one, actions), play(other, actions), strict=True):
        np.testing.assert_array_equal(a[0], b[0])


def test_a_visit_draws_the_same_numbers_whatever_came_before(make_env: Make) -> None:
    one, other = make_env(), make_env()
    one.reset(seed=3)
    other.reset(seed=3)
    one.step(np.array([0, 0, 2]))
    other.step(np.array([0, 3, 0]))
    *_, a = one.step(np.array([0, 2, 2]))
    *_, b = other.step(np.array([0, 2, 2]))
    np.testing.assert_array_equal(a["curve"], b["curve"])


def test_measuring_retention_changes_nothing(make_env: Make) -> None:
    measured, plain = make_env(), make_env()
    for env in (measured, plain):
        env.reset(seed=6)
    for _ in range(6):
        a, *_, info = measured.step(np.array([1, 3, 1]))
        measured.engine.retention(np.array([0]))
        measured.engine.retention(
            np.array([0]), lambda observation, masks: np.tile([1, 0, 1], (len(observation), 1))
        )
        b, *_, expected = plain.step(np.array([1, 3, 1]))
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(info["curve"], expected["curve"])


@pytest.mark.parametrize("access", ["bank", "memoryless"])
def test_the_world_s_generators_are_neither_used_nor_moved(access: str, make_env: Make) -> None:
    env = make_env(access=access)
    env.reset(seed=0)
    np.random.seed(0)  # noqa: NPY002 - the point is that nobody uses it
    before = (
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]  # noqa: NPY002
        torch.get_rng_state().tolist(),
    )
    env.reset(seed=1)
    for _ in range(3):
        env.step(np.array([1, 2, 1]))
    after = (
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]  # noqa: NPY002
        torch.get_rng_state().tolist(),
    )
    assert after == before


def test_different_seeds_give_different_streams_and_random_numbers(make_vec: Make) -> None:
    env = make_vec(8)
    _, info = env.reset(seed=0)
    assert len(set(info["stream"])) == 8
    # One task in the pool's order, many episodes: equal streams still draw their own numbers.
    one = make_vec(8, num_tasks=1, cycles=1)
    observation, _ = one.reset(seed=0)
    assert len({row.tobytes() for row in observation}) == 8


def test_every_access_level_meets_the_same_streams(make_env: Make) -> None:
    hashes = {
        make_env(access=access, observe_task_id=told).reset(seed=12)[1]["stream"]
        for access in ("bank", "memoryless", "visit")
        for told in (False, True)
    }
    assert len(hashes) == 1


def test_an_environment_built_later_changes_no_other_one(make_env: Make) -> None:
    one = make_env()
    first, _ = one.reset(seed=0)
    make_env(access="memoryless").reset(seed=1)
    make_env(support_size=8, view_size=2).reset(seed=2)
    again, _ = one.reset(seed=0)
    np.testing.assert_array_equal(first, again)
