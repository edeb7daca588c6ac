"""Comparisons of the same agents at several numbers of tasks, for `nsr_gym.regret.scaling`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import pandas as pd

from nsr_gym.errors import InvalidValueError
from nsr_gym.evaluation.compare import Comparison, run
from nsr_gym.evaluation.rollout import opened
from nsr_gym.metrics.episodes import RewardKind
from nsr_gym.registration import environment_family
from nsr_gym.regret.scaling import Horizon, scaling_table

TASKS = (3, 5, 10, 20)


def scaling_comparisons(
    environment: str,
    *,
    agents: Sequence[str],
    seeds: Sequence[int],
    tasks: Sequence[int] = TASKS,
    cycles: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    agent_arguments: Mapping[str, dict[str, Any]] | None = None,
    block: int = 10,
) -> dict[int, Comparison]:
    """Return the comparison for each number of tasks, all of them checked.

    Args:
        environment: id.
        agents: registered names.
        seeds: the same for every number of tasks.
        tasks: numbers of tasks M, at least 2 each.
        cycles: C; None for the environment's own.
        arguments: of the environment besides.
        agent_arguments: agent -> arguments of its constructor.
        block: seeds that one cell plays side by side.

    Raises:
        InvalidValueError: a number of tasks below 2 or given twice, or an argument that does not
            fit one of them (such as a table with a row for each task), or an agent that does not
            fit the environment.
        AccessError: an agent lacks what it needs in the environment.
        UnknownNameError: an environment, agent or argument that does not exist.
    """
    if not tasks or len(set(tasks)) != len(tasks) or min(tasks) < 2:
        raise InvalidValueError(
            f"Expected numbers of tasks of at least 2, each once; got {list(tasks)}."
        )
    chosen = dict(arguments or {}) | ({} if cycles is None else {"cycles": cycles})
    found = {
        m: Comparison(
            environments=(environment,),
            agents=tuple(agents),
            seeds=tuple(seeds),
            arguments=chosen | {"num_tasks": m},
            agent_arguments=dict(agent_arguments or {}),
            block=block,
        )
        for m in sorted(tasks)
    }
    # What only the largest M or the last agent refuses is to be found before anything is played.
    for comparison in found.values():
        for agent in comparison.agents:
            own = comparison.agent_arguments.get(agent, {})
            with opened(environment, agent, 1, comparison.arguments, own):
                pass
    return found


def scaling_study(
    comparisons: Mapping[int, Comparison],
    folder: Path,
    *,
    reference: str | None = None,
    reward: RewardKind = "online",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Play the comparisons, each into `folder/M<number of tasks>`, and read regret from them.

    A study that was stopped goes on where it was; see `nsr_gym.evaluation.compare.run`.

    Args:
        comparisons: as `scaling_comparisons` returns them.
        folder: where the results go.
        reference: as in `scaling_table`.
        reward: of live environments.
        workers: processes; None takes one for each core.
        progress: called with the visits made and cells finished since the last call.

    Returns:
        The rows of `nsr_gym.regret.scaling.scaling_table`.
    """
    tables = [
        run(comparison, folder / f"M{m}", workers=workers, progress=progress)
        for m, comparison in comparisons.items()
    ]
    return scaling_table(tables, reference=reference, reward=reward)


def scarce_tasks(
    environment: str, tasks: Sequence[int], arguments: Mapping[str, Any] | None = None
) -> list[int]:
    """Return the numbers of tasks M > c, at which not every solution can be held.

    At the others there is no bound, and M-c has no logarithm.

    Args:
        environment: id.
        tasks: numbers of tasks M.
        arguments: of the environment besides.

    Raises:
        InvalidValueError: there is none.
    """
    held = {m: solutions_held(environment, {**(arguments or {}), "num_tasks": m}) for m in tasks}
    scarce = [m for m in tasks if m > held[m]]
    if not scarce:
        raise InvalidValueError(
            f"Expected numbers of tasks above the {max(held.values())} solutions that can be held "
            f"in {environment}, where regret has a bound to scale; got {list(tasks)}."
        )
    return scarce


def solutions_held(environment: str, arguments: Mapping[str, Any] | None = None) -> int:
    """Return c of the law (C-1)(M-c): k + K in reading B, 1 in every other environment.

    Args:
        environment: id.
        arguments: of the environment.
    """
    if environment_family(environment) != "paging":
        return 1
    with _built(environment, arguments or {}) as env:
        config = env.unwrapped.engine.config
        return int(config.slots + (config.num_tasks if config.bank is None else config.bank))


def default_horizon(environment: str, reading: str | None = None) -> Horizon:
    """Return what T counts in an environment: see `nsr_gym.regret.scaling`.

    Args:
        environment: id.
        reading: `"A"`, `"B"` or `"C"` where it is known.
    """
    if reading == "C":
        return "visits"
    if reading == "B" or environment_family(environment) != "allocation":
        return "later cycles"
    return "cycles"


@contextmanager
def _built(environment: str, arguments: Mapping[str, Any]) -> Iterator[Any]:
    env = gym.make_vec(environment, num_envs=1, vectorization_mode=None, **arguments)
    try:
        yield env
    finally:
        env.close()
