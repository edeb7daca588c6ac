"""What agents share: the `predict` signature of Stable-Baselines3, on decoded observations."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.envs.layout import ObservationLayout
from nsr_gym.envs.memory import UPDATE
from nsr_gym.errors import AccessError, InvalidValueError

Ints = NDArray[np.int64]
Observation = NDArray[Any] | Mapping[str, NDArray[Any]]
State = tuple[NDArray[Any], ...] | None


class RuleAgent(abc.ABC):
    """A hand-written policy that can stand wherever an SB3 model can.

    Attributes:
        access: access level of the environments it plays.
        layout: of the observations it reads.
        config: of the episodes it plays.
    """

    access: str = "bank"

    def __init__(self, env: Any) -> None:
        """Fit the rule to an environment (single or vector, wrapped or not).

        Raises:
            AccessError: the environment's access level is not the rule's.
            InvalidValueError: it is no environment of the suite.
        """
        engine = getattr(env.unwrapped, "engine", None)
        if engine is None:
            raise InvalidValueError(
                f"{type(self).__name__} plays environments of the suite; {env} is none."
            )
        self.layout: ObservationLayout = engine.layout
        self.config = engine.config
        if self.config.access != self.access:
            raise AccessError(
                f"{type(self).__name__} plays environments with access={self.access!r}; this one "
                f"has access={self.config.access!r}."
            )

    def predict(
        self,
        observation: Observation,
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[Ints, State]:
        """Choose actions, with the signature of `stable_baselines3`'s `predict`.

        Args:
            observation: (size,) or (n, size), or a dict of such values by field.
            state: what the last call returned; None at first.
            episode_start: (n,) bool, where an episode began; rules here need none.
            deterministic: no effect on rules that draw nothing.

        Returns:
            Actions (3,) or (n, 3), and the next state.
        """
        if isinstance(observation, Mapping):
            flat = np.concatenate([np.asarray(observation[k]) for k in self.layout.sizes], axis=-1)
        else:
            flat = np.asarray(observation)
        if flat.ndim not in (1, 2) or flat.shape[-1] != self.layout.size:
            raise InvalidValueError(
                f"Expected observations of {self.layout.size} values; got shape {flat.shape}."
            )
        actions, state = self.act(np.atleast_2d(flat), state)
        return (actions if flat.ndim == 2 else actions[0]), state

    @abc.abstractmethod
    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""

    def initial_state(self, seeds: Sequence[int]) -> State:
        """Return the state to begin n episodes with; None for a rule that keeps none."""
        return None

    def action(self, n: int, *, recall: Any = 0, rank: Any = None, reserve: Any = UPDATE) -> Ints:
        """Put n actions together; `rank` is an index, None grants the largest rank."""
        actions = np.empty((n, 3), dtype=np.int64)
        actions[:, 0] = recall
        actions[:, 1] = len(self.config.ranks) - 1 if rank is None else rank
        actions[:, 2] = reserve
        return actions

    def rank_index(self, rank: Any) -> Ints:
        """Return the index of the largest grantable rank of at most `rank`, at least 0."""
        ranks = np.array(self.config.ranks)
        return np.maximum(0, np.searchsorted(ranks, np.asarray(rank), side="right") - 1)


class RandomState:
    """Uniform numbers that depend on an episode's seed and step alone.

    The state is (seeds, steps), so that the same episode draws the same numbers whatever
    episodes run beside it, and asking "what would you do" advances nothing. Without a state the
    rows are the seeds and every call is a first step: pass on the state that `predict` returns.
    """

    @staticmethod
    def start(seeds: Sequence[int]) -> State:
        """Return the state of n episodes before their first step."""
        return np.array(seeds, dtype=np.uint64), np.zeros(len(seeds), dtype=np.uint64)

    @staticmethod
    def draw(state: State, n: int, size: int) -> tuple[NDArray[np.float64], State]:
        """Return numbers (n, size) in [0, 1) and the next state."""
        seeds, steps = RandomState.start(range(n)) if state is None else state  # type: ignore[misc]
        numbers = np.empty((n, size))
        for i, (seed, step) in enumerate(zip(seeds, steps, strict=True)):
            key = np.array([seed, _AGENT_KEY], dtype=np.uint64)
            counter = np.array([0, 0, 0, step], dtype=np.uint64)
            rng = np.random.Generator(np.random.Philox(key=key, counter=counter))
            numbers[i] = rng.random(size)
        return numbers, (seeds, steps + np.uint64(1))


_AGENT_KEY = 0x61676E74
"""Sets an agent's random numbers apart from those of episodes with the same seed."""
