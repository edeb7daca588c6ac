"""Arguments of environments: plain JSON values, each checked, unknown names answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Self

from nsr_gym.errors import InvalidValueError, unknown

OBSERVATIONS = ("flat", "dict")
FACE_ARGUMENTS = ("render_mode", "autoreset_mode", "max_episode_steps")
"""What the single or the vector environment takes beside the arguments of the episode."""


class Arguments:
    """Base of the frozen dataclasses that hold an environment's arguments."""

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any], *, others: Sequence[str] = ()) -> Self:
        """Build the configuration from an environment's keyword arguments.

        Args:
            arguments: by name.
            others: names the environment takes beside these, for the error's suggestion.

        Raises:
            UnknownNameError: an argument does not exist; the message names the closest.
            InvalidValueError: a value is of another type or out of range.
        """
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        for name in arguments:
            if name not in known:
                raise unknown("environment argument", name, known | set(others))
        return cls(**arguments)


def check_choices(arguments: Arguments, choices: Mapping[str, Sequence[str]]) -> None:
    """Refuse values that are none of an argument's choices.

    Raises:
        UnknownNameError: the message names the closest choice.
    """
    for name, known in choices.items():
        value = getattr(arguments, name)
        if not isinstance(value, str) or value not in known:
            raise unknown(name, value, known)


def check_whole(name: str, value: object, *, least: int) -> None:
    """Refuse what is no whole number of at least `least`.

    Raises:
        InvalidValueError: the message names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidValueError(
            f"Expected {name} to be a whole number of at least {least}; got {value!r}."
        )


def check_number(
    name: str,
    value: object,
    *,
    low: float,
    high: float = float("inf"),
    open_low: bool = False,
) -> None:
    """Refuse what is no finite number in the range.

    Raises:
        InvalidValueError: the message names the argument.
    """
    inside = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (low < value if open_low else low <= value)
        and value <= high
        and value != float("inf")
    )
    if not inside:
        bound = f"above {low:g}" if open_low else f"of at least {low:g}"
        top = "" if high == float("inf") else f" and at most {high:g}"
        raise InvalidValueError(f"Expected {name} to be a number {bound}{top}; got {value!r}.")
