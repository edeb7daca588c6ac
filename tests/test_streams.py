"""Streams are explicit, reproducible from a generator's state, and guarded by their hash."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsr_gym.errors import DataError, FileFormatError, InvalidValueError, UnknownNameError
from nsr_gym.streams import SCHEDULES, TaskStream, draw_visits, make_stream
from nsr_gym.tasks import Task, TaskPool


def pool_of(size: int, shift: float = 0.0) -> TaskPool:
    tasks = tuple(
        Task(
            name=f"task-{i}",
            x_train=np.full((2, 3), i + shift),
            y_train=np.array([0, 1]),
            x_test=np.full((2, 3), i + shift),
            y_test=np.array([1, 0]),
            classes=(2 * i, 2 * i + 1),
        )
        for i in range(size)
    )
    return TaskPool(name="p", split="train", tasks=tasks)


POOL = pool_of(6)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def make(schedule: str = "reshuffled", seed: int = 0, **changes: Any) -> TaskStream:
    arguments: dict[str, Any] = {
        "num_tasks": 4,
        "cycles": 1 if schedule == "once" else 3,
        "rng": rng(seed),
    }
    return make_stream(POOL, schedule=schedule, **{**arguments, **changes})


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@given(num_tasks=st.integers(1, 12), cycles=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_every_schedule_gives_m_times_c_visits_and_repeats_itself(
    schedule: str, num_tasks: int, cycles: int, seed: int
) -> None:
    cycles = 1 if schedule == "once" else cycles
    visits = draw_visits(schedule, num_tasks, cycles, rng(seed))
    assert visits.shape == (num_tasks * cycles,)
    assert visits.dtype == np.int64
    assert set(visits.tolist()) <= set(range(num_tasks))
    np.testing.assert_array_equal(visits, draw_visits(schedule, num_tasks, cycles, rng(seed)))
    if schedule in ("cyclic", "reshuffled", "once"):
        each_cycle = np.sort(visits.reshape(cycles, num_tasks), axis=1)
        assert (each_cycle == np.arange(num_tasks)).all()
    if schedule in ("cyclic", "once", "markov") and num_tasks > 1:
        assert (np.diff(visits) != 0).all()


def test_cyclic_repeats_one_order_and_reshuffled_draws_a_new_one_each_cycle() -> None:
    assert draw_visits("cyclic", 3, 2, rng()).tolist() == [0, 1, 2, 0, 1, 2]
    orders = draw_visits("reshuffled", 8, 20, rng()).reshape(20, 8)
    assert len({tuple(order) for order in orders.tolist()}) == 20


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_markov_leaves_the_cycle_as_often_as_its_noise_says(noise: float) -> None:
    num_tasks = 5
    visits = draw_visits("markov", num_tasks, 4000, rng(1), markov_noise=noise)
    moves = np.diff(visits) % num_tasks
    shares = np.bincount(moves, minlength=num_tasks) / len(moves)
    uniform = noise / (num_tasks - 1)  # a noisy move may be the successor too
    expected = [0.0, 1.0 - noise + uniform, uniform, uniform, uniform]
    np.testing.assert_allclose(shares, expected, atol=0.01)
    if noise == 0.0:
        np.testing.assert_array_equal(visits, draw_visits("cyclic", num_tasks, 4000, rng()))


def test_iid_visits_are_uniform_and_may_repeat_at_once() -> None:
    visits = draw_visits("iid", 5, 4000, rng(2))
    np.testing.assert_allclose(np.bincount(visits) / len(visits), 0.2, atol=0.01)
    assert np.mean(np.diff(visits) == 0) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_one_task_alone_is_visited_cycles_times(schedule: str) -> None:
    stream = make(schedule, num_tasks=1)
    assert set(stream.visits) == {0}
    assert stream.num_visits == (1 if schedule == "once" else 3)
    assert stream.is_return.tolist() == [False, True, True][: stream.num_visits]


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_what_is_drawn_and_in_which_order_is_as_documented(schedule: str) -> None:
    num_tasks, cycles = 4, 1 if schedule == "once" else 3
    by_hand, used = rng(5), rng(5)
    members = by_hand.permutation(len(POOL))[:num_tasks]
    stream = make(schedule, rng=used)
    if schedule == "reshuffled":
        by_hand.permuted(np.tile(np.arange(num_tasks), (cycles, 1)), axis=1)
    elif schedule == "markov":
        by_hand.random(num_tasks * cycles - 1)
        by_hand.integers(1, num_tasks, num_tasks * cycles - 1)
    elif schedule == "iid":
        by_hand.integers(num_tasks, size=num_tasks * cycles)
    assert stream.tasks == tuple(f"task-{i}" for i in members)
    assert by_hand.bit_generator.state == used.bit_generator.state


def test_a_stream_draws_its_tasks_without_replacement_and_carries_their_identity() -> None:
    chosen = set()
    for seed in range(40):
        stream = make(seed=seed)
        assert len(set(stream.tasks)) == stream.num_tasks == 4
        chosen |= set(stream.tasks)
        positions = stream.pool_indices(POOL)
        assert [POOL[i].name for i in positions] == list(stream.tasks)
        assert [POOL[i].fingerprint for i in positions] == list(stream.fingerprints)
        assert [POOL[i].classes for i in positions] == list(stream.classes)
        assert stream.split == "train"
    assert chosen == {task.name for task in POOL}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_returns_and_previous_visits_are_what_a_loop_finds(visits: list[int]) -> None:
    stream = TaskStream.from_pool(POOL, members=[5, 1, 0, 3], visits=visits)
    last: dict[int, int] = {}
    for v, task in enumerate(visits):
        assert stream.previous_visit[v] == last.get(task, -1)
        assert stream.is_return[v] == (task in last)
        assert stream.cycle(v) == v // 4
        last[task] = v


def test_an_explicit_order_makes_a_stream_too() -> None:
    stream = TaskStream.from_pool(POOL, members=[2, 0], visits=[0, 1, 1, 0])
    assert stream.tasks == ("task-2", "task-0")
    assert stream.visits == (0, 1, 1, 0)
    assert stream.schedule == "explicit"


@pytest.mark.parametrize(
    ("members", "visits", "message"),
    [
        ([0, 6], [0], r"positions in 0\.\.5"),
        ([-1], [0], r"positions in 0\.\.5"),
        ([0, 0], [0, 1], "1 distinct"),
        ([0, 1], [0, 2], r"task indices in 0\.\.1"),
        ([0, 1], [], "visits must be a list of integers, at least one"),
        ([0, 1], [0.0], "visits must be a list of integers"),
        ([], [0], "members must be a list of integers"),
    ],
)
def test_an_impossible_stream_is_refused(members: list[int], visits: Any, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        TaskStream.from_pool(POOL, members=members, visits=visits)


def test_the_hash_depends_on_the_lists_and_not_on_how_they_were_drawn() -> None:
    drawn = make("cyclic")
    by_hand = TaskStream.from_pool(
        POOL, members=drawn.pool_indices(POOL), visits=[0, 1, 2, 3] * 3, schedule="cyclic"
    )
    assert by_hand == drawn
    assert by_hand.hash == drawn.hash
    assert len({make(seed=seed).hash for seed in range(20)}) == 20
    assert make_stream(
        pool_of(6, 0.5), schedule="cyclic", num_tasks=4, cycles=3, rng=rng()
    ).hash != (drawn.hash)


def test_a_stream_survives_json_and_pickle() -> None:
    stream = make("markov", options={"markov_noise": 0.5})
    for copied in (
        TaskStream.from_json(stream.to_json()),
        pickle.loads(pickle.dumps(stream)),
    ):
        assert copied == stream
        assert copied.hash == stream.hash
    assert "seed" not in json.loads(stream.to_json())


def test_every_change_to_the_json_is_noticed() -> None:
    stream = make()
    content = json.loads(stream.to_json())
    changes: dict[str, Any] = {
        "tasks": [*content["tasks"][:-1], "other"],
        "fingerprints": content["fingerprints"][::-1],
        "classes": [[0], *content["classes"][1:]],
        "visits": content["visits"][::-1],
        "schedule": "iid",
        "split": "test",
        "hash": "0" * 64,
        "seed": 3,
    }
    for key, value in changes.items():
        with pytest.raises(FileFormatError, match="damaged"):
            TaskStream.from_json(json.dumps({**content, key: value}))
    for key in content:
        with pytest.raises(FileFormatError, match="no stream"):
            TaskStream.from_json(json.dumps({k: v for k, v in content.items() if k != key}))
    for text in ("", "[]", "3", stream.to_json()[:-5], '{"hash": 1, "visits": ["a"]}'):
        with pytest.raises(FileFormatError, match="no stream"):
            TaskStream.from_json(text)


def test_a_stream_is_not_run_on_other_data_than_it_was_drawn_on() -> None:
    stream = make()
    with pytest.raises(DataError, match="other data than the stream was drawn on"):
        stream.pool_indices(pool_of(6, shift=0.5))
    with pytest.raises(UnknownNameError, match="task in pool"):
        stream.pool_indices(pool_of(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tasks": 7}, "pool 'p' .split 'train'. has 6 tasks"),
        ({"num_tasks": 0}, "num_tasks must be an integer of at least 1"),
        ({"num_tasks": 2.0}, "num_tasks must be an integer"),
        ({"num_tasks": True}, "num_tasks must be an integer"),
        ({"cycles": 0}, "cycles must be an integer of at least 1"),
        ({"cycles": "2"}, "cycles must be an integer"),
        ({"schedule": "once", "cycles": 2}, "'once' visits each task once"),
        ({"options": {"markov_noise": 0.1}}, "'reshuffled' takes no options"),
        ({"schedule": "markov", "options": {"markov_noise": 1.5}}, r"in \[0, 1\], got 1.5"),
        ({"schedule": "markov", "options": {"markov_noise": float("nan")}}, "got nan"),
        ({"schedule": "markov", "options": {"markov_noise": "much"}}, "got 'much'"),
        ({"rng": 3}, "use `np.random.default_rng"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        make(**{"schedule": "reshuffled", **changes})


def test_unknown_schedules_and_options_are_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match=r"no schedule 'cyclical'. Did you mean 'cyclic'"):
        make("cyclical")
    with pytest.raises(UnknownNameError, match="Did you mean 'markov_noise'"):
        make("markov", options={"noise": 0.1})
