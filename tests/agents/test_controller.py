"""Saved controllers play as agents, in every face of an environment and as their models do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from nsr_gym.agents import controller
from nsr_gym.agents.algorithms import ALGORITHMS, build_model, flat_actions
from nsr_gym.agents.checkpoint import save_controller
from nsr_gym.agents.controller import (
    ControllerAgent,
    base_name,
    shipped_controllers,
    shipped_folder,
    shipped_ppo,
)
from nsr_gym.envs import make_sb3_env
from nsr_gym.errors import InvalidValueError, StateError
from nsr_gym.evaluation.rollout import play
from nsr_gym.registry import _AGENTS, register_agent

LIVE, RECORDED = "NSR/CyclicDigits-v0", "NSR/CyclicDigitsRecorded-v0"
TINY: dict[str, Any] = {
    "num_tasks": 2,
    "cycles": 2,
    "learning_steps": 2,
    "updates": 1,
    "support_size": 32,
}
PAIRS = [(name, network) for name, one in ALGORITHMS.items() for network in one.networks]
RECURRENT = "recurrent-ppo"


def save(
    folder: Path, algorithm: str = "ppo", network: str = "mlp", *, env: str = LIVE, **arguments: Any
) -> Any:
    """Save a controller that acts differently from visit to visit, and return its model."""
    chosen = TINY | arguments if env == LIVE else arguments
    made = make_sb3_env(env, 2, flat_actions=flat_actions(algorithm), **chosen)
    few = {"n_steps": 4} if algorithm != "dqn" else {"buffer_size": 64}
    model = build_model(algorithm, made, network=network, seed=5, **few)
    with torch.no_grad():
        for part in model.policy.parameters():
            part.add_(torch.randn_like(part) * 0.4)
    save_controller(
        model,
        folder,
        algorithm=algorithm,
        network=network,
        hyperparameters=few,
        environment=env,
        arguments=chosen,
        split="train",
    )
    return model


@pytest.fixture
def agent() -> Iterator[str]:
    """Register a saved controller as an agent for the time of a test."""
    register_agent(
        "saved", "nsr_gym.agents.controller:ControllerAgent", access="bank", summary="of a test"
    )
    yield "saved"
    del _AGENTS["saved"]


def actions_of_model(model: Any, seeds: list[int], **arguments: Any) -> np.ndarray:
    """Let SB3 play episodes of seeds in a row; return executed actions (visits, episodes, 3)."""
    numbered = isinstance(model.action_space, gym.spaces.Discrete)
    env = make_sb3_env(LIVE, len(seeds), flat_actions=numbered, **(TINY | arguments))
    env.seed(seeds[0])
    observation, state, executed = env.reset(), None, []
    start, over = np.ones(len(seeds), dtype=bool), False
    while not over:
        extra = {}
        if type(model).__name__ == "MaskablePPO":
            extra["action_masks"] = np.array(env.env_method("action_masks"))
        chosen, state = model.predict(
            observation, state=state, episode_start=start, deterministic=True, **extra
        )
        observation, _, start, infos = env.step(chosen)
        executed.append([[i["recall"], i["rank"], i["reserve"]] for i in infos])
        over = bool(start.all())
    return np.array(executed)


@pytest.mark.parametrize("observation", ["flat", "dict"])
@pytest.mark.parametrize(("algorithm", "network"), PAIRS)
def test_an_evaluation_plays_what_the_model_plays(
    tmp_path: Path, agent: str, algorithm: str, network: str, observation: str
) -> None:
    model = save(tmp_path, algorithm, network, observation=observation)
    seeds = [11, 12, 13]
    table = play(
        LIVE,
        agent,
        seeds,
        arguments=TINY | {"split": "train"},
        agent_arguments={"folder": str(tmp_path)},
    )
    expected = actions_of_model(model, seeds, observation=observation)
    for i, seed in enumerate(seeds):
        rows = table[table["seed"] == seed].sort_values("visit")
        got = rows[["recall", "rank", "reserve"]].to_numpy()
        np.testing.assert_array_equal(got, expected[:, i])
    assert np.isfinite(np.stack(table["retention"].to_list())).all()


@pytest.mark.parametrize("observation", ["flat", "dict"])
@pytest.mark.parametrize(("algorithm", "network"), [("maskable-ppo", "pointer"), ("dqn", "mlp")])
def test_single_and_vector_environments_get_the_same_actions(
    tmp_path: Path, algorithm: str, network: str, observation: str
) -> None:
    save(tmp_path, algorithm, network)
    vector = gym.make_vec(LIVE, 2, vectorization_mode=None, observation=observation, **TINY)
    player = ControllerAgent(vector, folder=tmp_path)
    seen, _ = vector.reset(seed=[3, 4])
    masks = vector.unwrapped.action_masks()
    expected, _ = player.predict(seen, action_masks=masks)
    assert expected.shape == (2, 3)
    for i, seed in enumerate((3, 4)):
        env = gym.make(LIVE, observation=observation, **TINY)
        alone, _ = env.reset(seed=seed)
        mask = env.unwrapped.action_masks()
        action, _ = ControllerAgent(env, folder=tmp_path).predict(alone, action_masks=mask)
        assert env.action_space.contains(action)
        np.testing.assert_array_equal(action, expected[i])
        env.close()
    vector.close()


@pytest.mark.parametrize("view", [3, 20])
def test_a_pointer_plays_any_view_live(tmp_path: Path, agent: str, view: int) -> None:
    save(tmp_path, "maskable-ppo", "pointer")
    table = play(
        LIVE,
        agent,
        [1],
        arguments=TINY | {"view_size": view},
        agent_arguments={"folder": str(tmp_path)},
    )
    assert len(table) == 4
    assert not table["projected"].any()


@pytest.mark.parametrize(("algorithm", "network"), [("ppo", "pointer"), (RECURRENT, "mlp")])
def test_a_controller_of_recorded_visits_plays_live_and_recorded_ones(
    tmp_path: Path, agent: str, algorithm: str, network: str
) -> None:
    save(tmp_path, algorithm, network, env=RECORDED, num_tasks=2, cycles=2)
    folder = {"folder": str(tmp_path)}
    for environment, arguments in ((RECORDED, {"num_tasks": 3, "cycles": 3}), (LIVE, TINY)):
        table = play(environment, agent, [1, 2], arguments=arguments, agent_arguments=folder)
        assert len(table) == 2 * arguments["num_tasks"] * arguments["cycles"]
        assert table["reward"].between(0.0, 1.0).all()


def test_a_state_is_forgotten_where_an_episode_begins_and_only_there(tmp_path: Path) -> None:
    save(tmp_path, RECURRENT)
    env = gym.make_vec(LIVE, 3, vectorization_mode=None, **TINY)
    player = ControllerAgent(env, folder=tmp_path)
    rng = np.random.default_rng(0)
    shape = (3, player.layout.size)
    state = player.initial_state([0, 1, 2])
    for _ in range(4):
        _, state = player.predict(rng.random(shape, dtype=np.float32), state)
    assert state is not None
    seen = rng.random(shape, dtype=np.float32)
    begun = np.array([False, True, False])
    _, after = player.predict(seen, state, episode_start=begun)
    _, first = player.predict(seen)
    _, on = player.predict(seen, state)
    assert after is not None
    assert first is not None
    assert on is not None
    for got, new, old in zip(after, first, on, strict=True):
        assert got.shape[0] == 3
        np.testing.assert_allclose(got[1], new[1], atol=1e-6)
        np.testing.assert_allclose(got[[0, 2]], old[[0, 2]], atol=1e-6)
        assert np.abs(new - old).max() > 1e-3, "a state that says nothing"
    env.close()


def test_asking_what_it_would_do_does_not_advance_a_state(tmp_path: Path) -> None:
    save(tmp_path, RECURRENT)
    env = gym.make(LIVE, **TINY)
    player = ControllerAgent(env, folder=tmp_path)
    seen = np.random.default_rng(1).random(player.layout.size, dtype=np.float32)
    _, state = player.predict(seen)
    assert state is not None
    kept = [part.copy() for part in state]
    player.predict(seen, state)
    for part, before in zip(state, kept, strict=True):
        np.testing.assert_array_equal(part, before)
    assert ControllerAgent(env, folder=tmp_path).initial_state([0])[0].shape[0] == 1  # type: ignore[index]
    env.close()


def test_masks_bind_those_that_take_them(tmp_path: Path) -> None:
    save(tmp_path, "maskable-ppo")
    env = gym.make(LIVE, **TINY)
    player = ControllerAgent(env, folder=tmp_path)
    rng = np.random.default_rng(2)
    seen = rng.random((200, player.layout.size), dtype=np.float32)
    masks = rng.random((200, 16)) < 0.5
    for start, end in ((0, 9), (9, 13), (13, 16)):
        masks[np.arange(200), rng.integers(start, end, 200)] = True
    for deterministic in (True, False):
        actions, _ = player.predict(seen, deterministic=deterministic, action_masks=masks)
        places = actions + np.array([0, 9, 13])
        assert np.take_along_axis(masks, places, axis=1).all()
    free, _ = player.predict(seen)
    assert not np.take_along_axis(masks, free + np.array([0, 9, 13]), axis=1).all()
    env.close()


@pytest.mark.parametrize("network", ["mlp", "pointer"])
def test_no_masked_action_in_a_hundred_thousand_steps(tmp_path: Path, network: str) -> None:
    episodes = {"num_tasks": 4, "cycles": 3, "capacity": 2, "retention": "pin"}
    save(tmp_path, "maskable-ppo", network, env=RECORDED, **episodes)
    env = gym.make_vec(RECORDED, 512, vectorization_mode=None, **episodes)
    player = ControllerAgent(env, folder=tmp_path)
    torch.manual_seed(0)
    seen, _ = env.reset(seed=0)
    closed = 0
    for _ in range(200):
        masks = env.unwrapped.action_masks()
        actions, _ = player.predict(seen, deterministic=False, action_masks=masks)
        assert np.take_along_axis(masks, actions + np.array([0, 9, 13]), axis=1).all()
        closed += int((~masks[:, 15]).sum())
        seen, *_ = env.step(actions)
    assert closed > 1000, "the bank must be full at times"
    env.close()


def test_exact_environments_are_played_too(tmp_path: Path) -> None:
    paging = "NSR/Paging-v0"
    model = save(tmp_path, env=paging)
    env = gym.make_vec(paging, 4, vectorization_mode=None)
    player = ControllerAgent(env, folder=tmp_path)
    seen, _ = env.reset(seed=0)
    actions, _ = player.predict(seen)
    np.testing.assert_array_equal(actions, model.predict(seen, deterministic=True)[0])
    env.step(actions)
    with pytest.raises(InvalidValueError, match="trained in NSR/Paging-v0"):
        ControllerAgent(gym.make(LIVE, **TINY), folder=tmp_path)
    env.close()


def test_observations_of_another_size_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    env = gym.make(LIVE, **TINY)
    player = ControllerAgent(env, folder=tmp_path)
    with pytest.raises(InvalidValueError, match="52 values"):
        player.predict(np.zeros((2, 51), dtype=np.float32))
    env.close()


def test_a_trusted_zip_plays(tmp_path: Path) -> None:
    model = save(tmp_path / "own", RECURRENT)
    model.save(tmp_path / "model.zip")
    env = gym.make(LIVE, **TINY)
    own = ControllerAgent(env, folder=tmp_path / "own")
    zipped = ControllerAgent(env, folder=tmp_path / "model.zip", trust_pickle=True)
    assert zipped.card is None
    seen = np.random.default_rng(3).random((32, own.layout.size), dtype=np.float32)
    np.testing.assert_array_equal(zipped.predict(seen)[0], own.predict(seen)[0])
    env.close()


def test_a_live_environment_and_its_recorded_twin_have_one_name() -> None:
    assert base_name("NSR/CyclicDigitsRecorded-v0") == base_name(LIVE) == LIVE
    assert base_name("my_module:NSR/CyclicDigits-v0") == LIVE
    assert base_name("NSR/CyclicDigits-v1") != LIVE


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for the folder of controllers that come with the suite."""
    monkeypatch.setattr(controller, "TRAINED", tmp_path)
    return tmp_path


def test_shipped_controllers_are_found_by_what_they_play(trained: Path) -> None:
    assert shipped_controllers() == {}
    assert shipped_folder(LIVE) is None
    save(trained / "cyclic-mlp")
    save(trained / "cyclic-pointer", network="pointer")
    save(trained / "cyclic-a2c", "a2c")
    save(trained / "paging", env="NSR/Paging-v0")
    assert len(shipped_controllers()) == 4
    assert shipped_folder(LIVE) == trained / "cyclic-a2c"
    assert shipped_folder("NSR/CyclicDigitsRecorded-v0", algorithm="ppo") == trained / "cyclic-mlp"
    assert shipped_folder(LIVE, network="pointer") == trained / "cyclic-pointer"
    assert shipped_folder("NSR/BlindAllocation-v0") is None
    with gym.make(LIVE, view_size=5, **TINY) as env:
        assert shipped_folder(env) == trained / "cyclic-pointer", "the one that fits the view"
        assert shipped_ppo(env).card.network == "pointer"  # type: ignore[union-attr]
    vector = gym.make_vec(LIVE, 2, vectorization_mode=None, **TINY)
    assert shipped_folder(vector, algorithm="ppo") == trained / "cyclic-mlp"
    own = shipped_ppo(vector, folder=trained / "cyclic-a2c")
    assert own.card.algorithm == "a2c"  # type: ignore[union-attr]
    vector.close()


def test_where_none_is_shipped_the_way_to_one_is_named(trained: Path) -> None:
    save(trained / "cyclic-a2c", "a2c")
    with gym.make(LIVE, **TINY) as env, pytest.raises(StateError, match=f"nsr-gym train {LIVE}"):
        shipped_ppo(env)
