"""Reading A as an environment: what it pays, shows and ends, against its own tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from nsr_gym.errors import InvalidValueError, NsrGymError, UnknownNameError

ENV = "NSR/BlindAllocation-v0"
Make = Callable[..., Any]


def play(env: Any, actions: Any, seed: int = 0) -> list[tuple[Any, float, dict[str, Any]]]:
    """Play until the end; `actions` is called with the number of the step."""
    observation, _ = env.reset(seed=seed)
    steps, over = [], False
    while not over:
        shown = observation
        observation, reward, over, _, info = env.step(actions(len(steps)))
        steps.append((shown, reward, info))
    return steps


@pytest.mark.parametrize("rewards", ["equal", "random", "compromise"])
def test_rewards_are_those_of_the_table_and_regret_is_their_sum(
    rewards: str, make_env: Make
) -> None:
    env = make_env(ENV, num_tasks=4, cycles=3, steps=2, rewards=rewards, instance=5)
    problem, total = env.engine.problem, 0.0
    steps = play(env, lambda t: (3 * t) % problem.num_allocations)
    assert len(steps) == 4 * 3 * 2
    for t, (_, reward, info) in enumerate(steps):
        action, task = (3 * t) % problem.num_allocations, (t // 2) % 4
        assert (info["visit"], info["cycle"], info["task"]) == (t // 2, t // 8, task)
        assert info["tries"] == t % 2 + 1
        assert info["is_return"] == (t >= 8)
        assert reward == problem.rewards[task, action]
        assert info["oracle_reward"] == problem.best[task]
        assert info["correct"] == problem.optimal[task, action]
        total += problem.gaps[task, action]
        assert info["regret"] == pytest.approx(total, abs=1e-12)


def test_the_right_allocation_of_every_task_loses_nothing(make_env: Make) -> None:
    env = make_env(ENV, num_tasks=5, cycles=2)
    right = env.engine.problem.rewards.argmax(axis=1)
    steps = play(env, lambda t: right[t % 5])
    assert all(reward == 1.0 for _, reward, _ in steps)
    assert steps[-1][2]["regret"] == 0.0


def test_a_table_of_rewards_and_a_kernel_of_one_s_own(make_env: Make) -> None:
    rewards, obs = [[0.0, 1.0, 0.5], [1.0, 0.0, 0.5]], [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]
    env = make_env(ENV, num_tasks=2, cycles=500, rewards=rewards, obs=obs)
    steps = play(env, lambda t: 2)
    assert {reward for _, reward, _ in steps} == {0.5}
    shown = np.stack([observation for observation, _, _ in steps])
    np.testing.assert_array_equal(shown.sum(axis=1), 1.0)
    # 500 draws for each task: four standard errors of a share of one half.
    np.testing.assert_allclose(shown[::2].mean(axis=0), obs[0], atol=0.09)
    np.testing.assert_allclose(shown[1::2].mean(axis=0), obs[1], atol=0.09)


@pytest.mark.parametrize(("obs", "symbols"), [("blind", 1), ("classes:2", 2), ("full", 6)])
def test_the_symbol_of_a_task_is_always_the_same_where_the_kernel_says_so(
    obs: str, symbols: int, make_env: Make
) -> None:
    env = make_env(ENV, num_tasks=6, cycles=3, obs=obs)
    shown = np.stack([o for o, _, _ in play(env, lambda t: 0)])
    assert shown.shape[1] == symbols
    np.testing.assert_array_equal(shown[:6], env.engine.problem.kernel)
    np.testing.assert_array_equal(shown[6:12], shown[:6])


def test_a_channel_shows_the_task_as_often_as_it_says() -> None:
    env = gym.make_vec(ENV, 200, num_tasks=5, cycles=20, obs="channel:0.6", steps=2)
    seen, _ = env.reset(seed=0)
    hits = []
    for t in range(200):
        hits.append((seen.argmax(axis=1) == (t // 2) % 5).mean())
        seen, *_ = env.step(np.zeros(200, dtype=np.int64))
    assert np.mean(hits) == pytest.approx(0.6, abs=4 * np.sqrt(0.24 / 40_000))
    env.close()


def test_feedback_and_clock_show_what_they_say(make_env: Make) -> None:
    env = make_env(
        ENV, num_tasks=3, cycles=3, steps=2, rewards="random", feedback="last-action+reward",
        clock=2, observation="dict",
    )  # fmt: skip
    problem = env.engine.problem
    low, high = problem.rewards.min(), problem.rewards.max()
    steps = play(env, lambda t: t % 3)
    assert steps[0][0]["last_reward"] == 0.0
    assert steps[0][0]["last_action"].sum() == 0.0
    for t in range(1, len(steps)):
        shown, before = steps[t][0], steps[t - 1][1]
        assert shown["last_reward"][0] == pytest.approx((before - low) / (high - low), abs=1e-6)
        assert shown["last_action"].argmax() == (t - 1) % 3
        assert shown["clock"].argmax() == (t // 2) % 2
    assert set(make_env(ENV, feedback="last-reward").engine.layout.sizes) == {
        "observation", "last_reward",
    }  # fmt: skip


@pytest.mark.parametrize("order", ["reshuffled", "iid"])
def test_other_orders_are_drawn_anew_for_every_episode(order: str, make_env: Make) -> None:
    env = make_env(ENV, num_tasks=4, cycles=25, order=order, obs="full")
    orders = [[info["task"] for _, _, info in play(env, lambda t: 0, seed)] for seed in (0, 1)]
    assert orders[0] != orders[1]
    for tasks in orders:
        cycles = np.sort(np.reshape(tasks, (25, 4)), axis=1)
        every = (cycles == np.arange(4)).all(axis=1)
        assert every.all() if order == "reshuffled" else not every.all()
        seen: set[int] = set()
        # What is a return follows from the order that was played.
        _, _, infos = zip(*play(env, lambda t: 0, orders.index(tasks)), strict=True)
        for task, info in zip(tasks, infos, strict=True):
            assert info["is_return"] == (task in seen)
            seen.add(task)


def test_an_instance_of_its_own_for_every_episode(make_env: Make) -> None:
    env = make_env(ENV, num_tasks=5, cycles=1, instance=None)
    assert env.engine.problem is None
    right = {}
    for seed in range(6):
        number = play(env, lambda t: 0, seed)[0][2]["instance"]
        fixed = make_env(ENV, num_tasks=5, cycles=1, instance=number)
        for action in range(5):
            drawn, known = (play(e, lambda t, a=action: a, seed) for e in (env, fixed))
            assert [r for _, r, _ in drawn] == [r for _, r, _ in known]
        right[number] = tuple(fixed.engine.problem.rewards.argmax(axis=1))
    assert len(set(right.values())) > 1


def test_train_and_test_share_no_instance(make_env: Make) -> None:
    tables = {
        split: {
            make_env(ENV, num_tasks=4, split=split, instance=i).engine.problem.rewards.tobytes()
            for i in range(100)
        }
        for split in ("train", "test")
    }
    assert len(tables["train"]) == len(tables["test"]) == 12  # half of the 24 permutations
    assert not tables["train"] & tables["test"]


def test_a_table_may_be_of_lists_tuples_and_arrays(make_env: Make) -> None:
    for form in (list, tuple, np.array):
        rewards = form([form([1.0, 0.0]), form([0.0, 1.0])])
        env = make_env(ENV, num_tasks=2, rewards=rewards, obs=rewards)
        np.testing.assert_array_equal(env.engine.problem.rewards, np.eye(2))
        mixed = make_env(ENV, num_tasks=2, rewards=([1.0, 0.0], np.array([0.0, 1.0])))
        np.testing.assert_array_equal(mixed.engine.problem.rewards, np.eye(2))


def test_where_nothing_is_wrong_every_step_is_a_success(make_env: Make) -> None:
    env = make_env(ENV, num_tasks=1, cycles=3, feedback="last-reward", observation="dict")
    assert [shown["last_reward"][0] for shown, _, _ in play(env, lambda t: 0)] == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"obs": "blnd"}, UnknownNameError, "'blind'"),
        ({"obs": "classes:9"}, InvalidValueError, "classes:n"),
        ({"obs": "channel:1.5"}, InvalidValueError, "channel:q"),
        ({"obs": "channel"}, InvalidValueError, "channel:q"),
        ({"obs": [[0.5, 0.6]] * 3}, InvalidValueError, "distribution"),
        ({"obs": [[1.0]] * 2}, InvalidValueError, "rows"),
        ({"rewards": "equl"}, UnknownNameError, "'equal'"),
        ({"rewards": [[1.0, 0.0]]}, InvalidValueError, "3 rows"),
        ({"rewards": [[float("nan")]] * 3}, InvalidValueError, "finite"),
        ({"num_allocations": 2}, InvalidValueError, "num_allocations"),
        ({"gap": 0.0}, InvalidValueError, "gap"),
        ({"steps": 0}, InvalidValueError, "steps"),
        ({"order": "cyclic"}, UnknownNameError, "order"),
        ({"feedback": True}, NsrGymError, "feedback"),
        ({"clock": -1}, InvalidValueError, "clock"),
        ({"instance": 1000}, InvalidValueError, "1000"),
        ({"instance": 1.5}, InvalidValueError, "instance"),
        ({"split": "valid"}, UnknownNameError, "split"),
        ({"num_task": 3}, UnknownNameError, "'num_tasks'"),
        ({"max_episode_step": 3}, UnknownNameError, "max_episode_steps"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_answered(
    arguments: dict[str, Any], error: type[Exception], text: str, make_env: Make
) -> None:
    with pytest.raises(error, match=text):
        make_env(ENV, **arguments)


@pytest.mark.parametrize("action", [3, -1, 0.5, None, "1", [0], np.array([0, 1])], ids=str)
def test_wrong_actions_are_refused_and_change_nothing(action: Any, make_env: Make) -> None:
    env, untouched = (make_env(ENV, clock=6) for _ in range(2))
    for one in (env, untouched):
        one.reset(seed=0)
    with pytest.raises(InvalidValueError, match="Expected actions as a whole number below 3"):
        env.step(action)
    for _ in range(3):
        ours, theirs = env.step(1), untouched.step(1)
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:4] == theirs[1:4]
        assert ours[4]["visit"] == theirs[4]["visit"]
        assert ours[4]["regret"] == theirs[4]["regret"]


@pytest.mark.parametrize("num_tasks", [1, 2, 40])
def test_tiny_and_large_numbers_of_tasks(num_tasks: int, make_env: Make) -> None:
    env = make_env(ENV, num_tasks=num_tasks, cycles=2, obs="channel:0.5", feedback="last-reward")
    assert len(play(env, lambda t: 0)) == 2 * num_tasks
