"""Ranks by the energy of the first gradient, and from a budget that shrinks over the stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsr_gym.errors import InvalidValueError
from nsr_gym.evaluation.rollout import play
from nsr_gym.learning.adalora import budget

UPDATE = 1
RANKS, FULL, R = (1, 2, 4, 8), 3, 8


@pytest.mark.parametrize(
    ("energy", "eps", "index"),
    [
        ([0.5, 0.7, 0.95, 1.0], 0.9, 2),
        ([0.95, 0.97, 0.99, 1.0], 0.9, 0),
        ([0.5, 0.7, 0.95, 1.0], 0.6, 1),
        ([0.5, 0.7, 0.95, 1.0], 0.99, 3),
        ([0.1, 0.2, 0.3, 0.4], 0.9, 3),  # no rank keeps enough: the largest
        ([0.1, 0.2, 0.3, 0.4], 0.0, 0),
    ],
)
def test_the_least_rank_is_granted_that_keeps_enough_energy(
    energy: list[float], eps: float, index: int, by_hand: Any
) -> None:
    agent = by_hand.agent("energy-ranks", eps=eps, threshold=0.9)
    assert by_hand.action(agent, energy=energy) == [0, index, UPDATE]


@pytest.mark.parametrize(("stored", "index"), [(1, 1), (2, 1), (3, 2), (4, 2), (8, 3)])
def test_a_returning_task_keeps_at_least_the_rank_of_its_entry(
    stored: int, index: int, by_hand: Any
) -> None:
    agent = by_hand.agent("energy-ranks", threshold=0.9)
    view = {"energy": [0.5, 0.95, 1.0, 1.0], "stored": [stored, 8]}
    assert by_hand.action(agent, **view, similarity=[0.95]) == [1, index, UPDATE]
    assert by_hand.action(agent, **view, similarity=[0.85]) == [0, 1, UPDATE], (
        "a new task owes nothing"
    )


@pytest.mark.parametrize("eps", [-0.1, 1.1, float("nan")])
def test_the_kept_energy_is_a_share(eps: float, by_hand: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"eps in \[0, 1\]"):
        by_hand.agent("energy-ranks", eps=eps)


def test_the_budget_falls_as_a_cube_between_its_two_plateaus() -> None:
    progress = np.array([0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(
        budget(progress, 1.0, 12, 8, 0.2, 0.4), [12, 12, 12, 8 + 4 / 8, 8, 8, 8], atol=1e-12
    )
    np.testing.assert_array_equal(budget(progress, 1.0, 5, 5, 0.0, 0.0), np.full(7, 5.0))


def test_a_budget_without_a_slope_is_a_step() -> None:
    progress = np.array([0.0, 0.49, 0.51, 1.0])
    np.testing.assert_array_equal(budget(progress, 1.0, 8, 2, 0.5, 0.5), [8, 8, 2, 2])


def spend(
    by_hand: Any, agent: Any, losses: np.ndarray, *, own: np.ndarray | None = None
) -> np.ndarray:
    """Return the ranks granted (n, V) to n episodes whose arrivals have scaled losses (n, V)."""
    n, visits = losses.shape
    own = np.zeros((n, visits), dtype=bool) if own is None else own
    state, granted = agent.initial_state(range(n)), np.zeros((n, visits), dtype=np.int64)
    for visit in range(visits):
        shown = np.stack(
            [
                by_hand.seen(
                    agent,
                    stored=[R],
                    similarity=[float(own[row, visit])],
                    visits_left=1.0 - visit / visits,
                    # The other loss must not be read.
                    trial_loss=[losses[row, visit] if own[row, visit] else 0.99],
                    bare_loss=0.99 if own[row, visit] else losses[row, visit],
                )
                for row in range(n)
            ]
        )
        actions, state = agent.predict(shown, state)
        np.testing.assert_array_equal(actions[:, 0], own[:, visit])
        granted[:, visit] = np.array(RANKS)[actions[:, 1]]
    return granted


def reference(losses: list[float], target: float, warm: float, cool: float) -> list[int]:
    """The rule once more, for one episode, in plain numbers."""
    level = spread = left = before = 0.0
    granted = []
    for t, loss in enumerate(losses, start=1):
        level = 0.85 * level + 0.15 * loss
        mean = level / (1 - 0.85**t)
        spread = 0.85 * spread + 0.15 * abs(loss - mean)
        importance = mean * spread / (1 - 0.85**t)
        relative = importance / before if t > 2 else 1.0
        before = importance
        over = min(1.0, max(0.0, ((t - 1) / len(losses) - warm) / (1 - warm - cool)))
        allowed = target + (R - target) * (1 - over) ** 3
        wanted = (min(R, allowed * relative) if over > 0 else R) + left
        rank = max([r for r in RANKS if r <= wanted + 1e-9], default=RANKS[0])
        left += allowed - rank
        granted.append(rank)
    return granted


def test_the_budget_is_spent_by_importance_as_the_docstring_says(by_hand: Any) -> None:
    losses = np.random.default_rng(3).random((4, 60)).astype(np.float32).astype(np.float64)
    agent = by_hand.agent("adalora-budget", target=2.0, warm=0.2, cool=0.25, threshold=0.9)
    granted = spend(by_hand, agent, losses)
    for row in range(4):
        assert granted[row].tolist() == reference(losses[row].tolist(), 2.0, 0.2, 0.25)
    assert len(np.unique(granted)) == len(RANKS), "every rank is granted at times"


@settings(max_examples=25, deadline=None)
@given(
    target=st.floats(1.0, 8.0),
    losses=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40),
    returns=st.integers(0, 2**32 - 1),
)
def test_what_is_granted_stays_within_two_full_ranks_of_the_budgets(
    target: float, losses: list[float], returns: int, by_hand: Any
) -> None:
    agent = by_hand.agent("adalora-budget", target=target, threshold=0.9)
    own = np.random.default_rng(returns).random((1, len(losses))) < 0.5
    granted = spend(by_hand, agent, np.array([losses]), own=own)[0]
    progress = 1.0 - (1.0 - np.arange(len(losses)) / len(losses)).astype(np.float32)
    allowed = budget(progress.astype(float), 1.0, R, target, 0.1, 0.3)
    assert np.abs(np.cumsum(granted - allowed)).max() < 2 * R


def test_hard_arrivals_get_more_than_the_mean_and_easy_ones_less(by_hand: Any) -> None:
    rng = np.random.default_rng(0)
    hard = rng.random((30, 60)) < 0.3
    losses = np.where(hard, 0.7, 0.2) + 0.02 * rng.standard_normal((30, 60))
    agent = by_hand.agent("adalora-budget", target=3.0, warm=0.0, cool=0.6, threshold=0.9)
    granted, late = spend(by_hand, agent, losses)[:, 30:], hard[:, 30:]
    assert granted[late].mean() > 1.1 * 3.0
    assert granted[~late].mean() < 3.0


def test_equal_arrivals_share_the_budget_equally(by_hand: Any) -> None:
    agent = by_hand.agent("adalora-budget", target=4.0, warm=0.25, cool=0.5, threshold=0.9)
    granted = spend(by_hand, agent, np.full((1, 40), 0.5))[0]
    assert (granted[:11] == R).all()
    assert (granted[-18:] == 4).all()


def test_by_default_two_thirds_of_the_rank_remain_as_in_adalora(by_hand: Any) -> None:
    agent = by_hand.agent("adalora-budget")
    assert agent.target == pytest.approx(R * 8 / 12)
    granted = spend(by_hand, agent, np.full((1, 200), 0.5))[0]
    assert (granted[:20] == R).all()
    assert granted[-60:].mean() == pytest.approx(agent.target, abs=0.2)


def test_an_episode_s_budget_is_its_own_and_another_one_begins_anew(by_hand: Any) -> None:
    losses = np.random.default_rng(0).random((3, 12))
    agent = by_hand.agent("adalora-budget", target=2.0, threshold=0.9)
    together = spend(by_hand, agent, losses)
    for row in range(3):
        np.testing.assert_array_equal(spend(by_hand, agent, losses[[row]])[0], together[row])
    shown = np.stack([by_hand.seen(agent, visits_left=1.0, bare_loss=0.4)] * 2)
    _, state = agent.predict(shown)
    shown[:, agent.layout.slices["bare_loss"]] = 0.8
    begun = np.array([True, False])
    _, after = agent.predict(shown, state, episode_start=begun)
    _, first = agent.predict(shown)
    for part, fresh in zip(after, first, strict=True):
        assert part[0] == fresh[0]
    assert after[2].tolist() == [1.0, 2.0], "arrivals seen"


def test_asking_what_it_would_do_spends_nothing(by_hand: Any) -> None:
    agent = by_hand.agent("adalora-budget", target=2.0, threshold=0.9)
    shown = by_hand.seen(agent, visits_left=0.3, bare_loss=0.4)[None]
    state = agent.initial_state([0])
    kept = [part.copy() for part in state]
    first, _ = agent.predict(shown, state)
    again, _ = agent.predict(shown, state)
    np.testing.assert_array_equal(first, again)
    for part, before in zip(state, kept, strict=True):
        np.testing.assert_array_equal(part, before)
    assert (
        by_hand.action(agent, visits_left=0.3, bare_loss=0.4)
        == first[0].tolist()
        != [0, FULL, UPDATE]
    )


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"target": 0.5}, "target"),
        ({"target": 9}, "target"),
        ({"target": float("nan")}, "target"),
        ({"warm": -0.1}, "warm"),
        ({"cool": 1.5}, "cool"),
        ({"warm": 0.6, "cool": 0.5}, "warm"),
        ({"smoothing": 1.0}, "smoothing"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(given: dict[str, float], named: str, by_hand: Any) -> None:
    with pytest.raises(InvalidValueError, match=named):
        by_hand.agent("adalora-budget", **given)


def test_in_an_environment_the_granted_ranks_fall_to_the_target(tiny: dict[str, Any]) -> None:
    table = play(
        "NSR/CyclicDigits-v0",
        "adalora-budget",
        [0, 1],
        arguments=tiny | {"cycles": 8},
        agent_arguments={"target": 2.0, "cool": 0.5},
    )
    assert (table["rank"][table["visit"] < 3] == R).all()
    late = table[table["visit"] >= 14]
    assert late["rank"].mean() == pytest.approx(2.0, abs=1.0)
    assert not table["projected"].any()


def test_in_an_environment_more_energy_takes_more_rank(tiny: dict[str, Any]) -> None:
    def ranks(eps: float) -> np.ndarray:
        table = play(
            "NSR/CyclicDigits-v0",
            "energy-ranks",
            [0, 1],
            arguments=tiny | {"tasks": "labels"},
            agent_arguments={"eps": eps, "threshold": 1.0},
        )
        return np.asarray(table["rank"])

    least, some, more, most = (ranks(eps) for eps in (0.0, 0.7, 0.9, 1.0))
    assert (least == 1).all()
    assert (most == R).all()
    # At a threshold that nothing reaches, every visit is a new task's, on the same arrivals.
    assert (some <= more).all()
    assert some.mean() < more.mean() < R
