"""The rules of play without a bank: one adapter of total rank R, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

Make = Callable[..., Any]

REVERT, KEEP = 0, 1
DIRECTION_BYTES = 4 * 640
"""One direction on three sites (64-128-128-64) in float32."""


def adapter(env: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Copy the active adapter's factors: site -> (up (d_out, R), down (R, d_in))."""
    factors = env.engine.memory._active.factors
    return {site: (up[0].clone(), down[0].clone()) for site, (up, down) in factors.items()}


def directions(env: Any) -> list[bytes]:
    """Return the bytes of each direction of the active adapter, over all sites."""
    factors = adapter(env)
    return [
        b"".join(
            up[:, j].numpy().tobytes() + down[j].numpy().tobytes() for up, down in factors.values()
        )
        for j in range(next(iter(factors.values()))[1].shape[0])
    ]


def learned_in(env: Any) -> list[str]:
    """Return, sorted, the visit that each direction was learned in, as the table shows it."""
    last = env.render().splitlines()[-1]
    return sorted(last.removeprefix("direction learned in visit: ").split())


@pytest.mark.parametrize("access", ["memoryless", "visit"])
def test_a_recall_has_no_effect(access: str, make_env: Make) -> None:
    with_recall, without = make_env(access=access), make_env(access=access)
    a, _ = with_recall.reset(seed=0)
    b, _ = without.reset(seed=0)
    for visit in range(6):
        np.testing.assert_array_equal(a, b)
        a, reward, _, _, info = with_recall.step(np.array([1 + visit, visit % 4, KEEP]))
        b, expected, _, _, plain = without.step(np.array([0, visit % 4, KEEP]))
        assert reward == expected
        assert info["recall"] == 0
        assert info["projected"]
        assert not plain["projected"]
        np.testing.assert_array_equal(info["curve"], plain["curve"])


@pytest.mark.parametrize("access", ["memoryless", "visit"])
def test_adding_is_keeping_where_there_is_no_bank(access: str, make_env: Make) -> None:
    env = make_env(access=access)
    env.reset(seed=0)
    assert env.action_masks()[-3:].tolist() == [True, True, False]
    assert not env.action_masks()[1:9].any()
    *_, info = env.step(np.array([0, 0, 2]))
    assert (info["reserve"], info["projected"], info["entries"]) == (KEEP, True, 0)


@pytest.mark.parametrize("rank_index", range(4))
def test_revert_leaves_the_adapter_bit_for_bit(rank_index: int, make_env: Make) -> None:
    env = make_env(access="memoryless")
    env.reset(seed=0)
    env.step(np.array([0, 3, KEEP]))
    before, kept = adapter(env), env.engine.retention(np.array([0]))
    *_, info = env.step(np.array([0, rank_index, REVERT]))
    after = adapter(env)
    for site in before:
        assert torch.equal(before[site][0], after[site][0])
        assert torch.equal(before[site][1], after[site][1])
    np.testing.assert_array_equal(env.engine.retention(np.array([0])), kept)
    # Learning in a scratch copy takes its place: it is counted for as long as it lasted.
    granted = env.engine.config.ranks[rank_index]
    assert info["bytes"] == (8 + granted) * DIRECTION_BYTES


def test_a_reverted_visit_was_learned_all_the_same(make_env: Make) -> None:
    kept, reverted = make_env(access="memoryless"), make_env(access="memoryless")
    for env in (kept, reverted):
        env.reset(seed=0)
    *_, a = kept.step(np.array([0, 3, KEEP]))
    *_, b = reverted.step(np.array([0, 3, REVERT]))
    np.testing.assert_array_equal(a["curve"], b["curve"])


def test_bytes_are_those_of_the_directions_in_use(make_env: Make) -> None:
    env = make_env(access="memoryless")
    _, info = env.reset(seed=0)
    assert info["bytes"] == 0
    held = 0
    for rank_index, rank in ((0, 1), (1, 2), (2, 4), (3, 8), (0, 1)):
        *_, info = env.step(np.array([0, rank_index, KEEP]))
        held = min(8, held + rank)
        assert info["bytes"] == held * DIRECTION_BYTES


def test_the_oldest_directions_go_first(make_env: Make) -> None:
    env = make_env(access="memoryless", ranks=[1, 2, 4], render_mode="ansi")
    env.reset(seed=0)
    assert learned_in(env) == ["-"] * 4
    for rank_index, expected in (
        (0, ["-", "-", "-", "1"]),
        (1, ["-", "1", "2", "2"]),  # empty ones before old ones
        (0, ["1", "2", "2", "3"]),
        (1, ["2", "3", "4", "4"]),
        (0, ["3", "4", "4", "5"]),
        (2, ["6", "6", "6", "6"]),
    ):
        env.step(np.array([0, rank_index, KEEP]))
        assert learned_in(env) == expected


@pytest.mark.parametrize(("rank_index", "granted"), [(0, 1), (1, 2), (2, 4), (3, 8)])
def test_all_but_the_granted_directions_stay_as_they_were(
    rank_index: int, granted: int, make_env: Make
) -> None:
    env = make_env(access="memoryless")
    env.reset(seed=0)
    env.step(np.array([0, 3, KEEP]))
    before = directions(env)
    assert len(set(before)) == 8
    env.step(np.array([0, rank_index, KEEP]))
    assert len(set(before) & set(directions(env))) == 8 - granted


def test_of_equally_old_directions_the_lightest_goes_first(make_env: Make) -> None:
    env = make_env(access="memoryless", learning_steps=6)
    env.reset(seed=0)
    env.step(np.array([0, 3, KEEP]))
    before = directions(env)
    weight = torch.stack(
        [up.square().sum(0) * down.square().sum(1) for up, down in adapter(env).values()]
    ).sum(0)
    env.step(np.array([0, 0, KEEP]))
    (gone,) = set(before) - set(directions(env))
    assert before.index(gone) == int(weight.argmin())


def test_the_whole_rank_starts_from_the_bare_backbone(make_env: Make) -> None:
    env = make_env(access="memoryless")
    env.reset(seed=0)
    baseline = env.engine.baseline(np.array([0]))[0]
    for _ in range(4):
        *_, info = env.step(np.array([0, 3, KEEP]))
        assert info["accuracy_before"] == baseline[info["task"]]


def test_retention_is_that_of_the_active_adapter(make_env: Make) -> None:
    env = make_env(access="memoryless", learning_steps=6)
    env.reset(seed=0)
    *_, info = env.step(np.array([0, 3, KEEP]))
    retention = env.engine.retention(np.array([0]))[0]
    assert retention[info["task"]] == pytest.approx(info["accuracy_after"], abs=0.006)
    # Whatever the policy says it would do: there is nothing to choose.
    chosen = env.engine.retention(
        np.array([0]), lambda observation, masks: np.tile([3, 0, 0], (len(observation), 1))
    )[0]
    np.testing.assert_array_equal(chosen, retention)


def test_the_observation_says_whether_the_adapter_is_empty(make_env: Make) -> None:
    env = make_env(access="memoryless")
    observation, _ = env.reset(seed=0)
    read = env.engine.layout.read
    assert read(observation, "adapter_empty") == 1.0
    # Empty, the adapter is the bare backbone.
    assert read(observation, "active_loss") == pytest.approx(read(observation, "bare_loss"))
    observation, *_ = env.step(np.array([0, 3, REVERT]))
    assert read(observation, "adapter_empty") == 1.0
    observation, *_ = env.step(np.array([0, 0, KEEP]))
    assert read(observation, "adapter_empty") == 0.0
    observation, *_ = env.step(np.array([0, 0, REVERT]))
    assert read(observation, "adapter_empty") == 0.0
    observation, _ = env.reset(seed=0)
    assert read(observation, "adapter_empty") == 1.0


@pytest.mark.parametrize("reserve", [REVERT, KEEP])
def test_with_visit_access_nothing_survives(reserve: int, make_env: Make) -> None:
    env = make_env(access="visit")
    env.reset(seed=0)
    baseline = env.engine.baseline(np.array([0]))[0]
    for rank_index in (3, 0, 1, 2, 3, 3):
        *_, info = env.step(np.array([0, rank_index, reserve]))
        assert info["accuracy_before"] == baseline[info["task"]]
        assert (info["entries"], info["bytes"]) == (0, 0)


def test_with_visit_access_what_was_done_before_changes_no_visit(make_env: Make) -> None:
    one, other = make_env(access="visit"), make_env(access="visit")
    for env in (one, other):
        env.reset(seed=1)
    for visit in range(6):
        rank = 3 if visit == 5 else visit % 4
        *_, a = one.step(np.array([0, rank, KEEP]))
        *_, b = other.step(np.array([0, 3 if visit == 5 else 0, visit % 2]))
    np.testing.assert_array_equal(a["curve"], b["curve"])


def test_a_fresh_visit_is_the_same_at_every_access_level(make_env: Make) -> None:
    # Common random numbers: what differs between agents is what they do, not what they draw.
    curves = []
    for access in ("bank", "memoryless", "visit"):
        env = make_env(access=access)
        env.reset(seed=0)
        env.step(np.array([0, 1, 0]))
        *_, info = env.step(np.array([0, 3, 1]))
        curves.append(info["curve"])
    np.testing.assert_allclose(curves[1], curves[0], atol=1e-6)
    np.testing.assert_allclose(curves[2], curves[0], atol=1e-6)
