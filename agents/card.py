"""The card of a saved controller: what it is, as plain JSON, read without running anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nsr_gym.agents.algorithms import ALGORITHMS, complete_hyperparameters
from nsr_gym.agents.foreign import CARD, PICKLED, foreign_zip
from nsr_gym.agents.settings import check_setting
from nsr_gym.errors import FileFormatError, InvalidValueError, NsrGymError

TENSORS = "controller.safetensors"
FORMAT = "nsr-gym-controller"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ControllerCard:
    """What is known of a controller before its weights are read.

    Attributes:
        algorithm: a name of `nsr_gym.agents.algorithms.ALGORITHMS`.
        network: a name of `nsr_gym.agents.algorithms.NETWORKS`.
        hyperparameters: that it was trained with.
        environment: id of the environment that it was trained in.
        arguments: of that environment.
        split: of the tasks that it was trained on.
        observation: `"flat"` or `"dict"`, how it reads observations.
        sizes: field of an observation -> number of values, in their order.
        actions: number of values of each component of an action; where actions are numbered
            for the algorithm, of the components before.
        ranks: that can be granted; None where the environment knows none.
        steps: of the training.
        versions: of the packages that trained it.
        sha256: of the file of tensors.
        scores: what it reached, by name.
        extra: whatever else whoever saved it wanted to keep.
    """

    algorithm: str
    network: str
    hyperparameters: dict[str, Any]
    environment: str
    arguments: dict[str, Any]
    split: str
    observation: str
    sizes: dict[str, int]
    actions: list[int]
    ranks: list[int] | None
    steps: int
    versions: dict[str, str]
    sha256: str
    scores: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Return the content of the card's file.

        Raises:
            InvalidValueError: something in it is no plain JSON.
        """
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        try:
            return json.dumps(content, indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise InvalidValueError(
                f"Expected arguments, hyper-parameters, scores and extra as plain JSON ({error})."
            ) from error


def read_card(folder: str | Path) -> ControllerCard:
    """Read what a saved controller is.

    Args:
        folder: that `save_controller` wrote.

    Raises:
        FileNotFoundError: no such folder, or no controller in it.
        FileFormatError: the card is damaged, foreign or of a newer version, or what lies there
            is a zip of Stable-Baselines3.
    """
    folder = Path(folder)
    if foreign := foreign_zip(folder):
        raise FileFormatError(f"{foreign} is refused: {PICKLED}.")
    file = folder / CARD
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no controller in {folder}; expected a folder with {CARD} and {TENSORS}, "
            "as nsr-gym train writes it."
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{file} is damaged ({error}); restore it from a copy.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileFormatError(f"{file} is not the card of a controller; expected format {FORMAT}.")
    if content.get("version") != VERSION:
        raise FileFormatError(
            f"{file} has version {content.get('version')!r} of the format, this package reads "
            f"version {VERSION}; if the file is not damaged, install a later nsr-gym."
        )
    return _parse(file, content)


def _parse(file: Path, content: Mapping[str, Any]) -> ControllerCard:
    kinds: dict[str, Any] = {
        "algorithm": str, "network": str, "hyperparameters": dict, "environment": str,
        "arguments": dict, "split": str, "observation": str, "sizes": dict, "actions": list,
        "ranks": list | None, "steps": int, "versions": dict, "sha256": str, "scores": dict,
        "extra": dict,
    }  # fmt: skip
    names = [one.name for one in fields(ControllerCard)]
    for name in names:
        if name not in content or not isinstance(content[name], kinds[name]):
            raise FileFormatError(f"{file} is damaged: it has no proper {name!r}.")
    card = ControllerCard(**{name: content[name] for name in names})
    counts = [*card.sizes.values(), *card.actions, *(card.ranks or [])]
    whole = all(isinstance(count, int) and count > 0 for count in counts)
    if not whole or not card.actions or card.observation not in ("flat", "dict"):
        raise FileFormatError(f"{file} is damaged: sizes of observations or actions are no sizes.")
    try:
        rollout = {"n_steps": 2} if "n_epochs" in card.hyperparameters else {}
        for name in ("n_steps", "batch_size"):
            if name in card.hyperparameters:
                check_setting(name, card.hyperparameters[name])
        # Batches are fitted to the environments in which it is loaded.
        values = {k: v for k, v in card.hyperparameters.items() if k != "batch_size"}
        complete_hyperparameters(card.algorithm, values | rollout, network=card.network)
    except NsrGymError as error:
        known = ", ".join(ALGORITHMS)
        raise FileFormatError(
            f"{file} does not describe a controller that this package can build ({error}); it "
            f"knows {known}."
        ) from error
    return card
