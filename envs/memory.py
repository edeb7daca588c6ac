"""What survives the switch between two visits, behind one interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nsr_gym.envs.dynamics import Arrival, Floats, Ints, Visits
from nsr_gym.envs.layout import ObservationLayout

Bools = NDArray[np.bool_]

DISCARD, UPDATE, ADD = range(3)
"""The third component of an action: drop the result, update the recalled entry (after a fresh
start: add), add a new entry. Without a bank: revert the adapter, keep it, keep it."""


@dataclass(frozen=True)
class Progress:
    """What an observation says of the stream.

    Attributes:
        visits_left: (n,) share of the stream's visits that is left, this one included.
        task_share: (n,) the visited task's index in its stream over M - 1; only shown with
            `observe_task_id`.
    """

    visits_left: Floats
    task_share: Floats


@dataclass(frozen=True)
class Limits:
    """How long n episodes are, and what their banks may hold.

    Attributes:
        visits: (n,) V.
        capacity: (n,) entries, -1 for no limit.
        capacity_bytes: (n,) bytes, -1 for no limit.
    """

    visits: Ints
    capacity: Ints
    capacity_bytes: Ints


def masks_without_bank(n: int, view_size: int, num_ranks: int) -> Bools:
    """Return which values each action component may take, (n, S + 1 + Q + 3): no recall, no add."""
    mask = np.ones((n, view_size + 1 + num_ranks + 3), dtype=bool)
    mask[:, 1 : view_size + 1] = False
    mask[:, -1] = False
    return mask


class Memory(Protocol):
    """Holds knowledge for E episodes and carries out actions on it."""

    layout: ObservationLayout

    def begin(self, rows: Ints, limits: Limits) -> None:
        """Forget everything about episodes that start anew."""
        ...

    def observe(self, arrival: Arrival, progress: Progress) -> NDArray[np.float32]:
        """Return what a policy sees of tasks that arrive, (n, size); changes nothing."""
        ...

    def admit(self, arrival: Arrival, progress: Progress) -> NDArray[np.float32]:
        """Make the arrived tasks the visited ones; return what `observe` does."""
        ...

    def masks(self, rows: Ints) -> Bools:
        """Return which values each action component may take, (n, S + 1 + Q + 3)."""
        ...

    def masks_for(self, arrival: Arrival) -> Bools:
        """Return the same for tasks that would arrive."""
        ...

    def visit(self, visits: Visits, actions: Ints) -> tuple[Ints, Floats]:
        """Carry out actions (n, 3), given as recall, rank index and reserve.

        Returns:
            The executed actions (n, 3), which differ where an action could not be honoured,
            and the accuracies (n, L + 1). The result of an episode whose training diverged
            is discarded.
        """
        ...

    def entries(self, rows: Ints) -> Ints:
        """Return how many entries are held, (n,)."""
        ...

    def nbytes(self, rows: Ints) -> Ints:
        """Return the bytes that survive the switch, (n,)."""
        ...

    def describe(self, row: int) -> list[str]:
        """Return the lines of a table of what one episode holds."""
        ...

    def used_accuracy(self, arrival: Arrival, actions: Ints | None) -> Floats:
        """Return the test accuracy (n,) of the model as it would be used for arrived tasks.

        Args:
            arrival: the tasks; nothing is learned and nothing changes.
            actions: (n, 3) what the policy would do; None asks for the model in use.
        """
        ...
