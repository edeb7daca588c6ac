"""Contextual bandits for the bank: linear models of the next reward, trained and then frozen.

They choose what to recall and which rank to grant by the reward of this visit alone, and so know
nothing of what their choice does to later ones. What becomes of the result earns nothing now and is
a fixed rule, that of `TrialLossNearestAgent`: a recalled entry is updated if its trial loss lies
below a threshold, else the result is added, as it is after a fresh start.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.agents.bandit_features import Bools, Floats, choice_features, feature_names
from nsr_gym.agents.bank_rules import BankRule
from nsr_gym.agents.base import Ints, State
from nsr_gym.errors import FileFormatError, InvalidValueError, NsrGymError, StateError, unknown

KINDS = ("linucb", "thompson", "epsilon-greedy")
"""How a bandit explores while it is trained."""

WEIGHTS_FILE = "trained/bandits.json"
TRAIN_COMMAND = "python -m nsr_gym.agents.bandit_training"


@dataclass(frozen=True, kw_only=True)
class BanditWeights:
    """A trained bandit, plain JSON.

    Attributes:
        kind: how it explored, one of `KINDS`.
        ranks: the Q ranks that it knows.
        features: names of the d features.
        theta: (d,) weights; a choice's expected reward is their product with its features.
        keep: whether it was trained with a full bank left as it is.
        threshold: trial loss in nats below which a recalled entry is updated.
        environment: id it was trained on.
        arguments: of that environment.
        episodes: how many, at least; of the train split.
        seed: of streams and exploration.
    """

    kind: str
    ranks: tuple[int, ...]
    features: tuple[str, ...]
    theta: tuple[float, ...]
    threshold: float
    keep: bool = True
    environment: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    episodes: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check that the weights belong to the features that are computed.

        Raises:
            UnknownNameError: no such kind.
            InvalidValueError: other features, weights that are not d finite numbers, or a threshold
                that is not positive.
        """
        if self.kind not in KINDS:
            raise unknown("kind of bandit", self.kind, KINDS)
        expected = feature_names(self.ranks)
        if self.features != expected:
            raise InvalidValueError(
                f"Expected weights of the features {', '.join(expected)}; got those of "
                f"{', '.join(self.features)}. Train them anew: {TRAIN_COMMAND}."
            )
        if np.shape(self.theta) != (len(expected),) or not np.isfinite(self.theta).all():
            raise InvalidValueError(
                f"Expected {len(expected)} finite weights; got {list(self.theta)}."
            )
        if not self.threshold > 0:
            raise InvalidValueError(f"Expected a positive threshold; got {self.threshold!r}.")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {**asdict(self), "arguments": dict(self.arguments)}

    @classmethod
    def from_json(cls, content: Any) -> BanditWeights:
        """Build the weights from what `to_json` gave.

        Raises:
            FileFormatError: something is missing, unknown, or does not fit.
        """
        names = {entry.name for entry in fields(cls)}
        if not isinstance(content, Mapping) or set(content) != names:
            raise FileFormatError(
                f"Expected the weights of a bandit, {', '.join(sorted(names))}; got {content!r}."
            )
        try:
            lists = {name: tuple(content[name]) for name in ("ranks", "features", "theta")}
            return cls(**{**content, **lists})
        except (NsrGymError, TypeError, ValueError) as error:
            raise FileFormatError(f"These are no weights of a bandit: {error}") from error


class BankBanditAgent(BankRule):
    """Makes the choice with the highest expected reward of this visit."""

    def __init__(self, env: Any, *, weights: BanditWeights, keep: bool | None = None) -> None:
        """Fit the bandit to an environment.

        Args:
            env: the environment.
            weights: of a trained bandit.
            keep: discard what would be added to a full bank; None does as in training.

        Raises:
            InvalidValueError: the environment grants other ranks than the bandit knows.
        """
        super().__init__(env, keep=weights.keep if keep is None else keep)
        if weights.ranks != tuple(self.config.ranks):
            raise InvalidValueError(
                f"The bandit knows the ranks {list(weights.ranks)}; this environment grants "
                f"{list(self.config.ranks)}. Train one for it: {TRAIN_COMMAND}."
            )
        self.weights = weights
        self._theta = np.array(weights.theta)

    def find(self, observation: NDArray[Any]) -> Ints:
        """Return the entry that it would recall, (n,) in 1..S, or 0 for a fresh start."""
        return self._choose(observation)[0]

    def act(self, observation: NDArray[Any], state: State) -> tuple[Ints, State]:
        """Return actions (n, 3) for observations (n, size), and the next state."""
        recall, rank = self._choose(observation)
        return self.carry_out(observation, recall, rank), state

    def carry_out(self, observation: NDArray[Any], recall: Ints, rank: Ints) -> Ints:
        """Return actions (n, 3) for entries and ranks (n,) that were chosen."""
        rows, place = np.arange(len(recall)), np.maximum(recall - 1, 0)
        own = self.trial_loss(observation)[rows, place] < self.weights.threshold
        return self.decide(observation, recall, own=own, rank=rank)

    def _choose(self, observation: NDArray[Any]) -> tuple[Ints, Ints]:
        phi, valid = choice_features(self.layout, observation)
        # Without BLAS, whose sums depend on how many episodes there are.
        return best_choice(np.einsum("nkqd,d->nkq", phi, self._theta), valid)


def best_choice(score: Floats, valid: Bools) -> tuple[Ints, Ints]:
    """Return the entry and the rank (n,) with the highest score (n, S + 1, Q) of the valid ones."""
    flat = np.where(valid[:, :, None], score, -np.inf).reshape(len(score), -1).argmax(axis=1)
    return flat // score.shape[2], flat % score.shape[2]


def linucb(env: Any, *, file: str | None = None, keep: bool | None = None) -> BankBanditAgent:
    """Return the frozen bandit that LinUCB trained (see `shipped_weights`)."""
    return BankBanditAgent(env, weights=shipped_weights(env, "linucb", file), keep=keep)


def thompson(env: Any, *, file: str | None = None, keep: bool | None = None) -> BankBanditAgent:
    """Return the frozen bandit that linear Thompson sampling trained (see `shipped_weights`)."""
    return BankBanditAgent(env, weights=shipped_weights(env, "thompson", file), keep=keep)


def epsilon_greedy(
    env: Any, *, file: str | None = None, keep: bool | None = None
) -> BankBanditAgent:
    """Return the frozen bandit that epsilon-greedy choice trained (see `shipped_weights`)."""
    return BankBanditAgent(env, weights=shipped_weights(env, "epsilon-greedy", file), keep=keep)


def shipped_weights(env: Any, kind: str, file: str | None = None) -> BanditWeights:
    """Return the weights of a bandit that was trained for an environment.

    Live and recorded forms of an environment share them.

    Args:
        env: the environment.
        kind: one of `KINDS`.
        file: a JSON file as the training command writes it; None takes the shipped one.

    Raises:
        StateError: none was trained for the environment.
        FileFormatError: the file is no such file.
        OSError: it cannot be read.
    """
    name = base_name(getattr(env.unwrapped.spec, "id", ""))
    table = _shipped() if file is None else read_weights(Path(file).read_text())
    if kind not in table.get(name, {}):
        raise StateError(
            f"No {kind} bandit was trained for {name or 'this environment'}, only for "
            f"{', '.join(table) or 'none'}; train one with {TRAIN_COMMAND} and pass file=...."
        )
    return table[name][kind]


def base_name(environment: str) -> str:
    """Return the name of an environment without namespace, `Recorded` and version."""
    return re.sub(r"(Recorded)?(-v\d+)?$", "", environment.rpartition("/")[2])


def read_weights(text: str) -> dict[str, dict[str, BanditWeights]]:
    """Return base name -> kind -> weights from the text of a JSON file.

    Raises:
        FileFormatError: it is no such file.
    """
    try:
        content = json.loads(text)
        items = [
            (name, kind, raw) for name, kinds in content.items() for kind, raw in kinds.items()
        ]
    except (ValueError, TypeError, AttributeError) as error:
        raise FileFormatError(
            f"Expected a JSON file that {TRAIN_COMMAND} wrote; got {text[:60]!r} ({error})."
        ) from error
    table: dict[str, dict[str, BanditWeights]] = {}
    for name, kind, raw in items:
        table.setdefault(name, {})[kind] = BanditWeights.from_json(raw)
    return table


@cache
def _shipped() -> dict[str, dict[str, BanditWeights]]:
    path = resources.files("nsr_gym.agents") / WEIGHTS_FILE
    return read_weights(path.read_text()) if path.is_file() else {}
