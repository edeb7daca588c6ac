"""Thresholds that an experiment's part needs and none ship for: calibrated once, kept with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium as gym

from nsr_gym.agents.thresholds import backbone_of, thresholds
from nsr_gym.errors import FileFormatError, StateError
from nsr_gym.evaluation.calibrate import calibrate
from nsr_gym.evaluation.cells import ResultFolder
from nsr_gym.evaluation.compare import Comparison
from nsr_gym.evaluation.rollout import opened
from nsr_gym.files import write_whole

ASKED = {"similarity": "similarity", "trial-loss": "trial_loss", "pin-one": "trial_loss"}
"""Agent -> which calibrated threshold it asks for."""
EPISODES = 3
"""Of the train split that are calibrated on, as for the thresholds on images that ship."""
NOT_OF_TRAIN = ("split", "order", "order_seed", "evaluate")
"""Arguments that say which tasks of the test split are played, and on which images."""
NOT_OF_RULES = ("router", "observe_signals")
"""Arguments with which scores of other kinds are calibrated in place of what `ASKED` names."""
FILE = "thresholds.json"

Say = Callable[[str], None]


def train_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with which a part's thresholds are calibrated on the train split.

    Args:
        arguments: of the part's environment.
    """
    left_out = (*NOT_OF_TRAIN, *NOT_OF_RULES)
    kept = {name: value for name, value in arguments.items() if name not in left_out}
    if kept.get("test_per_class", 0) is None:  # rules see none of them; the default will do
        del kept["test_per_class"]
    return kept


def calibrated_thresholds(
    comparison: Comparison, folder: Path, say: Say | None = None
) -> dict[str, float]:
    """Return the thresholds of those agents for which none is given and none ships.

    They are calibrated on the train split and kept in the folder before anything is played. What
    is there of the same environment, arguments and network is taken from it, anything else is
    replaced, as long as nothing has been played with it.

    Args:
        comparison: of one environment.
        folder: of its results.
        say: told that it is being calibrated.

    Returns:
        Agent -> cosine similarity, or loss in nats.

    Raises:
        StateError: another process is working in the folder.
        FileFormatError: the thresholds there cannot be read.
        DataError: the episodes are too short to calibrate on.
        NsrGymError: the environment or another agent refuses its arguments.
    """
    own = comparison.agent_arguments
    asking = [
        a for a in comparison.agents if a in ASKED and own.get(a, {}).get("threshold") is None
    ]
    if not asking:
        return {}
    results = ResultFolder(folder)
    # Calibrated before the first cell, or never. Other arguments are refused when it is run.
    begun = len(results.cell_files()) > 0
    found = _read(folder) if begun else _found(comparison, results, asking, say)
    return {} if found is None else {agent: float(found[ASKED[agent]]) for agent in asking}


def publish(folder: Path) -> None:
    """Let a finished comparison's thresholds be seen.

    Until then their file is hidden: a comparison begins in a folder that has no other files.
    """
    with suppress(FileNotFoundError):  # there are none, or another process was here first
        _hidden(folder).replace(folder / FILE)


def _found(
    comparison: Comparison, results: ResultFolder, asking: Sequence[str], say: Say | None
) -> dict[str, Any] | None:
    (environment,), folder = comparison.environments, results.path
    ships, backbone, pool = _shipped(environment, comparison.arguments)
    if not ships:
        # Calibrating takes minutes: what else is wrong is to be found before.
        for agent in (a for a in comparison.agents if a not in asking):
            given = comparison.agent_arguments.get(agent)
            with opened(environment, agent, 1, comparison.arguments, given):
                pass
    folder.mkdir(parents=True, exist_ok=True)
    with results.lock():
        if ships:
            _hidden(folder).unlink(missing_ok=True)
            return None
        arguments = json.loads(json.dumps(train_arguments(comparison.arguments)))
        wanted = {
            "environment": environment, "arguments": arguments, "episodes": EPISODES,
            "backbone": backbone, "pool": pool,
        }  # fmt: skip
        there = _read(folder)
        if there is not None and all(there.get(key) == value for key, value in wanted.items()):
            return there
        if say is not None:
            say(
                f"no thresholds ship for {pool} with this network: calibrating those of "
                f"{', '.join(asking)} on {EPISODES} episodes of the train split; this takes minutes"
            )
        _, found = calibrate(environment, range(EPISODES), arguments=arguments)
        text = json.dumps(found | {"pool": pool}, indent=2) + "\n"
        write_whole(_hidden(folder), lambda file: file.write_text(text))
        (folder / FILE).unlink(missing_ok=True)
        return found


def _shipped(environment: str, arguments: Mapping[str, Any]) -> tuple[bool, str | None, str]:
    """Return whether thresholds ship for an environment, its network and its pool of tasks."""
    chosen = {"split": "test", **arguments}
    env: Any = gym.make_vec(environment, num_envs=1, vectorization_mode=None, **chosen)
    try:
        thresholds(env)
        ships = True
    except StateError:
        ships = False
    finally:
        env.close()
    return ships, backbone_of(env), str(env.unwrapped.engine.pool_name)


def _hidden(folder: Path) -> Path:
    return folder / f".{FILE}"


def _read(folder: Path) -> dict[str, Any] | None:
    """Return the thresholds kept in a folder, None where there are none."""
    for file in (folder / FILE, _hidden(folder)):
        if not file.exists():
            continue
        try:
            found = dict(json.loads(file.read_text()).items())
            for name in ASKED.values():
                float(found[name])
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise FileFormatError(
                f"{file} cannot be read as thresholds ({error!r}); move the folder {folder} away "
                "or choose another name."
            ) from error
        return found
    return None
