"""Hyper-parameters of a run from YAML files, one for each algorithm, with blocks by environment.

The files are those of RL Baselines3 Zoo in style: under an environment's id stand the names that
Stable-Baselines3 uses, next to what the run itself needs (`n_timesteps`, `n_envs`, `network`, and
`imitate`, a rule that the controller begins as). A
block `default` holds for every environment; the others say only what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nsr_gym.agents.algorithms import NETWORKS, algorithm_spec, default_hyperparameters
from nsr_gym.agents.settings import check_setting
from nsr_gym.envs.arguments import check_whole
from nsr_gym.errors import FileFormatError, InvalidValueError, NsrGymError, unknown
from nsr_gym.registry import agent_spec

FOLDER = Path(__file__).parent / "hyperparameters"
"""Where the files of the suite lie, `<algorithm>.yml`."""

DEFAULT = "default"
"""The block that holds for every environment."""

_RUN: dict[str, Any] = {
    "n_timesteps": 131_072, "n_envs": 64, "network": "mlp", "imitate": None,
}  # fmt: skip
_ZOO_POLICIES = ("MlpPolicy", "MlpLstmPolicy", "MultiInputPolicy", "MultiInputLstmPolicy")
_WORDS = ("network", "policy", "activation", "imitate")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train with.

    Attributes:
        steps: environment steps, over all environments side by side.
        envs: environments side by side.
        network: a name of `nsr_gym.agents.algorithms.NETWORKS`.
        imitate: agent that the controller begins as a copy of; None for none.
        hyperparameters: of the algorithm and the network, plain JSON; what they leave open has
            the defaults of `nsr_gym.agents.algorithms.default_hyperparameters`.
    """

    steps: int
    envs: int
    network: str
    imitate: str | None
    hyperparameters: dict[str, Any]


def recipe(
    algorithm: str,
    environment: str,
    *,
    file: Path | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    network: str | None = None,
) -> Recipe:
    """Return what to train with: the suite's file, over it one's own, over both what is given.

    Args:
        algorithm: a name of `nsr_gym.agents.algorithms.ALGORITHMS`.
        environment: id, also as `"module:id"`.
        file: a YAML file of one's own.
        hyperparameters: by name; each must be one of the algorithm and the network.
        network: instead of the files'. What the files say of another network is left out.

    Raises:
        UnknownNameError: no such algorithm, network or hyper-parameter; the message names the
            closest and the file.
        InvalidValueError: a value of another type or out of range.
        FileFormatError: a file is missing, or no mapping of blocks.
    """
    algorithm_spec(algorithm)
    said: dict[str, Any] = {**_RUN}
    for source in (FOLDER / f"{algorithm}.yml", file):
        if source is not None:
            blocks = read_blocks(source, algorithm)
            said |= blocks.get(DEFAULT, {}) | blocks.get(environment.rpartition(":")[2], {})
    run = {name: said.pop(name) for name in _RUN}
    chosen = run["network"] if network is None else network
    own = default_hyperparameters(algorithm, network=chosen)
    values = {name: value for name, value in said.items() if name in own}
    for name, value in (hyperparameters or {}).items():
        if name in _RUN or name not in own:
            raise unknown(f"hyper-parameter of {algorithm} with network {chosen}", name, own)
        values[name] = _checked(name, value, own[name], algorithm)
    return Recipe(
        steps=run["n_timesteps"],
        envs=run["n_envs"],
        network=chosen,
        imitate=run["imitate"],
        hyperparameters=values,
    )


def read_blocks(file: Path, algorithm: str) -> dict[str, dict[str, Any]]:
    """Read a file and check every block of it, also those of other environments.

    Args:
        file: YAML.
        algorithm: whose hyper-parameters it gives.

    Returns:
        Name of the block -> hyper-parameters and run settings.

    Raises:
        FileFormatError: the file cannot be read, or is no mapping of mappings.
        UnknownNameError: a name that the algorithm has with no network.
        InvalidValueError: a value of another type or out of range.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FileFormatError(f"{file} cannot be read as YAML ({error}).") from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(block, dict) for name, block in content.items()
    ):
        raise FileFormatError(
            f"Expected {file} to hold blocks of hyper-parameters, each under the id of an "
            f"environment or {DEFAULT!r}. Indent the hyper-parameters under such a name."
        )
    return {
        name: _checked_block(block, algorithm, f"{file}, block {name!r}")
        for name, block in content.items()
    }


def _checked_block(block: Mapping[Any, Any], algorithm: str, where: str) -> dict[str, Any]:
    spec = algorithm_spec(algorithm)
    known: dict[str, Any] = dict(_RUN)
    for network in spec.networks:
        known |= default_hyperparameters(algorithm, network=network)
    try:
        checked = {}
        for name, value in _without_zoo(block).items():
            if name not in known:
                raise unknown(f"hyper-parameter of {algorithm}", name, known)
            checked[name] = _checked(name, value, known[name], algorithm)
    except NsrGymError as error:
        raise type(error)(f"{where}: {error}") from error
    return checked


def _without_zoo(block: Mapping[Any, Any]) -> dict[Any, Any]:
    """Translate what the Zoo's files say in another way."""
    values = dict(block)
    policy = values.pop("policy", None)
    if policy is not None and policy not in _ZOO_POLICIES:
        raise unknown("policy", policy, _ZOO_POLICIES)
    if values.pop("normalize", False) is not False:
        raise InvalidValueError(
            "Expected normalize to be false: observations are scaled by construction. Leave it out."
        )
    network = values.pop("policy_kwargs", {})
    if not isinstance(network, dict):
        raise InvalidValueError(
            f"Expected policy_kwargs as a mapping, such as {{net_arch: [64, 64]}}; got "
            f"{network!r}, which would have to be run as Python."
        )
    return values | network


def _checked(name: str, value: Any, default: Any, algorithm: str) -> Any:
    """Return a value as it is to be used, or raise."""
    if isinstance(value, str) and name not in _WORDS:
        with suppress(ValueError):
            value = float(value)  # YAML takes 1e-3 for text, only 1.0e-3 for a number
    whole = isinstance(default, int) and not isinstance(default, bool)
    if whole and isinstance(value, float) and value.is_integer():
        value = int(value)  # large numbers are written as 1e6
    if name == "network":
        if value not in NETWORKS:
            raise unknown("network", value, NETWORKS)
    elif name == "imitate":
        if value is not None:
            agent_spec(value)
    elif name in _RUN:
        check_whole(name, value, least=1)
    else:
        check_setting(name, value, lists_only=algorithm_spec(algorithm).flat_actions)
    return value
