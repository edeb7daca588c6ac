"""Arguments of the exact environments."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from nsr_gym.envs.arguments import (
    OBSERVATIONS,
    Arguments,
    check_choices,
    check_number,
    check_whole,
)
from nsr_gym.errors import InvalidValueError
from nsr_gym.regret.instances import INSTANCES, draw_allocation, draw_paging_costs
from nsr_gym.regret.problems import (
    ORDERS,
    AllocationProblem,
    PagingProblem,
    observation_kernel,
)
from nsr_gym.tasks import SPLITS

SMALLEST = 1e-6
"""Least gap and Delta_switch: what is smaller would be lost in rounding."""
FEEDBACK = ("none", "last-reward", "last-action+reward")


@dataclass(frozen=True, kw_only=True)
class TabularConfig(Arguments):
    """What all exact environments take.

    Attributes:
        split: `"train"` or `"test"`: from which set of instances.
        instance: number of the instance in the split's set; None draws one for every episode.
        num_tasks: M.
        cycles: C; an episode has V = M C visits.
        order: of the visits: `"fixed"`, `"reshuffled"` in every cycle, or `"iid"`.
        observation: `"flat"` (a Box) or `"dict"` (the same values by name).
    """

    split: str = "train"
    instance: int | None = 0
    num_tasks: int = 10
    cycles: int = 10
    order: str = "fixed"
    observation: str = "flat"

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            UnknownNameError: a split, order, ... that does not exist.
            InvalidValueError: a value of another type or out of range.
        """
        for field in fields(self):  # lists, as JSON has them, would not be hashable
            object.__setattr__(self, field.name, _tupled(getattr(self, field.name)))
        check_choices(self, {"split": SPLITS, "order": tuple(ORDERS), "observation": OBSERVATIONS})
        for name in ("num_tasks", "cycles"):
            check_whole(name, getattr(self, name), least=1)
        if self.instance is not None:
            check_whole("instance", self.instance, least=0)
            if self.instance >= INSTANCES:
                raise InvalidValueError(
                    f"Expected instance to be below {INSTANCES}, the instances of a split, or null "
                    f"for any; got {self.instance}."
                )

    @property
    def num_visits(self) -> int:
        """V, the visits of an episode."""
        return self.num_tasks * self.cycles

    @property
    def alike(self) -> bool:
        """Whether a policy that does not know the instance fares alike in all of them."""
        raise NotImplementedError

    def problem(self, number: int) -> Any:
        """Return an instance of the split's set."""
        raise NotImplementedError

    @property
    def schedule(self) -> str:
        """The schedule that draws the order."""
        return ORDERS[self.order]

    @property
    def numbers(self) -> range:
        """The instances that an episode can be of."""
        return (
            range(INSTANCES) if self.instance is None else range(self.instance, self.instance + 1)
        )


@dataclass(frozen=True, kw_only=True)
class AllocationConfig(TabularConfig):
    """What the environments of readings A and C have in common.

    Attributes:
        num_allocations: A; None for one for each task (and one more where rewards ask for it).
        obs: `"blind"`, `"classes:n"`, `"channel:q"`, `"full"`, or the kernel O(o|m) as M rows.
        feedback: what is observed of the last step: `"none"`, `"last-reward"` or
            `"last-action+reward"`.
        clock: period of an observed count of the visits; 0 for none.
    """

    num_allocations: int | None = None
    obs: Any = "blind"
    feedback: str = "none"
    clock: int = 0

    def __post_init__(self) -> None:
        """Check every value; see `TabularConfig`."""
        super().__post_init__()
        check_choices(self, {"feedback": FEEDBACK})
        if self.num_allocations is not None:
            check_whole("num_allocations", self.num_allocations, least=1)
        check_whole("clock", self.clock, least=0)
        self.problem(self.numbers[0])

    @property
    def visit_steps(self) -> int | None:
        """L, the steps of a visit; None where a visit ends with the right allocation."""
        return None

    def _blind(self, rewards: Any) -> bool:
        """Whether instances differ by the places of right allocations alone, and none shows."""
        a, shown = self.num_allocations, observation_kernel(self.obs, self.num_tasks)
        return (
            isinstance(rewards, str)
            and rewards == "equal"
            and a in (None, self.num_tasks)
            and shown.shape[1] == 1
        )

    def _drawn(self, number: int, rewards: Any, gap: float, best: float) -> AllocationProblem:
        named = isinstance(self.obs, str)
        problem = draw_allocation(
            split=self.split,
            number=number,
            num_tasks=self.num_tasks,
            num_allocations=self.num_allocations,
            rewards=rewards,
            gap=gap,
            best=best,
            obs=self.obs if named else "blind",
        )
        return problem if named else AllocationProblem(problem.rewards, self.obs)


@dataclass(frozen=True, kw_only=True)
class BlindConfig(AllocationConfig):
    """Arguments of `NSR/BlindAllocation`.

    Attributes:
        cycles: C.
        steps: L, steps of a visit.
        rewards: `"equal"` (a wrong allocation loses the gap), `"random"` (it loses the gap to
            twice the gap), `"compromise"` (one more allocation that loses a tenth of the gap on
            every task), or the table R[m, a] as M rows.
        gap: what a wrong allocation loses.
    """

    cycles: int = 50
    steps: int = 1
    rewards: Any = "equal"
    gap: float = 0.5

    def __post_init__(self) -> None:
        """Check every value; see `TabularConfig`."""
        check_whole("steps", self.steps, least=1)
        check_number("gap", self.gap, low=SMALLEST, high=1.0)
        super().__post_init__()

    @property
    def visit_steps(self) -> int | None:
        """L, the steps of a visit."""
        return self.steps

    @property
    def alike(self) -> bool:
        """Whether a policy that does not know the instance fares alike in all of them."""
        table = not isinstance(self.rewards, str) and self.obs in ("blind", "full")
        return table or (isinstance(self.obs, str) and self._blind(self.rewards))

    def problem(self, number: int) -> AllocationProblem:
        """Return an instance of the split's set; a right allocation is worth 1."""
        return self._drawn(number, self.rewards, self.gap, 1.0)


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig(AllocationConfig):
    """Arguments of `NSR/UntilRecovered`.

    Attributes:
        cycles: C.
        delta: Delta_switch, the cost of a wrong try.
        redraw: whether the observation is drawn again at every try of a visit.
    """

    cycles: int = 5
    delta: float = 1.0
    redraw: bool = False

    def __post_init__(self) -> None:
        """Check every value; see `TabularConfig`."""
        check_number("delta", self.delta, low=SMALLEST)
        if not isinstance(self.redraw, bool):
            raise InvalidValueError(f"Expected redraw to be true or false; got {self.redraw!r}.")
        super().__post_init__()

    @property
    def alike(self) -> bool:
        """Whether a policy that does not know the instance fares alike in all of them."""
        return isinstance(self.obs, str) and self._blind("equal")

    def problem(self, number: int) -> AllocationProblem:
        """Return an instance of the split's set; a wrong try costs delta, the right one nothing."""
        return self._drawn(number, "equal", self.delta, 0.0)


@dataclass(frozen=True, kw_only=True)
class PagingConfig(TabularConfig):
    """Arguments of `NSR/Paging`.

    Attributes:
        slots: k, solutions that the active subspace holds.
        bank: K, solutions that the Bank holds; None for one for each task.
        delta: Delta_switch, the cost of a visit that starts from nothing.
        costs: `"equal"` (delta for every task) or `"random"` (delta to twice delta).
        forced: whether the result of a visit has to be stored.
        recall_error: eps, cost of starting from an entry of the Bank.
        residual: share of delta that is left to pay at rank 0, 1, ..., R.
        transfer: share of delta that another task's solution saves, a number or M rows.
        similarity_noise: half-width of the uniform noise on observed similarities.
    """

    slots: int = 1
    bank: int | None = 0
    delta: float = 1.0
    costs: str = "equal"
    forced: bool = False
    recall_error: float = 0.0
    residual: Any = (1.0, 0.0)
    transfer: Any = 0.0
    similarity_noise: float = 0.0

    def __post_init__(self) -> None:
        """Check every value; see `TabularConfig`."""
        super().__post_init__()
        check_choices(self, {"costs": ("equal", "random")})
        check_number("delta", self.delta, low=SMALLEST)
        check_number("similarity_noise", self.similarity_noise, low=0.0)
        self.problem(self.numbers[0])

    @property
    def alike(self) -> bool:
        """Whether all instances are the same."""
        return self.costs == "equal"

    def problem(self, number: int) -> PagingProblem:
        """Return an instance of the split's set."""
        costs = draw_paging_costs(
            split=self.split,
            number=number,
            num_tasks=self.num_tasks,
            delta=self.delta,
            costs=self.costs,
        )
        return PagingProblem(
            num_tasks=self.num_tasks,
            slots=self.slots,
            bank=self.num_tasks if self.bank is None else self.bank,
            delta=np.asarray(costs),
            forced=self.forced,
            recall_error=self.recall_error,
            residual=self.residual,
            transfer=self.transfer,
        )


def _tupled(value: Any) -> Any:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    return tuple(_tupled(item) for item in value) if isinstance(value, list | tuple) else value
