"""What a solver returns: the optimum, the policy that attains it, and what proves it optimal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsr_gym.errors import DataError, InvalidValueError
from nsr_gym.registry import make_agent
from nsr_gym.regret.problems import AllocationProblem, Floats, PagingProblem, table


@dataclass(frozen=True)
class Certificate:
    """Two numbers that meet: what a policy attains, and what no policy can beat.

    Attributes:
        method: how the policy was found.
        value: what it attains, computed from the policy itself.
        bound: what the proof says that no policy of the class gets below.
        checks: the same optimum by other methods, by name.
        proof: why `bound` holds, in one sentence.
    """

    method: str
    value: float
    bound: float
    checks: Mapping[str, float]
    proof: str

    @property
    def gap(self) -> float:
        """How far value and bound are apart; 0 up to rounding where the policy is optimal."""
        return abs(self.value - self.bound)

    def verify(self, tolerance: float = 1e-9) -> None:
        """Make sure that bound and checks agree with the value.

        Args:
            tolerance: largest difference, absolute for values up to 1 and relative beyond.

        Raises:
            DataError: one of them does not agree.
        """
        allowed = tolerance * max(1.0, abs(self.value))
        for name, other in {"bound": self.bound, **self.checks}.items():
            if not abs(other - self.value) <= allowed:  # NaN does not agree either
                raise DataError(
                    f"Expected {name} and the value attained by {self.method} to agree to within "
                    f"{allowed:.3g}; got {other!r} and {self.value!r}. The policy is not proved "
                    "optimal: allow a larger tolerance, or report the problem that was solved."
                )


@dataclass(frozen=True, eq=False)
class Solution:
    """The exact optimum of one problem within a class of policies.

    Attributes:
        reading: `"A"`, `"B"` or `"C"`.
        value: the optimum, to be minimised.
        unit: what `value` counts.
        policy: of readings A and C: (O, A), the probability pi(a|o) of playing a on seeing o; of
            reading B: (V, 3) whole numbers, one row (recall, place, rank) for each visit in the
            fixed order, as the environment takes them.
        certificate: what proves it optimal.
        problem: what was solved.
        redraw: of reading C, whether the symbol is drawn again at every try; None where that
            makes no difference.
    """

    reading: Literal["A", "B", "C"]
    value: float
    unit: str
    policy: NDArray[Any]
    certificate: Certificate
    problem: AllocationProblem | PagingProblem = field(repr=False)
    redraw: bool | None = None

    def agent(self, env: Any) -> Any:
        """Return an agent that plays the policy in a (vector) environment of the problem.

        Args:
            env: the environment.

        Raises:
            InvalidValueError: the environment poses another problem.
        """
        return make_agent("best-memoryless", env, solution=self)


def checked_policy(problem: AllocationProblem, policy: ArrayLike) -> Floats:
    """Return a stationary policy as float64.

    Args:
        problem: the problem that it is to be played in.
        policy: (O, A), rows are distributions over allocations.

    Raises:
        InvalidValueError: another shape, or rows that are no distributions.
    """
    values = table("policy", policy)
    expected = (problem.num_observations, problem.num_allocations)
    if values.shape != expected:
        raise InvalidValueError(
            f"Expected a policy of shape {expected}, one row for each observation and one column "
            f"for each allocation; got {values.shape}."
        )
    if (values < 0).any() or not np.allclose(values.sum(axis=1), 1.0, rtol=0, atol=1e-9):
        raise InvalidValueError(
            "Expected every row of the policy to be a distribution over allocations; got rows that "
            f"add up to {np.round(values.sum(axis=1), 6).tolist()} with a smallest entry of "
            f"{values.min():g}."
        )
    return values
