"""The bank's rules and their variants: ranks, pinning, neighbours, thrift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from nsr_gym.agents import agent_spec, make_agent
from nsr_gym.cli_shared import default_agents
from nsr_gym.errors import AccessError, InvalidValueError

Make = Callable[..., Any]

DISCARD, UPDATE, ADD = range(3)
FULL = 3
R = 8
CUTS = [0.5, 1.0, 2.0]


def seen(agent: Any, *, stored: Sequence[int] = (), **fields: Any) -> np.ndarray:
    """Lay out one observation; `stored` are the ranks held, and losses are given in nats."""
    layout = agent.layout
    values = {name: np.zeros((1, size)) for name, size in layout.sizes.items()}
    values["trial_loss"][:] = values["budget_left"][:] = 1.0
    fields["stored_rank"] = np.array(stored) / R
    for name in ("trial_loss", "bare_loss"):
        if name in fields:
            fields[name] = layout.scale_loss(np.array(fields[name], dtype=np.float64))
    for name, given in fields.items():
        values[name][0, : np.size(given)] = given
    return np.asarray(layout.encode(1, values)[0])


def action(agent: Any, **fields: Any) -> list[int]:
    return list(agent.predict(seen(agent, **fields))[0].tolist())


def environment(make_env: Make, name: str, **arguments: Any) -> Any:
    return make_env(**agent_spec(name).environment_arguments("live") | arguments)


def entry_size(env: Any, rank: int) -> int:
    bank = env.engine.memory.bank
    kinds = bank.store.entry_bytes(np.array([rank])).values()
    return int(sum(part[0] for part in kinds)) + bank.embedding_dim * 4


def returns(name: str, make_vec: Make, n: int = 4, **arguments: Any) -> np.ndarray:
    """Play n episodes and return the sums of their rewards, (n,)."""
    chosen = agent_spec(name).environment_arguments("live") | arguments
    env = make_vec(n, split="test", **chosen)
    agent = make_agent(name, env)
    observation, _ = env.reset(seed=list(range(n)))
    total, over = np.zeros(n), False
    while not over:
        actions, _ = agent.predict(observation)
        observation, reward, terminated, _, _ = env.step(actions)
        total += reward
        over = bool(terminated.all())
    return total


@pytest.mark.parametrize("name", ["similarity", "trial-loss", "oracle", "nearest"])
@pytest.mark.parametrize(("rank", "index"), [(1, 0), (2, 1), (4, 2), (8, 3), (None, 3)])
def test_a_rule_grants_the_rank_it_is_told(
    name: str, rank: int | None, index: int, make_env: Make
) -> None:
    agent = make_agent(name, environment(make_env, name), rank=rank)
    assert action(agent) == [0, index, UPDATE]


@pytest.mark.parametrize("rank", [0, 3, 16, True, "8", 2.5])
def test_a_rank_that_cannot_be_granted_is_refused(rank: Any, make_env: Make) -> None:
    with pytest.raises(InvalidValueError, match=r"ranks \[1, 2, 4, 8\]; got"):
        make_agent("similarity", make_env(), rank=rank)


def test_keep_is_yes_or_no(make_env: Make) -> None:
    with pytest.raises(InvalidValueError, match="keep"):
        make_agent("similarity", make_env(), keep=1)


@pytest.mark.parametrize(
    ("occupancy", "similarity", "expected"),
    [
        (0.8, 0.2, [0, FULL, UPDATE]),  # new, and there is room
        (1.0, 0.2, [0, FULL, DISCARD]),  # new, and there is none
        (1.0, 0.99, [1, FULL, UPDATE]),  # a full bank's own entries are still refined
    ],
)
def test_a_pinning_rule_leaves_a_full_bank_as_it_is(
    occupancy: float, similarity: float, expected: list[int], make_env: Make
) -> None:
    agent = make_agent("similarity-pin", make_env(), threshold=0.9)
    given = {"occupancy": occupancy, "similarity": [similarity], "stored": [R]}
    assert action(agent, **given) == expected
    other = make_agent("similarity", make_env(), threshold=0.9)
    assert action(other, **given)[2] == UPDATE


@pytest.mark.parametrize("entries", [1, 2, 3])
@pytest.mark.parametrize("more", [0, 1])
def test_the_byte_budget_is_read_from_the_entries_in_view(
    entries: int, more: int, make_env: Make
) -> None:
    env = make_env()
    size = entry_size(env, R)
    budget = size * (entries + more)
    agent = make_agent("trial-loss-pin", env)
    given = {"stored": [R] * entries, "budget_left": 1 - size * entries / budget}
    assert action(agent, **given) == [0, FULL, UPDATE if more else DISCARD]


@pytest.mark.parametrize("entries", [1, 2, 3])
@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("bank", ["shared_basis", "flattened_basis", "meta"])
def test_what_entries_share_is_paid_once(
    bank: str, entries: int, more: int, make_env: Make
) -> None:
    env = make_env(bank=bank)
    size = entry_size(env, R)
    shared = sum(int(n) for n in env.engine.memory.bank.store.shared_bytes(np.array(1)).values())
    assert shared > 0
    used = shared + size * entries
    agent = make_agent("trial-loss-pin", env)
    given = {"stored": [R] * entries, "budget_left": 1 - used / (used + size * more)}
    assert action(agent, **given) == [0, FULL, UPDATE if more else DISCARD]


def test_a_pinned_bank_with_a_shared_basis_fills_its_byte_budget(make_env: Make) -> None:
    given = {"num_tasks": 4, "cycles": 1, "learning_steps": 1, "bank": "shared_basis"}
    env = environment(make_env, "oracle-pin", **given)
    store = env.engine.memory.bank.store
    shared = sum(int(n) for n in store.shared_bytes(np.array(1)).values())
    budget = shared + 3 * entry_size(env, R)  # room for three of the four tasks
    env = environment(make_env, "oracle-pin", capacity_bytes=budget, **given)
    agent, kept = make_agent("oracle-pin", env), []
    observation, _ = env.reset(seed=0)
    for _ in range(4):
        chosen, _ = agent.predict(observation)
        observation, *_, info = env.step(chosen)
        assert not info["projected"]
        kept.append(int(env.engine.memory.bank.count(np.array([0]))[0]))
    assert kept == [1, 2, 3, 3]


@pytest.mark.parametrize("name", ["similarity-pin", "trial-loss-pin", "oracle-pin"])
@pytest.mark.parametrize("limit", [{"capacity": 2}, {"capacity_bytes": 50_000}], ids=str)
def test_a_pinned_bank_keeps_the_first_tasks_for_good(
    name: str, limit: dict[str, int], make_env: Make
) -> None:
    env = environment(
        make_env, name, num_tasks=4, cycles=3, split="test", learning_steps=8, **limit
    )
    agent, bank = make_agent(name, env), env.engine.memory.bank
    observation, _ = env.reset(seed=2)
    over, kept = False, []
    while not over:
        chosen, _ = agent.predict(observation)
        observation, _, over, _, info = env.step(chosen)
        assert not info["projected"]
        kept.append(sorted(bank.tags["task"][0, bank.occupied[0]].tolist()))
    first = env.engine.streams[0].pool_indices(env.engine.dynamics.pool)
    order = [int(first[task]) for task in env.engine.streams[0].visits]
    assert kept[1] == kept[-1] == sorted(order[:2])


def test_pinning_pays_where_tasks_come_in_a_cycle_longer_than_the_bank(make_vec: Make) -> None:
    given = {"num_tasks": 4, "cycles": 4, "capacity": 3, "learning_steps": 8, "updates": 3}
    pinned = returns("oracle-pin", make_vec, **given)
    # With one slot too few, the least recently used entry is the very next task.
    assert (pinned > returns("oracle", make_vec, **given)).all()
    np.testing.assert_allclose(returns("trial-loss-pin", make_vec, **given), pinned, rtol=1e-6)


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [
        ([0.95, 0.5], [1, FULL, UPDATE]),
        ([0.50, 0.4], [1, FULL, ADD]),  # a neighbour: start from it, keep it
        ([], [0, FULL, UPDATE]),
    ],
)
def test_nearest_recalls_always_and_updates_its_own(
    similarity: list[float], expected: list[int], make_env: Make
) -> None:
    agent = make_agent("nearest", make_env(), threshold=0.9)
    assert action(agent, similarity=similarity, stored=[R] * len(similarity)) == expected


def test_nearest_that_keeps_adds_nothing_to_a_full_bank(make_env: Make) -> None:
    agent = make_agent("nearest", make_env(), threshold=0.9, keep=True)
    assert action(agent, similarity=[0.5], stored=[R], occupancy=1.0) == [1, FULL, DISCARD]


@pytest.mark.parametrize(
    ("loss", "bare", "expected"),
    [
        ([0.3, 0.2], 2.3, [2, FULL, UPDATE]),
        ([1.5, 1.2], 2.3, [2, FULL, ADD]),  # not its own, but better than nothing
        ([1.5, 1.2], 1.1, [0, FULL, UPDATE]),  # worse than nothing
        ([0.5], 0.4, [0, FULL, UPDATE]),  # fits, and the bare backbone fits better
        ([], 2.3, [0, FULL, UPDATE]),
    ],
)
def test_trial_loss_nearest_starts_from_what_beats_a_fresh_start(
    loss: list[float], bare: float, expected: list[int], make_env: Make
) -> None:
    agent = make_agent("trial-loss-nearest", make_env(), threshold=0.8)
    assert action(agent, trial_loss=loss, stored=[R] * len(loss), bare_loss=bare) == expected


@pytest.mark.parametrize(
    ("own", "loss", "expected"),
    [
        ([1, 0], [1.9, 0.2], [1, FULL, UPDATE]),  # its own, whatever fits better
        ([0, 0], [1.9, 0.2], [2, FULL, ADD]),
        ([0, 0], [2.9, 2.8], [0, FULL, UPDATE]),
    ],
)
def test_oracle_nearest_warm_starts_new_tasks_alone(
    own: list[int], loss: list[float], expected: list[int], make_env: Make
) -> None:
    agent = make_agent("oracle-nearest", environment(make_env, "oracle-nearest"))
    given = {"same_task": own, "trial_loss": loss, "stored": [R, R], "bare_loss": 2.3}
    assert action(agent, **given) == expected


@pytest.mark.parametrize(
    ("bare", "index"), [(0.1, 0), (0.49, 0), (0.51, 1), (0.99, 1), (1.5, 2), (2.5, 3)]
)
def test_thrifty_grants_a_new_task_a_rank_by_its_difficulty(
    bare: float, index: int, make_env: Make
) -> None:
    agent = make_agent("thrifty", make_env(), threshold=0.8, cuts=CUTS)
    assert action(agent, bare_loss=bare) == [0, index, UPDATE]  # nothing held: may be budgeted
    assert action(agent, bare_loss=bare, stored=[R], budget_left=0.9) == [0, index, UPDATE]
    unlimited = action(agent, bare_loss=bare, stored=[R], budget_left=1.0)
    assert unlimited == [0, FULL, UPDATE]


@pytest.mark.parametrize(("stored", "index"), [(1, 0), (2, 1), (3, 2), (8, 3)])
def test_thrifty_keeps_a_returning_task_at_the_rank_of_its_entry(
    stored: int, index: int, make_env: Make
) -> None:
    agent = make_agent("thrifty", make_env(), threshold=0.8, cuts=CUTS)
    given = {"stored": [R, stored], "trial_loss": [2.0, 0.3], "bare_loss": 2.5}
    assert action(agent, **given, budget_left=0.5) == [2, index, UPDATE]
    assert action(agent, **given, budget_left=1.0) == [2, FULL, UPDATE]


def test_thrifty_takes_the_largest_rank_that_fits_and_at_last_keeps_what_it_has(
    make_env: Make,
) -> None:
    env = make_env()
    agent = make_agent("thrifty", env, threshold=0.8, cuts=CUTS)
    size = [entry_size(env, rank) for rank in (1, 2, 4, 8)]
    for left, expected in (
        (size[3], [0, 3, UPDATE]),
        (size[3] - 8, [0, 2, UPDATE]),
        (size[0], [0, 0, UPDATE]),
        (size[0] - 8, [0, 3, DISCARD]),
    ):
        budget = 3 * size[3] + left
        given = {"stored": [R] * 3, "budget_left": left / budget, "bare_loss": 2.5}
        assert action(agent, **given) == expected


@pytest.mark.parametrize(
    ("losses", "left", "expected"),
    [
        ([2.0, 0.3], 0.5, [2, 1, UPDATE]),  # its own, at its rank
        ([2.4, 1.9], 0.5, [2, 3, ADD]),  # a new task: a neighbour helps
        ([2.6, 2.7], 0.5, [0, 3, UPDATE]),  # no neighbour helps
        ([2.4, 1.9], 0.0, [2, 3, DISCARD]),  # nothing fits any more
    ],
)
def test_versatile_starts_new_tasks_from_what_helps(
    losses: list[float], left: float, expected: list[int], make_env: Make
) -> None:
    agent = make_agent("versatile", make_env(), threshold=0.8, cuts=CUTS)
    given = {"stored": [R, 2], "trial_loss": losses, "bare_loss": 2.5, "budget_left": left}
    assert action(agent, **given) == expected


def test_similarity_thrifty_recognises_by_similarity(make_env: Make) -> None:
    agent = make_agent("similarity-thrifty", make_env(), threshold=0.9, cuts=CUTS)
    given = {"stored": [2, R], "trial_loss": [2.0, 0.1], "budget_left": 0.5, "bare_loss": 0.7}
    assert action(agent, similarity=[0.95, 0.5], **given) == [1, 1, UPDATE]
    assert action(agent, similarity=[0.85, 0.5], **given) == [0, 1, UPDATE]


@pytest.mark.parametrize("cuts", [[1.0], [1.0, 2.0, 1.5], [-1.0, 0.0, 1.0], [0.0] * 4])
def test_cuts_lie_between_ranks(cuts: list[float], make_env: Make) -> None:
    with pytest.raises(InvalidValueError, match="cut points"):
        make_agent("thrifty", make_env(), cuts=cuts)


def test_oracle_thrifty_knows_its_own(make_env: Make) -> None:
    agent = make_agent("oracle-thrifty", environment(make_env, "oracle-thrifty"), cuts=CUTS)
    given = {"stored": [2, 8], "trial_loss": [2.0, 0.1], "budget_left": 0.5, "bare_loss": 0.7}
    assert action(agent, same_task=[1, 0], **given) == [1, 1, UPDATE]
    assert action(agent, same_task=[0, 0], **given) == [0, 1, UPDATE]


@pytest.mark.parametrize("name", ["oracle-pin", "oracle-nearest", "oracle-thrifty"])
def test_whoever_knows_the_task_has_to_be_told(name: str, make_env: Make) -> None:
    env = make_env()
    observation, _ = env.reset(seed=0)
    with pytest.raises(AccessError, match="same_task"):
        make_agent(name, env).predict(observation)


@pytest.mark.parametrize("name", ["similarity", "trial-loss", "oracle"])
def test_without_a_limit_a_pinning_rule_plays_as_its_original(name: str, make_vec: Make) -> None:
    given = {"num_tasks": 3, "cycles": 3, "capacity": None}
    pinned = returns(f"{name}-pin", make_vec, **given)
    np.testing.assert_array_equal(pinned, returns(name, make_vec, **given))


def test_a_comparison_plays_the_variants_where_they_are_named() -> None:
    chosen = default_agents(["NSR/CyclicDigits-v0"], {})
    assert {"similarity", "trial-loss", "oracle"} <= set(chosen)
    assert not {"similarity-pin", "nearest", "thrifty", "bank-linucb"} & set(chosen)


def test_a_warm_start_from_a_neighbour_pays_where_tasks_are_related(make_vec: Make) -> None:
    given = {"tasks": "rotation", "num_tasks": 8, "cycles": 1, "reward": "online", "updates": 3}
    near = returns("trial-loss-nearest", make_vec, **given).mean()
    assert near > returns("oracle", make_vec, **given).mean() + 0.1
