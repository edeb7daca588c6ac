"""Agents of reading B miss as often as theory says, on every capacity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from nsr_gym.agents import agent_specs, make_agent
from nsr_gym.errors import InvalidValueError
from nsr_gym.regret.paging import solve_paging

PAGING = "NSR/Paging-v0"
M, C = 10, 10
RULES = ["lru", "fifo", "lfu", "pin", "uniform-random"]
HARD: list[dict[str, Any]] = [
    {"slots": 2, "bank": 2, "forced": True},
    {"residual": (1.0, 0.5, 0.2, 0.0), "bank": 2},
    {"slots": 3, "similarity_noise": 0.8, "order": "iid"},
    {"slots": 2, "costs": "random", "recall_error": 0.1, "order": "reshuffled"},
]
Regrets = Callable[..., np.ndarray]
Agrees = Callable[[np.ndarray, float], bool]


def env_of(n: int = 3, **arguments: Any) -> Any:
    return gym.make_vec(PAGING, n, vectorization_mode=None, **arguments)


# The oracle misses M times, so that misses are regret plus M where a miss costs 1.


@pytest.mark.parametrize("capacity", range(1, M + 1))
def test_recency_misses_everything_until_the_cycle_fits(capacity: int, regrets: Regrets) -> None:
    misses = 100 if capacity < M else M
    for rule in ("lru", "fifo", "lfu"):
        assert (regrets(PAGING, rule, slots=capacity) + M == misses).all()


@pytest.mark.parametrize("capacity", range(1, M + 1))
def test_pinning_is_optimal_in_fixed_and_reshuffled_cycles(capacity: int, regrets: Regrets) -> None:
    misses = M + (C - 1) * (M - capacity)  # 91, 82, ..., 19, 10
    for order in ("fixed", "reshuffled"):
        for agent in ("pin", "best-memoryless"):
            lost = regrets(PAGING, agent, slots=1, bank=capacity - 1, order=order)
            assert (lost + M == misses).all()


def test_rules_treat_divisible_knowledge_as_whole(regrets: Regrets) -> None:
    # Nine units of rank in nine places hold three solutions at full rank; six places stay empty.
    told = {"residual": (1.0, 0.5, 0.2, 0.0), "bank": 2}
    assert (regrets(PAGING, "lru", **told) + M == 100).all()
    assert (regrets(PAGING, "pin", **told) + M == M + (C - 1) * (M - 3)).all()
    assert (regrets(PAGING, "best-memoryless", **told) < regrets(PAGING, "pin", **told)).all()


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("costs", ["equal", "random"])
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_best_memoryless_plays_out_its_value_and_no_rule_beats_it(
    slots: int, costs: str, forced: bool, regrets: Regrets
) -> None:
    told = {"num_tasks": 5, "cycles": 4, "slots": slots, "costs": costs, "forced": forced}
    problem = env_of(**told).unwrapped.engine.problem
    value = solve_paging(problem, 4).value - problem.delta.sum()
    best = regrets(PAGING, "best-memoryless", **told)
    assert best == pytest.approx(value)
    for rule in RULES:
        assert (regrets(PAGING, rule, 5, **told) >= best[0] - 1e-9).all()


@pytest.mark.parametrize(("slots", "misses"), [(2, 16), (3, 12), (4, 8)])
def test_forced_reload(slots: int, misses: int, regrets: Regrets) -> None:
    told = {"num_tasks": 5, "cycles": 4, "slots": slots, "forced": True}
    assert (regrets(PAGING, "best-memoryless", **told) + 5 == misses).all()
    # Pinning has one place to reload into, and keeps the others.
    assert (regrets(PAGING, "pin", **told) + 5 == 5 + 3 * (5 - slots + 1)).all()


@pytest.mark.parametrize("order", ["fixed", "reshuffled", "iid"])
def test_history_aware_pays_first_visits_and_the_recall_error_of_returns(
    order: str, regrets: Regrets
) -> None:
    assert (regrets(PAGING, "history-aware", order=order) == 0).all()
    lost = regrets(PAGING, "history-aware", 5, order=order, recall_error=0.25, slots=3)
    if order == "iid":  # as many first visits as tasks came
        assert ((lost / 0.25) % 1 == 0).all()
        assert (lost >= 0.25 * (M * C - M)).all()
    else:
        assert (lost == 0.25 * (M * C - M)).all()


@pytest.mark.parametrize(
    "told", [{"forced": True}, {"residual": (1.0, 0.5, 0.2, 0.0)}, {"bank": M + 3}]
)
def test_history_aware_holds_every_task_whole(told: dict[str, Any], regrets: Regrets) -> None:
    assert (regrets(PAGING, "history-aware", **told) == 0).all()


@pytest.mark.parametrize("capacity", [2, 5, 9])
@pytest.mark.parametrize("agent", ["lru", "fifo", "pin", "best-memoryless"])
def test_iid_tasks_are_missed_at_rate_one_less_capacity_over_tasks(
    agent: str, capacity: int, regrets: Regrets, agrees: Agrees
) -> None:  # 7.13: 0.80, 0.50, 0.10
    told = {"order": "iid", "slots": capacity}
    lost = [regrets(PAGING, agent, 100, cycles=cycles, **told) for cycles in (20, 60)]
    # All tasks have come in the first 200 visits, nearly always; later misses are all regret.
    late = (lost[1] - lost[0]) / (40 * M)
    assert agrees(late, 1 - capacity / M)


def test_rules_evict_what_they_say() -> None:
    env = env_of(1, slots=3, num_tasks=4)
    layout, size = env.unwrapped.engine.layout, env.unwrapped.engine.layout.size
    seen, visits = np.zeros((1, size), dtype=np.float32), env.unwrapped.engine.config.num_visits
    for name, values in {
        "stored_rank": [1, 1, 1],
        "age": [4 / visits, 9 / visits, 2 / visits],
        "stored_age": [20 / visits, 12 / visits, 3 / visits],
        "uses": [3 / visits, 1 / visits, 1 / visits],
        "occupancy": [1],
    }.items():
        seen[0, layout.slices[name]] = values
    chosen = {rule: make_agent(rule, env).predict(seen)[0][0].tolist() for rule in RULES[:4]}
    assert chosen == {"lru": [0, 1, 1], "fifo": [0, 0, 1], "lfu": [0, 1, 1], "pin": [0, 0, 0]}
    seen[0, layout.slices["age"]] = [4 / visits, 2 / visits, 9 / visits]
    assert make_agent("lfu", env).predict(seen)[0][0].tolist() == [0, 2, 1]


def test_a_place_is_recalled_above_the_threshold() -> None:
    env = env_of(1, slots=3)
    layout = env.unwrapped.engine.layout
    seen = np.zeros((1, layout.size), dtype=np.float32)
    seen[0, layout.slices["stored_rank"]] = [1, 1, 0]
    seen[0, layout.slices["similarity"]] = [0.2, 0.6, 0.9]  # the last place is empty
    seen[0, layout.slices["occupancy"]] = 2 / 3
    assert make_agent("lru", env).predict(seen)[0].tolist() == [[2, 1, 0]]
    assert make_agent("lru", env, threshold=0.7).predict(seen)[0].tolist() == [[0, 2, 1]]


@pytest.mark.parametrize(
    ("agent", "told"),
    [
        (spec.name, told)
        for spec in agent_specs("paging")
        for told in HARD
        # best-memoryless refuses where no optimum is known.
        if spec.name != "best-memoryless" or told in HARD[:2]
    ],
)
def test_actions_need_no_projection_and_asking_changes_nothing(
    agent: str, told: dict[str, Any]
) -> None:
    arguments = {"num_tasks": 6, "cycles": 5} | told
    if agent == "history-aware":
        arguments["bank"] = None
    env = env_of(4, **arguments)
    player = make_agent(agent, env)
    observation, _ = env.reset(seed=1)
    state, alone = player.initial_state([5, 6, 7, 8]), player.initial_state([7])
    for _ in range(30):
        actions, following = player.predict(observation, state)
        again, _ = player.predict(observation, state)
        one, alone = player.predict(observation[2:3], alone)
        assert (again == actions).all()
        assert (one == actions[2:3]).all()
        assert actions.shape == (4, 3)
        assert actions.dtype == np.int64
        state = following
        observation, *_, info = env.step(actions)
        assert not info["projected"].any()
    env.close()


def test_uniform_random_overwrites_and_discards_evenly() -> None:
    env = env_of(1, slots=3)
    layout, n = env.unwrapped.engine.layout, 4_000
    seen = np.zeros((n, layout.size), dtype=np.float32)
    seen[:, layout.slices["stored_rank"]] = 1
    seen[:, layout.slices["occupancy"]] = 1
    actions, _ = make_agent("uniform-random", env).predict(seen)
    kept = actions[actions[:, 2] == 1]
    assert len(kept) / n == pytest.approx(3 / 4, abs=0.03)
    assert np.bincount(kept[:, 1], minlength=3) / n == pytest.approx([1 / 4] * 3, abs=0.03)


def test_uniform_random_leaves_out_places_that_cannot_take_anything() -> None:
    env = env_of(1, slots=2, residual=(1.0, 0.5, 0.0))
    layout, n = env.unwrapped.engine.layout, 4_000
    seen = np.zeros((n, layout.size), dtype=np.float32)
    seen[:, layout.slices["stored_rank"]] = [0, 1, 1, 0]  # two whole solutions use all four units
    seen[:, layout.slices["occupancy"]] = 1
    actions, _ = make_agent("uniform-random", env).predict(seen)
    kept = actions[actions[:, 2] == 2]
    assert len(kept) / n == pytest.approx(2 / 3, abs=0.03)
    assert set(kept[:, 1]) == {1, 2}


@pytest.mark.parametrize(
    ("agent", "arguments", "message"),
    [
        ("history-aware", {"bank": M - 1}, "bank=None"),
        ("best-memoryless", {"instance": None}, "instance=0"),
        ("best-memoryless", {"order": "iid", "costs": "random"}, "can be played in order"),
        ("best-memoryless", {"order": "reshuffled", "forced": True}, "can be played in order"),
    ],
)
def test_references_refuse_what_they_are_no_reference_for(
    agent: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidValueError, match=message):
        make_agent(agent, env_of(**arguments))


def test_a_solution_of_another_problem_is_refused() -> None:
    env = env_of(slots=2)
    solution = solve_paging(env.unwrapped.engine.problem, C)
    assert (solution.agent(env).plan == solution.policy).all()
    for other in (env_of(slots=3), env_of(slots=2, cycles=5), gym.make("NSR/BlindAllocation-v0")):
        with pytest.raises(InvalidValueError, match="another"):
            solution.agent(other)


def test_exact_references_do_not_play_live_environments(make_env: Callable[..., Any]) -> None:
    env = make_env(access="bank")
    for agent in ("history-aware", "best-memoryless", "pin", "uniform-random"):
        with pytest.raises(InvalidValueError, match="plays allocation and paging"):
            make_agent(agent, env)
