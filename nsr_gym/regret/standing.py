"""Where an agent's regret lies between the bound and the exact optimum of its class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Place = Literal[
    "unfinished", "undefined", "below bound", "at bound", "between", "below optimum", "at optimum",
    "above",
]  # fmt: skip
STANDARD_ERRORS = 3.0
"""How far a mean over runs may be from an exact value and still not be told apart from it."""
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
            both. "At" is exact only where the text says so.
        text: the same in words, with the reason or a number.
    """

    place: Place
    text: str


def standing(
    totals: ArrayLike,
    *,
    access: str,
    finished: ArrayLike = True,
    expected: float | None = None,
    bound: float | None = None,
    optimum: float | None = None,
    sees_its_actions: bool = False,
    holds_more: bool = False,
) -> Standing:
    """Say where an agent lies.

    An agent whose expected regret is known exactly is placed by that, however its runs came out.
    Of any other, a mean over runs gets the place of a value that is not more than three standard
    errors away, and the text says that the runs do not tell the two apart; runs without any
    spread have to meet the value up to rounding.

    Args:
        totals: (S,) regret of each episode.
        access: `"bank"`, `"memoryless"` or `"visit"`.
        finished: (S,) whether each episode came to its end.
        expected: exact expected regret of the agent, None where it is not known.
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
    known = expected is not None and np.isfinite(expected)
    if known:
        values = np.array([expected], dtype=np.float64)
    found = _place(values, bound, optimum, _why_below(access, sees_its_actions, holds_more))
    return Standing(found.place, f"expected {found.text}") if known else found


def _why_below(access: str, sees_its_actions: bool, holds_more: bool) -> str:
    if holds_more:
        return "it is given a Bank for every task"
    if sees_its_actions and access == "memoryless":
        return "it sees its own last action or reward, which is a memory"
    return _WHY_BELOW.get(access, f"its access is {access}")


def _place(values: Floats, bound: float | None, optimum: float | None, why: str) -> Standing:
    mean = float(values.mean())
    if optimum is not None and (near := _meets(values, optimum)):
        # An optimum that is the bound as well is the case in which the theorem is sharp.
        sharp = bound is not None and bool(_meets(np.array([optimum]), bound))
        what = "the bound, which is the optimum" if sharp else "the optimum"
        return Standing("at bound" if sharp else "at optimum", near.format(what))
    if bound is not None and (near := _meets(values, bound)):
        return Standing("at bound", near.format("the bound"))
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


def _meets(values: Floats, target: float) -> str:
    """Return how the mean of some runs meets a value `{}`, empty where it does not."""
    off = abs(float(values.mean()) - target)
    if off <= _ROUNDING * max(1.0, abs(target)):
        return "at {}, exactly"
    error = float(values.std(ddof=1)) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    if off <= STANDARD_ERRORS * error:
        return f"not told apart from {{}} ({STANDARD_ERRORS:g} standard errors)"
    return ""


def _times(mean: float, target: float) -> str:
    return f", {mean / target:.2f} times it" if target > 0 else f" of {target:g}"
