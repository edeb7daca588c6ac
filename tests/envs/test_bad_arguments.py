"""What cannot be used is refused at once, by an error that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from nsr_gym.envs.config import EpisodeConfig
from nsr_gym.errors import InvalidValueError, NsrGymError, UnknownNameError

Make = Callable[..., Any]

NAN, INF = float("nan"), float("inf")
NOT_COUNTS = [0, -1, 2.0, "3", None, True, [1], NAN]
NOT_LIMITS = [-1, 2.5, "3", True, [1]]
NOT_POSITIVE = [0, -0.1, NAN, INF, "0.1", None, True, [0.1]]

WRONG_VALUES: dict[str, list[Any]] = {
    "split": ["validation", "", 3, None, ["train"]],
    "num_tasks": NOT_COUNTS,
    "cycles": NOT_COUNTS,
    "schedule": ["cycle", None, ["cyclic"]],
    "markov_noise": [-0.1, 1.1, NAN, "0.5", True],
    "access": ["banks", None, 1],
    "view_size": NOT_COUNTS,
    "ranks": [[], (), [0], [2, 1], [1, 1], [1.0], ["1"], [True], 4, "1248", None, {1: 2}],
    "capacity": NOT_LIMITS,
    "capacity_bytes": NOT_LIMITS,
    "retention": ["lrru", None, 1],
    "energy": [0, -0.5, 1.1, NAN, "0.9", True],
    "reward": ["posttask", None],
    "rank_cost": [-0.1, NAN, INF, "0", None, True],
    "embedding_noise": [-0.1, "some", None, float("inf"), True],
    "observation": ["box", None],
    "observe_task_id": ["yes", 1, None],
    "support_size": [*NOT_COUNTS, 10**6],
    "learning_steps": NOT_COUNTS,
    "updates": NOT_COUNTS,
    "batch_size": NOT_COUNTS,
    "learning_rate": NOT_POSITIVE,
    "distillation": [-0.1, NAN, INF, "0.1", None, True],
    "temperature": NOT_POSITIVE,
    "init_gain": NOT_POSITIVE,
    "head": ["", "train", None, 3],
    "learner": ["", "lora2", None, 3, ["lora"]],
    "learner_options": [{"eps": 1}, 3, None, ["eps"], {3: 1}],
    "modifiers": [["ema"], {"sam": 3}, 3, None, {"sam": {"r": 1}}, {"sam": {"radius": -1}}],
    "bank": ["", "per-task", None, 3],
    "bank_options": [{"k": 4}, 3, None, {"dtype": "int8"}],
    "router": ["", "cosin", None, 3],
    "router_options": [{"lambda": 1}, 3, None, {"threshold": "high"}],
    "router_features": ["", "middle", 3],
    "warm_start": ["", "blend", None, 3],
    "observe_signals": [1, "yes", None],
    "device": ["gpu", "", 3, None],
}
CASES = [
    pytest.param(name, value, id=f"{name}={value!r}")
    for name, values in WRONG_VALUES.items()
    for value in values
]


def test_the_table_of_wrong_values_covers_every_argument() -> None:
    assert set(WRONG_VALUES) == {field.name for field in fields(EpisodeConfig)}


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_wrong_value_is_refused_when_the_environment_is_made(
    name: str, value: Any, make_env: Make
) -> None:
    extra = {"schedule": "markov"} if name == "markov_noise" else {}
    with pytest.raises((InvalidValueError, UnknownNameError)) as caught:
        make_env(**extra, **{name: value})
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        # Of options, the message names the part and the option instead.
        assert name.removesuffix("s") in str(caught.value), "the message does not name the argument"


@pytest.mark.parametrize("access", ["memoryless", "visit"])
@pytest.mark.parametrize(
    ("name", "value"), [("retention", "lrru"), ("capacity", -1), ("view_size", 0), ("energy", 2)]
)
def test_arguments_of_the_bank_are_checked_without_one(
    name: str, value: Any, access: str, make_env: Make
) -> None:
    with pytest.raises((InvalidValueError, UnknownNameError)):
        make_env(access=access, **{name: value})


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("num_task", "num_tasks"),
        ("veiw_size", "view_size"),
        ("capcity", "capacity"),
        ("learning_step", "learning_steps"),
        ("task", "tasks"),
    ],
)
def test_an_unknown_argument_is_answered_with_the_closest(
    wrong: str, meant: str, make_env: Make, make_vec: Make
) -> None:
    with pytest.raises(UnknownNameError, match=f"'{wrong}'.*'{meant}'"):
        make_env(**{wrong: 1})
    with pytest.raises(UnknownNameError, match=f"'{wrong}'.*'{meant}'"):
        make_vec(2, **{wrong: 1})


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ({"tasks": "permutations"}, "permutation"),
        ({"split": "tests"}, "test"),
        ({"access": "memory-less"}, "memoryless"),
        ({"schedule": "cylic"}, "cyclic"),
        ({"retention": "lruu"}, "lru"),
        ({"render_mode": "rgb"}, "rgb_array"),
        ({"reward": "onlin"}, "online"),
        ({"observation": "dct"}, "dict"),
    ],
    ids=str,
)
def test_an_unknown_name_is_answered_with_the_closest(
    arguments: dict[str, Any], meant: str, tiny: dict[str, Any]
) -> None:
    # Not through gym.make, which warns of an unknown render mode before ours is asked.
    from nsr_gym.envs import CyclicDigitsEnv

    with pytest.raises(UnknownNameError, match=f"'{meant}'"):
        CyclicDigitsEnv(**tiny | arguments)


def test_an_unknown_autoreset_mode_is_answered_with_the_closest(make_vec: Make) -> None:
    with pytest.raises(UnknownNameError, match="'same_step'"):
        make_vec(2, autoreset_mode="samestep")


@pytest.mark.parametrize("tasks", [["permutation"], 3, None], ids=str)
def test_task_families_of_another_type_are_refused(tasks: Any, make_env: Make) -> None:
    with pytest.raises(NsrGymError):
        make_env(tasks=tasks)


def test_arguments_that_do_not_fit_each_other_are_refused_at_once(make_env: Make) -> None:
    for arguments in (
        {"schedule": "once", "cycles": 2},
        {"schedule": "cyclic", "markov_noise": 0.1},
    ):
        with pytest.raises(NsrGymError):
            make_env(**arguments)


def test_a_rank_above_the_width_of_a_layer_is_refused(make_env: Make) -> None:
    with pytest.raises(InvalidValueError, match="between 1 and 64"):
        make_env(ranks=[1, 65])
    env = make_env(ranks=[64], learning_steps=1)
    env.reset(seed=0)
    env.step(np.array([0, 0, 2]))


def test_more_tasks_than_the_pool_has_are_refused(make_env: Make) -> None:
    with pytest.raises(InvalidValueError, match=r"num_tasks.*\d+"):
        make_env(num_tasks=10_000)


WRONG_ACTIONS = {
    "too short": [0, 0],
    "too long": [0, 0, 0, 0],
    "a scalar": 0,
    "nested": [[0, 0, 0]],
    "floats": [0.0, 1.0, 2.0],
    "booleans": [True, False, True],
    "text": ["0", "0", "0"],
    "nothing": None,
    "NaN": [NAN, 0, 0],
    "negative": [-1, 0, 0],
    "recall too large": [9, 0, 0],
    "rank too large": [0, 4, 0],
    "reserve too large": [0, 0, 3],
    "huge": [2**63, 0, 0],
    "empty": [],
    "ragged": [[0], [0, 1], 2],
}


@pytest.mark.parametrize("action", WRONG_ACTIONS.values(), ids=WRONG_ACTIONS)
def test_a_wrong_action_is_refused_and_changes_nothing(action: Any, make_env: Make) -> None:
    env, untouched = make_env(), make_env()
    for one in (env, untouched):
        one.reset(seed=0)
    with pytest.raises(InvalidValueError, match="Expected action"):
        env.step(action)
    a, *_ = env.step(np.array([0, 3, 2]))
    b, *_ = untouched.step(np.array([0, 3, 2]))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "actions",
    [
        np.zeros((3, 3), dtype=np.int64),
        np.zeros((2, 2), dtype=np.int64),
        np.zeros(3, dtype=np.int64),
        np.zeros((2, 3)),
        np.array([[0, 0, 0], [0, 0, 3]]),
        np.array([[0, 0, 0], [0, -1, 0]]),
        [[0, 0, 0]],
        None,
        0,
    ],
    ids=lambda actions: str(np.shape(actions)) + str(np.asarray(actions).dtype),
)
def test_wrong_actions_of_a_batch_are_refused_and_change_nothing(
    actions: Any, make_vec: Make
) -> None:
    env, untouched = make_vec(2), make_vec(2)
    for one in (env, untouched):
        one.reset(seed=0)
    with pytest.raises(InvalidValueError, match="Expected"):
        env.step(actions)
    good = np.array([[0, 3, 2], [0, 2, 1]])
    np.testing.assert_array_equal(env.step(good)[0], untouched.step(good)[0])


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_whole_numbers_of_any_type_are_actions(dtype: Any, make_env: Make) -> None:
    env = make_env()
    env.reset(seed=0)
    *_, info = env.step(np.array([0, 3, 2], dtype=dtype))
    assert (info["rank"], info["reserve"]) == (8, 2)
    *_, info = env.step([0, 2, 0])
    assert info["rank"] == 4


def test_lists_from_json_are_ranks() -> None:
    assert EpisodeConfig(ranks=[1, 3]).ranks == (1, 3)  # type: ignore[arg-type]
