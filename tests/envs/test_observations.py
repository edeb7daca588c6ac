"""What a policy sees: the fields of each access level, scaled, sorted, and nothing withheld."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nsr_gym.errors import AccessError

Make = Callable[..., Any]

VIEW = ("similarity", "stored_rank", "accuracy", "age", "recalls", "trial_loss")
GLOBAL = ("occupancy", "budget_left", "visits_left", "bare_loss")
FIELDS: dict[str, tuple[str, ...]] = {
    "bank": VIEW + GLOBAL,
    "memoryless": ("adapter_empty", "active_loss", "bare_loss"),
    "visit": ("bare_loss",),
}


@pytest.mark.parametrize("access", FIELDS)
@pytest.mark.parametrize("told", [False, True])
def test_each_access_level_shows_its_fields_and_no_other(
    access: str, told: bool, make_env: Make
) -> None:
    env = make_env(access=access, observe_task_id=told, observation="dict", view_size=5)
    extra = () if not told else ("same_task", "task") if access == "bank" else ("task",)
    assert set(env.observation_space.spaces) == {*FIELDS[access], *extra}
    observation, _ = env.reset(seed=0)
    for name, values in observation.items():
        assert values.shape == ((5,) if name in (*VIEW, "same_task") else (1,))


@pytest.mark.parametrize("access", ["memoryless", "visit"])
def test_reading_a_withheld_field_is_refused_by_name(access: str, make_env: Make) -> None:
    env = make_env(access=access)
    observation, _ = env.reset(seed=0)
    for name in {*VIEW, *GLOBAL, "task", "same_task"} - {*FIELDS[access]}:
        with pytest.raises(AccessError, match=f"withholds '{name}'"):
            env.engine.layout.read(observation, name)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"observe_task_id": True},
        {"capacity": 2, "capacity_bytes": 30_000, "view_size": 12},
        {"access": "memoryless", "observe_task_id": True},
        {"access": "visit"},
        {"tasks": "labels", "learning_rate": 0.5},  # losses far above those of guessing
    ],
    ids=str,
)
def test_observations_lie_between_zero_and_one(arguments: dict[str, Any], make_env: Make) -> None:
    env = make_env(cycles=3, **arguments)
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    over = False
    while not over:
        assert observation.dtype == np.float32
        assert np.isfinite(observation).all()
        assert observation.min() >= 0.0
        assert observation.max() <= 1.0
        assert observation in env.observation_space
        observation, _, over, _, _ = env.step(env.action_space.sample())


@pytest.mark.parametrize("access", FIELDS)
def test_dict_and_flat_observations_are_the_same_values(access: str, make_env: Make) -> None:
    flat = make_env(access=access)
    by_name = make_env(access=access, observation="dict")
    a, _ = flat.reset(seed=0)
    b, _ = by_name.reset(seed=0)
    layout = flat.engine.layout
    for _ in range(3):
        np.testing.assert_array_equal(a, np.concatenate([b[name] for name in layout.sizes]))
        for name in layout.sizes:
            np.testing.assert_array_equal(layout.read(a, name), layout.read(b, name))
        a, *_ = flat.step(np.array([0, 3, 1]))
        b, *_ = by_name.step(np.array([0, 3, 1]))


def test_the_view_is_sorted_by_similarity_and_entries_come_first(make_env: Make) -> None:
    env = make_env(num_tasks=5)
    observation, _ = env.reset(seed=0)
    layout = env.engine.layout
    for visit in range(9):
        entries = min(visit, 8)
        held = layout.read(observation, "stored_rank") > 0
        np.testing.assert_array_equal(held, np.arange(8) < entries)
        similarity = layout.read(observation, "similarity")[:entries]
        assert (np.diff(similarity) <= 0).all()
        absent = {name: layout.read(observation, name)[entries:] for name in VIEW}
        assert (absent.pop("trial_loss") == 1.0).all()
        assert all((values == 0.0).all() for values in absent.values())
        observation, *_ = env.step(np.array([0, 3, 2]))


def test_only_the_most_similar_entries_are_in_view(make_env: Make) -> None:
    # The same episode with a narrow and a wide view: the narrow one is the head of the wide one.
    narrow, wide = make_env(view_size=2), make_env(view_size=6)
    a, _ = narrow.reset(seed=0)
    b, _ = wide.reset(seed=0)
    for _ in range(5):
        for name in VIEW:
            np.testing.assert_allclose(
                narrow.engine.layout.read(a, name), wide.engine.layout.read(b, name)[:2], atol=1e-6
            )
        a, *_ = narrow.step(np.array([0, 1, 2]))
        b, *_ = wide.step(np.array([0, 1, 2]))


def test_a_returning_task_looks_like_its_own_entry(make_env: Make) -> None:
    env = make_env(num_tasks=4)
    observation, _ = env.reset(seed=0)
    layout = env.engine.layout
    for visit in range(8):
        similarity = layout.read(observation, "similarity")[0]
        if visit >= 4:
            assert similarity > 0.95
        observation, *_ = env.step(np.array([0, 3, 2]))


def test_global_fields_say_what_they_are_called(make_env: Make) -> None:
    env = make_env(capacity=4)
    observation, _ = env.reset(seed=0)
    layout = env.engine.layout
    for visit in range(6):
        assert layout.read(observation, "visits_left") == pytest.approx(1 - visit / 6)
        assert layout.read(observation, "occupancy") == pytest.approx(min(visit, 4) / 4)
        assert layout.read(observation, "budget_left") == 1.0
        observation, *_ = env.step(np.array([0, 3, 2]))
    # There is no next task to see after the last visit.
    assert not observation.any()


def test_stored_rank_and_accuracy_are_those_of_the_entry(make_env: Make) -> None:
    env = make_env(view_size=1)
    env.reset(seed=0)
    observation, *_, info = env.step(np.array([0, 1, 2]))
    layout = env.engine.layout
    assert layout.read(observation, "stored_rank") == pytest.approx(2 / 8)
    assert layout.read(observation, "accuracy") == pytest.approx(info["accuracy_after"])


def test_losses_are_scaled_so_that_guessing_is_a_half(make_env: Make) -> None:
    layout = make_env().engine.layout
    loss = np.array([0.0, np.log(10), 1e9])
    np.testing.assert_allclose(layout.scale_loss(loss), [0.0, 0.5, 1.0], atol=1e-6)
    np.testing.assert_allclose(layout.unscale_loss(layout.scale_loss(loss))[:2], loss[:2])
    assert np.isfinite(layout.unscale_loss(np.array([1.0]))).all()


def test_a_trial_load_of_the_own_entry_loses_less_than_the_bare_backbone(make_env: Make) -> None:
    env = make_env(num_tasks=1, learning_steps=6, updates=3)
    observation, _ = env.reset(seed=0)
    observation, *_ = env.step(np.array([0, 3, 2]))
    layout = env.engine.layout
    assert layout.read(observation, "trial_loss")[0] < layout.read(observation, "bare_loss")[0]


def test_told_the_task_the_own_entry_comes_first(make_env: Make) -> None:
    env = make_env(num_tasks=4, cycles=2, observe_task_id=True, view_size=2)
    observation, _ = env.reset(seed=0)
    read = env.engine.layout.read
    stream = env.engine.streams[0]
    for visit in range(8):
        own = read(observation, "same_task")
        assert own.tolist() == [float(visit >= 4), 0.0]
        assert read(observation, "task") == pytest.approx(stream.visits[visit] / 3)
        observation, *_ = env.step(np.array([int(visit >= 4), 3, 1]))


def test_without_a_bank_no_action_shows_in_the_observation(make_env: Make) -> None:
    # Reverted visits leave nothing behind, so there is nothing that could tell them apart:
    # neither the last action, nor its reward, nor a clock.
    one, other = make_env(access="memoryless"), make_env(access="memoryless")
    one.reset(seed=0)
    other.reset(seed=0)
    for visit in range(5):
        a, *_ = one.step(np.array([0, 0, 0]))
        b, *_ = other.step(np.array([0, 3, 0]))
        np.testing.assert_array_equal(a, b, err_msg=f"visit {visit}")


@pytest.mark.parametrize("access", FIELDS)
def test_the_task_id_cannot_be_read_from_an_observation(access: str, make_env: Make) -> None:
    # Nothing but "task" and "same_task" may differ from what an agent sees that is told it.
    plain, told = make_env(access=access), make_env(access=access, observe_task_id=True)
    a, _ = plain.reset(seed=0)
    b, _ = told.reset(seed=0)
    for _ in range(3):  # first visits: the order of the view is the same in both
        for name in FIELDS[access]:
            np.testing.assert_array_equal(
                plain.engine.layout.read(a, name), told.engine.layout.read(b, name), name
            )
        a, *_ = plain.step(np.array([0, 3, 1]))
        b, *_ = told.step(np.array([0, 3, 1]))


def test_a_similarity_beyond_one_or_below_zero_is_cut(make_env: Make) -> None:
    # A cosine of float32 vectors can exceed 1 by rounding, and features may be opposed.
    layout = make_env().engine.layout
    values = {name: np.zeros((1, size)) for name, size in layout.sizes.items()}
    values["similarity"][0, :2] = 1.0000002, -0.3
    assert layout.read(layout.encode(1, values)[0], "similarity")[:2].tolist() == [1.0, 0.0]
