"""Agents of readings A and C keep no state of their own and refuse what they cannot play."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from nsr_gym.agents import agent_spec, agent_specs, make_agent
from nsr_gym.errors import InvalidValueError
from nsr_gym.regret.blind import solve_blind
from nsr_gym.regret.problems import AllocationProblem, with_clock

BLIND, UNTIL = "NSR/BlindAllocation-v0", "NSR/UntilRecovered-v0"


def env_of(env_id: str, n: int = 3, **arguments: Any) -> Any:
    return gym.make_vec(env_id, n, vectorization_mode=None, **arguments)


@pytest.mark.parametrize("env_id", [BLIND, UNTIL])
@pytest.mark.parametrize(
    ("agent", "order"),
    [
        (spec.name, order)
        for spec in agent_specs("allocation")
        for order in ("fixed", "reshuffled", "iid")
        if order == "fixed" or spec.name not in ("clock", "last-action")
    ],
)
def test_asking_changes_nothing_and_rows_do_not_depend_on_each_other(
    agent: str, order: str, env_id: str
) -> None:
    env = env_of(env_id, 4, obs="channel:0.5", order=order, feedback="last-action+reward")
    player = make_agent(agent, env)
    observation, _ = env.reset(seed=3)
    state = player.initial_state([5, 6, 7, 8])
    alone = player.initial_state([7])
    for _ in range(30):
        before = None if state is None else [part.copy() for part in state]
        actions, following = player.predict(observation, state)
        again, _ = player.predict(observation, state)
        one, alone = player.predict(observation[2:3], alone)
        assert (again == actions).all()
        assert one.tolist() == actions[2:3].tolist()
        assert actions.shape == (4,)
        assert actions.dtype == np.int64
        if before is not None:
            assert all((a == b).all() for a, b in zip(before, state, strict=True))
            assert all(len(part) == 4 for part in following)
        state = following
        observation, *_ = env.step(actions)
    env.close()


@pytest.mark.parametrize("env_id", [BLIND, UNTIL])
@pytest.mark.parametrize(
    "agent",
    ["history-aware", "elimination", "uniform-random", "pin", "ucb", "thompson", "linucb"],
)
def test_agents_that_know_no_tables_play_any_instance(agent: str, env_id: str) -> None:
    env = env_of(env_id, 2, instance=None, feedback="last-reward")
    observation, _ = env.reset(seed=0)
    actions, _ = make_agent(agent, env).predict(observation)
    assert env.action_space.contains(actions)


@pytest.mark.parametrize(
    ("agent", "arguments", "told", "message"),
    [
        ("best-memoryless", {"instance": None}, {}, "instance=0"),
        ("clock", {"instance": None}, {}, "instance=0"),
        ("clock", {"order": "iid"}, {}, "order='fixed'"),
        ("clock", {}, {"period": 2, "states": 2}, "got both"),
        ("clock", {}, {"period": 0}, "at least 1"),
        ("last-action", {"feedback": "last-reward"}, {}, "'last-action\\+reward'"),
        ("last-action", {"steps": 2}, {}, "steps=1"),
        ("last-action", {"instance": None}, {}, "instance=0"),
        ("last-action", {}, {"start": 10}, "below 10"),
        ("last-action", {"num_tasks": 2, "rewards": [[1.0, 0.0], [0.0, 0.5]]}, {}, "best rewards"),
        ("last-action", {"num_tasks": 2, "rewards": [[1.0, 0.0], [1.0, 0.5]]}, {}, "one right"),
        ("elimination", {"feedback": "none"}, {}, "needs feedback"),
        ("pin", {}, {"allocation": 10}, "below 10"),
    ],
)
def test_agents_refuse_what_they_cannot_play(
    agent: str, arguments: dict[str, Any], told: dict[str, Any], message: str
) -> None:
    env = env_of(BLIND, **({"feedback": "last-action+reward"} | arguments))
    with pytest.raises(InvalidValueError, match=message):
        make_agent(agent, env, **told)


def test_a_count_of_visits_needs_to_see_them_end() -> None:
    with pytest.raises(InvalidValueError, match="needs feedback"):
        make_agent("clock", env_of(UNTIL))


def test_a_solution_runs_where_its_problem_is_posed_and_nowhere_else() -> None:
    env = env_of(BLIND, obs="channel:0.5", clock=5)
    problem = env.unwrapped.engine.problem
    assert solve_blind(problem).agent(env).policy.shape == (10, 10)
    ticking = AllocationProblem(problem.rewards, with_clock(problem.kernel, 5))
    assert (
        solve_blind(ticking, check=False).agent(env).policy
        == make_agent("best-memoryless", env).policy
    ).all()
    for other in (env_of(BLIND), env_of(BLIND, obs="channel:0.5", instance=1), env_of(UNTIL)):
        with pytest.raises(InvalidValueError, match="another"):
            solve_blind(problem).agent(other)


@pytest.mark.parametrize(
    ("env_id", "agent"),
    [
        (BLIND, "history-aware"), (BLIND, "clock"), (BLIND, "ucb"), (BLIND, "last-action"),
        (UNTIL, "history-aware"), (UNTIL, "elimination"), (UNTIL, "linucb"),
    ],
)  # fmt: skip
def test_an_episode_after_another_is_played_as_if_it_were_the_first(
    env_id: str, agent: str
) -> None:
    chosen = {"num_tasks": 4, "cycles": 6} | agent_spec(agent).environment_arguments("allocation")
    env = gym.make_vec(env_id, 2, autoreset_mode="same_step", **chosen)
    player = make_agent(agent, env)
    observation, _ = env.reset(seed=[0, 1])
    state, start, totals = player.initial_state([0, 1]), np.ones(2, dtype=bool), []
    while len(totals) < 6:
        actions, state = player.predict(observation, state, episode_start=start)
        observation, _, start, _, info = env.step(actions)
        totals += info["final_info"]["regret"][start].tolist() if start.any() else []
    assert len(set(totals)) == 1
    env.close()


def test_random_agents_draw_other_numbers_in_the_next_episode() -> None:
    env = gym.make_vec(BLIND, 3)
    player = make_agent("uniform-random", env)
    seen, _ = env.reset(seed=0)

    def play(state: Any, start: Any) -> tuple[list[list[int]], Any]:
        actions = []
        for _ in range(20):
            action, state = player.predict(seen, state, episode_start=start)
            start = np.zeros(3, dtype=bool)
            actions.append(action.tolist())
        return np.array(actions).T.tolist(), state

    begun = np.array([True, True, True])
    first, state = play(player.initial_state([5, 6, 7]), begun)
    again, _ = play(player.initial_state([5, 6, 7]), begun)
    assert first == again
    second, _ = play(state, np.array([True, True, False]))
    assert not {tuple(row) for row in first} & {tuple(row) for row in second}
