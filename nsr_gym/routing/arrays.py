"""Small things that routers do with arrays and arguments."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nsr_gym.errors import InvalidValueError


def unit(vectors: Tensor) -> Tensor:
    """Return vectors (..., d) at length 1; those of length 0 stay."""
    length: Tensor = vectors.norm(dim=-1, keepdim=True)
    return vectors / length.clamp(min=torch.finfo(vectors.dtype).tiny)


def softmax_over_held(scores: Tensor, temperature: float) -> Tensor:
    """Return the softmax of scores (..., 1 + K) / temperature.

    The backbone, place 0, serves alone where every score is minus infinity.
    """
    scaled = scores / temperature
    nothing = (scores == -torch.inf).all(-1)
    scaled[..., 0] = scaled[..., 0].masked_fill(nothing, 0.0)
    return scaled.softmax(-1)


def longer(part: Tensor, more: int) -> Tensor:
    """Return an array (E, K, ...) with zeros for more slots, (E, K + more, ...)."""
    return torch.cat([part, part.new_zeros(part.shape[0], more, *part.shape[2:])], 1)


def check_count(name: str, value: int) -> None:
    """Check that an argument is a whole number of at least 1.

    Raises:
        InvalidValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InvalidValueError(f"Expected {name} as a whole number of at least 1; got {value!r}.")


def check_positive(name: str, value: float) -> None:
    """Check that an argument is a finite number above 0.

    Raises:
        InvalidValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise InvalidValueError(f"Expected {name} as a number above 0; got {value!r}.")
    if not np.isfinite(value) or value <= 0:
        raise InvalidValueError(f"Expected {name} as a finite number above 0; got {value!r}.")
