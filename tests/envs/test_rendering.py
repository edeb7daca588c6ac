"""Render modes: a table of the memory, and a picture of accuracies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Make = Callable[..., Any]


def test_ansi_shows_the_bank(make_env: Make) -> None:
    env = make_env(render_mode="ansi")
    env.reset(seed=0)
    assert "0 entries" in env.render()
    *_, info = env.step(np.array([0, 3, 2]))
    text = env.render()
    assert isinstance(text, str)
    assert "1 entries" in text
    assert "visit 1/6" in text
    assert info["task_name"] in text
    assert f"{info['accuracy_after']:.3f}" in text


@pytest.mark.parametrize("access", ["memoryless", "visit"])
def test_ansi_shows_the_active_adapter(access: str, make_env: Make) -> None:
    env = make_env(render_mode="ansi", access=access)
    env.reset(seed=0)
    env.step(np.array([0, 0, 1]))
    assert "active adapter: rank 8" in env.render()


@pytest.mark.parametrize("access", ["bank", "memoryless", "visit"])
def test_rgb_array_is_a_picture_that_changes(access: str, make_env: Make) -> None:
    env = make_env(render_mode="rgb_array", access=access)
    env.reset(seed=0)
    before = env.render()
    assert before.dtype == np.uint8
    assert before.ndim == 3
    assert before.shape[2] == 3
    env.step(np.array([0, 3, 1]))
    after = env.render()
    assert after.shape == before.shape
    assert not np.array_equal(after, before)


@pytest.mark.parametrize("render_mode", ["ansi", "rgb_array"])
def test_a_finished_episode_can_be_shown(render_mode: str, make_env: Make) -> None:
    env = make_env(render_mode=render_mode, num_tasks=2, cycles=1)
    env.reset(seed=0)
    for _ in range(2):
        env.step(np.array([0, 0, 2]))
    assert len(env.render()) > 0


def test_a_vector_environment_shows_one_frame_for_each(make_vec: Make) -> None:
    env = make_vec(2, render_mode="ansi")
    env.reset(seed=0)
    frames = env.render()
    assert len(frames) == 2
    assert all("entries" in frame for frame in frames)


def test_rendering_without_a_mode_warns(make_env: Make) -> None:
    env = make_env()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None
