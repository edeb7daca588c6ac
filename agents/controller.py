"""Saved controllers as agents, and those that come with the suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from nsr_gym.agents.algorithms import algorithm_spec
from nsr_gym.agents.base import Ints, Observation, State, find_engine
from nsr_gym.agents.card import ControllerCard, read_card
from nsr_gym.agents.checkpoint import check_fit, load_policy
from nsr_gym.agents.foreign import CARD, foreign_zip, load_trusted_policy
from nsr_gym.envs.wrappers import FlatActions
from nsr_gym.errors import AccessError, InvalidValueError, StateError

TRAINED = Path(__file__).parent / "trained"
"""Where the controllers of the suite lie, a folder for each."""


class ControllerAgent:
    """Plays a saved controller in an environment of the suite, single or vector, live or recorded.

    Attributes:
        card: of the controller; None for a zip of Stable-Baselines3.
        layout: of the observations.
        config: of the episodes it plays.
    """

    def __init__(
        self,
        env: Any,
        *,
        folder: str | Path,
        trust_pickle: bool = False,
        algorithm: str | None = None,
        device: str = "cpu",
    ) -> None:
        """Load a controller for an environment.

        Args:
            env: the environment, wrapped or not, single or vector.
            folder: that `nsr_gym.agents.checkpoint.save_controller` wrote; with `trust_pickle`,
                a zip of Stable-Baselines3 or a folder with one, too.
            trust_pickle: whether such a zip may be loaded, which runs whatever code is in it.
            algorithm: of a zip, where it does not say.
            device: `"cpu"` or a CUDA device.

        Raises:
            FileNotFoundError: there is no controller.
            FileFormatError: its files are damaged, foreign or of a newer version, or it is a
                zip that is not trusted.
            InvalidValueError: the environment shows or takes something else than the controller
                was trained on, or is none of the suite.
            MissingDependencyError: it needs sb3-contrib, which is not installed.
        """
        engine, zipped = find_engine(env), foreign_zip(Path(folder))
        self.layout, self.config = engine.layout, engine.config
        self.card: ControllerCard | None = None
        if trust_pickle and zipped is not None:
            self._policy, name = load_trusted_policy(zipped, algorithm, engine, device)
        else:
            self._policy, self.card = load_policy(folder, engine, device=device)
            name = self.card.algorithm
        spec = algorithm_spec(name)
        self._masks, self._recurrent = spec.masks, spec.recurrent
        self._flat = FlatActions(engine.action_space) if spec.flat_actions else None
        self._named = isinstance(self._policy.observation_space, spaces.Dict)

    def predict(
        self,
        observation: Observation,
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[Ints, State]:
        """Choose actions, with the signature of `stable_baselines3`'s `predict`.

        Args:
            observation: (size,) or (n, size), or a dict of such values by field, whichever
                form the controller was trained on.
            state: what the last call returned; None at first.
            episode_start: (n,) bool, where the observation is an episode's first: what the state
                says of the episode before is forgotten there.
            deterministic: whether the likeliest action is taken, or one drawn, with torch's
                generator (not by DQN, which knows no probabilities).
            action_masks: (sum of nvec,) or (n, sum of nvec) of the environment, True where
                allowed. Algorithms that take no masks do not use them; what they choose is
                projected by the environment.

        Returns:
            An action or n actions, and the next state.
        """
        flat = self._flatten(observation)
        seen: Any = np.atleast_2d(flat)
        n = len(seen)
        if self._named:
            seen = self.layout.as_dict(seen)
        extra: dict[str, Any] = {}
        if self._masks and action_masks is not None:
            extra["action_masks"] = np.asarray(action_masks).reshape(n, -1)
        if self._recurrent:
            # Episodes come first in the states of the suite, layers in those of SB3.
            first = self.initial_state(range(n)) if state is None else state
            held = tuple(np.swapaxes(part, 0, 1) for part in first or ())
            begun = np.zeros(n, dtype=bool) if episode_start is None else episode_start
            extra |= {"state": held, "episode_start": np.atleast_1d(begun)}
        actions, after = self._policy.predict(seen, deterministic=deterministic, **extra)
        if self._recurrent:
            state = tuple(np.swapaxes(part, 0, 1) for part in after)
        if self._flat is not None:
            actions = self._flat.decode(actions)
        return np.asarray(actions if flat.ndim == 2 else actions[0]), state

    def initial_state(self, seeds: Sequence[int]) -> State:
        """Return the state to begin n episodes with, (n, layers, width) each; None without one."""
        if not self._recurrent:
            return None
        layers, _, width = self._policy.lstm_hidden_state_shape
        return tuple(np.zeros((len(seeds), layers, width), dtype=np.float32) for _ in range(2))

    def _flatten(self, observation: Observation) -> NDArray[Any]:
        if isinstance(observation, Mapping):
            parts = [np.asarray(observation[name]) for name in self.layout.sizes]
            flat = np.concatenate(parts, axis=-1)
        else:
            flat = np.asarray(observation)
        if flat.ndim not in (1, 2) or flat.shape[-1] != self.layout.size:
            raise InvalidValueError(
                f"Expected observations of {self.layout.size} values; got shape {flat.shape}."
            )
        return flat


def shipped_controllers() -> dict[Path, ControllerCard]:
    """Return the controllers that come with the suite: folder -> card, in the order of names."""
    folders = sorted(file.parent for file in TRAINED.glob(f"*/{CARD}"))
    return {folder: read_card(folder) for folder in folders}


def shipped_folder(
    env: Any, *, algorithm: str | None = None, network: str | None = None
) -> Path | None:
    """Return the folder of the shipped controller for an environment, None where there is none.

    A live environment and its recorded twin share their controllers.

    Args:
        env: an id, or an environment; a controller must fit what this one shows and takes.
        algorithm: a name of `nsr_gym.agents.algorithms.ALGORITHMS`; None for any.
        network: a name of `nsr_gym.agents.algorithms.NETWORKS`; None for any.
    """
    name = env if isinstance(env, str) else _id_of(env)
    for folder, card in shipped_controllers().items():
        if base_name(card.environment) != base_name(name):
            continue
        if algorithm not in (None, card.algorithm) or network not in (None, card.network):
            continue
        if not isinstance(env, str):
            try:
                check_fit(card, find_engine(env))
            except InvalidValueError:
                continue
        return folder
    return None


def shipped_ppo(
    env: Any, *, folder: str | Path | None = None, folders: Mapping[str, str] | None = None
) -> ControllerAgent:
    """Return the agent `ppo`: a controller that PPO trained.

    Args:
        env: the environment.
        folder: of a saved controller; None takes the one that comes with the suite.
        folders: environment id -> folder, for environments that the suite has none for.

    Raises:
        AccessError: a live or recorded environment without access to the bank.
        StateError: none comes with the suite for this environment.
        NsrGymError: as `ControllerAgent`.
    """
    access = getattr(find_engine(env).config, "access", "bank")
    if access != "bank":
        raise AccessError(
            "The agent 'ppo' plays environments with access='bank'; this one has "
            f"access={access!r}."
        )
    chosen = (folders or {}).get(_id_of(env)) if folder is None else folder
    if chosen is None:
        chosen = shipped_folder(env, algorithm="ppo")
    if chosen is None:
        name = _id_of(env) or str(env)
        raise StateError(
            f"No trained controller for {name} as it is set up here comes with the suite; train "
            f"one, nsr-gym train {name}, and name its folder (folder=...)."
        )
    return ControllerAgent(env, folder=chosen)


def base_name(env_id: str) -> str:
    """Return an id without its module, and that of the live environment for a recorded one."""
    name, dash, version = env_id.rpartition(":")[2].rpartition("-")
    return f"{name.removesuffix('Recorded')}{dash}{version}"


def _id_of(env: Any) -> str:
    spec = getattr(env.unwrapped, "spec", None) or getattr(env, "spec", None)
    return "" if spec is None else str(spec.id)
