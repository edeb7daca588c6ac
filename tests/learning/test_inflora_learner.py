"""What InfLoRA keeps of episodes, beside whom, with what options, and with what modifiers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from additive_samples import EPISODES, ROWS, Episodes, two_learned

from nsr_gym.errors import StateError, UnknownNameError
from nsr_gym.learning.adapters import Adapters, summed
from nsr_gym.learning.inflora import InfLoRALearner
from nsr_gym.learning.kinds import MODIFIERS, make_learner

MakeWorld = Callable[..., Any]


@pytest.fixture
def after_two(make_world: MakeWorld) -> Episodes:
    return two_learned(make_world)


def test_only_reserved_results_are_protected_and_episodes_start_anew_alone(
    after_two: Episodes,
) -> None:
    before = {site: after_two.protected(site) for site in after_two.learner.memories}
    bytes_before = after_two.learner.nbytes(ROWS)
    after_two.learner.learn(after_two.data, after_two.visit(2, after_two.fresh(2)))
    after_two.learner.commit(ROWS[1:2], np.array([2]), None)
    grown = 0
    for site, p in before.items():
        now = after_two.protected(site)
        assert torch.equal(now[[0, 2]], p[[0, 2]])
        grown += int((now[1].trace() - p[1].trace()).round())
    assert grown > 0
    after_two.learner.begin(ROWS[:1])
    nbytes, room = after_two.learner.nbytes(ROWS), after_two.learner.free_capacity(ROWS)
    free = [m.free_dimension(torch.arange(EPISODES)) for m in after_two.learner.memories.values()]
    assert room.tolist() == pytest.approx((sum(free) / (7 + 6 + 5)).tolist())
    assert room[0] == 1 > room[1:].max()
    assert nbytes[0] == 0
    assert nbytes[2] == bytes_before[2] > 0
    sizes = [
        min(int(p[2].trace().round()), site.d_in - int(p[2].trace().round())) * site.d_in * 8
        for site, p in zip(after_two.backbone.sites, before.values(), strict=True)
    ]
    assert nbytes[2] == sum(sizes)


def test_results_of_no_or_another_visit_are_refused(make_world: MakeWorld) -> None:
    episodes = Episodes(make_world(), n=2)
    with pytest.raises(StateError, match="last visit"):
        episodes.learner.commit(ROWS, ROWS, None)
    episodes.learner.learn(episodes.data, episodes.visit(0, episodes.fresh(), rows=ROWS[:2]))
    with pytest.raises(StateError, match="last visit"):
        episodes.learner.commit(ROWS[2:], ROWS[2:], None)
    nobody = episodes.visit(0, episodes.fresh(), rows=ROWS[:2])
    nobody = dataclasses.replace(nobody, rows=ROWS[:0])
    with pytest.raises(StateError, match="Give Visit its rows"):
        episodes.learner.prepare(episodes.data, nobody)


def test_the_model_is_the_sum_of_all_entries(after_two: Episodes) -> None:
    visit = after_two.visit(2, after_two.fresh(2))
    trained, curve = after_two.learner.learn(after_two.data, visit)
    images, base = after_two.data.test(visit.tasks), summed(visit.others or {})
    first = after_two.learner.accuracy(images, None, base)
    assert torch.equal(curve[:, 0], first)
    factors = {
        site: (
            torch.cat([e.factors[site][0] for e in [*after_two.entries, trained]], 2),
            torch.cat([e.factors[site][1] for e in [*after_two.entries, trained]], 1),
        )
        for site in base
    }
    last = after_two.learner.accuracy(images, Adapters(factors))
    torch.testing.assert_close(curve[:, -1], last, rtol=0, atol=1.01 / 20)


@pytest.mark.parametrize("i", range(EPISODES))
def test_an_episode_learns_the_same_alone(i: int, make_world: MakeWorld) -> None:
    """In single precision, as the environments run; updates as a whole, within 1e-3.

    Directions of nearly equal energy may be turned into each other, and their adapters with
    them, so the products are compared.
    """
    world = make_world(learning_rate=0.05)
    together = Episodes(world, double=False, eps=0.4)
    alone = Episodes(world, double=False, eps=0.4)
    row = slice(i, i + 1)
    for task in range(3):
        start = together.fresh(2, seed=task)
        whole = together.visit(task, start)
        entries = alone.entries
        alone.entries = together.entries
        part = alone.visit(task, start)[row]
        alone.entries = entries
        all_trained, curves = together.learner.learn(together.data, whole)
        one, curve = alone.learner.learn(alone.data, part)
        together.learner.commit(ROWS, ROWS * 0 + task, None)
        alone.learner.commit(ROWS[row], np.array([task]), None)
        together.entries.append(all_trained)
        for site, (up, down) in one.factors.items():
            all_up, all_down = all_trained.factors[site]
            torch.testing.assert_close(up @ down, (all_up @ all_down)[row], rtol=0, atol=1e-3)
            assert (up @ down).abs().max() > 0.05
        torch.testing.assert_close(curve, curves[row], rtol=0, atol=1.01 / 20)
        assert np.array_equal(alone.learner.nbytes(ROWS[row]), together.learner.nbytes(ROWS[row]))


def test_an_episode_that_diverges_leaves_its_neighbours_alone(after_two: Episodes) -> None:
    visit = after_two.visit(2, after_two.fresh(2))
    sound, _ = after_two.learner.learn(after_two.data, visit)
    spoilt_start = after_two.fresh(2)
    spoilt_start.factors["fc1"][0][1] = torch.nan
    spoilt, _ = after_two.learner.learn(after_two.data, after_two.visit(2, spoilt_start))
    assert spoilt.finite().tolist() == [True, False, True]
    for site, (up, down) in sound.factors.items():
        for i in (0, 2):
            torch.testing.assert_close(spoilt.factors[site][0][i], up[i], rtol=0, atol=1e-8)
            torch.testing.assert_close(spoilt.factors[site][1][i], down[i], rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "options",
    [{"eps": 0}, {"lame": 2.0}, {"horizon": 0, "lame": 0.9}, {"samples": 0}, {"down_scale": -1.0}],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any], make_world: MakeWorld) -> None:
    with pytest.raises(ValueError, match=r"Expected .* to be .*; got"):
        Episodes(make_world(), **options)


def test_unknown_options_are_refused(make_world: MakeWorld) -> None:
    with pytest.raises(UnknownNameError, match="epsilon"):
        Episodes(make_world(), epsilon=0.9)
    with pytest.raises(UnknownNameError, match="energy convention"):
        Episodes(make_world(), energy="none")


@pytest.mark.parametrize("modifier", MODIFIERS)
def test_modifiers_leave_the_down_factors_where_they_are(
    modifier: str, make_world: MakeWorld
) -> None:
    """In single precision: rows stay designed ones, or parts of them, within 1e-5."""
    episodes = Episodes(make_world(learning_rate=0.05), double=False, eps=0.4)
    episodes.learn(0, episodes.fresh())
    options = {"penalty": 0.0} if modifier == "rank_gates" else {}  # closes none of them
    made = make_learner(
        "inflora", episodes.backbone, episodes.learner.config, modifiers={modifier: options},
        options={"eps": 0.4}, num_episodes=EPISODES, num_tasks=4, max_rank=4,
    )  # fmt: skip
    assert isinstance(made, InfLoRALearner)
    made.memories = episodes.learner.memories
    visit = episodes.visit(
        1,
        episodes.fresh(seed=2),
        numbers=ROWS,
        keys=np.arange(2 * EPISODES, dtype=np.uint64).reshape(EPISODES, 2),
    )
    trained, _ = made.learn(episodes.data, visit)
    for site, (_, down) in trained.factors.items():
        assert (down.double() @ episodes.protected(site)).abs().max() <= 1e-5
    assert all(up.flatten(1).any(dim=1).all() for up, _ in trained.factors.values())


def test_a_head_of_its_own_is_trained_beside_the_up_factors(make_world: MakeWorld) -> None:
    episodes = Episodes(make_world(learning_rate=0.05), double=False)
    bare = episodes.fresh()
    start = dataclasses.replace(bare, head=(torch.zeros(3, 3, 4), torch.zeros(3, 3)))
    visit = episodes.visit(0, start)
    trained, _ = episodes.learner.learn(episodes.data, visit)
    prepared = episodes.learner.prepare(episodes.data, visit)
    assert trained.head is not None
    assert all(part.flatten(1).any(dim=1).all() for part in trained.head)
    for site, (_, down) in trained.factors.items():
        assert torch.equal(down, prepared.start.factors[site][1])
