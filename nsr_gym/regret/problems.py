"""What the three exact readings of the regret theorem are about, as plain tables.

Reading A (blind identification) and reading C (run until recovered) share `AllocationProblem`:
M recurring tasks, one right or best allocation each, and an observation that tells more or less
of the task. Reading B (relearning under fixed capacity) is a `PagingProblem`. The environments
play them, the solvers of this package solve them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsr_gym.errors import InvalidValueError, unknown

Floats = NDArray[np.float64]
ORDERS = {"fixed": "cyclic", "reshuffled": "reshuffled", "iid": "iid"}
"""Order of the visits -> the schedule of `nsr_gym.streams` behind it."""


@dataclass(frozen=True, eq=False)
class AllocationProblem:
    """M tasks, A allocations, O observations; one step plays one allocation for the present task.

    Attributes:
        rewards: (M, A) reward of allocation a while task m is present, finite.
        kernel: (M, O) probability O(o|m) of observing o while task m is present.
    """

    rewards: Floats
    kernel: Floats

    def __post_init__(self) -> None:
        """Check both tables and make them read-only.

        Raises:
            InvalidValueError: another shape, rewards that are not finite, or rows of the kernel
                that are no distributions.
        """
        rewards, kernel = table("rewards", self.rewards), table("kernel", self.kernel)
        if len(rewards) != len(kernel):
            raise InvalidValueError(
                f"Expected as many rows in the kernel as tasks ({len(rewards)}); got {len(kernel)}."
            )
        if (kernel < 0).any() or not np.allclose(kernel.sum(axis=1), 1.0, rtol=0, atol=1e-9):
            raise InvalidValueError(
                "Expected every row of the kernel to be a distribution over observations; got "
                f"rows that add up to {np.round(kernel.sum(axis=1), 6).tolist()} with a smallest "
                f"entry of {kernel.min():g}."
            )
        for name, values in (("rewards", rewards), ("kernel", kernel)):
            values.setflags(write=False)
            object.__setattr__(self, name, values)

    @property
    def num_tasks(self) -> int:
        """M."""
        return len(self.rewards)

    @property
    def num_allocations(self) -> int:
        """A."""
        return int(self.rewards.shape[1])

    @property
    def num_observations(self) -> int:
        """O."""
        return int(self.kernel.shape[1])

    @cached_property
    def best(self) -> Floats:
        """(M,) the reward of each task's best allocation."""
        return np.asarray(self.rewards.max(axis=1))

    @cached_property
    def gaps(self) -> Floats:
        """(M, A) what each allocation loses against the task's best, at least 0."""
        return np.asarray(self.best[:, None] - self.rewards)

    @cached_property
    def optimal(self) -> NDArray[np.bool_]:
        """(M, A) whether an allocation is best for a task, up to rounding."""
        return np.asarray(self.gaps <= 1e-12 * max(np.abs(self.rewards).max(), 1e-300))


@dataclass(frozen=True, kw_only=True, eq=False)
class PagingProblem:
    """M recurring tasks whose solutions are held in k active slots and K entries of a Bank.

    Information about a task enters only while the task is present. A visit that starts from the
    task's stored solution is a hit, any other a miss.

    Attributes:
        num_tasks: M.
        slots: k, solutions that the active subspace holds, at least 1.
        bank: K, solutions that the Bank holds, at least 0.
        delta: cost of a visit that starts from nothing; positive, one number or M. The smallest
            is Delta_switch.
        forced: whether the present task's solution has to be held after its visit (the active
            adapter is trained on it whether one wants or not).
        recall_error: eps, the cost of starting from an entry of the Bank (not from a slot).
        residual: (R + 1,) share of Delta_switch that a visit costs which starts from the task's own
            solution kept at rank r: 1 at r = 0, falling to 0 at r = R. (1, 0): a solution
            is held whole or not at all. Capacity is (k + K) R units of rank.
        transfer: (M, M) share of Delta_switch that the solution of task j saves a visit of task
            i, [i, j]; in [0, 1), the diagonal is not used.
    """

    num_tasks: int
    slots: int = 1
    bank: int = 0
    delta: Any = 1.0
    forced: bool = False
    recall_error: float = 0.0
    residual: Sequence[float] = (1.0, 0.0)
    transfer: Any = field(default=0.0)

    def __post_init__(self) -> None:
        """Check every value.

        `delta` becomes a read-only (M,) array, `transfer` (M, M), `residual` a tuple.

        Raises:
            InvalidValueError: a value out of range or of another type.
        """
        for name, low in (("num_tasks", 1), ("slots", 1), ("bank", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
                raise InvalidValueError(
                    f"Expected {name} to be a whole number of at least {low}; got {value!r}."
                )
        if not (is_number(self.recall_error) and self.recall_error >= 0):
            raise InvalidValueError(
                f"Expected recall_error to be a number of at least 0; got {self.recall_error!r}."
            )
        if not isinstance(self.forced, bool | np.bool_):
            raise InvalidValueError(f"Expected forced to be true or false; got {self.forced!r}.")
        object.__setattr__(self, "delta", _delta(self.delta, self.num_tasks))
        object.__setattr__(self, "residual", _residual(self.residual))
        object.__setattr__(self, "transfer", _transfer(self.transfer, self.num_tasks))
        if self.max_rank > 1 and (self.forced or self.recall_error > 0):
            # Storing can be evaded where no unit of rank is free, and the Bank where places of
            # the slots are left over.
            raise InvalidValueError(
                "Expected forced storing and recall_error to come with whole solutions, residual "
                f"(1, 0); got residual {self.residual}, forced {self.forced}, recall_error "
                f"{self.recall_error}. Leave one of them out."
            )

    @property
    def delta_switch(self) -> float:
        """Delta_switch, the smallest cost of a visit without the task's solution.

        The minimum over tasks and over all held states without the task's own solution.
        """
        apart = np.where(np.eye(self.num_tasks, dtype=bool), 0.0, self.transfer)
        return float((self.delta * (1.0 - apart.max(axis=1))).min())

    @property
    def capacity(self) -> int:
        """Capacity c = k + K, the whole solutions that can be held."""
        return self.slots + self.bank

    @property
    def max_rank(self) -> int:
        """R, the rank of a whole solution; 1 where knowledge is indivisible."""
        return len(self.residual) - 1

    @property
    def plain(self) -> bool:
        """Whether all of reading B's assumptions but scarce capacity hold.

        Indivisible knowledge, no transfer, no recall error.
        """
        off_diagonal = ~np.eye(self.num_tasks, dtype=bool)
        shared = bool(self.transfer[off_diagonal].any())
        return self.max_rank == 1 and self.recall_error == 0 and not shared


def observation_kernel(obs: str, num_tasks: int) -> Floats:
    """Build O(o|m) by name.

    Args:
        obs: `"blind"` (one symbol), `"classes:n"` (tasks in n groups of equal size, up to one,
            each group one symbol), `"channel:q"` (the task itself with probability q, else
            another one uniformly) or `"full"` (the task itself).
        num_tasks: M.

    Returns:
        (M, O), rows add up to 1.

    Raises:
        UnknownNameError: no such kernel.
        InvalidValueError: n or q is missing, no number, or out of range.
    """
    if not isinstance(obs, str):
        raise InvalidValueError(f"Expected obs as a name such as 'classes:2'; got {obs!r}.")
    name, colon, text = obs.partition(":")
    if name not in ("blind", "classes", "channel", "full"):
        raise unknown("observation kernel", obs, ("blind", "classes:n", "channel:q", "full"))
    if (name in ("blind", "full")) == bool(colon):
        raise InvalidValueError(
            f"Expected 'blind', 'full', 'classes:n' or 'channel:q'; got {obs!r}."
        )
    if name == "blind":
        return np.ones((num_tasks, 1))
    if name == "full":
        return np.eye(num_tasks)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if name == "classes":
        if not (value.is_integer() and 1 <= value <= num_tasks):
            raise InvalidValueError(
                f"Expected classes:n with a whole n from 1 to {num_tasks}, the tasks; got {obs!r}."
            )
        return np.eye(int(value))[np.arange(num_tasks) * int(value) // num_tasks]
    if not 0 <= value <= 1:
        raise InvalidValueError(f"Expected channel:q with q in [0, 1]; got {obs!r}.")
    if num_tasks == 1:
        return np.ones((1, 1))
    others = (1.0 - value) / (num_tasks - 1)
    return np.full((num_tasks, num_tasks), others) + (value - others) * np.eye(num_tasks)


def with_clock(kernel: Floats, period: int, cycles: int | None = None) -> Floats:
    """Add to an observation what visit it is, modulo a period, for tasks in a fixed order.

    Task m comes at the visits m, m + M, ... Over many cycles its clock shows each of the
    p / gcd(p, M) values that leave the remainder m modulo gcd(p, M) equally often.

    Args:
        kernel: (M, O).
        period: p >= 1.
        cycles: C, for the exact shares within C cycles; None for those of the long run.

    Returns:
        (M, O p), the pair (o, clock) at column o p + clock.
    """
    m = len(kernel)
    # The pattern repeats after p / gcd(p, M) cycles.
    counted = period // int(np.gcd(period, m)) if cycles is None else cycles
    visits = np.arange(m)[:, None] + m * np.arange(counted)
    clock = np.stack([(visits % period == shown).mean(axis=1) for shown in range(period)], axis=1)
    return np.asarray((kernel[:, :, None] * clock[:, None, :]).reshape(m, -1))


def constant_symbols(kernel: Floats) -> bool:
    """Whether every task always shows the same symbol: drawing it again changes nothing."""
    return bool(np.isin(kernel, (0.0, 1.0)).all())


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number (a truth value is none)."""
    numeric = isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)
    return numeric and bool(np.isfinite(value))


def table(name: str, values: ArrayLike) -> Floats:
    """Return a non-empty 2-D float64 copy.

    Raises:
        InvalidValueError: another shape, or values that are no finite numbers.
    """
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(
            f"Expected {name} as a table of numbers; got {values!r}."
        ) from error
    if array.ndim != 2 or array.size == 0 or not np.isfinite(array).all():
        raise InvalidValueError(
            f"Expected {name} as a table of finite numbers with two dimensions; got shape "
            f"{array.shape}."
        )
    return array


def _delta(values: Any, num_tasks: int) -> Floats:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.full(1, np.nan)
    if array.shape not in ((), (num_tasks,)) or not (
        np.isfinite(array).all() and (array > 0).all()
    ):
        raise InvalidValueError(
            f"Expected delta as a positive number or {num_tasks} of them; got {values!r}."
        )
    array = np.broadcast_to(array, (num_tasks,)).copy()
    array.setflags(write=False)
    return array


def _residual(values: Any) -> tuple[float, ...]:
    try:
        given = tuple(float(v) for v in values)
    except (TypeError, ValueError):
        given = ()
    falling = all(a >= b for a, b in pairwise(given))
    if len(given) < 2 or given[0] != 1.0 or given[-1] != 0.0 or not falling:
        raise InvalidValueError(
            "Expected residual as numbers that fall from 1 (nothing kept) to 0 (all kept); got "
            f"{values!r}."
        )
    return given


def _transfer(values: Any, num_tasks: int) -> Floats:
    array = np.array(values, dtype=np.float64) if is_number(values) else table("transfer", values)
    if array.ndim == 0:
        array = np.full((num_tasks, num_tasks), float(array))
    if array.shape != (num_tasks, num_tasks) or (array < 0).any() or (array >= 1).any():
        raise InvalidValueError(
            f"Expected transfer as a number in [0, 1) or a table {num_tasks} x {num_tasks} of "
            f"such; got shape {array.shape} with values from {array.min():g} to {array.max():g}."
        )
    array.setflags(write=False)
    return array
