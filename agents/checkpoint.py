"""Saved controllers: tensors as safetensors, everything else as JSON, nothing ever unpickled."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gymnasium import spaces
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as dump_tensors

from nsr_gym.agents.algorithms import (
    algorithm_spec,
    build_model,
    complete_hyperparameters,
    engine_behind,
    policy_and_arguments,
)
from nsr_gym.agents.card import TENSORS, ControllerCard, read_card
from nsr_gym.agents.foreign import CARD, check_tensors, foreign_zip, load_trusted
from nsr_gym.agents.networks import ENTRY_FIELDS
from nsr_gym.envs.wrappers import FlatActions
from nsr_gym.errors import FileFormatError, InvalidValueError
from nsr_gym.files import write_whole

__all__ = ["ControllerCard", "load_model", "load_policy", "read_card", "save_controller"]

_PACKAGES = ("nsr-gym", "stable-baselines3", "sb3-contrib", "torch", "numpy", "gymnasium")


def save_controller(
    model: Any,
    folder: str | Path,
    *,
    algorithm: str,
    network: str,
    hyperparameters: Mapping[str, Any],
    environment: str,
    arguments: Mapping[str, Any],
    split: str,
    scores: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> ControllerCard:
    """Write a controller to a folder: `controller.safetensors` and `controller.json`.

    Each file is there whole or not at all; the card is written last and holds the hash of the
    tensors, so that files of two controllers are never taken for one.

    Args:
        model: of Stable-Baselines3, as `build_model` returns it, with its environments.
        folder: made where it is missing; a controller in it is replaced.
        algorithm: a name of `nsr_gym.agents.algorithms.ALGORITHMS`.
        network: a name of `nsr_gym.agents.algorithms.NETWORKS`.
        hyperparameters: that it was built with.
        environment: id of the environment that it was trained in.
        arguments: of that environment.
        split: of the tasks that it was trained on.
        scores: what it reached, by name; plain JSON.
        extra: whatever else is to be kept; plain JSON.

    Returns:
        The card.

    Raises:
        InvalidValueError: something to be written is no plain JSON, or the model has no
            environments of the suite.
        OSError: the folder cannot be made or written.
    """
    folder = Path(folder)
    engine = engine_behind(model.get_env())
    actions, ranks = engine.action_space, getattr(engine.config, "ranks", None)
    tensors = {
        name: part.detach().cpu().clone().contiguous()
        for name, part in model.policy.state_dict().items()
    }
    payload = dump_tensors(tensors)
    card = ControllerCard(
        algorithm=algorithm,
        network=network,
        hyperparameters=dict(hyperparameters),
        environment=environment,
        arguments=dict(arguments),
        split=split,
        observation="dict" if isinstance(model.observation_space, spaces.Dict) else "flat",
        sizes={name: int(size) for name, size in engine.layout.sizes.items()},
        actions=list(FlatActions(actions).nvec),
        ranks=None if ranks is None else [int(rank) for rank in ranks],
        steps=int(model.num_timesteps),
        versions=_versions(),
        sha256=hashlib.sha256(payload).hexdigest(),
        scores=dict(scores or {}),
        extra=dict(extra or {}),
    )
    text = card.text()
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / TENSORS, lambda file: file.write_bytes(payload))
    write_whole(folder / CARD, lambda file: file.write_text(text, encoding="utf-8"))
    return card


def load_model(
    folder: str | Path,
    env: Any,
    *,
    trust_pickle: bool = False,
    algorithm: str | None = None,
    seed: int | None = None,
    device: str = "cpu",
) -> Any:
    """Build a saved controller for environments, to play or to train on.

    Args:
        folder: that `save_controller` wrote; with `trust_pickle`, a zip of Stable-Baselines3
            or a folder with one, too.
        env: a `VecEnv` of the suite that shows and takes what the controller was trained on;
            the pointer network takes any number of entries in view.
        trust_pickle: whether such a zip may be loaded, which runs whatever code is in it.
        algorithm: of a zip, where it does not say.
        seed: of what the model draws from here on.
        device: `"cpu"` or a CUDA device.

    Returns:
        The learner of Stable-Baselines3, with fresh optimiser and buffers. The batch size is
        fitted to the number of environments where that of the training does not divide a rollout.

    Raises:
        FileNotFoundError: there is no controller.
        FileFormatError: its files are damaged, foreign or of a newer version, or it is a zip
            that is not trusted.
        InvalidValueError: the environment shows or takes something else.
        MissingDependencyError: the algorithm needs sb3-contrib, which is not installed.
    """
    folder = Path(folder)
    zipped = foreign_zip(folder)
    if trust_pickle and zipped is not None:
        return load_trusted(zipped, algorithm, env, device)
    card = read_card(folder)
    engine = engine_behind(env)
    check_fit(card, engine)
    named = isinstance(env.observation_space, spaces.Dict)
    if card.network != "pointer" and named != (card.observation == "dict"):
        raise InvalidValueError(
            f"The controller in {folder} reads {card.observation} observations; make the "
            f"environment with observation={card.observation!r}."
        )
    values = dict(card.hyperparameters)
    # Batches of an off-policy learner come from its buffer and fit anywhere.
    cut = "n_epochs" in algorithm_spec(card.algorithm).defaults and "batch_size" in values
    if cut and values.get("n_steps", 0) * env.num_envs % values["batch_size"]:
        del values["batch_size"]
    tensors = _read_tensors(folder, card)
    model = build_model(
        card.algorithm, env, network=card.network, seed=seed, device=device, **values
    )
    _set(model.policy, tensors, folder)
    model.num_timesteps = card.steps
    return model


def load_policy(folder: str | Path, engine: Any, *, device: str = "cpu") -> tuple[Any, Any]:
    """Build the policy of a saved controller, to play without a learner around it.

    Args:
        folder: that `save_controller` wrote.
        engine: behind the environments that it is to play.
        device: `"cpu"` or a CUDA device.

    Returns:
        The policy of Stable-Baselines3 and the `ControllerCard`. It reads observations as it
        was trained on them, flat or by name, whatever the environment shows.

    Raises: as `load_model`.
    """
    folder = Path(folder)
    card = read_card(folder)
    check_fit(card, engine)
    tensors = _read_tensors(folder, card)
    actions: Any = engine.action_space
    if algorithm_spec(card.algorithm).flat_actions:
        actions = FlatActions(actions).space
    observations = engine.layout.space(card.observation)
    values = complete_hyperparameters(
        card.algorithm,
        {name: v for name, v in card.hyperparameters.items() if name != "batch_size"},
        network=card.network,
    )
    policy_class, arguments = policy_and_arguments(
        card.algorithm, card.network, values, observations, actions, engine.layout.sizes
    )
    policy = policy_class(observations, actions, _no_schedule, **arguments).to(device)
    _set(policy, tensors, folder)
    policy.set_training_mode(False)
    return policy, card


def check_fit(card: ControllerCard, engine: Any) -> None:
    """Refuse environments that show or take something else than a controller was trained on.

    Args:
        card: of the controller.
        engine: behind the environments.

    Raises:
        InvalidValueError: another field, order or size of observations, other actions or ranks.
    """
    pointer = card.network == "pointer"
    shown = {name: int(size) for name, size in engine.layout.sizes.items()}
    taken = list(FlatActions(engine.action_space).nvec)
    ranks = getattr(engine.config, "ranks", None)
    # The view of the pointer network may have any size.
    trained, here = (
        [(name, "view" if pointer and name in ENTRY_FIELDS else n) for name, n in sizes.items()]
        for sizes in (card.sizes, shown)
    )
    if trained != here:
        raise InvalidValueError(
            f"The controller, trained in {card.environment}, reads observations with the fields "
            f"{card.sizes}; this environment shows {shown}."
        )
    if card.actions[pointer:] != taken[pointer:] or len(card.actions) != len(taken):
        raise InvalidValueError(
            f"The controller, trained in {card.environment}, takes actions with {card.actions} "
            f"values; this environment expects {taken}."
        )
    if card.ranks is not None and ranks is not None and card.ranks != list(ranks):
        raise InvalidValueError(
            f"The controller, trained in {card.environment}, grants the ranks {card.ranks}; this "
            f"environment has the ranks {list(ranks)}."
        )


def _read_tensors(folder: Path, card: ControllerCard) -> dict[str, Any]:
    file = folder / TENSORS
    if not file.is_file():
        raise FileNotFoundError(f"There is no {file}; {folder / CARD} alone is no controller.")
    check_tensors(file)
    payload = file.read_bytes()
    if hashlib.sha256(payload).hexdigest() != card.sha256:
        raise FileFormatError(
            f"{file} is damaged or of another controller: its content does not match the hash in "
            f"{CARD}; restore both from one copy."
        )
    try:
        tensors: dict[str, Any] = parse_tensors(payload)
    except SafetensorError as error:
        raise FileFormatError(f"{file} is no safetensors file ({error}).") from error
    return tensors


def _set(policy: Any, tensors: Mapping[str, Any], folder: Path) -> None:
    try:
        policy.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        raise FileFormatError(
            f"The tensors in {folder / TENSORS} are not those of the network that {CARD} "
            f"describes ({error})."
        ) from error


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # sb3-contrib is optional
    return found


def _no_schedule(progress_remaining: float) -> float:
    return 0.0
