"""Threads of episodes: every learner does the same with one thread as with two."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from nsr_gym.learning.kinds import LEARNERS, learner_class
from nsr_gym.learning.learner import LoRALearner

UPDATE, ADD = 1, 2
EPISODES = 8
"""Enough for two threads."""


def play(learner: str) -> tuple[np.ndarray, np.ndarray]:
    """Return all curves and bytes of two tasks and their returns."""
    kind = learner_class(learner)
    bank = "additive" if kind.sums else "shared_basis" if kind.needs_basis else "per_task"
    env: Any = gym.make_vec(
        "NSR/CyclicDigits-v0", num_envs=EPISODES, vectorization_mode=None, num_tasks=2, cycles=2,
        learning_steps=2, updates=2, support_size=16, learner=learner, bank=bank,
    )  # fmt: skip
    env.reset(seed=list(range(EPISODES)))
    curves, sizes = [], []
    for recall in (0, 0, 1, 1):
        action = np.tile([recall, 3, UPDATE if recall else ADD], (EPISODES, 1))
        action[::3] = [0, 2, ADD]  # not all episodes do the same
        *_, info = env.step(action)
        curves.append(info["curve"])
        sizes.append(info["bytes"])
    env.close()
    return np.array(curves), np.array(sizes)


@pytest.mark.parametrize("learner", LEARNERS)
def test_two_threads_learn_what_one_does(learner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, held = play(learner)
    parts = []
    inner = LoRALearner._learn

    def counted(self: LoRALearner, data: Any, visit: Any) -> Any:
        parts.append(len(visit))
        return inner(self, data, visit)

    monkeypatch.setattr(LoRALearner, "_learn", counted)
    # Two threads of episodes, while products keep to one: sums come out as they did.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    two, same = play(learner)
    assert parts == [EPISODES // 2] * 8
    # Of 200 images; rounding may tip a few.
    np.testing.assert_allclose(two, one, atol=0.016)
    np.testing.assert_array_equal(same, held)
    assert (one[:, :, -1] != one[:, :, 0]).mean() > 0.5
