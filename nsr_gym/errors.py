"""Errors of the suite: what was expected, what came, and what to do.

Every error derives from `NsrGymError` and from the builtin that fits, so that both
`except NsrGymError` and `except ValueError` work.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NsrGymError(Exception):
    """Base class of every error that the suite raises on purpose."""


class InvalidValueError(NsrGymError, ValueError):
    """An argument has a value, shape or type that cannot be used."""


class UnknownNameError(NsrGymError, KeyError):
    """A name (environment, agent, schedule, rule, ...) is not registered."""

    def __str__(self) -> str:
        # KeyError would print the repr of the message, with quotes and escapes.
        return str(self.args[0]) if self.args else ""


class AccessError(NsrGymError, PermissionError):
    """Something was asked for that the episode's access level withholds."""


class DataError(NsrGymError, ValueError):
    """Data is missing values, damaged, or of another kind than announced."""


class FileFormatError(NsrGymError, ValueError):
    """A file is damaged, foreign, or written by a newer version of the suite."""


class MissingDependencyError(NsrGymError, ImportError):
    """An optional package is needed and not installed."""


class StateError(NsrGymError, RuntimeError):
    """A call came at a time when it has no meaning (a step before a reset, say)."""


def closest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message that names the closest known names.

    Args:
        name: what was asked for.
        known: every name that exists.

    Returns:
        `" Did you mean 'a' or 'b'?"`, or the whole list where nothing is close.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return " Did you mean " + " or ".join(repr(n) for n in near) + "?"
    return " Known: " + ", ".join(names) + "."


def unknown(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """Build the error for a name that is not registered.

    Args:
        kind: what the name was to stand for, such as `"agent"`.
        name: the name that came.
        known: every name that exists.

    Returns:
        The error, ready to be raised.
    """
    return UnknownNameError(f"There is no {kind} {name!r}.{closest(str(name), known)}")
