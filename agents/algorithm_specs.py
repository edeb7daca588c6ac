"""The learning algorithms of Stable-Baselines3 that the suite knows, before any is imported."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nsr_gym.agents.settings import ROLLOUT_DEFAULTS
from nsr_gym.errors import MissingDependencyError, unknown

NETWORKS = ("mlp", "pointer")
"""A plain perceptron on the whole observation, and the network that points at bank entries."""

_ACTOR = {"net_arch": [64, 64], "activation": "tanh", "ortho_init": True}
POINTER = {"width": 64, "activation": "relu"}
"""Hyper-parameters of the pointer network."""
_CLIPPED: dict[str, Any] = {
    **ROLLOUT_DEFAULTS,
    "learning_rate": 1e-3,
    "n_epochs": 10,
    "gae_lambda": 0.95,
    "normalize_advantage": True,
    "clip_range": 0.2,
    "clip_range_vf": None,
    "target_kl": None,
    "batch_size": 256,
}


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What is known of a learning algorithm before its package is imported.

    Attributes:
        name: what `--algorithm` takes.
        module: Python module of its class.
        class_name: of the class in it.
        policies: names of its policies for flat observations and for dicts.
        defaults: of its hyper-parameters; they are also the list of what it takes.
        network: the same for its multilayer perceptron.
        networks: which of `NETWORKS` it can train.
        flat_actions: whether an action must be one number.
        masks: whether it takes action masks.
        recurrent: whether its policy has a state.
    """

    name: str
    module: str
    class_name: str
    policies: tuple[str, str] = ("MlpPolicy", "MultiInputPolicy")
    defaults: Mapping[str, Any]
    network: Mapping[str, Any]
    networks: tuple[str, ...] = NETWORKS
    flat_actions: bool = False
    masks: bool = False
    recurrent: bool = False

    def load(self) -> Any:
        """Import the class.

        Raises:
            MissingDependencyError: sb3-contrib is needed and not installed.
        """
        try:
            return getattr(importlib.import_module(self.module), self.class_name)
        except ModuleNotFoundError as error:
            if error.name != "sb3_contrib":
                raise
            raise MissingDependencyError(
                f"The algorithm {self.name!r} needs sb3-contrib, which is not installed; "
                "pip install nsr-gym[contrib]."
            ) from error


_ALL = (
    Algorithm(
        name="ppo",
        module="stable_baselines3",
        class_name="PPO",
        defaults=_CLIPPED,
        network=_ACTOR,
    ),
    Algorithm(
        name="maskable-ppo",
        module="sb3_contrib",
        class_name="MaskablePPO",
        defaults=_CLIPPED,
        network=_ACTOR,
        masks=True,
    ),
    Algorithm(
        name="recurrent-ppo",
        module="sb3_contrib",
        class_name="RecurrentPPO",
        policies=("MlpLstmPolicy", "MultiInputLstmPolicy"),
        defaults=_CLIPPED,
        network={**_ACTOR, "lstm_hidden_size": 64, "n_lstm_layers": 1, "enable_critic_lstm": True},
        networks=("mlp",),
        recurrent=True,
    ),
    Algorithm(
        name="a2c",
        module="stable_baselines3",
        class_name="A2C",
        defaults={
            **ROLLOUT_DEFAULTS,
            "learning_rate": 7e-4,
            "n_steps": 8,
            "gae_lambda": 1.0,
            "normalize_advantage": False,
            "rms_prop_eps": 1e-5,
            "use_rms_prop": True,
        },
        network=_ACTOR,
    ),
    Algorithm(
        name="dqn",
        module="stable_baselines3",
        class_name="DQN",
        defaults={
            "learning_rate": 1e-3,
            "gamma": 0.99,
            "batch_size": 128,
            "buffer_size": 100_000,
            "learning_starts": 1_000,
            "train_freq": 1,
            "gradient_steps": 4,
            "n_steps": 1,
            "tau": 1.0,
            "target_update_interval": 2_000,
            "exploration_fraction": 0.3,
            "exploration_initial_eps": 1.0,
            "exploration_final_eps": 0.05,
            "max_grad_norm": 10.0,
        },
        network={"net_arch": [64, 64], "activation": "relu"},
        networks=("mlp",),
        flat_actions=True,
    ),
)

ALGORITHMS: dict[str, Algorithm] = {one.name: one for one in _ALL}
"""Name -> algorithm."""


def algorithm_spec(name: str) -> Algorithm:
    """Look an algorithm up.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in ALGORITHMS:
        raise unknown("algorithm", name, ALGORITHMS)
    return ALGORITHMS[name]


def flat_actions(algorithm: str) -> bool:
    """Return whether an algorithm needs actions that are one number (`make_sb3_env` makes them).

    Raises:
        UnknownNameError: no such algorithm.
    """
    return algorithm_spec(algorithm).flat_actions
