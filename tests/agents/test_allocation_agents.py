"""Agents of reading A come out at the values that theory gives them."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from nsr_gym.agents import make_agent
from nsr_gym.agents.allocation_rules import TablePolicyAgent
from nsr_gym.agents.base import RandomState
from nsr_gym.regret.blind import policy_regret, solve_blind

BLIND = "NSR/BlindAllocation-v0"
M, C, GAP = 10, 50, 0.5
Regrets = Callable[..., np.ndarray]
Agrees = Callable[[np.ndarray, float], bool]


def env_of(env_id: str, n: int = 3, **arguments: Any) -> Any:
    return gym.make_vec(env_id, n, vectorization_mode=None, **arguments)


@pytest.mark.parametrize("allocation", [0, 7])
def test_blind_pin_loses_the_bound_exactly(allocation: int, regrets: Regrets) -> None:
    lost = regrets(BLIND, "pin", agent_arguments={"allocation": allocation})
    assert (lost == C * (M - 1) * GAP).all()  # T (M - 1) Delta_switch


def test_blind_uniform_random_loses_as_much_on_average(regrets: Regrets, agrees: Agrees) -> None:
    assert agrees(regrets(BLIND, "uniform-random", 100), C * (M - 1) * GAP)


def test_rounding_never_plays_what_has_no_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    env = env_of(BLIND, num_allocations=11)
    policy = [[0.1] * 10 + [0.0]]  # ten tenths add up to a little less than 1
    largest = np.nextafter(1.0, 0.0)
    monkeypatch.setattr(
        RandomState,
        "draw",
        staticmethod(lambda state, n, size: (np.full((n, size), largest), state)),
    )
    observation, _ = env.reset(seed=0)
    assert (TablePolicyAgent(env, policy=policy).predict(observation)[0] == 9).all()


def test_unequal_gaps_make_uniform_random_worse_than_the_best(
    regrets: Regrets, agrees: Agrees
) -> None:
    problem = env_of(BLIND, rewards="random").unwrapped.engine.problem
    uniform = policy_regret(problem, np.full((1, M), 1 / M))
    assert agrees(regrets(BLIND, "uniform-random", 100, rewards="random"), C * uniform)
    best = regrets(BLIND, "best-memoryless", rewards="random")
    assert best == pytest.approx(C * solve_blind(problem).value)
    assert best[0] < C * uniform


@pytest.mark.parametrize(("classes", "per_cycle"), [(1, 4.5), (2, 4.0), (5, 2.5), (10, 0.0)])
def test_best_memoryless_with_classes(
    classes: int, per_cycle: float, regrets: Regrets
) -> None:  # 7.1
    lost = regrets(BLIND, "best-memoryless", obs=f"classes:{classes}")
    assert (lost == C * per_cycle).all()


@pytest.mark.parametrize(("q", "per_cycle"), [(0.3, 3.5), (0.5, 2.5), (0.9, 0.5)])
def test_best_memoryless_with_a_channel(
    q: float, per_cycle: float, regrets: Regrets, agrees: Agrees
) -> None:  # 7.2
    assert agrees(regrets(BLIND, "best-memoryless", 50, obs=f"channel:{q}"), C * per_cycle)


@pytest.mark.parametrize(("q", "per_cycle"), [(0.1, 4.5), (1.0, 0.0)])
def test_a_channel_at_its_ends(q: float, per_cycle: float, regrets: Regrets) -> None:  # 7.2
    if q == 1.0:
        assert (regrets(BLIND, "best-memoryless", obs=f"channel:{q}") == 0).all()
    else:  # the symbol says nothing, and all policies with one allocation for all tie
        lost = regrets(BLIND, "best-memoryless", 50, obs=f"channel:{q}")
        assert lost.mean() == pytest.approx(C * per_cycle, rel=0.02)


@pytest.mark.parametrize("agent", ["clock", "best-memoryless"])
@pytest.mark.parametrize("period", [1, 2, 3, 4, 5, 6, 10, 20])
def test_a_clock_of_period_p_leaves_m_less_gcd(
    period: int, agent: str, regrets: Regrets
) -> None:  # 7.4
    # 60 cycles are a multiple of every period here, so that the long run is attained.
    told = {"agent_arguments": {"period": period}} if agent == "clock" else {"clock": period}
    lost = regrets(BLIND, agent, cycles=60, **told)
    assert (lost == 60 * (M - gcd(period, M)) * GAP).all()


def test_a_clock_modulo_m_loses_nothing(regrets: Regrets) -> None:
    assert (regrets(BLIND, "clock", steps=3) == 0).all()


@pytest.mark.parametrize(("states", "period"), [(1, 1), (4, 2), (5, 5), (9, 5), (10, 10), (99, 10)])
def test_states_buy_the_largest_divisor(states: int, period: int) -> None:
    assert make_agent("clock", env_of(BLIND), states=states).period == period


@pytest.mark.parametrize("start", range(M))
def test_last_action_and_reward_synchronise(start: int, regrets: Regrets) -> None:  # 7.3
    lost = regrets(BLIND, "last-action", agent_arguments={"start": start})
    assert (lost == start * GAP).all()  # at most M - 1 wrong steps in total


@pytest.mark.parametrize(("start", "wrong"), [(0, 0), (1, C * M), (6, C * M)])
def test_the_last_action_alone_depends_on_the_phase(
    start: int, wrong: int, regrets: Regrets
) -> None:
    told = {"start": start, "use_reward": False}
    assert (regrets(BLIND, "last-action", agent_arguments=told) == wrong * GAP).all()


@pytest.mark.parametrize(("cycles", "ahead"), [(2, 1), (5, 10), (10, 45), (30, 225)])
def test_the_learner_is_ahead_of_pin_by(
    cycles: int, ahead: int, regrets: Regrets
) -> None:  # 7.6, on every instance
    told = {"cycles": cycles, "instance": None}
    relative = regrets(BLIND, "pin", 5, **told) - regrets(BLIND, "history-aware", 5, **told)
    assert (relative == ahead * GAP).all()


def test_with_more_steps_a_visit_the_learner_needs_fewer_cycles(regrets: Regrets) -> None:
    # Position j of the right allocation costs j wrong steps, whatever visit they fall into.
    assert (regrets(BLIND, "history-aware", steps=4) == GAP * M * (M - 1) / 2).all()
    # Within visits of L steps, elimination finds positions below L, at every visit anew.
    per_cycle = GAP * (0 + 1 + 2 + 3 + 6 * 4)
    assert (regrets(BLIND, "elimination", steps=4) == C * per_cycle).all()


def test_learners_settle_for_the_best_where_nothing_earns_the_highest_reward(
    regrets: Regrets,
) -> None:
    table = [[0.3, 0.2], [0.1, 0.9], [0.5, 0.4]]
    short = {"num_tasks": 3, "rewards": table}
    lost = [regrets(BLIND, "history-aware", cycles=c, **short)[0] for c in (2, 3, 20)]
    # Cycle 1 tries allocation 0, cycle 2 allocation 1; then each task's best is known.
    assert lost == pytest.approx([0.8 + 0.2] * 3)


@pytest.mark.parametrize("agent", ["history-aware", "elimination", "ucb", "thompson", "linucb"])
def test_iid_tasks_make_history_useless(
    agent: str, regrets: Regrets, agrees: Agrees
) -> None:  # 7.13
    difference = regrets(BLIND, agent, 100, order="iid") - regrets(BLIND, "pin", 100, order="iid")
    if agent == "elimination":  # with one step a visit it is pin
        assert (difference == 0).all()
    else:
        assert agrees(difference, 0.0)


@pytest.mark.parametrize("order", ["fixed", "reshuffled", "iid"])
@pytest.mark.parametrize("agent", ["history-aware", "elimination"])
def test_a_visit_is_a_search_without_repetition(agent: str, order: str) -> None:
    env = env_of(BLIND, 8, obs="channel:0.5", order=order, steps=12, feedback="last-reward")
    player = make_agent(agent, env)
    observation, _ = env.reset(seed=0)
    state, tried, right = player.initial_state(range(8)), np.zeros((8, M), bool), np.zeros(8, bool)
    for step in range(12 * 40):
        if step % 12 == 0:
            tried[:], right[:] = False, False
        actions, state = player.predict(observation, state)
        observation, *_, info = env.step(actions)
        assert not tried[np.arange(8), actions].any()
        assert info["correct"][right].all()
        right |= info["correct"]
        tried[np.arange(8), actions] |= ~info["correct"]
    env.close()


def test_what_is_over_in_a_reshuffled_cycle_is_left_out(regrets: Regrets) -> None:
    told = {"order": "reshuffled", "steps": 2}
    aware = regrets(BLIND, "history-aware", 50, **told)
    blind = regrets(BLIND, "history-aware", 50, agent_arguments={"distinct": False}, **told)
    assert aware.mean() < 0.9 * blind.mean()


def test_a_clock_means_nothing_where_the_order_is_not_fixed(regrets: Regrets) -> None:
    ticking = env_of(BLIND, clock=M, order="reshuffled", rewards="compromise")
    quiet = env_of(BLIND, order="reshuffled", rewards="compromise")
    policies = [make_agent("best-memoryless", env).policy for env in (ticking, quiet)]
    assert (policies[0] == policies[1]).all()
    lost = regrets(BLIND, "best-memoryless", clock=M, order="reshuffled", rewards="compromise")
    assert lost == pytest.approx(C * 0.5)  # 7.5
