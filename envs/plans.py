"""What one episode looks like, drawn when it begins."""

from __future__ import annotations

from dataclasses import dataclass

from nsr_gym.streams import TaskStream


@dataclass(frozen=True, kw_only=True)
class EpisodePlan:
    """One episode: its stream, and the room its bank has.

    Attributes:
        stream: which task is visited when.
        capacity: entries the bank holds; None for no limit.
        capacity_bytes: bytes the bank holds; None for no limit.
        embedding_noise: how far an arriving task's embedding is disturbed; 0 for not at all.
        family: what the episode was drawn from where there is a choice, `""` where there is none.
    """

    stream: TaskStream
    capacity: int | None = None
    capacity_bytes: int | None = None
    embedding_noise: float = 0.0
    family: str = ""
