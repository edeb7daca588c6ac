"""Controllers for a comparison: the suite's, and where there is none, trained on the spot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nsr_gym.cli_shared import errors
from nsr_gym.errors import InvalidValueError
from nsr_gym.registration import environment_access, environment_family
from nsr_gym.registry import register_controller

LEARNED = "ppo"
"""The agent that stands for learned controllers in comparisons."""


def controllers_for(
    environments: Iterable[str], agents: Iterable[str], arguments: Mapping[str, Any], runs: Path
) -> dict[str, dict[str, Any]]:
    """Return the arguments of the agent `ppo`, training what the suite does not ship.

    Args:
        environments: ids that are compared.
        agents: that play.
        arguments: of the environments.
        runs: folder of all results; controllers lie in its `controllers`, by environment and
            arguments, and are trained once.

    Returns:
        Agent -> arguments of its constructor; empty where nothing had to be trained.
    """
    if LEARNED not in agents:
        return {}
    folders = {}
    for environment in environments:
        bank = "bank" in environment_access(environment, arguments)
        if environment_family(environment) == "live" and bank:
            folder = _trained(environment, arguments, runs)
            if folder is not None:
                folders[environment.rpartition(":")[2]] = str(folder)
    return {LEARNED: {"folders": folders}} if folders else {}


def saved_controllers(paths: Iterable[Path], *, trust_pickle: bool) -> dict[str, dict[str, Any]]:
    """Register saved controllers as agents.

    Args:
        paths: folders that `nsr-gym train` wrote; with `trust_pickle` also zips of
            Stable-Baselines3.
        trust_pickle: whether such a zip may be loaded, which runs whatever code is in it.

    Returns:
        Agent (named after its folder and the one above, as in `seed-0/best`) -> arguments of
        its constructor.

    Raises:
        FileNotFoundError: there is nothing at a path.
        InvalidValueError: two paths would have one name.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"There is no controller at {path}; expected its folder.")
        name = "/".join(path.absolute().parts[-2:])
        if name in found:
            raise InvalidValueError(
                f"Expected controllers with different names; two are called {name!r}. Copy one to "
                "a folder of another name."
            )
        register_controller(name, summary="a saved controller")
        found[name] = {"folder": str(path), "trust_pickle": trust_pickle}
    return found


def _trained(environment: str, arguments: Mapping[str, Any], runs: Path) -> Path | None:
    """Return the folder of a controller trained here, None where the suite ships one."""
    import gymnasium as gym

    from nsr_gym.agents.controller import shipped_folder
    from nsr_gym.agents.training import train_on_the_spot
    from nsr_gym.cli_train import training_progress

    chosen = dict(arguments) | {"access": "bank"}
    env: Any = gym.make_vec(environment, num_envs=1, vectorization_mode=None, **chosen)
    try:
        shipped = shipped_folder(env, algorithm="ppo")
    finally:
        env.close()
    if shipped is not None:
        return None
    asked = {name: value for name, value in arguments.items() if name != "split"}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    folder = runs / "controllers" / f"{environment.rpartition('/')[2]}-{digest}"
    errors.print(
        f"{LEARNED}: no controller comes with the suite for {environment} with these arguments; "
        f"training one in {folder} (leave {LEARNED} out with --agent ...)",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    with training_progress(f"{LEARNED} for {environment}") as progress:
        return train_on_the_spot(environment, asked, folder, progress=progress)
