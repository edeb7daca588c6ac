"""Imitation: a controller begins as a copy of a rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nsr_gym.agents import training
from nsr_gym.agents.algorithms import build_model
from nsr_gym.agents.imitation import Demonstrations, demonstrate, imitate
from nsr_gym.agents.training import TrainingConfig, train
from nsr_gym.envs import make_sb3_env
from nsr_gym.errors import InvalidValueError, UnknownNameError

ENV = "NSR/CappedDigitsRecorded-v0"
ARGUMENTS = {"num_tasks": 4, "cycles": 3, "capacity": 2, "reward": "online", "split": "train"}


@pytest.fixture(scope="module")
def shown() -> Demonstrations:
    return demonstrate("similarity-pin", ENV, ARGUMENTS, episodes=100, gamma=0.9)


def test_a_demonstration_holds_every_visit_and_its_discounted_return(
    shown: Demonstrations,
) -> None:
    assert shown.actions.shape == (128 * 12, 3)
    assert shown.observations.shape[0] == shown.returns.shape[0] == 128 * 12
    returns = shown.returns.reshape(12, 128)
    last, before = returns[-1], returns[-2]
    gained = before - 0.9 * last
    assert ((last > 0) & (last <= 1)).all()
    assert ((gained > 0) & (gained <= 1)).all()


def test_episodes_of_different_length_do_not_mix() -> None:
    arguments = {"families": ["cyclic"], "num_tasks": [4, 6], "cycles": 2, "split": "train"}
    shown = demonstrate(
        "similarity", "NSR/MixedDigitsRecorded-v0", arguments, episodes=1, gamma=1.0
    )
    assert 128 * 8 < len(shown.returns) < 128 * 12
    # Where a share of the visits is left, so much can still be gained at the most.
    assert shown.returns.max() <= 12


@pytest.mark.parametrize("network", ["mlp", "pointer"])
def test_the_policy_does_what_the_rule_did(shown: Demonstrations, network: str) -> None:
    env = make_sb3_env(ENV, 4, **ARGUMENTS)
    model = build_model("ppo", env, network=network, seed=0)
    before, _ = model.predict(shown.observations, deterministic=True)
    agreement = imitate(model, shown, seed=0, epochs=250)
    assert (before == shown.actions).mean() < 0.85 < 0.93 < agreement
    values = model.policy.predict_values(
        model.policy.obs_to_tensor(shown.observations)[0]
    ).detach().numpy()[:, 0]  # fmt: skip
    assert np.corrcoef(values, shown.returns)[0, 1] > 0.9


def test_only_rules_that_see_what_the_controller_sees_are_imitated() -> None:
    with pytest.raises(InvalidValueError, match="told more"):
        demonstrate("oracle", ENV, ARGUMENTS, episodes=1, gamma=0.9)
    with pytest.raises(UnknownNameError, match="versatile"):
        TrainingConfig(environment=ENV, imitate="versatil")


def test_learners_that_cannot_imitate_say_so(shown: Demonstrations) -> None:
    env = make_sb3_env(ENV, 4, **ARGUMENTS)
    model = build_model("recurrent-ppo", env, seed=0)
    with pytest.raises(InvalidValueError, match="RecurrentPPO"):
        imitate(model, shown, seed=0, epochs=1)


@pytest.mark.parametrize(
    ("chosen", "match"),
    [({"algorithm": "dqn"}, "DQN"), ({"arguments": {"observation": "dict"}}, "observation='flat'")],
)
def test_they_say_so_before_the_rule_plays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, Any], match: str
) -> None:
    monkeypatch.setattr(training, "demonstrate", lambda *_, **__: pytest.fail("it played"))
    config = TrainingConfig(
        environment=ENV, steps=64, envs=8, eval_episodes=1, imitate="similarity-pin",
        **({"hyperparameters": {}} | chosen),
    )  # fmt: skip
    with pytest.raises(InvalidValueError, match=match):
        train(config, tmp_path)


def test_validation_streams_are_never_shown() -> None:
    with pytest.raises(InvalidValueError, match="validation streams"):
        demonstrate("similarity-pin", ENV, ARGUMENTS, episodes=500_000, gamma=0.9)


def test_training_goes_on_from_the_copy(tmp_path: Path) -> None:
    arguments = {name: value for name, value in ARGUMENTS.items() if name != "split"}
    scores = {}
    for rule in (None, "similarity-pin"):
        config = TrainingConfig(
            environment=ENV, arguments=arguments, network="pointer", steps=2048, envs=64,
            imitate=rule, imitation_episodes=256, eval_every=2048,
            hyperparameters={"learning_rate": 1e-5},
        )  # fmt: skip
        scores[rule] = train(config, tmp_path / str(rule)).scores["last"]["return"]
    assert scores["similarity-pin"] > scores[None] + 1.0
