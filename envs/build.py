"""Puts an engine together from its parts; recorded ones without loading torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nsr_gym.envs.bank_memory import BankMemory
from nsr_gym.envs.config import VisitConfig
from nsr_gym.envs.engine import EpisodeEngine
from nsr_gym.envs.finding import live_finder
from nsr_gym.envs.memory import Memory
from nsr_gym.envs.recorded import RecordedDynamics
from nsr_gym.envs.visit_memory import VisitMemory
from nsr_gym.errors import InvalidValueError
from nsr_gym.outcomes import OutcomeTable

if TYPE_CHECKING:
    import torch

    from nsr_gym.backbones.base import Backbone
    from nsr_gym.learning.data import TaskData


def open_device(name: str) -> torch.device:
    """Return a device that tensors can be put on.

    Raises:
        InvalidValueError: there is none of that name on this machine.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InvalidValueError(
            f"Expected device to be 'cpu' or a CUDA device of this machine; got {name!r}."
        ) from error
    return device


def live_engine(
    data: TaskData, backbone: Backbone, config: VisitConfig, num_episodes: int
) -> EpisodeEngine:
    """Build an engine whose visits train real adapters.

    Args:
        data: a pool prepared for the backbone; its split overrides nothing and must match.
        backbone: the frozen network.
        config: the arguments of the episode.
        num_episodes: E.

    Raises:
        InvalidValueError: arguments that do not fit each other, the pool or the backbone.
    """
    from nsr_gym.envs.active_memory import ActiveMemory
    from nsr_gym.envs.live import LiveDynamics
    from nsr_gym.envs.signals import SignalFields

    _check(data.pool, config, num_episodes)
    if config.access != "bank":
        config.require_plain(f"since access={config.access!r} has no bank", but=("modifiers",))
    dynamics = LiveDynamics(data, backbone, config, num_episodes)
    memory: Memory
    if config.access == "bank":
        memory = BankMemory(
            dynamics,
            config,
            num_episodes,
            finder=lambda bank: live_finder(dynamics, bank, config),
            signals=SignalFields(dynamics, config.ranks) if config.observe_signals else None,
        )
    else:
        memory = ActiveMemory(
            dynamics, config, num_episodes, persistent=config.access == "memoryless"
        )
    return EpisodeEngine(config, dynamics, memory, num_episodes)


def recorded_engine(table: OutcomeTable, config: VisitConfig, num_episodes: int) -> EpisodeEngine:
    """Build an engine whose visits are looked up in a table of recorded ones.

    Args:
        table: the outcomes; its split must match.
        config: the arguments of the episode.
        num_episodes: E.

    Raises:
        AccessError: memoryless access, which needs live dynamics.
        InvalidValueError: arguments that do not fit each other, or were not recorded.
    """
    _check(table.pool, config, num_episodes)
    dynamics = RecordedDynamics(table, config, num_episodes)
    memory: Memory
    if config.access == "bank":
        memory = BankMemory(dynamics, config, num_episodes)
    else:
        memory = VisitMemory(dynamics, config)
    return EpisodeEngine(config, dynamics, memory, num_episodes)


def _check(pool: Any, config: VisitConfig, num_episodes: int) -> None:
    if isinstance(num_episodes, bool) or not isinstance(num_episodes, int) or num_episodes < 1:
        raise InvalidValueError(
            f"Expected num_envs to be a whole number of at least 1; got {num_episodes!r}."
        )
    if pool.split != config.split:
        raise InvalidValueError(f"Expected a pool of split {config.split!r}; got {pool.split!r}.")
