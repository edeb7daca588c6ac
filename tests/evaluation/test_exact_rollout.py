"""The long table of exact environments adds up to what the environment itself says."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from nsr_gym.agents import agent_spec, agent_specs, make_agent
from nsr_gym.envs import BlindAllocationEnv, BlindAllocationVectorEnv
from nsr_gym.errors import InvalidValueError
from nsr_gym.evaluation.compare import Comparison, run
from nsr_gym.evaluation.exact_rollout import play_exact
from nsr_gym.evaluation.rollout import play
from nsr_gym.registration import ENVIRONMENTS, environment_family

BLIND, PAGING, UNTIL = (
    f"NSR/{name}-v0" for name in ("BlindAllocation", "Paging", "UntilRecovered")
)
SMALL = {"num_tasks": 3, "cycles": 3}


class Watched:
    """An agent that remembers what the environment said of its own regret."""

    def __init__(self, name: str, env: Any) -> None:
        self.agent, self.starts = make_agent(name, env), []

    def initial_state(self, seeds: Any) -> Any:
        return self.agent.initial_state(seeds)

    def predict(self, observation: Any, state: Any, episode_start: Any, deterministic: bool) -> Any:
        self.starts.append(np.array(episode_start))
        return self.agent.predict(observation, state, episode_start, deterministic)


@pytest.mark.parametrize(
    ("env_id", "agent"),
    [
        (env_id, spec.name)
        for env_id, found in ENVIRONMENTS.items()
        if found.family != "live"
        for spec in agent_specs(found.family)
        if (env_id, spec.name) != (UNTIL, "pin")
    ],
)
def test_sums_over_visits_are_the_running_regret(env_id: str, agent: str) -> None:
    chosen = SMALL | agent_spec(agent).environment_arguments(ENVIRONMENTS[env_id].family)
    env = gym.make_vec(env_id, 3, **chosen)
    table = play_exact(env, make_agent(agent, env), [4, 5, 6])
    env.close()
    for seed, rows in table.groupby("seed"):
        single = gym.make(env_id, **chosen)
        player = make_agent(agent, single)
        observation, _ = single.reset(seed=int(seed))
        state, over, steps, info = player.initial_state([int(seed)]), False, 0, {}
        while not over:
            action, state = player.predict(observation, state)
            observation, _, over, _, info = single.step(action)
            steps += 1
        single.close()
        assert (rows["oracle_reward"] - rows["reward"]).sum() == pytest.approx(info["regret"])
        assert rows["steps"].sum() == steps
        assert rows["visit"].tolist() == list(range(9))
        assert rows["finished"].all()
        assert (rows["num_visits"] == 9).all()


def test_a_limit_of_steps_leaves_visits_unfinished() -> None:
    table = play(UNTIL, "pin", [0, 1], arguments=SMALL | {"max_episode_steps": 7})
    assert (table.groupby("seed")["steps"].sum() == 7).all()
    last = table.groupby("seed").tail(1)
    assert not last["finished"].any()
    assert table.drop(last.index)["finished"].all()
    assert (table["num_visits"] == 9).all()


def test_the_first_observation_of_the_next_episode_is_told_as_such() -> None:
    env = gym.make_vec(UNTIL, 4, num_tasks=3, cycles=2)
    watched = Watched("uniform-random", env)
    play_exact(env, watched, [0, 1, 2, 3])
    starts = np.stack(watched.starts)
    assert starts[0].all()
    assert not starts[1].any()
    # Episodes end at different steps, and one step of reset lies between an end and a start.
    assert starts[2:].any()
    env.close()


@pytest.mark.parametrize("mode", ["same_step", "disabled", "next_step"])
def test_the_autoreset_mode_is_not_the_caller_s(mode: str) -> None:
    arguments = SMALL | {"autoreset_mode": mode}
    with pytest.raises(InvalidValueError, match="autoreset_mode"):
        play(BLIND, "pin", [0], arguments=arguments)
    with pytest.raises(InvalidValueError, match="autoreset_mode"):
        Comparison(environments=(BLIND,), agents=("pin",), seeds=(0,), arguments=arguments)


def test_an_agent_that_refuses_is_found_before_anything_is_written(tmp_path: Any) -> None:
    comparison = Comparison(
        environments=(BLIND,), agents=("pin", "clock"), seeds=(0,), arguments={"order": "iid"}
    )
    with pytest.raises(InvalidValueError, match="fixed"):
        run(comparison, tmp_path / "refused", workers=1)
    assert not (tmp_path / "refused").exists()


class MyBlindAllocation(BlindAllocationEnv):
    """A subclass of one's own."""


@pytest.mark.parametrize(
    "entry_point", [BlindAllocationEnv, MyBlindAllocation, ENVIRONMENTS[BLIND].entry_point]
)
def test_an_id_of_one_s_own_is_played_by_the_same_agents(entry_point: Any) -> None:
    gym.register(
        "NSR/Mine-v0", entry_point=entry_point, vector_entry_point=BlindAllocationVectorEnv
    )
    try:
        assert environment_family("NSR/Mine-v0") == "allocation"
        table = play("NSR/Mine-v0", "pin", [0], arguments=SMALL)
        assert len(table) == 9
    finally:
        del gym.registry["NSR/Mine-v0"]
