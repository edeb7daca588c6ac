"""What the faces (single environment, vector environment, agents) ask of an episode engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from nsr_gym.envs.layout import Layout

Info = dict[str, NDArray[Any]]
Ints = NDArray[np.int64]
Outcome = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], Info]
"""Observations (n, size), rewards (n,), terminated (n,) and info, all owned by the caller."""


class Engine(Protocol):
    """Plays E episodes side by side; `rows` are the (n,) episodes that a call is about.

    Attributes:
        family: which agents play it: `"live"`, `"allocation"` or `"paging"`.
        num_episodes: E.
        config: the environment's arguments; `config.observation` is `"flat"` or `"dict"`.
        layout: of the observations.
        action_space: of one episode.
        observation_space: of one episode.
    """

    @property
    def family(self) -> str: ...  # noqa: D102
    @property
    def num_episodes(self) -> int: ...  # noqa: D102
    @property
    def config(self) -> Any: ...  # noqa: D102
    @property
    def layout(self) -> Layout: ...  # noqa: D102
    @property
    def action_space(self) -> spaces.Discrete | spaces.MultiDiscrete: ...  # noqa: D102
    @property
    def observation_space(self) -> spaces.Space[Any]: ...  # noqa: D102

    def reset(
        self, rows: Ints, generators: Sequence[np.random.Generator]
    ) -> tuple[NDArray[np.float32], Info]:
        """Start new episodes; all that they draw follows from their generators."""
        ...

    def step(self, rows: Ints, actions: Ints) -> Outcome:
        """Play one step of episodes that are not over; actions are members of the space."""
        ...

    def masks(self, rows: Ints) -> NDArray[np.bool_]:
        """Return which values each action component may take, (n, sum of nvec)."""
        ...

    def render(self, row: int, mode: str) -> str | NDArray[np.uint8]:
        """Return a text (`"ansi"`) or a picture (`"rgb_array"`) of one episode."""
        ...
