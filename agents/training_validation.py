"""Scores of a controller on streams of the train split that it does not train on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from nsr_gym.agents.algorithms import algorithm_spec
from nsr_gym.envs import make_sb3_env
from nsr_gym.registration import environment_family

FIRST_VALIDATION_SEED = 1_000_000
"""Streams of the train split from this seed on are for validation, those below for training."""


class Validation:
    """Plays the same episodes each time, side by side.

    In live environments actions are the likeliest ones; in exact ones, where the best policy may
    have to randomise, they are drawn, with the same random numbers each time.
    """

    def __init__(
        self, environment: str, arguments: Mapping[str, Any], *, algorithm: str, episodes: int
    ) -> None:
        """Build the environments.

        Args:
            environment: id.
            arguments: of the environment.
            algorithm: a name of `nsr_gym.agents.algorithms.ALGORITHMS`.
            episodes: of seeds 1,000,000 and following.
        """
        spec = algorithm_spec(algorithm)
        self._env = make_sb3_env(
            environment, episodes, flat_actions=spec.flat_actions, **dict(arguments)
        )
        # An off-policy learner explores where it draws.
        live = environment_family(environment) not in ("allocation", "paging")
        self._deterministic = live or spec.flat_actions

    def score(self, model: Any) -> dict[str, float]:
        """Play the episodes.

        Args:
            model: of Stable-Baselines3; its state and random numbers are left alone.

        Returns:
            `return`: mean over episodes of the sum of rewards; `per_visit`: mean reward of a step,
            which is a visit in live environments; `episodes`.
        """
        n = self._env.num_envs
        self._env.seed(FIRST_VALIDATION_SEED)
        observation: Any = self._env.reset()
        takes_masks = "action_masks" in inspect.signature(model.predict).parameters
        state, start = None, np.ones(n, dtype=bool)
        returns, steps, over = np.zeros(n), 0, np.zeros(n, dtype=bool)
        # Seeding reaches the generator of the learner's GPU as well.
        gpus = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus):
            torch.manual_seed(FIRST_VALIDATION_SEED)
            while not over.all():
                masks = {}
                if takes_masks:
                    masks["action_masks"] = np.stack(self._env.env_method("action_masks"))
                actions, state = model.predict(
                    observation,
                    state=state,
                    episode_start=start,
                    deterministic=self._deterministic,
                    **masks,
                )
                observation, rewards, start, _ = self._env.step(actions)
                returns += np.where(over, 0.0, rewards)
                steps += int((~over).sum())
                over |= start
        return {
            "return": float(returns.mean()),
            "per_visit": float(returns.sum() / steps),
            "episodes": n,
        }

    def close(self) -> None:
        """Close the environments."""
        self._env.close()
