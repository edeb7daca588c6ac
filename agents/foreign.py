"""Zips of Stable-Baselines3: refused, as they hold pickles, unless whoever loads them says so."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from gymnasium import spaces

from nsr_gym.agents.algorithms import ALGORITHMS, algorithm_spec
from nsr_gym.envs.wrappers import FlatActions
from nsr_gym.errors import FileFormatError, InvalidValueError

CARD = "controller.json"
"""The file that makes a folder a saved controller of the suite."""

PICKLED = (
    "it contains pickled data, and loading it runs whatever code its author put there. Load it "
    "only if you made it yourself or trust who did: --trust-pickle, trust_pickle=True in Python"
)
"""Why they are refused."""


def foreign_zip(path: Path) -> Path | None:
    """Return the zip of Stable-Baselines3 that a path names or a folder holds in place of a card.

    Only how the file begins and ends is looked at; nothing in it is opened.
    """
    if path.is_file():
        return path if zipfile.is_zipfile(path) or path.suffix == ".zip" else None
    if path.is_dir() and not (path / CARD).is_file():
        zips = sorted(file for file in path.glob("*") if file.suffix in (".zip", ".safetensors"))
        return next((file for file in zips if foreign_zip(file)), None)
    return None


def check_tensors(file: Path) -> None:
    """Refuse a file of tensors that is a zip or a pickle, whatever its name says.

    Raises:
        FileFormatError: it is one.
    """
    with file.open("rb") as stream:
        pickled = stream.read(1) == b"\x80"
    if pickled or zipfile.is_zipfile(file):
        raise FileFormatError(f"{file} is no safetensors file and is refused: {PICKLED}.")


def load_trusted_policy(
    path: Path, algorithm: str | None, engine: Any, device: str
) -> tuple[Any, str]:
    """Load the policy of a zip of Stable-Baselines3, which runs whatever code is in it.

    Args:
        path: the zip.
        algorithm: a name of `ALGORITHMS`; None takes what the zip says.
        engine: behind the environments that it is to play.
        device: `"cpu"` or a CUDA device.

    Returns:
        The policy and the algorithm's name.

    Raises:
        InvalidValueError: the environment has other observations or actions.
    """
    name = algorithm or _algorithm_of(path)
    spec = algorithm_spec(name)
    policy = spec.load().load(path, device=device).policy
    actions: Any = engine.action_space
    if spec.flat_actions:
        actions = FlatActions(actions).space
    kind = "dict" if isinstance(policy.observation_space, spaces.Dict) else "flat"
    observations = engine.layout.space(kind)
    if (policy.observation_space, policy.action_space) != (observations, actions):
        raise InvalidValueError(
            f"The controller in {path} reads {policy.observation_space} and takes "
            f"{policy.action_space}; this environment shows {observations} and expects {actions}."
        )
    return policy, name


def load_trusted(path: Path, algorithm: str | None, env: Any, device: str) -> Any:
    """Load a learner of a zip of Stable-Baselines3, which runs whatever code is in it.

    Args:
        path: the zip.
        algorithm: a name of `ALGORITHMS`; None takes what the zip says.
        env: a `VecEnv` for it.
        device: `"cpu"` or a CUDA device.

    Raises:
        FileFormatError: the zip is damaged, or of an algorithm that the suite does not know.
        InvalidValueError: the environment has other observations or actions.
    """
    spec = algorithm_spec(algorithm or _algorithm_of(path))
    try:
        return spec.load().load(path, env=env, device=device)
    except ValueError as error:  # what Stable-Baselines3 says of other spaces
        raise InvalidValueError(f"{path} cannot play {env}: {error}") from error


def _algorithm_of(path: Path) -> str:
    """Return which algorithm wrote a zip, told by the readable part of its data."""
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
        policy = data["policy_class"]
        module = str(policy.get("__module__", ""))
    except (zipfile.BadZipFile, KeyError, ValueError, AttributeError, TypeError) as error:
        raise FileFormatError(
            f"{path} is damaged or no zip of Stable-Baselines3 ({error!r})."
        ) from error
    if policy.get("takes_masks"):
        return "maskable-ppo"
    for name, word in (("maskable-ppo", "maskable"), ("recurrent-ppo", "recurrent")):
        if f".{word}." in module:
            return name
    for name, key in (("dqn", "exploration_rate"), ("ppo", "clip_range"), ("a2c", "gae_lambda")):
        if key in data:
            return name
    raise FileFormatError(
        f"{path} was written by an algorithm that the suite does not know; name it, "
        f"algorithm=... ({', '.join(ALGORITHMS)})."
    )
