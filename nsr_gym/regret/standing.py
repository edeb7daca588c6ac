"""Where an agent's regret lies between the bound and the exact optimum of its class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Place = Literal[
    "unfinished", "undefined", "below bound", "at bound", "between", "below optimum", "at optimum",
    "above",
]  # fmt: skip
STANDARD_ERRORS = 3.0
"""How far a mean over runs may be from an exact value and still count as equal to it."""
_ROUNDING = 1e-9
_WHY_BELOW = {
    "bank": "it remembers (bank access)",
    "visit": "it remembers within a visit (visit access)",
    "memoryless": "which its class cannot be in the mean: it remembers something, or an assumption "
    "fails, or the runs are too few",
}


@dataclass(frozen=True)
class Standing:
    """Where an agent lies.

    Attributes:
        place: `"unfinished"` (an episode was cut off, its regret is only known from below),
            `"undefined"` (nothing to hold it against), `"below bound"`, `"at bound"`, `"between"`
            bound and optimum, `"below optimum"` (there is no bound), `"at optimum"` or `"above"`
            both.
        text: the same in words, with the reason or a number.
    """

    place: Place
    text: str


def standing(
    totals: ArrayLike,
    *,
    access: str,
    finished: ArrayLike = True,
    bound: float | None = None,
    optimum: float | None = None,
    sees_its_actions: bool = False,
    holds_more: bool = False,
) -> Standing:
    """Say where an agent lies.

    A mean over runs counts as equal to an exact value that is not more than three standard
    errors away; runs without any spread have to meet it up to rounding.

    Args:
        totals: (S,) regret of each episode.
        access: `"bank"`, `"memoryless"` or `"visit"`.
        finished: (S,) whether each episode came to its end.
        bound: what no memoryless policy gets below, None where there is no such number.
        optimum: exact regret of the best policy of the class, None where it is not known.
        sees_its_actions: whether what the agent observes holds its own last action or reward,
            through which a policy without any state of its own remembers.
        holds_more: whether it was given more capacity than bound and optimum are about.
    """
    values, ended = np.asarray(totals, dtype=np.float64), np.asarray(finished, dtype=bool)
    if not ended.all():
        if not ended.any():
            return Standing("unfinished", "never finished an episode")
        return Standing("unfinished", f"finished {100 * ended.mean():.0f} % of its episodes")
    if bound is None and optimum is None:
        return Standing("undefined", "no bound and no optimum to hold it against")
    mean = float(values.mean())
    why = _WHY_BELOW.get(access, f"its access is {access}")
    if sees_its_actions and access == "memoryless":
        why = "it sees its own last action or reward, which is a memory"
    if holds_more:
        why = "it is given a Bank for every task"
    if optimum is not None and (near := _meets(values, optimum)):
        # An optimum that is the bound as well is the case in which the theorem is sharp.
        sharp = bound is not None and _meets(np.array([optimum]), bound)
        both = "at the bound, which is the optimum" if sharp else "at the optimum"
        return Standing("at bound" if sharp else "at optimum", both + near)
    if bound is not None and (near := _meets(values, bound)):
        return Standing("at bound", "at the bound" + near)
    if bound is not None and mean < bound:
        return Standing("below bound", f"below the bound: {why}")
    if optimum is not None and mean < optimum:
        if bound is not None:
            return Standing("between", f"between the bound and the optimum: {why}")
        return Standing("below optimum", f"below the optimum: {why}")
    if optimum is not None:
        return Standing("above", "above the optimum" + _times(mean, optimum))
    assert bound is not None
    return Standing("above", "above the bound" + _times(mean, bound))


def _meets(values: np.ndarray, target: float) -> str:
    """Return how the mean of some runs meets a value, empty where it does not."""
    off = abs(float(values.mean()) - target)
    if off <= _ROUNDING * max(1.0, abs(target)):
        return ", exactly"
    error = float(values.std(ddof=1)) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return (
        f", to within {STANDARD_ERRORS:g} standard errors" if off <= STANDARD_ERRORS * error else ""
    )


def _times(mean: float, target: float) -> str:
    return f", {mean / target:.2f} times it" if target > 0 else f" of {target:g}"
