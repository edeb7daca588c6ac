"""Reading B as an environment: what a visit costs follows from what is held when it starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsr_gym.errors import InvalidValueError, NsrGymError
from nsr_gym.regret.paging import plan_cost

ENV = "NSR/Paging-v0"
Make = Callable[..., Any]


def costs(env: Any, actions: list[list[int]], seed: int = 0) -> list[float]:
    env.reset(seed=seed)
    return [-env.step(np.array(action))[1] for action in actions]


def test_a_stored_solution_is_a_hit_and_costs_nothing(make_env: Make) -> None:
    env = make_env(ENV, num_tasks=2, cycles=3)
    # Store task 0, learn task 1 and discard it: pinned.
    assert costs(env, [[0, 0, 1], [0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]) == [
        1, 1, 0, 1, 0, 1,
    ]  # fmt: skip


def test_storing_in_the_same_place_loses_what_lay_there(make_env: Make) -> None:
    env = make_env(ENV, num_tasks=2, cycles=3)
    assert costs(env, [[1, 0, 1]] * 6) == [1] * 6


def test_an_empty_place_is_not_recalled_and_the_projection_is_told(make_env: Make) -> None:
    env = make_env(ENV, num_tasks=2, cycles=2)
    env.reset(seed=0)
    *_, info = env.step([1, 0, 1])
    assert info["projected"]
    *_, info = env.step([1, 0, 0])
    assert not info["projected"]
    assert not info["hit"]


def test_forced_storing_cannot_be_declined(make_env: Make) -> None:
    env = make_env(ENV, num_tasks=2, cycles=2, forced=True)
    env.reset(seed=0)
    assert not env.action_masks()[2 * 1 + 1]
    *_, info = env.step([0, 0, 0])
    assert info["projected"]
    assert info["entries"] == 1


def test_the_error_of_recall_is_the_bank_s_alone(make_env: Make) -> None:
    arguments = {"num_tasks": 2, "cycles": 2, "slots": 1, "bank": 1, "recall_error": 0.25}
    # Task 0 into the slot, task 1 into the Bank, then both recalled.
    assert costs(
        make_env(ENV, **arguments), [[0, 0, 1], [0, 1, 1], [1, 0, 0], [2, 0, 0]]
    ) == [1, 1, 0, 0.25]  # fmt: skip


def test_a_solution_kept_in_part_leaves_the_rest_to_pay(make_env: Make) -> None:
    env = make_env(ENV, num_tasks=2, cycles=3, slots=1, residual=[1.0, 0.25, 0.0])
    # Two units: one of rank for each task, then all for task 0, which is cut to what is free.
    played = [[0, 0, 1], [0, 1, 1], [1, 0, 0], [2, 1, 0], [1, 0, 2], [2, 1, 0]]
    assert costs(env, played) == [1, 1, 0.25, 0.25, 0.25, 0.25]
    env.reset(seed=0)
    for action, projected in zip(played, [False] * 4 + [True, False], strict=True):
        assert env.step(action)[-1]["projected"] == projected


def test_other_tasks_solutions_save_their_share(make_env: Make) -> None:
    transfer = [[0.0, 0.5], [0.2, 0.0]]
    env = make_env(ENV, num_tasks=2, cycles=2, transfer=transfer)
    env.reset(seed=0)
    assert -env.step([0, 0, 1])[1] == 1.0
    _, reward, _, _, info = env.step([1, 0, 1])
    assert reward == pytest.approx(-0.8)
    assert info["oracle_reward"] == pytest.approx(-0.8)
    assert -env.step([1, 0, 1])[1] == pytest.approx(0.5)


def test_regret_is_against_a_policy_that_holds_everything(make_env: Make) -> None:
    env = make_env(ENV, num_tasks=3, cycles=4)
    env.reset(seed=0)
    for visit in range(12):
        *_, info = env.step([0, 0, 0])
        assert info["oracle_reward"] == (-1.0 if visit < 3 else 0.0)
        assert info["regret"] == max(0, visit - 2)


def test_observations_tell_what_is_held_and_since_when(make_env: Make) -> None:
    env = make_env(ENV, num_tasks=3, cycles=2, slots=2, observation="dict")
    seen, _ = env.reset(seed=0)
    assert (seen["stored_rank"] == 0).all()
    seen, *_ = env.step([0, 1, 1])  # task 0 into place 1
    np.testing.assert_array_equal(seen["similarity"], [0, 0])
    np.testing.assert_array_equal(seen["stored_rank"], [0, 1])
    env.step([0, 0, 0])
    seen, *_ = env.step([0, 0, 1])  # task 2 into place 0
    np.testing.assert_array_equal(seen["similarity"], [0, 1])
    np.testing.assert_allclose(seen["age"], [1 / 6, 3 / 6])
    seen, *_ = env.step([2, 0, 0])
    np.testing.assert_allclose(seen["age"], [2 / 6, 1 / 6])
    np.testing.assert_allclose(seen["stored_age"], [2 / 6, 4 / 6])
    np.testing.assert_allclose(seen["uses"], [0, 1 / 6])
    np.testing.assert_allclose(seen["occupancy"], [1.0])
    np.testing.assert_allclose(seen["visits_left"], [2 / 6])


def test_noise_up_to_one_half_leaves_similarities_apart() -> None:
    for noise, apart in ((0.5, True), (0.9, False)):
        env = gym.make_vec(
            ENV, 50, num_tasks=4, cycles=10, slots=4, similarity_noise=noise, observation="dict"
        )
        env.reset(seed=0)
        own, other = [], []
        for visit in range(39):
            store = [0, visit % 4, 1 if visit < 4 else 0]
            seen, *_ = env.step(np.tile(store, (50, 1)))
            if visit >= 4:
                own.append(seen["similarity"][:, (visit + 1) % 4])
                other.append(seen["similarity"][:, (visit + 2) % 4])
        assert (np.min(own) >= np.max(other)) == apart
        env.close()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_engine_and_the_solver_s_own_account_agree_on_every_plan(data: Any) -> None:
    m, slots, bank = (data.draw(st.integers(low, 3)) for low in (1, 1, 0))
    arguments = {
        "num_tasks": m, "cycles": 3, "slots": slots, "bank": bank, "costs": "random",
        "transfer": data.draw(st.sampled_from([0.0, 0.4])),
        **data.draw(
            st.sampled_from(
                [
                    {},
                    {"recall_error": 0.3},
                    {"forced": True},
                    {"residual": [1.0, 0.5, 0.0]},
                ]
            )
        ),
    }  # fmt: skip
    env = gym.make(ENV, **arguments).unwrapped
    sizes = env.action_space.nvec.tolist()
    plan = np.array([[data.draw(st.integers(0, size - 1)) for size in sizes] for _ in range(3 * m)])
    assert sum(costs(env, plan.tolist())) == pytest.approx(plan_cost(env.engine.problem, plan))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"slots": 0}, "slots"),
        ({"bank": -1}, "bank"),
        ({"delta": 0}, "delta"),
        ({"costs": "rand"}, "'random'"),
        ({"forced": "no"}, "forced"),
        ({"recall_error": -0.1}, "recall_error"),
        ({"residual": [1.0]}, "residual"),
        ({"residual": [0.5, 0.0]}, "residual"),
        ({"residual": [1.0, 0.2, 0.4, 0.0]}, "residual"),
        ({"residual": 3}, "residual"),
        ({"residual": [1.0, 0.5, 0.0], "forced": True}, "whole solutions"),
        ({"residual": [1.0, 0.5, 0.0], "recall_error": 0.1}, "whole solutions"),
        ({"transfer": 1.0}, "transfer"),
        ({"transfer": [[0.0, 0.1]]}, "transfer"),
        ({"similarity_noise": -1}, "similarity_noise"),
        ({"capacity": 3}, "capacity"),
    ],
    ids=str,
)
def test_wrong_arguments_are_answered(arguments: dict[str, Any], text: str, make_env: Make) -> None:
    with pytest.raises(NsrGymError, match=text):
        make_env(ENV, **arguments)


@pytest.mark.parametrize(
    "action", [[0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 2], [0, 0.5, 0], 0], ids=str
)
def test_wrong_actions_are_refused(action: Any, make_env: Make) -> None:
    env = make_env(ENV)
    env.reset(seed=0)
    with pytest.raises(InvalidValueError, match="Expected actions as 3 whole numbers below"):
        env.step(action)
