"""Environments on a user's own arrays and backbone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3
from vector_tasks import arrays, small_backbone

from nsr_gym.agents import make_agent
from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.datasets import pool_from_arrays
from nsr_gym.envs import ContinualEnv, ContinualVectorEnv
from nsr_gym.errors import DataError, InvalidValueError, StateError, UnknownNameError
from nsr_gym.tasks import TaskPool

SETTINGS: dict[str, Any] = {
    "num_tasks": 3, "cycles": 2, "learning_steps": 2, "updates": 1, "support_size": 16,
    "ranks": [1, 2, 4],
}  # fmt: skip


def make_pool(split: str, seeds: range) -> TaskPool:
    return pool_from_arrays(
        {f"{split}-{i}": arrays(i) for i in seeds}, split=split, classes=range(4)
    )


@pytest.fixture(scope="module")
def backbone() -> MLPBackbone:
    return small_backbone()


@pytest.fixture(scope="module")
def pool() -> TaskPool:
    return make_pool("train", range(5))


def test_a_user_s_environment_passes_both_checkers(pool: TaskPool, backbone: MLPBackbone) -> None:
    env = ContinualEnv(pool, backbone, **SETTINGS)
    # It has no id, so the checker cannot build it anew for each render mode.
    check_env(env, skip_render_check=True)
    check_env_of_sb3(env)


def test_a_user_s_tasks_are_visited(pool: TaskPool, backbone: MLPBackbone) -> None:
    env = ContinualEnv(pool, backbone, **SETTINGS)
    _, info = env.reset(seed=0)
    assert info["split"] == "train"
    names = set()
    for _ in range(6):
        *_, info = env.step(np.array([0, 2, 1]))
        names.add(info["task_name"])
    assert len(names) == 3
    assert names <= {task.name for task in pool}


def test_a_user_s_vector_environment_plays_the_same_episodes(
    pool: TaskPool, backbone: MLPBackbone
) -> None:
    single = ContinualEnv(pool, backbone, **SETTINGS)
    batch = ContinualVectorEnv(pool, backbone, 3, **SETTINGS)
    a, _ = single.reset(seed=8)
    b, _ = batch.reset(seed=7)
    for _ in range(6):
        np.testing.assert_allclose(a, b[1], rtol=0, atol=1e-5)
        a, *_ = single.step(np.array([1, 2, 1]))
        b, *_ = batch.step(np.array([[1, 2, 1]] * 3))


def test_a_threshold_nobody_calibrated_is_asked_for(pool: TaskPool, backbone: MLPBackbone) -> None:
    env = ContinualEnv(pool, backbone, **SETTINGS)
    for agent in ("similarity", "trial-loss"):
        with pytest.raises(StateError, match="threshold"):
            make_agent(agent, env)


@pytest.mark.parametrize(
    ("agent", "arguments"),
    [("similarity", {"threshold": 0.9}), ("trial-loss", {"threshold": 1.0}), ("random", {})],
)
def test_rules_play_a_user_s_environment(
    agent: str, arguments: dict[str, float], pool: TaskPool, backbone: MLPBackbone
) -> None:
    env = ContinualEnv(pool, backbone, **SETTINGS)
    player = make_agent(agent, env, **arguments)
    observation, _ = env.reset(seed=0)
    state, over = None, False
    while not over:
        action, state = player.predict(observation, state=state)
        assert action in env.action_space
        observation, _, over, _, _ = env.step(action)


def test_the_split_is_that_of_the_pool(pool: TaskPool, backbone: MLPBackbone) -> None:
    assert ContinualEnv(pool, backbone, **SETTINGS).engine.config.split == "train"
    held_out = make_pool("test", range(10, 14))
    assert ContinualEnv(held_out, backbone, **SETTINGS).engine.config.split == "test"
    with pytest.raises(InvalidValueError, match="split"):
        ContinualEnv(pool, backbone, split="test", **SETTINGS)


@pytest.mark.parametrize("part", [0, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_data_is_refused(part: int, value: float) -> None:
    data = list(arrays(0))
    data[part] = data[part].copy()
    data[part][3, 1] = value
    with pytest.raises(DataError, match="NaN or infinite"):
        pool_from_arrays({"bad": data}, split="train")


def test_data_that_does_not_fit_the_backbone_is_refused(backbone: MLPBackbone) -> None:
    wide = pool_from_arrays({"a": [np.ones((9, 13)), np.zeros(9, int)] * 2}, split="train")
    with pytest.raises(InvalidValueError, match="13"):
        ContinualEnv(wide, backbone, **SETTINGS | {"num_tasks": 1, "support_size": 2})


def test_more_classes_than_the_head_has_are_refused(backbone: MLPBackbone) -> None:
    many = pool_from_arrays({"a": [np.ones((9, 12)), np.arange(9)] * 2}, split="train")
    with pytest.raises(InvalidValueError, match="9"):
        ContinualEnv(many, backbone, **SETTINGS | {"num_tasks": 1, "support_size": 2})


def test_more_support_images_than_a_task_has_are_refused(
    pool: TaskPool, backbone: MLPBackbone
) -> None:
    with pytest.raises(InvalidValueError, match="at most 100"):
        ContinualEnv(pool, backbone, **SETTINGS | {"support_size": 101})


def test_a_rank_above_the_narrowest_layer_is_refused(pool: TaskPool, backbone: MLPBackbone) -> None:
    with pytest.raises(InvalidValueError, match="between 1 and 8"):
        ContinualEnv(pool, backbone, **SETTINGS | {"ranks": [9]})


def test_arguments_of_the_digits_are_unknown_here(pool: TaskPool, backbone: MLPBackbone) -> None:
    with pytest.raises(UnknownNameError, match="num_tasks"):
        ContinualEnv(pool, backbone, tasks="permutation")


def test_tasks_of_unequal_sizes_are_learned_side_by_side(backbone: MLPBackbone) -> None:
    tasks = {}
    for i, size in enumerate((100, 40, 17)):
        x, y, x_test, y_test = arrays(i)
        tasks[f"t{i}"] = (x[:size], y[:size], x_test[: 50 - 10 * i], y_test[: 50 - 10 * i])
    uneven = pool_from_arrays(tasks, split="train", classes=range(4))
    batch = ContinualVectorEnv(uneven, backbone, 4, **SETTINGS)
    single = ContinualEnv(uneven, backbone, **SETTINGS)
    batch.reset(seed=0)
    single.reset(seed=2)
    for _ in range(6):
        *_, a = single.step(np.array([0, 2, 1]))
        *_, b = batch.step(np.array([[0, 2, 1]] * 4))
        np.testing.assert_allclose(a["curve"], b["curve"][2], rtol=0, atol=1e-6)
