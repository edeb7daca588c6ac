"""What agents share: the `predict` signature of Stable-Baselines3, on decoded observations."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nsr_gym.envs.layout import Layout, ObservationLayout
from nsr_gym.envs.memory import UPDATE
from nsr_gym.errors import AccessError, InvalidValueError
from nsr_gym.noise import uniform

Ints = NDArray[np.int64]
Observation = NDArray[Any] | Mapping[str, NDArray[Any]]
State = tuple[NDArray[Any], ...] | None


class RuleAgent(abc.ABC):
    """A hand-written policy that can stand wherever an SB3 model can.

    Attributes:
        family: of the environments it plays.
        layout: of the observations it reads.
        config: of the episodes it plays.
    """

    family: ClassVar[str]
    layout: Layout

    def __init__(self, env: Any) -> None:
        """Fit the rule to an environment (single or vector, wrapped or not).

        Raises:
            InvalidValueError: it is no environment of the suite, or of another family.
        """
        engine = find_engine(env)
        if engine.family != self.family:
            raise InvalidValueError(
                f"{type(self).__name__} plays {self.family} environments; {env} is a "
                f"{engine.family} one."
            )
        self.layout = engine.layout
        self.config = engine.config

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
            episode_start: (n,) bool, where the observation is an episode's first: what the state
                says of the episode before is forgotten there.
            deterministic: no effect: what a rule draws belongs to it.

        Returns:
            An action or n actions, and the next state.
        """
        if isinstance(observation, Mapping):
            flat = np.concatenate([np.asarray(observation[k]) for k in self.layout.sizes], axis=-1)
        else:
            flat = np.asarray(observation)
        if flat.ndim not in (1, 2) or flat.shape[-1] != self.layout.size:
            raise InvalidValueError(
                f"Expected observations of {self.layout.size} values; got shape {flat.shape}."
            )
        if state is not None and episode_start is not None and np.any(episode_start):
            state = self.restart(state, np.atleast_1d(episode_start))
        actions, state = self.act(np.atleast_2d(flat), state)
        return (actions if flat.ndim == 2 else actions[0]), state

    @abc.abstractmethod
    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return n actions for observations (n, size), and the next state."""

    def initial_state(self, seeds: Sequence[int]) -> State:
        """Return the state to begin n episodes with; None for a rule that keeps none."""
        return None

    def restart(self, state: tuple[NDArray[Any], ...], begun: NDArray[np.bool_]) -> State:
        """Forget the episode before where another one has begun.

        Args:
            state: arrays of n episodes.
            begun: (n,) where one has begun.

        Returns:
            The state with what `initial_state` gives in those rows. Random numbers go on with
            others than in the episode before.
        """
        seeds = np.zeros(len(begun), dtype=np.uint64)
        if state[0].dtype == np.uint64:  # see `RandomState`
            begun = begun & (state[1] > 0)
            seeds = RandomState.renew(state[0])
        fresh = self.initial_state(seeds.tolist())
        if fresh is None:
            return state
        rows = [np.reshape(begun, (-1, *[1] * (part.ndim - 1))) for part in state]
        return tuple(
            np.where(row, new, part) for part, new, row in zip(state, fresh, rows, strict=True)
        )


class LiveRuleAgent(RuleAgent):
    """A rule for live environments, at the access level that it declares.

    Attributes:
        access: access level of the environments it plays.
    """

    family = "live"
    access: ClassVar[str] = "bank"
    layout: ObservationLayout

    def __init__(self, env: Any) -> None:
        """Fit the rule to an environment (single or vector, wrapped or not).

        Raises:
            AccessError: the environment's access level is not the rule's.
            InvalidValueError: it is no live environment of the suite.
        """
        super().__init__(env)
        if self.config.access != self.access:
            raise AccessError(
                f"{type(self).__name__} plays environments with access={self.access!r}; this one "
                f"has access={self.config.access!r}."
            )

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


def find_engine(env: Any) -> Any:
    """Return the engine behind an environment of the suite.

    Raises:
        InvalidValueError: it is none.
    """
    engine = getattr(env.unwrapped, "engine", None)
    if engine is None:
        raise InvalidValueError(f"Expected an environment of the suite; {env} is none.")
    return engine


class RandomState:
    """Uniform numbers that depend on an episode's seed and step alone.

    The state is (seeds, steps), both uint64 and the first parts of an agent's state. The same
    episode draws the same numbers whatever episodes run beside it, and asking "what would you
    do" advances nothing. Without a state the rows are the seeds and every call is a first step:
    pass on the state that `predict` returns.
    """

    @staticmethod
    def start(seeds: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the state of n episodes before their first step."""
        return np.array(seeds, dtype=np.uint64), np.zeros(len(seeds), dtype=np.uint64)

    @staticmethod
    def renew(seeds: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return other seeds, for the episodes after those of these."""
        return np.asarray(uniform(seeds, _AGENT_KEY) * 2.0**53).astype(np.uint64)

    @staticmethod
    def draw(state: State, n: int, size: int) -> tuple[NDArray[np.float64], State]:
        """Return numbers (n, size) in [0, 1) and the next state."""
        seeds, steps = RandomState.start(range(n)) if state is None else state[:2]
        counters = steps[:, None] * np.uint64(size) + np.arange(size, dtype=np.uint64)
        numbers = uniform(seeds[:, None] ^ _AGENT_KEY, counters)
        return numbers, (seeds, steps + np.uint64(1))


_AGENT_KEY = np.uint64(0x61676E74 << 32)
"""Sets an agent's random numbers apart from those of episodes with the same seed."""
