"""The verdict gives a bound where the assumptions hold, and the reason where they do not."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsr_gym.errors import InvalidValueError
from nsr_gym.evaluation.rollout import play
from nsr_gym.regret.delta import delta_switch
from nsr_gym.regret.verdict import Verdict, judge, judge_table

BLIND, PAGING, RECOVERED = (
    f"NSR/{name}-v0" for name in ("BlindAllocation", "Paging", "UntilRecovered")
)


def failing(verdict: Verdict) -> set[str]:
    return {a.name for a in verdict.assumptions if a.holds is False}


@pytest.mark.parametrize(
    ("env_id", "theorem", "bound", "ratio"),
    [(BLIND, 225, 225, 1.0), (PAGING, 90, 81, 0.9), (RECOVERED, 450, 450, 1.0)],
)
def test_each_reading_has_its_bound_and_the_best_policy_attains_it(
    env_id: str, theorem: float, bound: float, ratio: float
) -> None:
    verdict = judge(env_id, {})
    assert verdict.applies
    assert not verdict.why
    assert verdict.theorem == pytest.approx(theorem)
    assert verdict.bound == pytest.approx(bound)
    assert verdict.optimum == pytest.approx(bound)
    assert verdict.expected_ratio == pytest.approx(ratio)
    assert not failing(verdict)
    assert verdict.certificate is not None
    verdict.certificate.verify(1e-6)


@pytest.mark.parametrize(
    ("env_id", "arguments", "why", "assumption"),
    [
        (BLIND, {"obs": "full"}, "observation tells", "the observation does not tell the task"),
        (BLIND, {"clock": 10}, "observation tells", "no clock"),
        (BLIND, {"feedback": "last-reward"}, "memory", "the policy does not see its own past"),
        (BLIND, {"feedback": "last-action+reward"}, "memory",
         "the policy does not see its own past"),
        (RECOVERED, {"obs": "full"}, "observation tells", "the observation does not tell the task"),
        (RECOVERED, {"clock": 10}, "observation tells", "no clock"),
        (RECOVERED, {"feedback": "last-action+reward"}, "memory",
         "the policy does not see its own past"),
        (BLIND, {"order": "iid"}, "drawn anew", "tasks recur in an order that can be learned"),
        (BLIND, {"num_tasks": 2, "rewards": [[1.0, 0.0], [1.0, 0.5]]}, "optimal for all tasks",
         "no two tasks share an optimal allocation"),
        (PAGING, {"recall_error": 0.9}, "reversed", "recall is cheaper than relearning"),
        (PAGING, {"slots": 10}, "not scarce", "capacity is scarce"),
        (PAGING, {"bank": 9}, "not scarce", "capacity is scarce"),
        (PAGING, {"cycles": 1}, "one cycle", "tasks return"),
        (PAGING, {"order": "iid", "slots": 5}, "drawn anew", "every task comes once in each cycle"),
        (PAGING, {"residual": [1.0, 0.3, 0.1, 0.0]}, "divisible",
         "a solution is held whole or not at all"),
    ],
)  # fmt: skip
def test_where_the_theorem_fails_no_bound_is_given_and_the_reason_is(
    env_id: str, arguments: dict[str, Any], why: str, assumption: str
) -> None:
    verdict = judge(env_id, arguments)
    assert verdict.bound is None
    assert not verdict.applies
    assert verdict.formula == ""
    assert why in verdict.why
    assert assumption in failing(verdict)


@pytest.mark.parametrize(
    ("arguments", "per_cycle"),
    [
        ({"obs": "classes:2"}, 4.0),
        ({"obs": "channel:0.5"}, 2.5),
        ({"clock": 4}, 4.0),
        ({"clock": 5}, 2.5),
        ({"obs": "classes:5", "clock": 2}, None),
    ],
)
def test_a_weaker_bound_replaces_the_theorem_s_number_and_says_so(
    arguments: dict[str, Any], per_cycle: float | None
) -> None:
    verdict = judge(BLIND, {"cycles": 20} | arguments)
    assert verdict.bound is not None
    assert verdict.bound < verdict.theorem == pytest.approx(90)
    assert "is too much here" in verdict.why
    if per_cycle is not None:
        assert verdict.bound == pytest.approx(20 * per_cycle)


def test_the_gap_across_tasks_would_make_the_theorem_false() -> None:
    verdict = judge(BLIND, {"rewards": "compromise"})
    assert verdict.bound == pytest.approx(22.5)
    assert verdict.optimum == pytest.approx(25.0)
    assert any("minimum over all wrong allocations" in note for note in verdict.notes)


def test_duplicates_replace_m_minus_one() -> None:
    table = [[1.0, 0.5, 0.5], [1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 1.0]]
    verdict = judge(BLIND, {"num_tasks": 4, "cycles": 10, "rewards": table})
    assert verdict.bound == verdict.optimum == pytest.approx(10 * 2 * 0.5)
    assert "no two tasks share an optimal allocation" in failing(verdict)


@pytest.mark.parametrize(("error", "holds"), [(0.89, True), (0.9, False), (1.2, False)])
def test_the_condition_on_the_recall_error_is_one_minus_one_over_m(
    error: float, holds: bool
) -> None:
    arguments = {"recall_error": error, "num_tasks": 10}
    stated = {a.name: a.holds for a in judge(PAGING, arguments).assumptions}
    assert stated["recall is cheaper than relearning"] == holds
    # The sign of the comparison itself, played: a Bank of all tasks against one pinned task.
    totals = {
        agent: play(PAGING, agent, [0], arguments=arguments)["reward"].sum()
        for agent in ("history-aware", "pin")
    }
    # Equal at the limit itself.
    assert (totals["history-aware"] > totals["pin"] + 1e-9) == holds


@pytest.mark.parametrize("instance", [0, 1, 7])
def test_the_expected_regret_of_deterministic_agents_is_what_they_play(instance: int) -> None:
    for env_id in (BLIND, PAGING, RECOVERED):
        arguments = {"instance": instance, "num_tasks": 6, "cycles": 4}
        expected = judge(env_id, {"split": "test"} | arguments).expected
        for agent in set(expected) - {"uniform-random"}:
            if not np.isfinite(expected[agent]) or (env_id, agent) == (
                RECOVERED,
                "best-memoryless",
            ):
                continue
            table = play(env_id, agent, [3], arguments=arguments)
            regret = (table["oracle_reward"] - table["reward"]).sum()
            assert regret == pytest.approx(expected[agent]), (env_id, agent)


@pytest.mark.parametrize(
    ("env_id", "arguments"),
    [
        (BLIND, {"rewards": "random"}),
        (BLIND, {"obs": "full"}),
        (BLIND, {"obs": "classes:2"}),
        (BLIND, {"num_allocations": 6}),
        (BLIND, {"rewards": "compromise"}),
        (RECOVERED, {"obs": "channel:0.5"}),
        (PAGING, {"costs": "random"}),
    ],
)
def test_what_differs_between_instances_has_no_number_for_all_of_them(
    env_id: str, arguments: dict[str, Any]
) -> None:
    verdict = judge(env_id, {"num_tasks": 4, "cycles": 3, "instance": None} | arguments)
    assert verdict.bound is verdict.optimum is verdict.certificate is None
    assert not verdict.expected
    assert "draws its own instance" in verdict.why


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("m", [2, 3, 4])
def test_what_is_alike_in_all_instances_keeps_its_numbers(m: int, split: str) -> None:
    common = {"num_tasks": m, "cycles": 3, "instance": None, "split": split}
    for env_id in (BLIND, RECOVERED, PAGING):
        verdict = judge(env_id, common)
        assert verdict.bound == pytest.approx(judge(env_id, common | {"instance": 5}).bound)
    # Even and odd permutations of up to three tasks have other mean numbers of inversions.
    table = play(RECOVERED, "history-aware", range(2_000), arguments=common)
    regret = (table["oracle_reward"] - table["reward"]).groupby(table["seed"]).sum()
    error = regret.std() / np.sqrt(2_000)
    expected = judge(RECOVERED, common).expected["history-aware"]
    assert abs(regret.mean() - expected) <= 3 * error + 1e-9


@pytest.mark.parametrize(
    ("env_id", "agent", "arguments"),
    [
        # A symbol that is always the same makes drawing it again and keeping it alike.
        (RECOVERED, "best-memoryless",
         {"num_tasks": 2, "cycles": 2, "clock": 5, "redraw": True, "delta": 0.3}),
        (RECOVERED, "pin", {"num_tasks": 1, "num_allocations": 2, "cycles": 4, "instance": 16}),
        (BLIND, "best-memoryless", {"num_tasks": 3, "cycles": 2, "clock": 4}),
        (PAGING, "best-memoryless", {"num_tasks": 5, "slots": 2, "costs": "random"}),
        (PAGING, "pin", {"num_tasks": 4, "slots": 3, "cycles": 2, "order": "reshuffled"}),
    ],
)  # fmt: skip
def test_expected_numbers_are_what_is_played(
    env_id: str, agent: str, arguments: dict[str, Any]
) -> None:
    expected = judge(env_id, {"split": "test"} | arguments).expected[agent]
    table = play(env_id, agent, [0, 1], arguments=arguments)
    regret = (table["oracle_reward"] - table["reward"]).groupby(table["seed"]).sum()
    assert regret.tolist() == pytest.approx([expected] * 2)


def test_with_similarity_that_misleads_nothing_is_expected_of_agents_that_follow_it() -> None:
    for order in ("reshuffled", "iid"):
        verdict = judge(PAGING, {"order": order, "similarity_noise": 1.0})
        assert not {"best-memoryless", "pin", "history-aware"} & set(verdict.expected)
    assert "best-memoryless" in judge(PAGING, {"similarity_noise": 1.0}).expected


def test_a_bound_that_is_not_attained_says_so() -> None:
    for arguments in ({"forced": True, "slots": 2}, {"costs": "random"}):
        verdict = judge(PAGING, {"num_tasks": 5, "cycles": 4} | arguments)
        assert verdict.bound is not None
        assert verdict.optimum is not None
        assert verdict.optimum > verdict.bound
        assert "the best policy loses" in verdict.why
        assert not verdict.notes


def test_forced_storing_has_the_bound_and_a_larger_optimum() -> None:
    for slots, misses in ((2, 16), (3, 12), (4, 8)):
        arguments = {"num_tasks": 5, "cycles": 4, "slots": slots, "forced": True}
        verdict = judge(PAGING, arguments)
        assert verdict.optimum == pytest.approx(misses - 5)
        assert verdict.bound == pytest.approx(3 * (5 - slots))


def test_drawn_tasks_have_an_exact_optimum_that_lru_attains() -> None:
    arguments = {"num_tasks": 6, "cycles": 10, "slots": 2, "order": "iid"}
    verdict = judge(PAGING, arguments)
    assert verdict.optimum is not None
    for agent in ("lru", "pin"):
        table = play(PAGING, agent, range(2_000), arguments=arguments)
        regret = (table["oracle_reward"] - table["reward"]).groupby(table["seed"]).sum()
        assert abs(regret.mean() - verdict.optimum) < 3 * regret.std() / np.sqrt(2_000)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_bound_exceeds_the_optimum_of_its_class(data: Any) -> None:
    m = data.draw(st.integers(2, 5))
    common = {
        "num_tasks": m,
        "cycles": data.draw(st.integers(1, 4)),
        "instance": data.draw(st.integers(0, 20)),
    }
    blind = {
        "obs": data.draw(st.sampled_from(["blind", "classes:2", "channel:0.7", "full"])),
        "clock": data.draw(st.integers(0, 4)),
        "order": data.draw(st.sampled_from(["fixed", "reshuffled", "iid"])),
    }
    paging = {
        "slots": data.draw(st.integers(1, 3)),
        "costs": data.draw(st.sampled_from(["equal", "random"])),
        "transfer": data.draw(st.sampled_from([0.0, 0.3])),
        "forced": data.draw(st.booleans()),
        "recall_error": data.draw(st.sampled_from([0.0, 0.2])),
        "bank": data.draw(st.integers(0, 1)),
    }
    rewards = data.draw(st.sampled_from(["equal", "random", "compromise"]))
    for verdict in (
        judge(BLIND, common | blind | {"rewards": rewards}),
        judge(RECOVERED, common | blind | {"redraw": data.draw(st.booleans())}),
        judge(PAGING, common | paging),
    ):
        if verdict.bound is not None:
            assert verdict.optimum is not None
            assert verdict.bound <= verdict.optimum * (1 + 1e-6) + 1e-9
        assert (verdict.bound is None) == (verdict.formula == "")
        json.dumps(verdict.as_dict())


def test_a_live_environment_is_judged_by_what_was_measured(tiny: dict[str, Any]) -> None:
    arguments = tiny | {"cycles": 3, "learning_steps": 6, "updates": 2}
    table = pd.concat(
        [
            play("NSR/CyclicDigits-v0", agent, [0, 1, 2], arguments=arguments)
            for agent in ("oracle", "similarity", "pin-one", "fresh")
        ]
    )
    verdict = judge_table(table, "NSR/CyclicDigits-v0", arguments)
    assert verdict.reading == "B"
    # The theorem's number takes the mean over tasks, the bound the minimum.
    delta = delta_switch(table)
    assert verdict.theorem == pytest.approx(3 * 2 * delta.mean.point)
    assert verdict.bound == pytest.approx(2 * 2 * delta.minimum.point)
    stated = {a.name: a for a in verdict.assumptions}
    assert stated["every task comes once in each cycle"].holds
    assert stated["lacking a task's knowledge costs something"].holds
    assert "pin-one" in stated["nothing but one adapter survives without a bank"].detail
    assert stated["a solution is held whole or not at all, and nothing transfers"].holds is None
    single = judge_table(table[table["seed"] == 0], "NSR/CyclicDigits-v0", arguments)
    assert single.bound is None  # one run has no interval
    once = judge_table(table[table["cycle"] == 0], "NSR/CyclicDigits-v0", arguments)
    assert once.bound is None
    assert "No task returns" in once.why


def test_a_live_environment_is_not_judged_without_results(tiny: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match="nsr-gym compare"):
        judge("NSR/CyclicDigits-v0", tiny)
