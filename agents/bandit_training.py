"""Trains the bank's bandits on train-split streams: `python -m nsr_gym.agents.bandit_training`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from nsr_gym.agents.bandit_features import Bools, Floats, choice_features, feature_names
from nsr_gym.agents.bank_bandits import (
    KINDS,
    BanditWeights,
    BankBanditAgent,
    base_name,
    best_choice,
)
from nsr_gym.agents.base import Ints
from nsr_gym.agents.thresholds import loss_threshold
from nsr_gym.envs.arguments import check_number, check_whole
from nsr_gym.errors import unknown
from nsr_gym.evaluation.calibrate import update_file
from nsr_gym.registration import ENVIRONMENTS, RECORDED_IMAGES

DEFAULT_EXPLORATION = {"linucb": 0.5, "thompson": 0.25, "epsilon-greedy": 0.1}
"""LinUCB: factor of the confidence width. Thompson sampling: that of the posterior's deviation.
Epsilon-greedy: the probability of a random choice."""


class LinearBandit:
    """Ridge regression of rewards on the features of choices, and a way to explore.

    LinUCB after Li, Chu, Langford and Schapire (2010) with one model for all choices; Thompson
    sampling after Agrawal and Goyal (2013), one draw for each episode and step.

    Attributes:
        theta: (d,) the estimate.
    """

    def __init__(self, *, kind: str, size: int, exploration: float, ridge: float = 1.0) -> None:
        """Start without data.

        Args:
            kind: one of `KINDS`.
            size: d.
            exploration: see `DEFAULT_EXPLORATION`.
            ridge: weight of the prior.

        Raises:
            UnknownNameError: no such kind.
            InvalidValueError: a number out of range.
        """
        if kind not in KINDS:
            raise unknown("kind of bandit", kind, KINDS)
        check_number("exploration", exploration, low=0.0)
        check_number("ridge", ridge, low=0.0, open_low=True)
        self.kind, self.exploration = kind, exploration
        self._precision = ridge * np.eye(size)
        self._response = np.zeros(size)
        self.theta: Floats = np.zeros(size)

    def choose(self, phi: Floats, valid: Bools, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Return entries and ranks (n,), exploring.

        Args:
            phi: (n, S + 1, Q, d) features of all choices.
            valid: (n, S + 1) which entries there are.
            rng: what chance is left to.
        """
        if self.kind == "epsilon-greedy":
            recall, rank = best_choice(np.einsum("nkqd,d->nkq", phi, self.theta), valid)
            other = best_choice(rng.random(phi.shape[:3]), valid)
            explores = rng.random(len(phi)) < self.exploration
            return np.where(explores, other[0], recall), np.where(explores, other[1], rank)
        # With precision L L^T, the deviation of x . theta is |L^-1 x|.
        inverse = np.linalg.inv(np.linalg.cholesky(self._precision))
        if self.kind == "thompson":
            draws = rng.standard_normal((len(phi), len(self.theta))) @ inverse
            theta = self.theta + self.exploration * draws
            return best_choice(np.einsum("nkqd,nd->nkq", phi, theta), valid)
        mean = np.einsum("nkqd,d->nkq", phi, self.theta)
        width = np.linalg.norm(phi @ inverse.T, axis=3)
        return best_choice(mean + self.exploration * width, valid)

    def learn(self, features: Floats, reward: NDArray[Any]) -> None:
        """Take the rewards (n,) of choices with features (n, d) into account."""
        self._precision += features.T @ features
        self._response += features.T @ reward
        self.theta = np.asarray(np.linalg.solve(self._precision, self._response))


def train_bandit(
    kind: str,
    environment: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    episodes: int = 512,
    seed: int = 0,
    num_envs: int = 64,
    keep: bool = True,
    threshold: float | None = None,
    exploration: float | None = None,
) -> BanditWeights:
    """Train a bandit on streams of the train split and freeze it.

    Args:
        kind: one of `KINDS`.
        environment: id.
        arguments: of the environment.
        episodes: at least so many are played to their end.
        seed: of streams and exploration.
        num_envs: episodes side by side; the estimate is updated once for all of them.
        keep: discard what would be added to a full bank.
        threshold: trial loss in nats below which a recalled entry is updated; None takes the value
            calibrated on train-split streams.
        exploration: see `DEFAULT_EXPLORATION`; None takes the value there.

    Raises:
        UnknownNameError: no such kind or argument.
        InvalidValueError: a number out of range.
        StateError: no threshold is given and none was calibrated.
    """
    check_whole("episodes", episodes, least=1)
    check_whole("num_envs", num_envs, least=1)
    check_whole("seed", seed, least=0)
    if kind not in KINDS:
        raise unknown("kind of bandit", kind, KINDS)
    given = dict(arguments or {})
    env: Any = gym.make_vec(
        environment,
        num_envs=min(num_envs, episodes),
        vectorization_mode=None,
        **given | {"split": "train", "access": "bank", "autoreset_mode": "same_step"},
    )
    try:
        engine = env.unwrapped.engine
        layout, ranks = engine.layout, tuple(engine.config.ranks)
        names = feature_names(ranks)
        strength = DEFAULT_EXPLORATION[kind] if exploration is None else exploration
        fitting = loss_threshold(env, threshold)
        bandit = LinearBandit(kind=kind, size=len(names), exploration=strength)

        def freeze() -> BanditWeights:
            return BanditWeights(
                kind=kind, ranks=ranks, features=names, theta=tuple(bandit.theta.tolist()),
                keep=keep, threshold=fitting, environment=environment, arguments=given,
                episodes=episodes, seed=seed,
            )  # fmt: skip

        agent = BankBanditAgent(env, weights=freeze())
        rng = np.random.default_rng(np.random.SeedSequence([seed, KINDS.index(kind)]))
        observation, _ = env.reset(seed=seed)
        finished, rows = 0, np.arange(env.num_envs)
        while finished < episodes:
            phi, valid = choice_features(layout, observation)
            recall, rank = bandit.choose(phi, valid, rng)
            actions = agent.carry_out(observation, recall, rank)
            observation, reward, terminated, truncated, _ = env.step(actions)
            bandit.learn(phi[rows, recall, rank], reward)
            finished += int((terminated | truncated).sum())
        return freeze()
    finally:
        env.close()


def trainable() -> list[str]:
    """Return the environments whose bandits ship, those on digits, recorded where they can be."""
    live = [
        name
        for name, spec in ENVIRONMENTS.items()
        if spec.family == "live" and not spec.needs_data and name not in RECORDED_IMAGES
    ]
    best = {base_name(name): name for name in sorted(live, key=lambda name: "Recorded" in name)}
    return [best[name] for name in dict.fromkeys(map(base_name, live))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every kind of bandit for some environments and write them to one JSON file."""
    parser = argparse.ArgumentParser(description="Train the bank's bandits on train-split streams.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; other entries stay")
    parser.add_argument("--env", action="append", help="environment id; repeatable (all)")
    parser.add_argument("--episodes", type=int, default=512, help="of each bandit")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    for environment in given.env or trainable():
        found = {}
        for kind in KINDS:
            weights = train_bandit(kind, environment, episodes=given.episodes, seed=given.seed)
            found[kind] = weights.to_json()
            print(f"{environment} {kind}: {weights.episodes} episodes")
        update_file(given.output, base_name(environment), found)


if __name__ == "__main__":
    main()
