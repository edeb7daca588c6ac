"""Settings of every test: one thread, tiny episodes, environments that are closed again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

# Before torch is imported, here and in subprocesses: sums come out in one order only.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

import gymnasium as gym
import pytest
from playable import TINY, tiny_arguments

CYCLIC_DIGITS = "NSR/CyclicDigits-v0"


@pytest.fixture(scope="session")
def tiny_of() -> Callable[[str], dict[str, Any]]:
    return tiny_arguments


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    return dict(TINY)


@pytest.fixture
def make_env() -> Iterator[Callable[..., Any]]:
    """Make tiny single environments; keyword arguments override the tiny ones."""
    made: list[Any] = []

    def make(env_id: str = CYCLIC_DIGITS, **arguments: Any) -> Any:
        made.append(gym.make(env_id, **(tiny_arguments(env_id) | arguments)).unwrapped)
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture
def make_vec() -> Iterator[Callable[..., Any]]:
    """Make tiny native vector environments; keyword arguments override the tiny ones."""
    made: list[Any] = []

    def make(n: int, env_id: str = CYCLIC_DIGITS, **arguments: Any) -> Any:
        chosen = tiny_arguments(env_id) | arguments
        made.append(gym.make_vec(env_id, n, vectorization_mode=None, **chosen))
        return made[-1]

    yield make
    for env in made:
        env.close()
