"""AdaLoRA's schedule and importance; needs no torch, takes numbers and arrays of either library."""

from __future__ import annotations

from typing import Any

import numpy as np


def budget(step: Any, total: float, init: Any, target: Any, warm: float, cool: float) -> Any:
    """Return how many directions may be in use after a step.

    AdaLoRA (Zhang et al., 2023, arXiv 2303.10512): `init` during the first `warm` steps,
    `target` during the last `cool` ones, and in between
    `target + (init - target) (1 - (step - warm) / (total - warm - cool))^3`.

    Args:
        step: steps done, from 0, a number or a NumPy array.
        total: steps of the whole schedule.
        init: directions at the start, a number or an array.
        target: directions at the end, likewise.
        warm: steps with all directions.
        cool: steps with the target; warm + cool is at most the total.

    Returns:
        The budget, not rounded, of the type of `init` and `target`; NumPy's where they are numbers.
    """
    # Without steps in between, the budget falls at once.
    falling = max(total - warm - cool, 1e-9 * total)
    left = (1.0 - np.clip((step - warm) / falling, 0.0, 1.0)) ** 3
    return target + (init - target) * left


class Importance:
    """Smoothed sensitivity times smoothed uncertainty of weights (AdaLoRA).

    With the sensitivity I = |w g|: mean <- a mean + (1 - a) I, then
    deviation <- b deviation + (1 - b) |I - mean|, and the importance is mean times deviation.
    """

    def __init__(self, smoothing: float = 0.85, uncertainty: float = 0.85) -> None:
        """Start at zero.

        Args:
            smoothing: a, of the mean.
            uncertainty: b, of the deviation.
        """
        self._smoothing, self._uncertainty = smoothing, uncertainty
        self._mean: Any = 0.0
        self._deviation: Any = 0.0

    def update(self, products: Any) -> Any:
        """Take w g, of any shape, and return the importance, of the same shape."""
        seen = abs(products)
        a, b = self._smoothing, self._uncertainty
        self._mean = a * self._mean + (1.0 - a) * seen
        self._deviation = b * self._deviation + (1.0 - b) * abs(seen - self._mean)
        return self._mean * self._deviation
