"""The controllers that come with the suite: their cards say what they reach, and they play live."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import pytest

from nsr_gym.agents.controller import ControllerAgent, shipped_controllers, shipped_folder
from nsr_gym.agents.ship import CARD_SEEDS, SHIPPED, held_out
from nsr_gym.evaluation.rollout import play

FOLDERS = sorted(shipped_controllers())


def test_every_environment_that_is_to_have_one_has() -> None:
    for name in SHIPPED.values():
        live, recorded = (shipped_folder(f"NSR/{name}{kind}-v0") for kind in ("", "Recorded"))
        assert live is not None
        assert live == recorded


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_card_says_what_comes_out(folder: Path) -> None:
    said = shipped_controllers()[folder].scores["held_out"]
    found = held_out(folder)
    # Other processors round the network's sums in another way: a rare choice may differ.
    assert found["per_visit"] == pytest.approx(said["per_visit"], abs=2e-3)
    assert {**found, "per_visit": said["per_visit"]} == said


@pytest.mark.parametrize("name", ["Capped", "Aliased"])
def test_it_beats_the_similarity_rule_where_similarity_is_not_enough(name: str) -> None:
    environment = f"NSR/{name}DigitsRecorded-v0"
    scores = {
        agent: play(environment, agent, CARD_SEEDS, arguments={"split": "test", "reward": "online"})
        .groupby("seed")["reward_online"]
        .mean()
        for agent in ("ppo", "similarity", "oracle-pin")
    }
    assert (scores["ppo"] > scores["similarity"]).all()
    assert scores["ppo"].mean() > 0.98 * scores["oracle-pin"].mean()


def test_a_pointer_plays_live_and_in_another_view() -> None:
    small = {"num_tasks": 2, "cycles": 2, "learning_steps": 2, "support_size": 32}
    live = play("NSR/CyclicDigits-v0", "ppo", (0, 1), arguments=small)
    assert len(live) == 8
    folder = shipped_folder("NSR/CyclicDigits-v0", network="pointer")
    assert folder is not None
    env = gym.make("NSR/CyclicDigitsRecorded-v0", view_size=20, num_tasks=12, cycles=2, capacity=20)
    agent = ControllerAgent(env, folder=folder)
    observation, info = env.reset(seed=0)
    recalled = []
    for _ in range(24):
        action, _ = agent.predict(observation)
        observation, _, _, _, info = env.step(action)
        recalled.append(info["recall"] > 0 and info["is_return"])
    assert sum(recalled[12:]) >= 10  # of 12 returns
