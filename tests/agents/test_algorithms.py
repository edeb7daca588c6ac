"""Learners by name: each trains, from checked plain values, the same way for the same seed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from nsr_gym.agents.algorithms import (
    ALGORITHMS,
    build_model,
    complete_hyperparameters,
    default_hyperparameters,
    flat_actions,
    layout_sizes,
)
from nsr_gym.agents.settings import Linear
from nsr_gym.envs import make_sb3_env
from nsr_gym.errors import InvalidValueError, MissingDependencyError, UnknownNameError

LIVE = "NSR/CyclicDigits-v0"
TINY: dict[str, Any] = {
    "num_tasks": 2,
    "cycles": 2,
    "learning_steps": 2,
    "updates": 1,
    "support_size": 32,
}
PAIRS = [(name, network) for name, one in ALGORITHMS.items() for network in one.networks]
FEW: dict[str, dict[str, Any]] = {
    "a2c": {"n_steps": 4},
    "dqn": {"learning_starts": 4, "batch_size": 8, "gradient_steps": 1, "buffer_size": 64},
}


def learner(algorithm: str, network: str, *, seed: int = 0, **arguments: Any) -> Any:
    env = make_sb3_env(LIVE, 4, flat_actions=flat_actions(algorithm), **(TINY | arguments))
    few = FEW.get(algorithm, {"n_steps": 4, "n_epochs": 2})
    return build_model(algorithm, env, network=network, seed=seed, **few)


def weights(model: Any) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()])


@pytest.mark.parametrize("observation", ["flat", "dict"])
@pytest.mark.parametrize(("algorithm", "network"), PAIRS)
def test_every_learner_trains_every_network_it_names(
    algorithm: str, network: str, observation: str
) -> None:
    model = learner(algorithm, network, observation=observation)
    before = weights(model)
    model.learn(32)
    after = weights(model)
    assert (before != after).any()
    assert np.isfinite(after).all()


@pytest.mark.parametrize(("algorithm", "network"), [("ppo", "pointer"), ("dqn", "mlp")])
def test_the_seed_decides_what_is_learned(algorithm: str, network: str) -> None:
    def learned(seed: int) -> np.ndarray:
        return weights(learner(algorithm, network, seed=seed).learn(32))

    np.testing.assert_array_equal(learned(1), learned(1))
    assert (learned(1) != learned(2)).any()


class Untouchable:
    """Environments of which nothing may be asked but how many they are."""

    num_envs = 64


def test_what_does_not_exist_is_refused_before_anything_is_built() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'learning_rate'"):
        build_model("ppo", Untouchable(), learning_rat=1e-3)
    with pytest.raises(UnknownNameError, match="Did you mean 'maskable-ppo'"):
        build_model("maskableppo", Untouchable())
    with pytest.raises(UnknownNameError, match="Did you mean 'pointer'"):
        build_model("ppo", Untouchable(), network="pointr")
    with pytest.raises(UnknownNameError, match="Did you mean 'tanh'"):
        build_model("ppo", Untouchable(), activation="tan")


def test_a_network_takes_its_own_settings_only() -> None:
    with pytest.raises(UnknownNameError, match="net_arch"):
        build_model("ppo", Untouchable(), network="pointer", net_arch=[64])
    with pytest.raises(UnknownNameError, match="width"):
        build_model("ppo", Untouchable(), width=64)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", "1e-3"),
        ("learning_rate", "lin_fast"),
        ("learning_rate", 0.0),
        ("learning_rate", "lin_-1"),
        ("gamma", 1.5),
        ("gamma", float("nan")),
        ("n_steps", 0),
        ("n_steps", 2.0),
        ("n_epochs", True),
        ("normalize_advantage", 1),
        ("net_arch", 64),
        ("net_arch", [64, 0]),
        ("net_arch", {"pi": [64]}),
        ("target_kl", -1),
        ("ent_coef", None),
        ("batch_size", 1),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidValueError, match=name if "lin_f" not in str(value) else "lin_1e-3"):
        build_model("ppo", Untouchable(), **{name: value})


def test_value_based_learners_have_one_network() -> None:
    with pytest.raises(InvalidValueError, match="net_arch as a list"):
        build_model("dqn", Untouchable(), net_arch={"pi": [8], "vf": [8]})


@pytest.mark.parametrize("num_envs", [1, 2, 3, 7, 16, 64, 100, 513, 4096])
@pytest.mark.parametrize("algorithm", ["ppo", "maskable-ppo", "recurrent-ppo"])
def test_batches_divide_the_rollout_by_default(algorithm: str, num_envs: int) -> None:
    values = complete_hyperparameters(algorithm, {}, num_envs=num_envs)
    rollout = values["n_steps"] * num_envs
    assert rollout % values["batch_size"] == 0
    assert 64 <= values["batch_size"] <= 256
    odd = complete_hyperparameters(algorithm, {"n_steps": 7}, num_envs=num_envs)
    assert 7 * num_envs % odd["batch_size"] == 0
    assert odd["batch_size"] > 1


def test_a_batch_size_that_does_not_divide_names_one_that_does() -> None:
    with pytest.raises(InvalidValueError, match="Nearest: 64"):
        complete_hyperparameters("ppo", {"n_steps": 8, "batch_size": 100}, num_envs=16)
    with pytest.raises(InvalidValueError, match="at least two"):
        complete_hyperparameters("ppo", {"n_steps": 1}, num_envs=1)


def test_defaults_are_complete_and_their_own() -> None:
    for algorithm, network in PAIRS:
        values = default_hyperparameters(algorithm, network=network)
        assert complete_hyperparameters(algorithm, {}, network=network).keys() == values.keys()
        assert None not in {k: v for k, v in values.items() if k.startswith(("n_", "batch"))}
    values["learning_rate"] = 99.0
    assert default_hyperparameters(algorithm, network=network)["learning_rate"] != 99.0


def test_a_linear_schedule_falls_to_zero() -> None:
    model = build_model(
        "ppo",
        make_sb3_env(LIVE, 2, **TINY),
        n_steps=4,
        n_epochs=1,
        learning_rate="lin_1e-3",
        clip_range="lin_0.2",
    )
    assert model.lr_schedule(1.0) == pytest.approx(1e-3)
    assert model.lr_schedule(0.25) == pytest.approx(2.5e-4)
    assert Linear.parse("lin_1e-3")(0.0) == 0.0
    model.learn(16)
    assert model.clip_range(0.5) == pytest.approx(0.1)


@pytest.mark.parametrize("algorithm", ["dqn", "recurrent-ppo"])
def test_learners_without_a_pointer_say_which_have_one(algorithm: str) -> None:
    with pytest.raises(InvalidValueError, match="ppo, maskable-ppo, a2c"):
        build_model(algorithm, Untouchable(), network="pointer")


def test_numbered_actions_are_asked_for() -> None:
    with pytest.raises(InvalidValueError, match="flat_actions=True"):
        build_model("dqn", make_sb3_env(LIVE, 1, **TINY))


def test_contrib_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_sb3_env(LIVE, 2, **TINY)
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    for algorithm in ("maskable-ppo", "recurrent-ppo"):
        with pytest.raises(MissingDependencyError, match=r"nsr-gym\[contrib\]"):
            build_model(algorithm, env)
    build_model("ppo", env, network="pointer")


def test_the_layout_is_found_in_wrappers_and_single_environments() -> None:
    native = make_sb3_env(LIVE, 2, **TINY)
    singles = make_vec_env(LIVE, 2, env_kwargs=TINY, vec_env_cls=DummyVecEnv)
    assert layout_sizes(VecMonitor(native)) == layout_sizes(singles) == layout_sizes(native)
    assert sum(layout_sizes(native).values()) == native.observation_space.shape[0]
    other = make_vec_env("CartPole-v1", 1)
    with pytest.raises(InvalidValueError, match="of the suite"):
        build_model("ppo", other, network="pointer")


def test_names_are_known_without_torch() -> None:
    code = (
        "import sys, nsr_gym.agents.algorithms as a, nsr_gym.agents.card; a.ALGORITHMS; "
        "sys.exit('torch' in sys.modules or 'stable_baselines3' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
