"""Checks of learners' options; what may be given is what JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Iterable

from nsr_gym.errors import InvalidValueError, unknown


def check_share(name: str, value: object) -> float:
    """Return a share in (0, 1].

    Raises:
        InvalidValueError: it is none.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0.0 < value <= 1.0:  # type: ignore[operator]
        raise InvalidValueError(f"Expected {name} to be a share in (0, 1]; got {value!r}.")
    return float(value)  # type: ignore[arg-type]


def check_fraction(name: str, value: object) -> float:
    """Return a number from 0 to 1.

    Raises:
        InvalidValueError: it is none.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0.0 <= value <= 1.0:  # type: ignore[operator]
        raise InvalidValueError(f"Expected {name} to be a number from 0 to 1; got {value!r}.")
    return float(value)  # type: ignore[arg-type]


def check_count(name: str, value: object) -> int:
    """Return a whole number of at least 1.

    Raises:
        InvalidValueError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidValueError(
            f"Expected {name} to be a whole number of at least 1; got {value!r}."
        )
    return value


def check_amount(name: str, value: object) -> float:
    """Return a finite number of at least 0.

    Raises:
        InvalidValueError: it is none.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (math.isfinite(value) and value >= 0):  # type: ignore[arg-type, operator]
        raise InvalidValueError(
            f"Expected {name} to be a finite number of at least 0; got {value!r}."
        )
    return float(value)  # type: ignore[arg-type]


def check_positive(name: str, value: object) -> float:
    """Return a finite number above 0.

    Raises:
        InvalidValueError: it is none.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (math.isfinite(value) and value > 0):  # type: ignore[arg-type, operator]
        raise InvalidValueError(f"Expected {name} to be a finite number above 0; got {value!r}.")
    return float(value)  # type: ignore[arg-type]


def check_flag(name: str, value: object) -> bool:
    """Return a boolean.

    Raises:
        InvalidValueError: it is none.
    """
    if not isinstance(value, bool):
        raise InvalidValueError(f"Expected {name} to be true or false; got {value!r}.")
    return value


def check_choice(name: str, value: object, known: Iterable[str]) -> str:
    """Return one of the names there are.

    Raises:
        UnknownNameError: it is none.
    """
    known = list(known)
    if not isinstance(value, str) or value not in known:
        raise unknown(name, value, known)
    return value
