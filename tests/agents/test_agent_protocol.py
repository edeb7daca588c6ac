"""Every agent stands wherever an SB3 model can: the same `predict`, single, batched, flat, dict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from nsr_gym import registry
from nsr_gym.agents import agent_spec, agent_specs, make_agent, register_agent
from nsr_gym.envs.config import ACCESS
from nsr_gym.errors import AccessError, InvalidValueError, NsrGymError, UnknownNameError

Make = Callable[..., Any]

NAMES = [spec.name for spec in agent_specs("live")]


def arguments(name: str) -> dict[str, Any]:
    return agent_spec(name).environment_arguments("live")


def test_the_suite_s_agents_are_there() -> None:
    assert set(NAMES) >= {
        "similarity", "trial-loss", "oracle", "random", "greedy", "uniform",
        "loss-proportional", "recency", "random-rank", "pin-one", "fresh",
    }  # fmt: skip
    access = {spec.name: spec.access for spec in agent_specs()}
    assert access["similarity"] == access["oracle"] == access["random"] == "bank"
    assert access["greedy"] == access["pin-one"] == access["uniform"] == "memoryless"
    assert access["fresh"] == "visit"
    told = [s.name for s in agent_specs("live") if s.plays["live"].get("observe_task_id")]
    assert told == ["oracle", "oracle-pin", "oracle-nearest", "oracle-thrifty"]


@pytest.mark.parametrize("name", NAMES)
def test_an_agent_plays_an_episode_in_the_action_space_and_is_never_projected(
    name: str, make_env: Make
) -> None:
    env = make_env(**arguments(name))
    agent = make_agent(name, env)
    observation, _ = env.reset(seed=0)
    state, over = None, False
    while not over:
        action, state = agent.predict(observation, state=state, deterministic=True)
        assert action in env.action_space
        observation, _, over, _, info = env.step(action)
        assert not info["projected"]


@pytest.mark.parametrize("name", NAMES)
def test_single_batched_flat_and_dict_observations_are_answered_alike(
    name: str, make_vec: Make
) -> None:
    env = make_vec(3, **arguments(name))
    by_name = make_vec(3, observation="dict", **arguments(name))
    agent, dict_agent = make_agent(name, env), make_agent(name, by_name)
    observation, _ = env.reset(seed=0)
    named, _ = by_name.reset(seed=0)
    for _ in range(5):
        actions, _ = agent.predict(observation, state=state_of(agent, range(3)))
        assert actions.shape == (3, 3)
        assert actions.dtype == np.int64
        again, _ = dict_agent.predict(named, state=state_of(dict_agent, range(3)))
        np.testing.assert_array_equal(again, actions)
        for i in range(3):
            one, _ = agent.predict(observation[i], state=state_of(agent, [i]))
            assert one.shape == (3,)
            np.testing.assert_array_equal(one, actions[i])
            single = {key: value[i] for key, value in named.items()}
            one, _ = dict_agent.predict(single, state=state_of(dict_agent, [i]))
            np.testing.assert_array_equal(one, actions[i])
        observation, *_ = env.step(actions)
        named, *_ = by_name.step(actions)


def state_of(agent: Any, seeds: Any) -> Any:
    return agent.initial_state(list(seeds))


@pytest.mark.parametrize("name", NAMES)
def test_an_agent_is_made_for_a_wrapped_and_for_a_vector_environment(
    name: str, tiny: dict[str, Any], make_vec: Make
) -> None:
    wrapped = gym.make("NSR/CyclicDigits-v0", **tiny | arguments(name))
    assert (
        make_agent(name, wrapped).layout.sizes
        == make_agent(name, make_vec(2, **arguments(name))).layout.sizes
    )
    wrapped.close()


@pytest.mark.parametrize("name", NAMES)
def test_asking_twice_from_one_state_gives_one_answer(name: str, make_env: Make) -> None:
    env = make_env(**arguments(name))
    agent = make_agent(name, env)
    observation, _ = env.reset(seed=0)
    env_state = agent.initial_state([3])
    first, _ = agent.predict(observation, state=env_state)
    second, _ = agent.predict(observation, state=env_state)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", ["random", "random-rank"])
def test_random_agents_depend_on_the_episode_s_seed_alone(name: str, make_env: Make) -> None:
    env = make_env(**arguments(name))
    agent = make_agent(name, env)
    seen = np.full((1, agent.layout.size), 0.5, dtype=np.float32)

    def draw(seeds: list[int], row: int) -> list[list[int]]:
        state, actions = agent.initial_state(seeds), []
        for _ in range(20):
            action, state = agent.predict(np.repeat(seen, len(seeds), axis=0), state=state)
            actions.append(action[row].tolist())
        return actions

    alone = draw([7], 0)
    assert draw([3, 7, 5], 1) == alone
    assert draw(list(range(20)), 7) == alone
    assert draw([8], 0) != alone
    assert len({tuple(action) for action in alone}) > 1, "the same action at every step"


@pytest.mark.parametrize("name", ["random", "random-rank"])
def test_random_agents_take_every_legal_value(name: str, make_vec: Make) -> None:
    env = make_vec(400, **arguments(name) | {"num_tasks": 1, "cycles": 1})
    agent = make_agent(name, env)
    observation, _ = env.reset(seed=0)
    actions, _ = agent.predict(observation, state=agent.initial_state(range(400)))
    assert set(actions[:, 0]) == {0}
    assert set(actions[:, 1]) == {0, 1, 2, 3}
    assert set(actions[:, 2]) == ({0, 1, 2} if name == "random" else {1})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 1, 3), ()])
def test_observations_of_another_size_are_refused(
    name: str, shape: tuple[int, ...], make_env: Make
) -> None:
    agent = make_agent(name, make_env(**arguments(name)))
    with pytest.raises(InvalidValueError, match="observations"):
        agent.predict(np.zeros((*shape[:-1], agent.layout.size + 1) if shape else (), np.float32))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("access", ACCESS)
def test_an_agent_refuses_an_environment_of_another_access_level(
    name: str, access: str, make_env: Make
) -> None:
    spec = agent_spec(name)
    if access == spec.access:
        make_agent(name, make_env(**arguments(name)))
        return
    # Alone: environments of another level may refuse by themselves what the agent sets beside.
    with pytest.raises(AccessError, match=f"access='{spec.access}'"):
        make_agent(name, make_env(access=access))


def test_an_oracle_that_is_not_told_the_task_is_refused(make_env: Make) -> None:
    env = make_env()
    observation, _ = env.reset(seed=0)
    with pytest.raises(AccessError, match="same_task"):
        make_agent("oracle", env).predict(observation)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("similarty", "similarity"), ("pinone", "pin-one"), ("orakel", "oracle")],
)
def test_an_unknown_agent_is_answered_with_the_closest(
    wrong: str, meant: str, make_env: Make
) -> None:
    with pytest.raises(UnknownNameError, match=f"no agent '{wrong}'.*'{meant}'"):
        make_agent(wrong, make_env())
    with pytest.raises(UnknownNameError, match=r"Known: .*similarity"):
        agent_spec("qqq")


@pytest.mark.parametrize("threshold", [-1.1, 1.1, float("nan")])
def test_a_similarity_threshold_is_a_cosine(threshold: float, make_env: Make) -> None:
    with pytest.raises(InvalidValueError, match="threshold"):
        make_agent("similarity", make_env(), threshold=threshold)


@pytest.mark.parametrize("name", ["trial-loss", "pin-one"])
@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan")])
def test_a_threshold_of_loss_is_positive(name: str, threshold: float, make_env: Make) -> None:
    with pytest.raises(InvalidValueError, match="threshold"):
        make_agent(name, make_env(**arguments(name)), threshold=threshold)


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_AGENTS", dict(registry._AGENTS))


@pytest.mark.usefixtures("own_registry")
class TestRegistration:
    def test_an_own_agent_is_made_by_name(self, make_env: Make) -> None:
        register_agent(
            "mine", "nsr_gym.agents.bank_rules:SimilarityAgent", access="bank", summary="mine"
        )
        assert agent_specs()[-1].name == "mine"
        assert make_agent("mine", make_env(), threshold=0.5).threshold == 0.5

    def test_the_same_registration_may_be_repeated(self) -> None:
        for _ in range(2):
            register_agent("mine", "a.b:C", access="bank", summary="mine")
        assert [spec.name for spec in agent_specs()].count("mine") == 1

    @pytest.mark.parametrize(
        "other",
        [
            {"entry_point": "a.b:D"},
            {"access": "visit"},
            {"summary": "other"},
            {"plays": {"live": {"observe_task_id": True}}},
        ],
        ids=str,
    )
    def test_a_name_stands_for_one_agent(self, other: dict[str, Any]) -> None:
        chosen: dict[str, Any] = {"entry_point": "a.b:C", "access": "bank", "summary": "mine"}
        register_agent("mine", **chosen)
        with pytest.raises(InvalidValueError, match="'mine'"):
            register_agent("mine", **chosen | other)
        assert agent_spec("mine").entry_point == "a.b:C"

    @pytest.mark.parametrize("entry_point", ["", "module", "a:b:c"])
    def test_an_entry_point_names_module_and_callable(self, entry_point: str) -> None:
        with pytest.raises(InvalidValueError, match="module:callable"):
            register_agent("mine", entry_point, access="bank", summary="mine")

    def test_an_access_level_that_does_not_exist_is_refused(self) -> None:
        with pytest.raises(NsrGymError, match="access"):
            register_agent("mine", "a.b:C", access="banks", summary="mine")
