"""Instances of the exact problems: which allocation is right for which task, and what is paid.

An instance is a function of (split, number) and of its arguments, not of any generator's state.
Train and test instances of the allocation problems are disjoint by construction: completed by the
unused allocations in ascending order, the assignment of allocations to tasks is a permutation,
even in the train split and odd in the test split.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import InvalidValueError, unknown
from nsr_gym.regret.problems import AllocationProblem, Floats, is_number, observation_kernel, table
from nsr_gym.tasks import SPLITS, check_split

INSTANCES = 1000
"""Instances of each split; their numbers are 0 to 999."""
REWARDS = ("equal", "random", "compromise")
COSTS = ("equal", "random")
COMPROMISE = 0.1
"""What the compromise allocation loses on every task, as a share of the gap."""
_SALT = 2606_30067  # tells these draws from others that are seeded by small numbers


def draw_allocation(
    *,
    split: str,
    number: int,
    num_tasks: int,
    num_allocations: int | None = None,
    rewards: Any = "equal",
    gap: float = 0.5,
    best: float = 1.0,
    obs: str = "blind",
) -> AllocationProblem:
    """Return one instance of the problem of readings A and C.

    With one task there is no odd or even assignment to choose, and both splits are the same; with
    two tasks and two allocations each split has a single assignment.

    Args:
        split: `"train"` or `"test"`.
        number: of the instance, 0 to 999.
        num_tasks: M.
        num_allocations: A, at least M; None for M, one more with `rewards="compromise"`.
        rewards: `"equal"`: a wrong allocation loses `gap`; `"random"`: `gap` to twice that,
            uniformly, drawn for each task and allocation; `"compromise"`: as equal, but one
            allocation that is right for no task loses only a tenth of `gap` on every task; or
            the table R[m, a] as M rows, which is then the only instance of both splits.
        gap: loss of a wrong allocation, positive.
        best: reward of the right one.
        obs: name of the observation kernel, see `observation_kernel`. With `"classes:n"` an
            instance also says which tasks look alike; with a table of rewards rows stay in order.

    Returns:
        The problem.

    Raises:
        UnknownNameError: a split, kind of rewards or kernel that does not exist.
        InvalidValueError: a value out of range, or a table of another shape.
    """
    generator = _generator(split, number)
    _check_tasks(num_tasks)
    kernel = observation_kernel(obs, num_tasks)
    if not isinstance(rewards, str):
        return AllocationProblem(_given(rewards, num_tasks, num_allocations), kernel)
    if rewards not in REWARDS:
        raise unknown("kind of rewards", rewards, REWARDS)
    if not (is_number(gap) and gap > 0):
        raise InvalidValueError(f"Expected gap to be a positive number; got {gap!r}.")
    if not is_number(best):
        raise InvalidValueError(f"Expected best to be a finite number; got {best!r}.")
    spare = int(rewards == "compromise")
    a = num_tasks + spare if num_allocations is None else num_allocations
    if not is_number(a) or a != int(a) or a < num_tasks + spare:
        raise InvalidValueError(
            f"Expected num_allocations to be a whole number of at least {num_tasks + spare} for "
            f"{num_tasks} tasks with rewards={rewards!r}; got {a!r}."
        )
    right = assignment(generator, num_tasks, int(a), odd=split == "test")
    if obs.startswith("classes"):
        kernel = kernel[generator.permutation(num_tasks)]
    losses = np.full((num_tasks, int(a)), float(gap))
    if rewards == "random":
        losses *= 1.0 + generator.random(losses.shape)
    elif spare:
        losses[:, np.setdiff1d(np.arange(int(a)), right)[0]] *= COMPROMISE
    losses[np.arange(num_tasks), right] = 0.0
    return AllocationProblem(best - losses, kernel)


def draw_paging_costs(
    *, split: str, number: int, num_tasks: int, delta: float, costs: str = "equal"
) -> Floats:
    """Return what a miss costs, for each task of an instance of reading B.

    Args:
        split: `"train"` or `"test"`.
        number: of the instance, 0 to 999.
        num_tasks: M.
        delta: Delta_switch, positive.
        costs: `"equal"`: delta for every task (all instances are the same); `"random"`: delta to
            twice delta, uniformly, the splits drawn independently.

    Returns:
        (M,), in units of the reward.

    Raises:
        UnknownNameError: a split or kind of costs that does not exist.
        InvalidValueError: a value out of range.
    """
    generator = _generator(split, number)
    _check_tasks(num_tasks)
    if not (is_number(delta) and delta > 0):
        raise InvalidValueError(f"Expected delta to be a positive number; got {delta!r}.")
    if costs not in COSTS:
        raise unknown("kind of costs", costs, COSTS)
    if costs == "equal":
        return np.full(num_tasks, float(delta))
    return np.asarray(delta * (1.0 + generator.random(num_tasks)))


def assignment(
    generator: np.random.Generator, num_tasks: int, num_allocations: int, *, odd: bool
) -> NDArray[np.int64]:
    """Draw which allocation is right for each task.

    Args:
        generator: to draw with.
        num_tasks: M.
        num_allocations: A >= M.
        odd: whether the assignment, completed by the unused allocations in ascending order, is
            to be an odd permutation. Where the drawn one is of the other kind, the first two tasks
            change places, which leaves the completion as it is; one task alone keeps its own.

    Returns:
        (M,) distinct allocations.
    """
    right = generator.permutation(num_allocations)[:num_tasks].astype(np.int64)
    if num_tasks > 1 and is_odd(right, num_allocations) != odd:
        right[[0, 1]] = right[[1, 0]]
    return right


def is_odd(right: NDArray[np.int64], num_allocations: int) -> bool:
    """Whether an assignment, completed by the unused allocations, is an odd permutation.

    Args:
        right: (M,) distinct allocations.
        num_allocations: A.

    Returns:
        True for an odd number of transpositions: A less the number of cycles is odd.
    """
    unused = np.setdiff1d(np.arange(num_allocations), right)
    after = np.concatenate([right, unused]).tolist()
    seen, cycles = [False] * num_allocations, 0
    for start in range(num_allocations):
        cycles += not seen[start]
        while not seen[start]:
            seen[start] = True
            start = after[start]
    return bool((num_allocations - cycles) % 2)


def _generator(split: str, number: int) -> np.random.Generator:
    """Return the generator of an instance.

    Raises:
        UnknownNameError: no such split.
        InvalidValueError: no such number.
    """
    kind = SPLITS.index(check_split(split))
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    if not whole or not 0 <= number < INSTANCES:
        raise InvalidValueError(
            f"Expected the number of an instance, 0 to {INSTANCES - 1}; got {number!r}."
        )
    return np.random.default_rng(np.random.SeedSequence([kind, int(number), _SALT]))


def _check_tasks(num_tasks: int) -> None:
    if not is_number(num_tasks) or num_tasks != int(num_tasks) or num_tasks < 1:
        raise InvalidValueError(
            f"Expected num_tasks to be a whole number of at least 1; got {num_tasks!r}."
        )


def _given(rewards: Any, num_tasks: int, num_allocations: int | None) -> Floats:
    given = table("rewards", rewards)
    columns = given.shape[1] if num_allocations is None else num_allocations
    if given.shape != (num_tasks, columns):
        raise InvalidValueError(
            f"Expected the table of rewards to have {num_tasks} rows, one for each task, and "
            f"{columns} columns, one for each allocation; got shape {given.shape}. Change the "
            "table, num_tasks or num_allocations."
        )
    return given
