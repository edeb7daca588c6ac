"""Policies of other systems: whom a router names, when to reuse, when something is new."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nsr_gym.agents import agent_spec, make_agent
from nsr_gym.agents.thresholds import Thresholds, thresholds
from nsr_gym.cli_shared import default_agents
from nsr_gym.errors import AccessError, InvalidValueError
from nsr_gym.evaluation.rollout import play

DISCARD, UPDATE, ADD = range(3)
FULL = 3

ROUTED = ["analytic-router", "arrow", "tree-bandit", "lorahub"]
SYSTEMS = [*ROUTED, "reuse-or-expand", "residual-threshold", "energy-ranks", "adalora-budget"]


@pytest.mark.parametrize(
    ("score", "backbone", "expected"),
    [
        (0.9, 0.1, [1, FULL, UPDATE]),
        (0.6, 0.55, [1, FULL, UPDATE]),
        (0.6, 0.7, [0, FULL, UPDATE]),  # the router names the backbone: after a fresh start, add
        (0.6, 0.6, [0, FULL, UPDATE]),  # class 0 comes first on ties
        (0.4, 0.1, [0, FULL, UPDATE]),  # it names an entry, but not with any confidence
    ],
)
def test_the_analytic_router_recalls_what_it_names_unless_that_is_the_backbone(
    score: float, backbone: float, expected: list[int], by_hand: Any
) -> None:
    given = {"similarity": [score, 0.2], "route_backbone": backbone, "stored": [8, 8]}
    assert by_hand.action(by_hand.agent("analytic-router", threshold=0.5), **given) == expected


def test_the_analytic_router_without_a_threshold_asks_the_backbone_alone(by_hand: Any) -> None:
    agent = by_hand.agent("analytic-router", threshold=0.0)
    given = {"similarity": [0.1], "stored": [8]}
    assert by_hand.action(agent, **given, route_backbone=0.05)[0] == 1
    assert by_hand.action(agent, **given, route_backbone=0.15)[0] == 0


@pytest.mark.parametrize("name", ["arrow", "tree-bandit"])
@pytest.mark.parametrize(
    ("score", "expected"), [(0.7, [1, FULL, UPDATE]), (0.5, [0, FULL, UPDATE])]
)
def test_a_routed_rule_updates_the_first_of_the_view_from_its_threshold_on(
    name: str, score: float, expected: list[int], by_hand: Any
) -> None:
    agent = by_hand.agent(name, threshold=0.6)
    assert by_hand.action(agent, similarity=[score, 0.1], stored=[4, 8]) == expected


@pytest.mark.parametrize(
    ("score", "stored", "expected"),
    [
        (0.7, [8, 8], [1, FULL, UPDATE]),
        (0.5, [8, 8], [1, FULL, ADD]),  # a new task too starts from the blend, and is kept apart
        (0.0, [], [0, FULL, UPDATE]),  # nothing to blend
    ],
)
def test_lorahub_starts_from_the_blend_always(
    score: float, stored: list[int], expected: list[int], by_hand: Any
) -> None:
    agent = by_hand.agent("lorahub", threshold=0.6)
    assert by_hand.action(agent, similarity=[score], stored=stored) == expected


def test_lorahub_plays_where_a_recall_is_a_blend() -> None:
    assert agent_spec("lorahub").environment_arguments("live")["warm_start"] == "mixture"


@pytest.mark.parametrize("name", ROUTED)
def test_a_default_threshold_is_for_its_own_router_alone(name: str, by_hand: Any) -> None:
    own = agent_spec(name).environment_arguments("live")["router"]
    assert make_agent(name, by_hand.stub(own)).router == own
    with pytest.raises(InvalidValueError, match=rf"router='{own}'.*got 'ncm'.*threshold="):
        make_agent(name, by_hand.stub("ncm"))
    assert make_agent(name, by_hand.stub("ncm"), threshold=0.25).threshold == 0.25


def test_the_analytic_router_needs_a_score_for_the_backbone(by_hand: Any) -> None:
    agent = make_agent("analytic-router", by_hand.stub("cosine"), threshold=0.5)
    with pytest.raises(AccessError, match="route_backbone"):
        by_hand.action(agent)


@pytest.mark.parametrize("name", [*ROUTED, "residual-threshold"])
def test_a_threshold_is_the_given_one_else_the_calibrated_else_the_default(
    name: str, by_hand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = "novelty/per_task" if name == "residual-threshold" else by_hand.agent(name).router
    table = {"digits-permutation": Thresholds(0.99, 1.0, scores={score: 0.71, "other": 0.1})}
    monkeypatch.setattr("nsr_gym.agents.thresholds._table", lambda: table)
    assert by_hand.agent(name, threshold=0.2).threshold == 0.2
    assert by_hand.agent(name).threshold == 0.71
    table["digits-permutation"] = Thresholds(0.99, 1.0, scores={"other": 0.1})
    default = by_hand.agent(name).threshold
    assert default not in (0.1, 0.71)
    table.clear()
    assert by_hand.agent(name).threshold == default


@pytest.mark.parametrize("name", [*ROUTED, "residual-threshold"])
@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_of_scores_is_a_share(name: str, threshold: float, by_hand: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"threshold in \[0, 1\]"):
        by_hand.agent(name, threshold=threshold)


@pytest.mark.parametrize("name", SYSTEMS)
def test_nothing_is_recalled_of_an_empty_bank(name: str, by_hand: Any) -> None:
    agent = by_hand.agent(name)
    # Whatever the numbers of absent entries say.
    given = (
        {"similarity": [1.0] * by_hand.view, "novelty": 0.0}
        if "novelty" in agent.layout.sizes
        else {}
    )
    assert by_hand.action(agent, **given)[::2] == [0, UPDATE]


@pytest.mark.parametrize(
    ("similarity", "occupancy", "expected"),
    [
        (0.95, 0.5, [1, FULL, UPDATE]),  # similar: reuse
        (0.85, 0.5, [0, FULL, UPDATE]),  # not similar, and there is room: expand
        (0.85, 1.0, [1, FULL, UPDATE]),  # not similar, and there is none: the nearest is reused
        (0.95, 1.0, [1, FULL, UPDATE]),
    ],
)
def test_reuse_or_expand_reuses_the_nearest_where_it_cannot_expand(
    similarity: float, occupancy: float, expected: list[int], by_hand: Any
) -> None:
    agent = by_hand.agent("reuse-or-expand", threshold=0.9)
    given = {"similarity": [similarity, 0.5], "occupancy": occupancy, "stored": [8, 4]}
    assert by_hand.action(agent, **given) == expected
    similar = by_hand.agent("similarity", threshold=0.9)
    assert by_hand.action(similar, **given)[0] == int(similarity > 0.9), "which would evict"


@pytest.mark.parametrize("more", [0, 1])
def test_reuse_or_expand_knows_when_the_bytes_are_spent(more: int, by_hand: Any) -> None:
    agent = by_hand.agent("reuse-or-expand", threshold=0.9)
    spent = 2 * 8 / (2 * 8 + 8 * more)
    given = {"similarity": [0.5], "stored": [8, 8], "budget_left": 1.0 - spent}
    assert by_hand.action(agent, **given) == [0 if more else 1, FULL, UPDATE]


def test_reuse_or_expand_leaves_a_bank_that_can_hold_nothing_alone(by_hand: Any) -> None:
    assert by_hand.action(by_hand.agent("reuse-or-expand"), occupancy=1.0) == [0, FULL, DISCARD]


def test_reuse_or_expand_takes_the_calibrated_threshold_and_any_other(by_hand: Any) -> None:
    calibrated = thresholds(by_hand.stub()).similarity
    assert by_hand.agent("reuse-or-expand").threshold == calibrated != 0.9
    assert by_hand.agent("reuse-or-expand", threshold=0.9).threshold == 0.9


@pytest.mark.parametrize(
    ("novelty", "stored", "expected"),
    [
        (0.5, [8, 8], [0, FULL, UPDATE]),  # outside the span: learned afresh, added
        (0.3, [8, 8], [1, FULL, UPDATE]),  # inside: the nearest is refined, however far it is
        (1.0, [], [0, FULL, UPDATE]),
    ],
)
def test_residual_threshold_adds_what_the_bank_does_not_span(
    novelty: float, stored: list[int], expected: list[int], by_hand: Any
) -> None:
    agent = by_hand.agent("residual-threshold", threshold=0.4)
    assert by_hand.action(agent, novelty=novelty, similarity=[0.1], stored=stored) == expected


@pytest.mark.parametrize("name", ["residual-threshold", "energy-ranks"])
def test_a_rule_that_reads_signals_has_to_be_shown_them(name: str, by_hand: Any) -> None:
    with pytest.raises(AccessError, match="withholds"):
        by_hand.action(make_agent(name, by_hand.stub(signals=False)))


@pytest.mark.parametrize("name", [*ROUTED, "reuse-or-expand", "residual-threshold"])
def test_the_granted_rank_is_an_argument(name: str, by_hand: Any) -> None:
    assert by_hand.action(by_hand.agent(name, rank=2))[1] == 1
    with pytest.raises(InvalidValueError, match="ranks"):
        by_hand.agent(name, rank=3)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_decision_does_not_depend_on_what_is_decided_beside_it(name: str, by_hand: Any) -> None:
    agent, rng = by_hand.agent(name), np.random.default_rng(0)
    seen = rng.random((32, agent.layout.size)).astype(np.float32)
    together, _ = agent.predict(seen)
    assert len({tuple(row) for row in together.tolist()}) > 1, "the same decision everywhere"
    for row in range(len(seen)):
        np.testing.assert_array_equal(agent.predict(seen[row])[0], together[row])


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_systems_are_played_where_they_are_named(name: str) -> None:
    spec = agent_spec(name)
    assert spec.access == "bank"
    assert not spec.by_default
    assert name not in default_agents(["NSR/CyclicDigits-v0"], {})


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_plays_whole_episodes_in_the_environment_that_it_asks_for(
    name: str, tiny: dict[str, Any]
) -> None:
    table = play("NSR/CyclicDigits-v0", name, [0, 1], arguments=tiny)
    assert len(table) == 12
    assert not table["projected"].any()
    assert (table["entries"] > 0).all()


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_environment_shows_what_the_decisions_above_were_made_on(
    name: str, make_env: Callable[..., Any], by_hand: Any
) -> None:
    chosen = agent_spec(name).environment_arguments("live")
    shown = make_agent(name, make_env(**chosen)).layout.sizes
    assert set(by_hand.agent(name).layout.sizes) == set(shown)


@pytest.mark.parametrize("limit", [{"capacity": 2}, {"capacity_bytes": 50_000}], ids=str)
@pytest.mark.parametrize("name", ["reuse-or-expand", "similarity"])
def test_reuse_or_expand_never_evicts_where_similarity_does(
    name: str, limit: dict[str, int], make_env: Callable[..., Any]
) -> None:
    env = make_env(num_tasks=4, cycles=2, split="test", **limit)
    agent, bank = make_agent(name, env), env.engine.memory.bank
    observation, _ = env.reset(seed=2)
    over, made = False, []
    while not over:
        chosen, _ = agent.predict(observation)
        observation, _, over, _, info = env.step(chosen)
        assert not info["projected"]
        made.append(sorted(bank.created_order[0, bank.occupied[0]].tolist()))
    assert len(made[1]) == 2
    assert (made[-1] == made[1]) == (name == "reuse-or-expand")


@pytest.mark.parametrize("bank", ["per_task", "shared_basis"])
def test_residual_threshold_adds_everything_or_nothing_at_the_ends_of_its_scale(
    bank: str, tiny: dict[str, Any]
) -> None:
    def entries(threshold: float) -> list[int]:
        table = play(
            "NSR/CyclicDigits-v0",
            "residual-threshold",
            [0],
            arguments=tiny | {"bank": bank},
            agent_arguments={"threshold": threshold},
        )
        assert not table["projected"].any()
        return list(table["entries"])

    assert entries(0.0) == [1, 2, 3, 4, 5, 6]
    assert entries(1.0) == [1] * 6
