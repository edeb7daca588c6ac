"""What the commands share: consoles, progress bars, options that are parsed and checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from nsr_gym.errors import AccessError, InvalidValueError, unknown
from nsr_gym.registration import environment_access, environment_family
from nsr_gym.registry import AgentSpec, agent_specs, make_agent

if TYPE_CHECKING:
    import pandas as pd
    from rich.progress import Progress

    from nsr_gym.evaluation.results import Results

# Where output is piped, the tables get the room that they are made for.
console = Console(width=None if sys.stdout.isatty() else 120)
errors = Console(stderr=True)

DEFAULT_ENVIRONMENT = "NSR/CyclicDigits-v0"
LIVE_REFERENCE = "oracle"
EXACT_REFERENCE = "history-aware"


def bars(*more: str) -> Progress:
    """Return a display of progress on stderr: name, bar, count and times of each task.

    Args:
        *more: columns behind these, as rich's `TextColumn` takes them.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TimeRemainingColumn(), *map(TextColumn, more),
        console=errors, transient=True,
    )  # fmt: skip


@contextmanager
def progress_bars(cells: int) -> Iterator[Callable[[int, int], None]]:
    """Show how many cells and visits are done; yields what `run` takes as `progress`."""
    with bars() as progress:
        cell_bar = progress.add_task("cells", total=cells)
        visit_bar = progress.add_task("visits", total=None)

        def advance(new_visits: int, finished: int) -> None:
            progress.advance(visit_bar, new_visits)
            progress.advance(cell_bar, finished)

        yield advance


@contextmanager
def counting_bar(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a count; yields a function of how many are done and of how many, None if unknown."""
    with bars() as progress:
        bar = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def default_agents(environments: Iterable[str], arguments: Mapping[str, Any]) -> list[str]:
    """Return the default agents that can play the environments; say which were left out and why.

    In exact environments an agent may need what the arguments do not give, such as tasks in a
    fixed order, and live ones may lack the access level that it is run with; asked for by name,
    it is refused by the run itself.

    Args:
        environments: ids, at least one.
        arguments: of the environments.
    """
    names = list(environments)
    chosen: list[str] = []
    left_out: dict[str, list[str]] = {}
    for spec in agent_specs():
        refusals = [
            _refusal(spec, environment, {"split": "test", **arguments, **spec.plays[family]})
            for environment in names
            if spec.by_default and (family := environment_family(environment)) in spec.plays
        ]
        if any(refusals):
            left_out.setdefault(" ".join(filter(None, refusals)), []).append(spec.name)
        elif refusals:
            chosen.append(spec.name)
    for why, agents in left_out.items():
        note = f"left out: {', '.join(agents)} ({why})"
        errors.print(note, highlight=False, markup=False, soft_wrap=True)
    return chosen


def _refusal(spec: AgentSpec, environment: str, arguments: dict[str, Any]) -> str:
    """Return why an agent cannot play an environment, empty where it can."""
    if environment_family(environment) == "live":
        levels = environment_access(environment, arguments)
        if spec.access in levels:
            return ""
        return f"{spec.access} access, {environment} has {' and '.join(levels)}"
    import gymnasium as gym

    env = gym.make_vec(environment, num_envs=1, vectorization_mode=None, **arguments)
    try:
        make_agent(spec.name, env)
    except (InvalidValueError, AccessError) as error:
        return str(error)
    finally:
        env.close()
    return ""


def reference_in(table: pd.DataFrame, asked: str | None, default: str) -> str:
    """Return the reference for some rows: the one asked for where they have it.

    Where they do not, the default is taken and a line on stderr says so.

    Args:
        table: the rows, of live or of exact environments.
        asked: what `--reference` says; it need not play every environment of a folder.
        default: where nothing was asked for, or these rows do not have it.
    """
    if asked is None or asked in set(table["agent"]):
        return default if asked is None else asked
    where = ", ".join(sorted(map(str, table["environment"].unique())))
    note = f"reference: {asked} does not play {where}; {default} is the reference there"
    errors.print(note, highlight=False, markup=False, soft_wrap=True)
    return default


def check_live_reference(
    environment: str, reference: str | None, access: Mapping[str, str]
) -> None:
    """Refuse what regret in a live environment cannot be relative to.

    Args:
        environment: id of a live environment.
        reference: what `--reference` says.
        access: agent -> access, of the agents that play the environment.
    """
    against = LIVE_REFERENCE if reference is None or reference not in access else reference
    if against not in access:
        raise InvalidValueError(
            f"Expected the reference agent {against!r} among those of {environment}, whose regret "
            f"is relative to it; got {', '.join(access)}. Play it too (--agent {against}), or name "
            "another with --reference."
        )
    if access[against] != "bank":
        raise InvalidValueError(
            f"Expected --reference in {environment} to be an agent with bank access; got "
            f"{against!r}, whose access is {access[against]}. The bound is on regret relative to a "
            "policy that remembers every task."
        )


def players_in(results: Results, reference: str | None) -> dict[str, tuple[str, ...]]:
    """Return who plays each environment of a folder; refuse a reference that is none there.

    Args:
        results: the folder's.
        reference: what `--reference` says.
    """
    from nsr_gym.regret.exact import is_exact

    players = {}
    for environment in results.environments:
        rows = results.table[results.table["environment"] == environment]
        access = {str(a): str(kind) for a, kind in zip(rows["agent"], rows["access"], strict=True)}
        if not is_exact(results.table, environment):
            check_live_reference(environment, reference, access)
        players[environment] = tuple(sorted(access, key=results.agents.index))
    return players


def check_workers(workers: int | None) -> None:
    """Refuse a number of processes below 1."""
    if workers is not None and workers < 1:
        raise InvalidValueError(f"Expected --workers of at least 1; got {workers}.")


def check_reference(reference: str | None, agents: Iterable[str]) -> None:
    """Refuse a reference that no environment has; the default ones may be missing."""
    known = {LIVE_REFERENCE, EXACT_REFERENCE, *agents}
    if reference is not None and reference not in known:
        raise unknown("compared agent to be the reference", reference, known)


def parse_settings(settings: Iterable[str], *, option: str = "--set") -> dict[str, Any]:
    """Read NAME=VALUE pairs; a value that is no JSON is taken as text."""
    parsed = {}
    for setting in settings:
        name, sign, value = setting.partition("=")
        if not sign or not name:
            raise InvalidValueError(f"Expected {option} NAME=VALUE; got {setting!r}.")
        try:
            parsed[name] = json.loads(value)
        except ValueError:
            parsed[name] = value
    return parsed


def check_reward(reward: str) -> None:
    """Refuse a reward that does not exist."""
    if reward not in ("online", "post_task"):
        raise unknown("reward", reward, ["online", "post_task"])


def check_name(name: str) -> None:
    """Refuse a name that is no plain folder name."""
    if not name or Path(name).name != name or name in (".", ".."):
        raise InvalidValueError(f"Expected --name to be a plain folder name; got {name!r}.")


def seed_range(first: int, count: int) -> tuple[int, ...]:
    """Return the seeds of a run."""
    if count < 1:
        raise InvalidValueError(f"Expected --seeds of at least 1; got {count}.")
    return tuple(range(first, first + count))


def task_numbers(text: str) -> tuple[int, ...]:
    """Read `--tasks`: numbers of tasks, each once."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 2 or len(set(numbers)) < len(numbers):
        raise InvalidValueError(
            "Expected --tasks as numbers of tasks of at least 2, each once, such as 3,5,10; got "
            f"{text!r}."
        )
    return numbers
