"""Learners, banks and routers are parts: every combination that makes sense plays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from playable import bank_for

from nsr_gym.bank.kinds import BANKS
from nsr_gym.envs.parts import HUB
from nsr_gym.errors import InvalidValueError, UnknownNameError
from nsr_gym.learning.kinds import LEARNERS, MODIFIERS
from nsr_gym.routing import ROUTERS

Make = Callable[..., Any]

DISCARD, UPDATE, ADD = range(3)
ID = "NSR/CyclicDigits-v0"


def fitting() -> list[tuple[str, str]]:
    """All learners with all banks that they take."""
    pairs = []
    for learner in LEARNERS:
        needed = bank_for(learner)
        pairs += [(learner, b) for b in BANKS if needed in ("per_task", b)]
    return pairs


def play(env: Any, seed: int = 0, *, recall: bool = True) -> tuple[list[Any], list[dict[str, Any]]]:
    """Add on first visits, recall the first in view and update it on returns."""
    observation, info = env.reset(seed=seed)
    seen, infos, over = [observation], [], False
    while not over:
        back = bool(env.engine._is_return[0, env.engine.visit[0]])
        action = [int(back and recall), 3, UPDATE if back else ADD]
        observation, _, over, _, info = env.step(np.array(action))
        seen.append(observation)
        infos.append(info)
    return seen, infos


@pytest.mark.parametrize(("learner", "bank"), fitting())
def test_a_learner_plays_with_every_bank_that_it_takes(
    learner: str, bank: str, make_env: Make
) -> None:
    env = make_env(learner=learner, bank=bank, support_size=32)
    seen, infos = play(env)
    assert all(env.observation_space.contains(observation) for observation in seen)
    assert len(infos) == 6
    assert infos[-1]["accuracy_after"] > 0.0
    assert infos[-1]["bytes"] >= env.engine.memory.bank.nbytes()[0] > 0
    kept = env.engine.retention(np.array([0]))
    assert ((kept >= 0.0) & (kept <= 1.0)).all()


@pytest.mark.parametrize("router", [*ROUTERS, HUB])
@pytest.mark.parametrize("warm_start", ["entry", "mixture"])
def test_every_router_sorts_the_view_and_starts_visits(
    router: str, warm_start: str, make_env: Make
) -> None:
    env = make_env(router=router, warm_start=warm_start, support_size=32)
    seen, _ = play(env)
    assert all(env.observation_space.contains(observation) for observation in seen)
    layout = env.engine.layout
    plain = router == "cosine" and warm_start == "entry"
    assert ("route_backbone" in layout.sizes) == (not plain)
    for observation in seen[:-1]:  # the last is the zeros after the end
        scores = layout.read(observation, "similarity")
        assert (np.diff(scores) <= 1e-6).all()


@pytest.mark.parametrize("modifier", list(MODIFIERS))
def test_every_modifier_changes_what_is_learned(modifier: str, make_env: Make) -> None:
    _, plain = play(make_env(support_size=32))
    _, changed = play(make_env(support_size=32, modifiers=[modifier]))
    assert any((a["curve"] != b["curve"]).any() for a, b in zip(plain, changed, strict=True))


@pytest.mark.parametrize(("learner", "bank"), [(name, bank_for(name)) for name in LEARNERS])
def test_an_episode_is_the_same_alone_and_beside_others(
    learner: str, bank: str, make_env: Make
) -> None:
    arguments = {
        "num_tasks": 3, "cycles": 2, "learning_steps": 2, "updates": 1, "support_size": 32,
        "learner": learner, "bank": bank,
    }  # fmt: skip
    alone = make_env(**arguments)
    _, infos = play(alone, seed=5)
    actions = [[info["recall"], 3, info["reserve"]] for info in infos]
    env: Any = gym.make_vec(ID, num_envs=3, vectorization_mode=None, **arguments)
    env.reset(seed=[4, 5, 6])
    for action, info in zip(actions, infos, strict=True):
        *_, beside = env.step(np.tile(action, (3, 1)))
        # Accuracies on 200 images: rounding may tip single images of a trained model.
        np.testing.assert_allclose(beside["curve"][1], info["curve"], atol=0.031)
        assert beside["bytes"][1] == info["bytes"]
    env.close()


@pytest.mark.parametrize(("learner", "bank"), [(name, bank_for(name)) for name in LEARNERS])
def test_a_discarded_visit_leaves_everything_as_it_was(
    learner: str, bank: str, make_env: Make
) -> None:
    env = make_env(learner=learner, bank=bank, support_size=32, num_tasks=4, cycles=1)
    env.reset(seed=0)
    for _ in range(2):
        env.step(np.array([0, 3, ADD]))
    rows = np.array([0])
    before = env.engine.retention(rows), env.engine.memory.nbytes(rows)
    env.step(np.array([0, 3, DISCARD]))
    after = env.engine.retention(rows), env.engine.memory.nbytes(rows)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])


def test_with_the_task_known_earlier_logits_are_bit_identical_after_later_tasks(
    make_env: Make,
) -> None:
    """Acceptance check 2.9.4: entries apart cannot forget, whatever is learned later."""
    env = make_env(num_tasks=4, cycles=1, support_size=32)
    env.reset(seed=0)
    env.step(np.array([0, 3, ADD]))
    dynamics, bank, task = env.engine.dynamics, env.engine.memory.bank, env.engine.members[0, 0]
    images = dynamics.data.test(torch.tensor([task]))

    def logits() -> torch.Tensor:
        adapters, _ = dynamics._in_use(bank, np.array([0]), np.array([0]))
        return torch.Tensor(dynamics.learner.logits(images, dynamics.learner.map(adapters, None)))

    before = logits()
    for _ in range(3):
        env.step(np.array([0, 3, ADD]))
    assert bank.entries[0] == 4
    assert torch.equal(before, logits())


def test_routers_forget_entries_that_are_evicted(make_env: Make) -> None:
    env = make_env(router="ncm", capacity=2, num_tasks=4, cycles=1, support_size=32)
    env.reset(seed=0)
    for _ in range(4):
        env.step(np.array([0, 3, ADD]))
        finder, bank = env.engine.memory.finder, env.engine.memory.bank
        held = finder.router._held[:, : bank.slots].numpy()
        np.testing.assert_array_equal(held, bank.occupied)


def test_a_mixture_of_one_entry_starts_where_the_entry_does(make_env: Make) -> None:
    curves = []
    for warm_start in ("entry", "mixture"):
        # Cosine routing is hard: the mixture is the one entry that is held.
        env = make_env(warm_start=warm_start, num_tasks=1, cycles=2, support_size=32)
        curves.append([info["curve"] for info in play(env)[1]])
    np.testing.assert_allclose(curves[0], curves[1], atol=0.011)
    assert curves[0][1][0] == curves[0][0][-1]


def test_a_return_starts_from_the_head_that_was_trained_with_the_entry(make_env: Make) -> None:
    env = make_env(head="trained", support_size=32, learning_steps=6, updates=3)
    _, infos = play(env)
    by_task: dict[int, float] = {}
    for info in infos:
        if info["is_return"]:
            assert info["accuracy_before"] == pytest.approx(by_task[info["task"]], abs=1e-6)
        else:
            assert info["accuracy_before"] < 0.2  # an empty head says class 0
        by_task[info["task"]] = info["accuracy_after"]
    kinds = env.engine.memory.bank.bytes_by_kind()
    assert kinds["head"][0] == 3 * 4 * (10 * 64 + 10)


@pytest.mark.parametrize("learner", ["inflora", "sequential", "sdlora", "coef_only", "olora"])
def test_heads_of_their_own_go_with_every_learner(learner: str, make_env: Make) -> None:
    arguments = {"learning_steps": 6, "updates": 3, "support_size": 32}
    env = make_env(learner=learner, bank=bank_for(learner), head="trained", **arguments)
    _, infos = play(env)
    assert infos[-1]["accuracy_after"] > 0.3
    # Heads lie in the entries, so that the recalled one matters even where adapters are summed.
    assert not env.engine.dynamics.whole


def test_signals_are_shares_and_a_bank_that_holds_nothing_makes_everything_new(
    make_env: Make,
) -> None:
    for bank in ("per_task", "shared_basis"):
        env = make_env(observe_signals=True, bank=bank, support_size=32)
        seen, _ = play(env)
        layout = env.engine.layout
        assert layout.read(seen[0], "novelty")[0] == 1.0
        assert layout.read(seen[0], "free_capacity")[0] == 1.0
        assert layout.read(seen[1], "novelty")[0] < 1.0
        assert layout.read(seen[1], "free_capacity")[0] < 1.0
        energy = layout.read(seen[1], "energy")
        assert (np.diff(energy) >= 0.0).all()
        assert 0.0 < energy[0] < energy[-1] <= 1.0


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"learner": "infloar"}, UnknownNameError, "inflora"),
        ({"bank": "additiv"}, UnknownNameError, "additive"),
        ({"router": "rsl"}, UnknownNameError, "rls"),
        ({"modifiers": ["ema"]}, UnknownNameError, "ema_merge"),
        ({"router_features": "middle"}, UnknownNameError, "lower"),
        ({"head": "train"}, UnknownNameError, "trained"),
        ({"learner": "inflora"}, InvalidValueError, "bank='additive'"),
        ({"learner": "coef_only"}, InvalidValueError, "bank='shared_basis'"),
        ({"learner": "lora", "learner_options": {"eps": 0.9}}, UnknownNameError, "eps"),
        ({"bank": "shared_basis", "bank_options": {"rank": 4}}, UnknownNameError, "basis_rank"),
        ({"router": "rls", "router_options": {"lambda": 1}}, UnknownNameError, "lam"),
        ({"router": HUB, "router_options": {"bounds": 1}}, UnknownNameError, "bound"),
        ({"learner_options": 3}, InvalidValueError, "mapping"),
        ({"modifiers": {"sam": 3}}, InvalidValueError, "mapping"),
        ({"observe_signals": 1}, InvalidValueError, "bool"),
        ({"learner": "joint", "head": "trained"}, InvalidValueError, "joint"),
        ({"observe_signals": True, "head": "trained"}, InvalidValueError, "gradient"),
        (
            {"learner": "lora_sub_drs", "bank": "additive", "head": "trained"},
            InvalidValueError,
            "lora_sub_drs",
        ),
        ({"access": "memoryless", "router": "rls"}, InvalidValueError, "router='cosine'"),
        ({"access": "visit", "bank": "meta"}, InvalidValueError, "bank='per_task'"),
        ({"dynamics": "recorded", "learner": "sequential"}, InvalidValueError, "live"),
    ],
)
def test_parts_that_do_not_exist_or_fit_are_refused(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        gym.make(ID, **arguments)


@pytest.mark.parametrize("access", ["memoryless", "visit"])
def test_without_a_bank_the_head_goes_with_the_active_adapter(access: str, make_env: Make) -> None:
    env = make_env(
        access=access, head="trained", num_tasks=2, cycles=2, learning_steps=6, updates=3,
        support_size=32,
    )  # fmt: skip
    env.reset(seed=0)
    infos = [env.step(np.array([0, 3, UPDATE]))[-1] for _ in range(4)]
    assert all(info["accuracy_after"] > 0.3 for info in infos)
    # An empty head says class 0, which is as frequent in all tasks.
    empty = infos[0]["accuracy_before"]
    assert (infos[1]["accuracy_before"] != empty) == (access == "memoryless")
    head = 4 * 10 * (64 + 1)
    assert infos[-1]["bytes"] == (4 * 8 * 640 + head if access == "memoryless" else 0)
