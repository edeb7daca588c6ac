"""What an episode looks like is drawn at its reset, from its own generator alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nsr_gym.datasets.digits import digits_pool, mixed_pool, mixed_positions
from nsr_gym.envs.config import EpisodeConfig
from nsr_gym.envs.mixed import BUDGET_BYTES_PER_TASK, DIGITS_FAMILIES, MixedConfig, roomy
from nsr_gym.envs.plans import EpisodePlan
from nsr_gym.errors import InvalidValueError, NsrGymError
from nsr_gym.pools import PoolRecord

Make = Callable[..., Any]
MIXED = "NSR/MixedDigits-v0"


def plans(config: MixedConfig, count: int = 300) -> list[EpisodePlan]:
    pool = mixed_pool(config.split)
    return [config.draw_plan(pool, np.random.default_rng(seed)) for seed in range(count)]


@pytest.mark.parametrize(
    ("arguments", "pinned"),
    [
        ({}, "b95d31676a17920d"),
        ({"schedule": "markov", "cycles": 3, "split": "test"}, "e5326a0e3c1a0096"),
        ({"schedule": "reshuffled", "tasks": "rotation", "num_tasks": 4}, "b6d5816e703688212daa"),
    ],
)
def test_a_seed_gives_the_stream_that_it_always_gave(
    arguments: dict[str, Any], pinned: str, make_env: Make
) -> None:
    # Hashes of the first release; another one here would make every published number void.
    env = make_env(**({"num_tasks": 10, "cycles": 6} | arguments))
    _, info = env.reset(seed=7)
    assert info["stream"].startswith(pinned)
    assert info["family"] == ""


def test_every_mixed_episode_is_of_a_known_kind_and_all_kinds_come() -> None:
    seen = plans(MixedConfig())
    assert {plan.family for plan in seen} == set(DIGITS_FAMILIES)
    assert {plan.stream.num_tasks for plan in seen} == set(range(4, 13))
    assert {plan.stream.schedule for plan in seen} == {"cyclic", "reshuffled", "markov"}
    noise = [plan.embedding_noise for plan in seen]
    assert 0.0 <= min(noise) < 0.02 < 0.18 < max(noise) <= 0.2
    positions = mixed_positions()
    for plan in seen:
        kind, m = DIGITS_FAMILIES[plan.family], plan.stream.num_tasks
        members = plan.stream.pool_indices(mixed_pool("train"))
        assert len(set(members.tolist())) == m
        assert set(members.tolist()) <= set(positions[kind.tasks])
        assert plan.stream.num_visits == 6 * m
        if kind.capped:
            assert m / 3 <= plan.capacity < m
        else:
            assert plan.capacity == roomy(m) >= m
        expected = BUDGET_BYTES_PER_TASK * m if plan.family == "budget" else None
        assert plan.capacity_bytes == expected
    capped = [p.capacity / p.stream.num_tasks for p in seen if p.family == "capped"]
    assert min(capped) < 0.5 < 0.8 < max(capped)


def test_what_a_user_fixes_is_fixed() -> None:
    config = MixedConfig.from_arguments(
        {
            "families": ["capped", "related"], "num_tasks": 5, "schedules": ["iid"],
            "embedding_noise": 0.05, "cycles": 2,
        }
    )  # fmt: skip
    seen = plans(config, 40)
    assert {plan.family for plan in seen} == {"capped", "related"}
    assert {(p.stream.num_tasks, p.stream.num_visits) for p in seen} == {(5, 10)}
    assert {p.stream.schedule for p in seen} == {"iid"}
    assert {p.embedding_noise for p in seen} == {0.05}
    assert (config.max_tasks, config.max_visits) == (5, 10)


def test_fixing_one_thing_leaves_the_draws_of_the_others() -> None:
    free, fixed = plans(MixedConfig(), 40), plans(MixedConfig(embedding_noise=(0.1, 0.1)), 40)
    for a, b in zip(free, fixed, strict=True):
        assert a.stream.hash == b.stream.hash
        assert (a.family, a.capacity) == (b.family, b.capacity)


def test_a_pool_without_images_draws_the_same_plans() -> None:
    config, pool = MixedConfig(), mixed_pool("train")
    for seed in range(5):
        a, b = (
            config.draw_plan(p, np.random.default_rng(seed)) for p in (pool, PoolRecord.of(pool))
        )
        assert a == b


def test_mixed_episodes_need_the_mixed_pool() -> None:
    with pytest.raises(InvalidValueError, match="mixed pool of 186"):
        MixedConfig().check_pool(digits_pool("permutation", "train"))
    with pytest.raises(InvalidValueError, match="at most 50"):
        EpisodeConfig(num_tasks=51).check_pool(digits_pool("permutation", "train"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"families": []}, "list of names"),
        ({"families": "capped"}, "list of names"),
        ({"families": ["caped"]}, "'capped'"),
        ({"families": ["capped", "capped"]}, "each once"),
        ({"families": [3]}, "family of episodes"),
        ({"schedules": ["cyclical"]}, "'cyclic'"),
        ({"schedules": ["once"]}, "once"),
        ({"num_tasks": [5, 4]}, "lowest, highest"),
        ({"num_tasks": [4.5, 6]}, "whole number"),
        ({"num_tasks": 0}, "at least 1"),
        ({"num_tasks": True}, "lowest, highest"),
        ({"num_tasks": 40}, "at most 36"),
        ({"embedding_noise": [-0.1, 0.1]}, "at least 0"),
        ({"embedding_noise": "some"}, "lowest, highest"),
        ({"embedding_noise": float("nan")}, "at least 0"),
        ({"schedules": ["cyclic"], "markov_noise": 0.1}, "leave it out"),
        ({"tasks": "labels"}, "no environment argument 'tasks'"),
        ({"schedule": "cyclic"}, "'schedules'"),
        ({"dynamics": "life"}, "'live'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_by_name(
    arguments: dict[str, Any], text: str, make_env: Make
) -> None:
    with pytest.raises(NsrGymError, match=text):
        make_env(MIXED, **arguments)


def test_families_with_enough_tasks_may_have_more_than_the_smallest() -> None:
    assert MixedConfig(families=("cyclic",), num_tasks=(50, 50)).max_tasks == 50


def test_each_episode_is_seen_by_its_own_length_and_room(make_vec: Make) -> None:
    env = make_vec(8, MIXED, num_tasks=[2, 5], cycles=2, families=["cyclic", "capped"])
    observation, info = env.reset(seed=1)
    engine = env.engine
    lengths = engine.num_visits.copy()
    assert len(set(lengths.tolist())) > 1
    assert (lengths == 2 * engine.num_tasks).all()
    read = lambda name: engine.layout.read(observation, name)[:, 0]  # noqa: E731
    playing = np.ones(8, dtype=bool)
    while playing.any():
        np.testing.assert_allclose(
            read("visits_left")[playing], (1 - engine.visit / lengths)[playing], atol=1e-6
        )
        room = np.array([plan.capacity for plan in engine.plans])
        np.testing.assert_allclose(
            read("occupancy")[playing], (engine.memory.entries(np.arange(8)) / room)[playing],
            atol=1e-6,
        )  # fmt: skip
        visits = engine.visit.copy()
        observation, _, over, _, info = env.step(np.tile([0, 0, 2], (8, 1)))
        ends = playing & over
        np.testing.assert_array_equal(visits[ends] + 1, lengths[ends])
        assert (info["cycle"] == visits // engine.num_tasks)[playing].all()
        playing &= ~over


def test_what_is_measured_on_every_task_ends_at_each_episode_s_own_number(make_vec: Make) -> None:
    env = make_vec(6, MIXED, num_tasks=[1, 4], cycles=1)
    env.reset(seed=0)
    engine, rows = env.engine, np.array([4, 0, 3])
    asked: list[int] = []

    def choose(seen: np.ndarray, masks: np.ndarray) -> np.ndarray:
        asked.append(len(seen))
        return np.zeros((len(seen), 3), dtype=np.int64)

    for values in (engine.retention(rows), engine.retention(rows, choose), engine.baseline(rows)):
        assert values.shape == (3, 4)
        np.testing.assert_array_equal((~np.isnan(values)).sum(axis=1), engine.num_tasks[rows])
        for row, m in zip(values, engine.num_tasks[rows], strict=True):
            assert not np.isnan(row[:m]).any()
    assert asked == [int(engine.num_tasks[rows].sum())]
