"""The rules of play with a bank: recall, projection, reserve, retention, capacity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from nsr_gym.bank.retention import RETENTION_RULES
from nsr_gym.envs import mask_parts
from nsr_gym.lowrank import truncate_sites

Make = Callable[..., Any]

DISCARD, UPDATE, ADD = range(3)
RANKS = (1, 2, 4, 8)
ENTRY_BYTES = {rank: 4 * (rank * 640 + 3 * rank + 64) for rank in RANKS}
"""Factors of three sites (64-128-128-64), singular values, embedding, in float32."""


def step(env: Any, recall: int, rank: int, reserve: int) -> dict[str, Any]:
    """Play one visit at a rank (not its index) and return its info."""
    *_, info = env.step(np.array([recall, RANKS.index(rank), reserve]))
    return dict(info)


def content(env: Any) -> dict[str, Any]:
    """Copy what the bank's entries hold, counters of use left out."""
    bank = env.engine.memory.bank
    slots = np.flatnonzero(bank.occupied[0])
    held = {
        name: getattr(bank, name)[0, slots].copy()
        for name in ("embedding", "rank", "accuracy", "reserved_at", "created_order", "version")
    }
    held |= {"slots": slots} | {name: tag[0, slots].copy() for name, tag in bank.tags.items()}
    for i, slot in enumerate(slots):
        for site, (up, down) in bank.factors([slot], rows=[0]).items():
            held[f"{i}.{site}.up"], held[f"{i}.{site}.down"] = up.numpy(), down.numpy()
    return held


def assert_equal_content(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def view_index(env: Any, slot: int) -> int:
    """Return the action that recalls the entry in a slot."""
    return int(env.engine.memory._view[0].tolist().index(slot)) + 1


@pytest.mark.parametrize(("entries", "asked"), [(0, 1), (0, 8), (1, 2), (2, 3), (2, 8)])
def test_a_recall_beyond_the_view_becomes_the_last_one_in_view(
    entries: int, asked: int, make_env: Make
) -> None:
    env = make_env()
    env.reset(seed=0)
    for _ in range(entries):
        assert not step(env, 0, 1, ADD)["projected"]
    info = step(env, asked, 1, DISCARD)
    assert info["recall"] == entries
    assert info["projected"]


def test_a_recall_in_view_is_carried_out_as_asked(make_env: Make) -> None:
    env = make_env()
    env.reset(seed=0)
    step(env, 0, 1, ADD)
    step(env, 0, 1, ADD)
    info = step(env, 2, 4, UPDATE)
    assert (info["recall"], info["rank"], info["reserve"]) == (2, 4, UPDATE)
    assert not info["projected"]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"view_size": 1},
        {"view_size": 2, "capacity": 1},
        {"capacity": None},
        {"capacity": 2, "retention": "fifo"},
        {"capacity": 0},
        {"capacity_bytes": 30_000},
        {"observe_task_id": True, "capacity": 2},
        {"access": "memoryless"},
        {"access": "visit"},
    ],
    ids=str,
)
def test_what_the_masks_allow_is_never_projected(arguments: dict[str, Any], make_env: Make) -> None:
    env = make_env(cycles=3, **arguments)
    env.action_space.seed(0)
    for episode in range(2):
        env.reset(seed=episode)
        over = False
        while not over:
            parts = mask_parts(env)
            assert all(part.any() for part in parts), "a block without a legal value"
            action = env.action_space.sample(mask=parts)
            *_, over, _, info = env.step(action)
            assert not info["projected"], action
            assert (info["recall"], info["reserve"]) == (action[0], action[2])


def test_a_closed_bank_projects_only_the_update_after_a_fresh_start(make_env: Make) -> None:
    # The one pair that masks cannot express: an update needs a recall, an addition a free slot.
    env = make_env(cycles=6, capacity=1, retention="pin")
    env.action_space.seed(1)
    env.reset(seed=0)
    over, projected = False, 0
    while not over:
        closed = env.engine.memory.bank.entries[0] == 1
        action = env.action_space.sample(mask=mask_parts(env))
        *_, over, _, info = env.step(action)
        impossible = closed and action[0] == 0 and action[2] == UPDATE
        assert info["projected"] == impossible
        assert info["reserve"] == (DISCARD if impossible else action[2])
        projected += impossible
    assert projected > 0


@pytest.mark.parametrize("arguments", [{}, {"capacity": 1, "retention": "pin"}, {"capacity": 0}])
def test_every_member_of_the_action_space_can_be_played(
    arguments: dict[str, Any], make_env: Make
) -> None:
    env = make_env(cycles=4, **arguments)
    env.action_space.seed(3)
    env.reset(seed=3)
    for _ in range(12):
        mask = env.action_masks()
        action = env.action_space.sample()
        *_, info = env.step(action)
        flat = np.concatenate([[0], np.cumsum(env.action_space.nvec)[:-1]]) + action
        if not info["projected"]:
            assert mask[flat].all()


@pytest.mark.parametrize("recall", [0, 1])
def test_discard_leaves_every_entry_as_it_was(recall: int, make_env: Make) -> None:
    env = make_env()
    env.reset(seed=0)
    step(env, 0, 4, ADD)
    step(env, 0, 2, ADD)
    before = content(env)
    info = step(env, recall, 8, DISCARD)
    assert not info["projected"]
    assert_equal_content(content(env), before)
    assert info["entries"] == 2


def test_update_writes_the_recalled_entry_and_no_other(make_env: Make) -> None:
    env = make_env()
    env.reset(seed=0)
    step(env, 0, 4, ADD)
    step(env, 0, 2, ADD)
    before = content(env)
    info = step(env, view_index(env, 0), 8, UPDATE)
    after = content(env)
    assert info["entries"] == 2
    assert after["accuracy"][0] == info["accuracy_after"]
    assert after["rank"].tolist() == [8, 2]
    assert (after["fc1.up"] if "fc1.up" in after else after["0.fc1.up"]).any()
    for name in before:
        if name.startswith("1."):
            np.testing.assert_array_equal(after[name], before[name])
    assert not np.array_equal(after["0.fc1.up"], before["0.fc1.up"])
    assert after["version"][1] == before["version"][1]
    assert after["created_order"].tolist() == before["created_order"].tolist()


@pytest.mark.parametrize(("recall", "reserve"), [(0, UPDATE), (0, ADD), (1, ADD)])
def test_update_after_a_fresh_start_and_add_make_a_new_entry(
    recall: int, reserve: int, make_env: Make
) -> None:
    env = make_env()
    env.reset(seed=0)
    step(env, 0, 4, ADD)
    before = content(env)
    info = step(env, recall, 2, reserve)
    assert info["entries"] == 2
    assert not info["projected"]
    assert info["reserve"] == reserve
    after = content(env)
    assert after["rank"].tolist() == [4, 2]
    assert after["accuracy"][1] == info["accuracy_after"]
    for name in before:
        if name.startswith("0."):
            np.testing.assert_array_equal(after[name], before[name])


def test_lineage_comes_from_the_action_and_never_from_the_task(make_env: Make) -> None:
    # A task's own entry stays as it is where another one was recalled and updated.
    env = make_env()
    env.reset(seed=0)
    for _ in range(3):
        step(env, 0, 4, ADD)
    other = view_index(env, 1)  # task 0 is back; recall the entry of task 1
    info = step(env, other, 4, UPDATE)
    assert info["is_return"]
    assert env.engine.memory.bank.tags["task"][0, 1] == env.engine.memory.bank.tags["task"][0, 0]
    assert info["entries"] == 3


@pytest.mark.parametrize("granted", RANKS)
@pytest.mark.parametrize("stored", RANKS)
def test_a_recall_starts_at_the_accuracy_of_the_entry(
    stored: int, granted: int, make_env: Make
) -> None:
    env = make_env(learning_steps=4)
    env.reset(seed=2)
    step(env, 0, stored, ADD)
    stream = env.engine.streams[0]
    measured = env.engine.retention(np.array([0]))[0, stream.visits[1]]
    factors = env.engine.memory.bank.factors([0], rows=[0])
    info = step(env, 1, granted, DISCARD)
    if granted >= stored:
        assert info["accuracy_before"] == measured
    else:
        # A smaller rank gets the optimal truncation of what is stored.
        cut = truncate_sites(factors, rank=granted)
        for site, (up, down) in factors.items():
            up, down = up.clone(), down.clone()
            up[:, :, granted:], down[:, granted:] = 0.0, 0.0
            best = cut.factors[site][0] @ cut.factors[site][1]
            torch.testing.assert_close(up @ down, best, rtol=1e-4, atol=1e-5)


def test_recall_into_a_smaller_rank_starts_from_the_truncated_entry(make_env: Make) -> None:
    # Training at rank 1 after a recall of rank 8, and storing at rank 1 first, begin alike.
    whole, cut = make_env(learning_steps=6), make_env(learning_steps=6)
    for env in (whole, cut):
        env.reset(seed=1)
        step(env, 0, 8, ADD)
    bank = cut.engine.memory.bank
    factors = {
        site: (up.clone(), down.clone()) for site, (up, down) in bank.factors([0], rows=[0]).items()
    }
    for up, down in factors.values():
        up[:, :, 1:], down[:, 1:] = 0.0, 0.0
    bank.replace([0], embedding=bank.embedding[0, :1], rank=[1], factors=factors, rows=[0])
    first, second = step(whole, 1, 1, DISCARD), step(cut, 1, 1, DISCARD)
    np.testing.assert_allclose(first["curve"], second["curve"], atol=1e-6)


def test_a_fresh_start_begins_at_the_bare_backbone(make_env: Make) -> None:
    env = make_env()
    env.reset(seed=0)
    baseline = env.engine.baseline(np.array([0]))[0]
    for recall in (0, 0, 0, 0):
        info = step(env, recall, 8, ADD)
        assert info["accuracy_before"] == baseline[info["task"]]


@pytest.mark.parametrize("retention", sorted(RETENTION_RULES))
def test_no_rule_holds_more_entries_than_there_is_room_for(retention: str, make_env: Make) -> None:
    env = make_env(capacity=2, retention=retention, cycles=3)
    env.reset(seed=0)
    for visit in range(9):
        info = step(env, 0, 2, ADD)
        assert info["entries"] == min(visit + 1, 2)
        assert info["bytes"] == info["entries"] * ENTRY_BYTES[2]
        # A rule that lets nothing go refuses, and says so.
        refused = retention == "pin" and visit >= 2
        assert info["projected"] == refused
        assert info["reserve"] == (DISCARD if refused else ADD)


def reserved_in(env: Any) -> list[int]:
    """Return the visits (from 1) whose results the bank holds."""
    bank = env.engine.memory.bank
    return sorted(bank.reserved_at[0, bank.occupied[0]].tolist())


def test_pin_keeps_the_first_entries(make_env: Make) -> None:
    env = make_env(capacity=2, retention="pin", cycles=3)
    env.reset(seed=0)
    for _ in range(9):
        step(env, 0, 2, ADD)
    assert reserved_in(env) == [1, 2]


@pytest.mark.parametrize(("retention", "kept"), [("lru", [1, 4]), ("fifo", [2, 4])])
def test_a_recall_saves_an_entry_from_lru_and_not_from_fifo(
    retention: str, kept: list[int], make_env: Make
) -> None:
    env = make_env(capacity=2, retention=retention)
    env.reset(seed=0)
    step(env, 0, 2, ADD)
    step(env, 0, 2, ADD)
    step(env, view_index(env, 0), 2, DISCARD)
    step(env, 0, 2, ADD)
    assert reserved_in(env) == kept


def test_capacity_zero_plays_from_scratch_and_keeps_nothing(make_env: Make) -> None:
    env = make_env(capacity=0)
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    baseline = env.engine.baseline(np.array([0]))[0]
    for reserve in (ADD, UPDATE, DISCARD, ADD, UPDATE, DISCARD):
        mask = env.action_masks()
        assert mask[-3:].tolist() == [True, False, False]
        assert mask[:9].tolist() == [True] + [False] * 8
        observation, _, _, _, info = env.step(np.array([0, 3, reserve]))
        assert observation in env.observation_space
        assert (info["entries"], info["bytes"], info["reserve"]) == (0, 0, DISCARD)
        assert info["projected"] == (reserve != DISCARD)
        assert info["accuracy_before"] == baseline[info["task"]]
    np.testing.assert_array_equal(env.engine.retention(np.array([0]))[0], baseline)


def test_no_limit_of_capacity_holds_every_visit(make_env: Make) -> None:
    env = make_env(capacity=None, cycles=8, learning_steps=1)
    env.reset(seed=0)
    for visit in range(24):
        assert step(env, 0, 1, ADD)["entries"] == visit + 1
    assert reserved_in(env) == list(range(1, 25))


def test_a_budget_of_bytes_is_kept_and_shown(make_env: Make) -> None:
    budget = 2 * ENTRY_BYTES[2] + 10
    env = make_env(capacity_bytes=budget, capacity=None)
    observation, _ = env.reset(seed=0)
    layout = env.engine.layout
    assert layout.read(observation, "budget_left") == 1.0
    for visit in range(5):
        observation, *_, info = env.step(np.array([0, 1, ADD]))
        assert info["entries"] == min(visit + 1, 2)
        assert info["bytes"] == info["entries"] * ENTRY_BYTES[2] <= budget
        left = layout.read(observation, "budget_left")
        assert left == pytest.approx(1 - info["bytes"] / budget)


def test_a_result_above_the_whole_budget_is_refused_and_nothing_goes(make_env: Make) -> None:
    env = make_env(capacity_bytes=ENTRY_BYTES[2])
    env.reset(seed=0)
    step(env, 0, 2, ADD)
    before = content(env)
    for recall, reserve in ((0, ADD), (0, UPDATE), (1, UPDATE)):
        info = step(env, recall, 8, reserve)
        assert (info["reserve"], info["projected"], info["entries"]) == (DISCARD, True, 1)
        assert_equal_content(content(env), before)


@pytest.mark.parametrize("granted", RANKS)
def test_all_of_the_energy_needs_no_more_than_the_granted_rank(
    granted: int, make_env: Make
) -> None:
    env = make_env(energy=1.0)
    env.reset(seed=0)
    info = step(env, 0, granted, ADD)
    assert env.engine.memory.bank.rank[0, 0] == granted
    assert info["bytes"] == ENTRY_BYTES[granted]


def test_a_share_of_the_energy_is_stored_at_a_lower_rank(make_env: Make) -> None:
    stored = {}
    for energy in (0.3, 0.9):
        env = make_env(energy=energy, learning_steps=6)
        env.reset(seed=0)
        info = step(env, 0, 8, ADD)
        assert info["rank"] == 8
        stored[energy] = int(env.engine.memory.bank.rank[0, 0])
    assert 1 <= stored[0.3] < stored[0.9] < 8


def test_recalls_and_ages_are_counted_where_they_are_seen(make_env: Make) -> None:
    env = make_env(view_size=1)
    observation, _ = env.reset(seed=0)
    read = env.engine.layout.read
    visits = env.engine.config.num_visits
    observation, *_ = env.step(np.array([0, 0, ADD]))
    assert read(observation, "age") == 0.0
    assert read(observation, "recalls") == 0.0
    observation, *_ = env.step(np.array([1, 0, DISCARD]))
    assert read(observation, "age") == pytest.approx(1 / visits)
    assert read(observation, "recalls") == pytest.approx(1 / visits)
    observation, *_ = env.step(np.array([1, 0, UPDATE]))
    assert read(observation, "age") == 0.0
    assert read(observation, "recalls") == pytest.approx(2 / visits)


def test_a_stream_of_one_task_is_played(make_env: Make) -> None:
    env = make_env(num_tasks=1, cycles=3, observe_task_id=True)
    observation, _ = env.reset(seed=0)
    for visit in range(3):
        assert observation in env.observation_space
        observation, _, over, _, info = env.step(np.array([min(visit, 1), 3, UPDATE]))
        assert (info["task"], info["cycle"], info["entries"]) == (0, visit, 1)
        assert over == (visit == 2)


def test_a_new_episode_begins_with_an_empty_bank(make_env: Make) -> None:
    env = make_env()
    first, _ = env.reset(seed=4)
    for _ in range(3):
        step(env, 0, 8, ADD)
    again, info = env.reset(seed=4)
    np.testing.assert_array_equal(again, first)
    assert (info["entries"], info["bytes"]) == (0, 0)
    assert env.engine.memory.bank.clock[0] == 0
