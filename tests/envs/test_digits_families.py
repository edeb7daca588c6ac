"""Each environment on digits poses the decision that its documentation says it poses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from nsr_gym.agents import agent_spec, make_agent
from nsr_gym.envs.memory import UPDATE

EPISODES = 32
Choose = Callable[[Any, np.ndarray], np.ndarray]


def rewards(name: str, choose: str | Choose, **arguments: Any) -> np.ndarray:
    """Play recorded episodes of the train split; return their rewards (visits, episodes)."""
    own: dict[str, Any] = {"observe_task_id": True}
    if isinstance(choose, str):
        own = agent_spec(choose).environment_arguments("live")
    env = gym.make_vec(
        f"NSR/{name}DigitsRecorded-v0", EPISODES, vectorization_mode=None, **(own | arguments)
    )
    player = make_agent(choose, env) if isinstance(choose, str) else None
    observation, _ = env.reset(seed=0)
    found, over = [], False
    while not over:
        if player is not None:
            actions, _ = player.predict(observation)
        else:
            actions = choose(env.unwrapped.engine.layout, observation)  # type: ignore[operator]
        observation, reward, terminated, _, _ = env.step(actions)
        found.append(reward)
        over = bool(terminated.all())
    env.close()
    return np.array(found)


def clearly_better(better: np.ndarray, worse: np.ndarray, *, by: float) -> bool:
    """Whether a mean over episodes is above another by at least so much, error included."""
    gap = better.mean(axis=0) - worse.mean(axis=0)
    return bool(gap.mean() - 3 * gap.std(ddof=1) / np.sqrt(len(gap)) > by)


def spend(easy: int, hard: int) -> Choose:
    """Recall a task's own entry, and grant ranks by the loss of the bare backbone in nats."""

    def choose(layout: Any, observation: np.ndarray) -> np.ndarray:
        actions = np.full((len(observation), 3), UPDATE)
        actions[:, 0] = layout.read(observation, "same_task")[:, 0] > 0.5
        loss = layout.unscale_loss(layout.read(observation, "bare_loss"))[:, 0]
        actions[:, 1] = np.where(loss > 2.0, hard, easy)
        return actions

    return choose


def test_in_a_capped_bank_keeping_beats_exchanging_and_exchanging_is_worth_nothing() -> None:
    kept, exchanged = rewards("Capped", "oracle-pin"), rewards("Capped", "oracle")
    assert clearly_better(kept, exchanged, by=0.03)
    # The entry that goes is the one that is needed next: as good as no bank at all.
    assert abs(exchanged.mean() - rewards("Capped", "fresh").mean()) < 0.01
    # With room for all, the same rule loses nothing.
    assert rewards("Capped", "oracle", capacity=10).mean() > kept.mean() + 0.02


def test_aliased_tasks_are_told_apart_by_trial_loss_and_not_by_similarity() -> None:
    by_loss, by_similarity = rewards("Aliased", "trial-loss"), rewards("Aliased", "similarity")
    assert clearly_better(by_loss, by_similarity, by=0.1)
    assert abs(by_loss.mean() - rewards("Aliased", "oracle").mean()) < 0.01


def test_a_budget_is_worth_more_spent_unevenly() -> None:
    uneven = rewards("Budget", spend(0, 2))
    for rank in range(4):
        assert clearly_better(uneven, rewards("Budget", spend(rank, rank)), by=0.005), rank
    # What is short are bytes: without the budget the full rank is best for all.
    free = rewards("Budget", spend(3, 3), capacity_bytes=None)
    assert clearly_better(free, uneven, by=0.005)


def test_new_related_tasks_start_better_from_others() -> None:
    helped, afresh = (
        rewards("Related", name, cycles=1, reward="online") for name in ("oracle-nearest", "oracle")
    )
    assert clearly_better(helped, afresh, by=0.01)
