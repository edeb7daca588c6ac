"""Rewards, the end of an episode, and info of constant keys and types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from playable import playable_ids

from nsr_gym.datasets.digits import digits_pool
from nsr_gym.errors import StateError
from nsr_gym.metrics.recovery import CENSORED, NO_REFERENCE, recovery_steps, shortfall
from nsr_gym.tasks import check_disjoint

LIVE = playable_ids("live")

Make = Callable[..., Any]

INFO_TYPES: dict[str, Any] = {
    "visit": int, "cycle": int, "task": int, "task_name": str, "is_return": bool,
    "recall": int, "rank": int, "reserve": int, "projected": bool,
    "accuracy_before": float, "accuracy_after": float, "curve": np.ndarray,
    "reward_post_task": float, "reward_online": float, "recovery_steps": int,
    "shortfall": float, "entries": int, "bytes": int, "split": str, "family": str,
    "stream": str, "action_mask": np.ndarray,
}  # fmt: skip


def rollout(env: Any, seed: int = 0) -> list[tuple[float, dict[str, Any]]]:
    """Play random actions to the end; rewards and info of every visit."""
    env.action_space.seed(seed)
    env.reset(seed=seed)
    played, over = [], False
    while not over:
        _, reward, over, _, info = env.step(env.action_space.sample())
        played.append((reward, info))
    return played


@pytest.mark.parametrize("access", ["bank", "memoryless", "visit"])
def test_post_task_reward_is_the_accuracy_at_the_end(access: str, make_env: Make) -> None:
    for reward, info in rollout(make_env(access=access)):
        assert reward == info["reward_post_task"] == info["accuracy_after"] == info["curve"][-1]


def test_online_reward_is_the_mean_over_learning_steps(make_env: Make) -> None:
    for reward, info in rollout(make_env(reward="online", learning_steps=4)):
        assert reward == info["reward_online"]
        assert reward == pytest.approx(np.mean(info["curve"][1:]))


def test_both_rewards_are_told_whatever_the_reward_is(make_env: Make) -> None:
    post, online = rollout(make_env()), rollout(make_env(reward="online"))
    for (_, a), (_, b) in zip(post, online, strict=True):
        assert a["reward_post_task"] == b["reward_post_task"]
        assert a["reward_online"] == b["reward_online"]


@pytest.mark.parametrize("kind", ["post_task", "online"])
def test_rank_costs_what_is_granted_and_leaves_the_raw_rewards(kind: str, make_env: Make) -> None:
    for reward, info in rollout(make_env(reward=kind, rank_cost=0.01)):
        assert reward == pytest.approx(info[f"reward_{kind}"] - 0.01 * info["rank"])
        assert info["reward_post_task"] == info["accuracy_after"]


@pytest.mark.parametrize("access", ["bank", "memoryless", "visit"])
@pytest.mark.parametrize("told", [False, True])
def test_info_has_the_same_keys_and_types_from_reset_to_end(
    access: str, told: bool, make_env: Make
) -> None:
    env = make_env(access=access, observe_task_id=told)
    _, info = env.reset(seed=0)
    for one in [info, *(info for _, info in rollout(env))]:
        assert {key: type(value) for key, value in one.items()} == INFO_TYPES
        assert one["curve"].shape == (3,)
        assert one["curve"].dtype == np.float64
        assert one["action_mask"].shape == (int(env.action_space.nvec.sum()),)
        assert one["action_mask"].dtype == np.bool_


def test_info_of_a_reset_says_that_no_visit_was_made(make_env: Make) -> None:
    _, info = make_env().reset(seed=0)
    assert (info["visit"], info["cycle"], info["task"], info["task_name"]) == (-1, -1, -1, "")
    assert (info["rank"], info["entries"], info["bytes"]) == (0, 0, 0)
    assert not info["is_return"]
    assert not info["projected"]


@pytest.mark.parametrize("schedule", ["cyclic", "reshuffled", "markov", "iid"])
def test_info_tells_the_place_in_the_stream(schedule: str, make_env: Make) -> None:
    env = make_env(schedule=schedule, cycles=3)
    played = rollout(env)
    stream = env.engine.streams[0]
    seen: set[int] = set()
    for visit, (_, info) in enumerate(played):
        assert (info["visit"], info["cycle"]) == (visit, visit // 3)
        assert info["task"] == stream.visits[visit]
        assert info["task_name"] == stream.tasks[info["task"]]
        assert info["is_return"] == (info["task"] in seen)
        assert info["stream"] == stream.hash
        seen.add(info["task"])


def test_each_schedule_once_needs_a_single_cycle(make_env: Make) -> None:
    played = rollout(make_env(schedule="once", cycles=1))
    assert sorted(info["task"] for _, info in played) == [0, 1, 2]


def test_streams_of_two_episodes_differ(make_env: Make) -> None:
    env = make_env()
    _, first = env.reset(seed=0)
    _, second = env.reset()
    assert first["stream"] != second["stream"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_info_says_from_which_split_the_tasks_come(split: str, make_env: Make) -> None:
    env = make_env(split=split)
    names = {task.name for task in digits_pool("permutation", split)}
    for _, info in rollout(env):
        assert info["split"] == split
        assert info["task_name"] in names


@pytest.mark.parametrize("tasks", ["permutation", "rotation", "labels"])
def test_train_and_test_pools_share_no_task(tasks: str) -> None:
    train, test = digits_pool(tasks, "train"), digits_pool(tasks, "test")
    check_disjoint(train, test)
    assert not {task.name for task in train} & {task.name for task in test}


def test_recovery_is_measured_against_the_end_of_the_previous_visit(make_env: Make) -> None:
    reached: dict[int, float] = {}
    played = rollout(make_env(cycles=4, learning_steps=4), seed=3)
    for _, info in played:
        reference = np.array([reached.get(info["task"], np.nan)])
        (steps,) = recovery_steps(info["curve"][None], reference)
        assert info["recovery_steps"] == steps
        if info["task"] in reached:
            assert info["recovery_steps"] in (CENSORED, *range(5))
            assert info["shortfall"] == pytest.approx(shortfall(info["curve"][None], reference)[0])
        else:
            assert (info["recovery_steps"], info["shortfall"]) == (NO_REFERENCE, 0.0)
        reached[info["task"]] = info["accuracy_after"]
    assert len(played) == 12


@pytest.mark.parametrize("env_id", LIVE)
@pytest.mark.parametrize(("tasks", "cycles"), [(1, 1), (1, 3), (3, 1), (3, 2)])
def test_an_episode_terminates_after_its_last_visit_and_is_never_truncated(
    tasks: int, cycles: int, env_id: str, make_env: Make
) -> None:
    env = make_env(env_id, num_tasks=tasks, cycles=cycles)
    env.reset(seed=0)
    for visit in range(tasks * cycles):
        _, _, terminated, truncated, _ = env.step(np.array([0, 0, 0]))
        assert terminated == (visit == tasks * cycles - 1)
        assert truncated is False
    with pytest.raises(StateError, match="reset"):
        env.step(np.array([0, 0, 0]))
    env.reset()
    env.step(np.array([0, 0, 0]))


def test_a_step_before_the_first_reset_is_refused(make_env: Make) -> None:
    with pytest.raises(StateError, match="reset"):
        make_env().step(np.array([0, 0, 0]))


def test_an_outside_limit_truncates(tiny: dict[str, Any]) -> None:
    env = gym.make("NSR/CyclicDigits-v0", max_episode_steps=2, **tiny)
    env.reset(seed=0)
    assert env.step(np.array([0, 0, 0]))[2:4] == (False, False)
    assert env.step(np.array([0, 0, 0]))[2:4] == (False, True)
    env.close()


def test_masks_are_the_same_in_info_and_from_the_method(make_env: Make) -> None:
    env = make_env()
    _, info = env.reset(seed=0)
    np.testing.assert_array_equal(info["action_mask"], env.action_masks())
    for _ in range(3):
        *_, info = env.step(np.array([0, 0, 2]))
        np.testing.assert_array_equal(info["action_mask"], env.action_masks())
    assert info["action_mask"][:9].tolist() == [True] * 4 + [False] * 5
