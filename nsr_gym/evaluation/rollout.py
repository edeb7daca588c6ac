"""Plays whole episodes and writes down every visit."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd

from nsr_gym.errors import InvalidValueError
from nsr_gym.evaluation.exact_rollout import play_exact
from nsr_gym.registration import environment_family
from nsr_gym.registry import agent_spec, make_agent

_INFO_COLUMNS = (
    "visit", "cycle", "task", "task_name", "is_return", "recall", "rank", "reserve", "projected",
    "reward_post_task", "reward_online", "accuracy_before", "accuracy_after", "recovery_steps",
    "shortfall", "entries", "bytes", "family",
)  # fmt: skip


def play(
    environment: str,
    agent: str,
    seeds: Sequence[int],
    *,
    arguments: dict[str, Any] | None = None,
    agent_arguments: dict[str, Any] | None = None,
    routers: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Play one episode per seed, all side by side, and return one row per visit.

    Args:
        environment: an id of the suite.
        agent: a registered name; it is run with the environment arguments that it sets itself
            (its access level in live environments), in live environments deterministically, in
            exact ones, where the best policy may have to randomise, not.
        seeds: one episode each. Every agent sees the same streams and the same random numbers
            for the same seed.
        arguments: of the environment; `split` is `"test"` where they do not say.
        agent_arguments: of the agent.
        routers: of `nsr_gym.routing.ROUTERS`: after an episode's last visit each names the entry
            that answers every test image of every task, without a task identity. Live
            environments only.
        progress: called with the number of visits made since the last call.

    Returns:
        The long table, see DESIGN section 6. Live environments: `retention` is the accuracy on
        every task of the stream after the visit, of the model as the agent would use it. Exact
        ones: `reward` and `oracle_reward` are sums over the visit's `steps`, `wrong` counts those
        that were not right (or the miss), and `finished` is False for a visit that a limit of
        steps cut off. For each router, `routed.<name>` is the accuracy and `right.<name>` the
        share of images whose entry was last trained on their own task, means over tasks, NaN
        before the last visit.

    Raises:
        UnknownNameError: no such agent or argument.
        InvalidValueError: no seeds, an argument out of range or not the caller's to set, or an
            agent that does not play this environment.
    """
    if len(seeds) == 0:
        raise InvalidValueError("Expected at least one seed; got none.")
    spec, family = agent_spec(agent), environment_family(environment)
    check_arguments(arguments or {})
    numbers = [int(seed) for seed in seeds]
    if routers and family != "live":
        raise InvalidValueError(
            f"Expected no routers for {environment}, which has no images to route; got "
            f"{list(routers)}."
        )
    with opened(environment, agent, len(seeds), arguments, agent_arguments) as (env, player):
        if family == "live":
            table = _episode(env, player, numbers, routers, progress)
        else:
            table = play_exact(env, player, numbers, progress)
    table.insert(0, "environment", environment)
    table.insert(1, "agent", agent)
    table.insert(2, "access", spec.access)
    table.insert(4, "split", env.unwrapped.engine.config.split)
    return table.sort_values(["seed", "visit"], ignore_index=True)


@contextmanager
def opened(
    environment: str,
    agent: str,
    num_envs: int = 1,
    arguments: Mapping[str, Any] | None = None,
    agent_arguments: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Build an environment as an agent plays it, and the agent; close the environment at the end.

    Args:
        environment: an id of the suite.
        agent: a registered name.
        num_envs: episodes side by side.
        arguments: of the environment; `split` is `"test"` where they do not say.
        agent_arguments: of the agent.

    Raises:
        NsrGymError: the environment refuses the arguments, or the agent the environment.
    """
    own = agent_spec(agent).environment_arguments(environment_family(environment))
    chosen = {"split": "test", **(arguments or {}), **own}
    env: Any = gym.make_vec(environment, num_envs=num_envs, vectorization_mode=None, **chosen)
    try:
        yield env, make_agent(agent, env, **(agent_arguments or {}))
    finally:
        env.close()


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of an environment that are not the caller's to set.

    Raises:
        InvalidValueError: what the agent sets, or what playing an episode rests on.
    """
    for name in ("access", "observe_task_id"):
        if name in arguments:
            raise InvalidValueError(
                f"Each agent sets its own access level; leave {name} out (got {arguments[name]!r})."
            )
    if "autoreset_mode" in arguments:
        raise InvalidValueError(
            "Episodes are played once each, in the autoreset mode 'next_step'; leave "
            f"autoreset_mode out (got {arguments['autoreset_mode']!r})."
        )


def _episode(
    env: Any,
    player: Any,
    seeds: list[int],
    routers: Sequence[str],
    progress: Callable[[int], None] | None,
) -> pd.DataFrame:
    engine, n = env.unwrapped.engine, len(seeds)
    rows = np.arange(n)
    observation, _ = env.reset(seed=seeds)
    state = player.initial_state(seeds) if hasattr(player, "initial_state") else None
    start = np.ones(n, dtype=bool)
    baseline = engine.baseline(rows)
    takes_masks = "action_masks" in inspect.signature(player.predict).parameters
    num_tasks = engine.num_tasks[rows]
    frames, playing = [], rows
    while len(playing):
        began = time.perf_counter()
        masks = {"action_masks": env.unwrapped.action_masks()} if takes_masks else {}
        actions, state = player.predict(
            observation, state=state, episode_start=start, deterministic=True, **masks
        )
        observation, reward, terminated, _, info = env.step(actions)
        spent = (time.perf_counter() - began) / n
        start = terminated
        frame = pd.DataFrame({name: info[name][playing] for name in _INFO_COLUMNS})
        frame.insert(0, "seed", np.array(seeds)[playing])
        frame.insert(1, "stream_hash", info["stream"][playing])
        frame.insert(2, "num_tasks", num_tasks[playing])
        frame["reward"] = reward[playing]
        frame["curve"] = list(info["curve"][playing])
        retention = engine.retention(playing, _chooser(engine, player, state, playing))
        frame["retention"] = _own(retention, num_tasks[playing])
        frame["baseline"] = _own(baseline[playing], num_tasks[playing])
        frame["seconds"] = spent
        over = terminated[playing]
        for name in routers:
            found = engine.routed(name) if over.any() else None
            for column, values in (("routed", "accuracy"), ("right", "right")):
                frame[f"{column}.{name}"] = np.nan
                if found is not None:
                    means = np.nanmean(getattr(found, values)[playing], axis=1)
                    frame.loc[over, f"{column}.{name}"] = means[over]
        frames.append(frame)
        if progress is not None:
            progress(len(playing))
        # Episodes that are over go on with another one, which is not counted.
        playing = playing[~terminated[playing]]
    return pd.concat(frames, ignore_index=True)


def _own(values: np.ndarray, num_tasks: np.ndarray) -> list[Any]:
    """Cut rows (n, largest M) down to each episode's own M."""
    return [row[:m] for row, m in zip(values, num_tasks.tolist(), strict=True)]


def _chooser(
    engine: Any, player: Any, state: Any, playing: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Ask a player what it would do for each task of some episodes, from where it stands."""
    # Every episode as often as it has tasks.
    rows = np.repeat(playing, engine.num_tasks[playing])
    takes_masks = "action_masks" in inspect.signature(player.predict).parameters

    def choose(observation: np.ndarray, masks: np.ndarray) -> np.ndarray:
        # Rules keep (episodes, ...), recurrent policies of SB3 (layers, episodes, width).
        axis = 0 if hasattr(player, "initial_state") else 1
        repeated = None
        if state is not None:
            repeated = tuple(np.take(part, rows, axis=axis) for part in state)
        shown: Any = observation
        if engine.config.observation == "dict":
            shown = engine.layout.as_dict(observation)
        start = np.zeros(len(observation), dtype=bool)
        extra = {"action_masks": masks} if takes_masks else {}
        actions, _ = player.predict(
            shown, state=repeated, episode_start=start, deterministic=True, **extra
        )
        return np.asarray(actions)

    return choose
