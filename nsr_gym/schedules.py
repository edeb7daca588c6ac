"""Schedules: rules that draw in which order the tasks of a stream are visited."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import InvalidValueError, unknown

Visits = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A rule that draws the order of visits.

    Attributes:
        draw: called with (M, cycles, rng, **options), returns (M * cycles,) int64.
        summary: one line for listings.
        options: names and default values of what `draw` takes beyond the common arguments.
    """

    draw: Callable[..., Visits]
    summary: str
    options: Mapping[str, float] = field(default_factory=dict)


def _cyclic(num_tasks: int, cycles: int, rng: np.random.Generator) -> Visits:
    return np.tile(np.arange(num_tasks, dtype=np.int64), cycles)


def _reshuffled(num_tasks: int, cycles: int, rng: np.random.Generator) -> Visits:
    orders = np.tile(np.arange(num_tasks, dtype=np.int64), (cycles, 1))
    return rng.permuted(orders, axis=1).reshape(-1)


def _markov(num_tasks: int, cycles: int, rng: np.random.Generator, *, markov_noise: Any) -> Visits:
    number = isinstance(markov_noise, (int, float, np.number))
    if not number or not 0.0 <= markov_noise <= 1.0:
        raise InvalidValueError(f"markov_noise must be a number in [0, 1], got {markov_noise!r}.")
    steps = num_tasks * cycles - 1
    if num_tasks == 1:
        return np.zeros(cycles, dtype=np.int64)
    # Moves around the ring: 1 is the cyclic successor, 1..M-1 are all the others.
    wander = rng.random(steps) < markov_noise
    moves = np.where(wander, rng.integers(1, num_tasks, size=steps), 1)
    return np.concatenate(([0], np.cumsum(moves) % num_tasks))


def _iid(num_tasks: int, cycles: int, rng: np.random.Generator) -> Visits:
    return rng.integers(num_tasks, size=num_tasks * cycles)


def _once(num_tasks: int, cycles: int, rng: np.random.Generator) -> Visits:
    if cycles != 1:
        raise InvalidValueError(
            f"Schedule 'once' visits each task once, so cycles must be 1, got {cycles}; "
            "use 'cyclic' or 'reshuffled' for more."
        )
    return np.arange(num_tasks, dtype=np.int64)


SCHEDULES: dict[str, Schedule] = {
    "cyclic": Schedule(draw=_cyclic, summary="all tasks in the same order in each cycle"),
    "reshuffled": Schedule(draw=_reshuffled, summary="all tasks in a new order in each cycle"),
    "markov": Schedule(
        draw=_markov,
        summary="the cyclic successor, or another task with probability markov_noise",
        options={"markov_noise": 0.3},
    ),
    "iid": Schedule(draw=_iid, summary="every visit drawn uniformly and independently"),
    "once": Schedule(draw=_once, summary="each task once, no returns (cycles = 1)"),
}


def draw_visits(
    schedule: str, num_tasks: int, cycles: int, rng: np.random.Generator, **options: float
) -> Visits:
    """Draw the order of visits.

    What is drawn from `rng`, in order, with V = M * cycles:
    cyclic and once: nothing. reshuffled: `permuted` of the (cycles, M) orders. markov:
    `random(V-1)`, then `integers(1, M, V-1)`, and nothing at M = 1; the walk starts at task
    0, and a noisy move goes to any task but the current one, the successor included.
    iid: `integers(M, size=V)`. In reshuffled and iid streams the same task can come twice
    in a row; in cyclic, once and markov streams it cannot, unless M = 1.

    Args:
        schedule: one of `SCHEDULES`.
        num_tasks: M >= 1; one task alone is visited `cycles` times.
        cycles: at least 1; exactly 1 for `"once"`.
        rng: the only source of randomness.
        **options: of the schedule, see `SCHEDULES[name].options`.

    Returns:
        (V,) int64 in 0..M-1.

    Raises:
        UnknownNameError: no such schedule or option.
        InvalidValueError: a value out of range or of a wrong type.
    """
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    rule = SCHEDULES[schedule]
    for option in options:
        if option not in rule.options:
            if not rule.options:
                raise InvalidValueError(
                    f"Schedule {schedule!r} takes no options, got {option!r}; remove it."
                )
            raise unknown(f"option of schedule {schedule!r}", option, rule.options)
    num_tasks = check_count("num_tasks", num_tasks)
    cycles = check_count("cycles", cycles)
    check_generator(rng)
    return rule.draw(num_tasks, cycles, rng, **{**rule.options, **options})


def check_count(what: str, value: Any) -> int:
    """Return `value` as an int if it is an integer of at least 1.

    Raises:
        InvalidValueError: for anything else; the message names `what`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InvalidValueError(f"{what} must be an integer of at least 1, got {value!r}.")
    return int(value)


def check_generator(rng: Any) -> None:
    """Make sure that `rng` is a NumPy generator.

    Raises:
        InvalidValueError: for anything else, a seed for instance.
    """
    if not isinstance(rng, np.random.Generator):
        raise InvalidValueError(
            f"rng must be a numpy.random.Generator, got {rng!r}; use `np.random.default_rng(seed)`."
        )
