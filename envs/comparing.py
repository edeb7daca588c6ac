"""Nested answers of environments, compared: the first value that differs, and where it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LONGEST = 160
"""Characters of a value's own description in a report."""


@dataclass(frozen=True)
class Difference:
    """Two values that should be the same.

    Attributes:
        path: keys and indices that lead to them; the first is the quantity, such as `"info"`.
        ours: the one value, in words.
        theirs: the other, in words.
        row: index in the first dimension of the array they are in; None outside arrays.
        extent: how much else of the array differs; empty where there is only one value.
    """

    path: tuple[str | int, ...]
    ours: str
    theirs: str
    row: int | None = None
    extent: str = ""

    @property
    def quantity(self) -> str:
        """What differs, such as `info['final_info']['regret'][2]`."""
        first, *rest = self.path
        return str(first) + "".join(f"[{step!r}]" for step in rest)


def difference(
    ours: Any,
    theirs: Any,
    *,
    path: tuple[str | int, ...],
    tolerance: float = 0.0,
    exact: bool = True,
    row: int | None = None,
) -> Difference | None:
    """Return the first difference between nested answers, None where they are the same.

    Mappings (their keys in any order), tuples, lists, arrays (those of objects too), numbers, and
    anything else that `==` compares. NaN equals NaN.

    Args:
        ours: the one answer.
        theirs: the other.
        path: where the answers come from, for the report.
        tolerance: absolute plus relative, of floating-point values; 0 asks for the same bits, by
            which 0.0 and -0.0 differ.
        exact: whether types of values and dtypes of arrays count; if not, numbers and arrays
            of `theirs` are first cast to the dtype of `ours`.
        row: of an array that both are elements of.
    """
    rest: dict[str, Any] = {"tolerance": tolerance, "exact": exact, "row": row}
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in [*theirs, *(key for key in ours if key not in theirs)]:
            if key not in ours:
                return Difference((*path, key), "missing", describe(theirs[key]), row)
            if key not in theirs:
                return Difference((*path, key), describe(ours[key]), "missing", row)
            if found := difference(ours[key], theirs[key], path=(*path, key), **rest):
                return found
        return None
    if not exact and _numeric(ours) and _numeric(theirs):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        if ours.shape == theirs.shape and ours.dtype != theirs.dtype:
            with np.errstate(invalid="ignore"):
                theirs = theirs.astype(ours.dtype)
    if type(ours) is not type(theirs):
        return Difference(path, describe(ours), describe(theirs), row)
    if isinstance(theirs, tuple | list):
        if len(ours) != len(theirs):
            return Difference(path, f"{len(ours)} values", f"{len(theirs)} values", row)
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if found := difference(a, b, path=(*path, i), **rest):
                return found
        return None
    if isinstance(theirs, np.ndarray):
        return _arrays(ours, theirs, path=path, **rest)
    same = _same(np.asarray(ours), np.asarray(theirs), tolerance) if _numeric(ours) else None
    if bool(ours == theirs if same is None else same.all()):
        return None
    return Difference(path, describe(ours), describe(theirs), row)


def _arrays(
    ours: NDArray[Any],
    theirs: NDArray[Any],
    *,
    path: tuple[str | int, ...],
    tolerance: float,
    exact: bool,
    row: int | None,
) -> Difference | None:
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return Difference(path, describe(ours), describe(theirs), row)
    if theirs.dtype == object:
        for index in np.ndindex(theirs.shape):
            found = difference(
                ours[index],
                theirs[index],
                path=(*path, *index),
                tolerance=tolerance,
                exact=exact,
                row=index[0] if row is None and index else row,
            )
            if found:
                return found
        return None
    if ours.tobytes() == theirs.tobytes():  # nearly always, and faster than `==`
        return None
    same = _same(ours, theirs, tolerance)
    if same.all():
        return None
    index = tuple(np.argwhere(~same)[0].tolist())
    return Difference(
        (*path, *index),
        describe(ours[index]),
        describe(theirs[index]),
        index[0] if row is None and index else row,
        f"{int((~same).sum())} of {same.size} values differ" if same.size > 1 else "",
    )


def _same(ours: NDArray[Any], theirs: NDArray[Any], tolerance: float) -> NDArray[np.bool_]:
    if theirs.dtype.kind not in "fc":
        return np.asarray(ours == theirs)
    if tolerance:
        close = np.isclose(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
        return np.asarray(close)
    same = np.asarray(ours == theirs)
    if theirs.dtype.kind == "f":
        same = same & (np.signbit(ours) == np.signbit(theirs))
    return np.asarray(same | (np.isnan(ours) & np.isnan(theirs)))


def _numeric(value: object) -> bool:
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biufc"
    return isinstance(value, bool | int | float | complex)


def describe(value: object) -> str:
    """Describe a value in a few words, its type included."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {value.shape}"
    if isinstance(value, np.generic):
        return f"{value.item()!r} ({value.dtype})"
    if isinstance(value, Mapping):
        return f"a mapping with the keys {_brief(list(value))}"
    return f"{_brief(value)} ({type(value).__name__})"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def overwrite(answer: Any) -> None:
    """Change every array in a nested answer in place, as its owner may."""
    if isinstance(answer, Mapping):
        answer = list(answer.values())
    if isinstance(answer, tuple | list):
        for part in answer:
            overwrite(part)
    elif isinstance(answer, np.ndarray) and answer.flags.writeable:
        if answer.dtype == object:
            overwrite(answer.ravel().tolist())
            answer.fill(None)
        elif answer.dtype == np.bool_:
            np.logical_not(answer, out=answer)
        elif answer.dtype.kind in "iufc":
            np.add(answer, 1, out=answer, casting="unsafe")
