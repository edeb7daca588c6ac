"""Imitation: a controller begins as a copy of a rule, and learning goes on from there.

Where several decisions pay only together (to pin what the bank holds is no use unless it is done
visit after visit), reinforcement learning from scratch can stay in a local optimum that no single
changed action leaves. Behaviour cloning (Pomerleau 1991) starts it elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch.nn import functional

from nsr_gym.agents.training_validation import FIRST_VALIDATION_SEED
from nsr_gym.errors import InvalidValueError
from nsr_gym.registry import agent_spec, make_agent

_SIDE_BY_SIDE = 128
_BATCH = 1024
_FIRST_SEED = 500_000
"""Streams of the train split from here on are shown. Training may draw some of them as well;
validation never does."""


@dataclass(frozen=True)
class Demonstrations:
    """What a rule saw and did.

    Attributes:
        observations: (n, size) float32.
        actions: (n, components) int64.
        returns: (n,) float32, discounted rewards from there to the end of the episode.
    """

    observations: NDArray[np.float32]
    actions: NDArray[np.int64]
    returns: NDArray[np.float32]


def demonstrate(
    rule: str, environment: str, arguments: dict[str, Any], *, episodes: int, gamma: float
) -> Demonstrations:
    """Let a rule play streams of the train split.

    Args:
        rule: a registered agent that sees what the controller sees.
        environment: id.
        arguments: of the environment.
        episodes: rounded up to whole batches of those that are played side by side.
        gamma: discount of the returns.

    Raises:
        InvalidValueError: the rule is told more than a controller (an oracle), does not play the
            environment, or more episodes than there are streams before those for validation.
    """
    most = (FIRST_VALIDATION_SEED - _FIRST_SEED) // _SIDE_BY_SIDE * _SIDE_BY_SIDE
    if episodes > most:
        raise InvalidValueError(
            f"Expected at most {most:,} episodes to imitate, so that validation streams stay held "
            f"out; got {episodes:,}."
        )
    if agent_spec(rule).environment_arguments("live").keys() - {"access"}:
        raise InvalidValueError(
            f"Expected a rule that sees what the controller sees; {rule!r} is told more."
        )
    env: Any = gym.make_vec(
        environment, _SIDE_BY_SIDE, vectorization_mode="vector_entry_point",
        **{**arguments, "autoreset_mode": "disabled", "observation": "flat"},
    )  # fmt: skip
    parts: list[tuple[NDArray[Any], ...]] = []
    try:
        agent = make_agent(rule, env)
        for first in range(0, episodes, _SIDE_BY_SIDE):
            seeds = [_FIRST_SEED + first + i for i in range(_SIDE_BY_SIDE)]
            parts.append(_play(env, agent, seeds, gamma))
    finally:
        env.close()
    return Demonstrations(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _play(env: Any, agent: Any, seeds: list[int], gamma: float) -> tuple[NDArray[Any], ...]:
    """Play an episode on each seed; observations, actions and returns of all visits."""
    observation, _ = env.reset(seed=seeds)
    state = agent.initial_state(seeds) if hasattr(agent, "initial_state") else None
    engine = env.unwrapped.engine
    longest = int(engine.num_visits.max())
    seen, done, gained = [], [], np.zeros((longest, len(seeds)))
    alive = np.arange(longest)[:, None] < engine.num_visits
    for visit in range(longest):
        actions, state = agent.predict(observation, state=state)
        seen.append(observation)
        done.append(actions)
        observation, gained[visit], over, _, _ = env.step(actions)
        over = over & (visit + 1 < longest)
        if over.any():
            # A finished episode waits in a new one, which does not count.
            observation, _ = env.reset(options={"reset_mask": over})
    returns = np.zeros_like(gained)
    ahead = np.zeros(len(seeds))
    for visit in reversed(range(longest)):
        ahead = np.where(alive[visit], gained[visit] + gamma * ahead, 0.0)
        returns[visit] = ahead
    return np.stack(seen)[alive], np.stack(done)[alive], returns[alive].astype(np.float32)


def check_imitates(model: Any) -> None:
    """Refuse a learner that cannot imitate.

    Raises:
        InvalidValueError: other than PPO, A2C or MaskablePPO, or on observations by name.
    """
    policy = model.policy
    if not hasattr(policy, "evaluate_actions") or hasattr(policy, "lstm_actor"):
        raise InvalidValueError(
            f"Expected PPO, A2C or MaskablePPO to imitate a rule; got {type(model).__name__}. "
            "Take imitate=None for it."
        )
    if isinstance(model.observation_space, spaces.Dict):
        raise InvalidValueError(
            "Expected flat observations to imitate a rule; got observation='dict'. Take "
            "observation='flat', or imitate=None."
        )


def imitate(
    model: Any, shown: Demonstrations, *, seed: int, epochs: int = 20, learning_rate: float = 1e-3
) -> float:
    """Train a learner's policy and value towards what a rule did, and what it got.

    Args:
        model: PPO, A2C or MaskablePPO on flat observations, its policy without memory.
        shown: what the rule did.
        seed: of the order of the batches.
        epochs: passes.
        learning_rate: of Adam, which falls to 0; the learner's own optimiser is not touched.

    Returns:
        The share of demonstrated actions, component by component, that the policy then takes.

    Raises:
        InvalidValueError: a learner that cannot imitate.
    """
    check_imitates(model)
    policy = model.policy
    device = policy.device
    observations = torch.as_tensor(shown.observations, device=device)
    actions = torch.as_tensor(shown.actions, device=device)
    returns = torch.as_tensor(shown.returns, device=device)
    n, rng = len(returns), np.random.default_rng(seed)
    optimiser = torch.optim.Adam(policy.parameters(), lr=learning_rate)
    steps = epochs * -(-n // _BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=steps)
    policy.set_training_mode(True)
    for _ in range(epochs):
        for batch in torch.as_tensor(rng.permutation(n), device=device).split(_BATCH):
            values, likelihood, _ = policy.evaluate_actions(observations[batch], actions[batch])
            loss = functional.mse_loss(values.flatten(), returns[batch]) - likelihood.mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            optimiser.step()
            schedule.step()
    taken, _ = model.predict(shown.observations[:4096], deterministic=True)
    return float((taken == shown.actions[:4096]).mean())
