"""How faithful recorded dynamics are: the same agents, streams and seeds, live and recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nsr_gym.errors import DataError, InvalidValueError
from nsr_gym.evaluation.rollout import play
from nsr_gym.metrics.episodes import REWARD_KINDS
from nsr_gym.registry import agent_spec
from nsr_gym.report.summary import summarise

QUANTITIES = ("online", "post_task", "recovery_tries", "bwt")
"""What is compared: rewards of a visit, tries to recover, backward transfer."""


@dataclass(frozen=True)
class Fidelity:
    """What came out.

    Attributes:
        agents: a row for each agent: `<quantity>_live`, `<quantity>_recorded`, `<quantity>_error`
            (recorded minus live), means over episodes.
        rank_correlation: reward kind -> Spearman's rank correlation of the agents' returns.
        episode_correlation: reward kind -> the same over all pairs of agent and episode.
        worst: quantity -> largest absolute error of an agent.
        episodes: episodes of each agent.
        streams: hashes of the streams.
    """

    agents: pd.DataFrame
    rank_correlation: Mapping[str, float]
    episode_correlation: Mapping[str, float]
    worst: Mapping[str, float]
    episodes: int
    streams: tuple[str, ...]


def measure_fidelity(
    environment: str,
    agents: Sequence[str],
    seeds: Sequence[int],
    *,
    arguments: Mapping[str, Any] | None = None,
    reference: str = "oracle",
    progress: Callable[[int], None] | None = None,
) -> tuple[Fidelity, pd.DataFrame]:
    """Play agents live and recorded and compare.

    Args:
        environment: id of an environment that takes `dynamics`, live or recorded.
        agents: registered names, at least three, with bank or visit access.
        seeds: one episode each; the recording drew its visits apart from any seed's stream.
        arguments: of the environment; `split` is `"test"` where they do not say.
        reference: the agent that recovery is held against.
        progress: called with the number of visits made since the last call.

    Returns:
        The comparison, and both long tables in one, with a column `dynamics`.

    Raises:
        InvalidValueError: fewer than three agents, one of them twice, the reference is not among
            them, or an agent that recorded dynamics cannot play.
        DataError: live and recorded streams differ.
    """
    if len(set(agents)) < 3 or len(set(agents)) < len(agents) or reference not in agents:
        raise InvalidValueError(
            f"Expected at least three agents, each once, {reference!r} (the reference) among them, "
            f"for a rank correlation; got {', '.join(agents)}."
        )
    blind = [name for name in agents if agent_spec(name).access == "memoryless"]
    if blind:
        raise InvalidValueError(
            f"Expected agents with bank or visit access; {blind[0]!r} has memoryless access, for "
            "which there are no recorded outcomes."
        )
    frames = []
    for dynamics in ("live", "recorded"):
        for agent in agents:
            asked = dict(arguments or {}) | {"dynamics": dynamics}
            frame = play(environment, agent, seeds, arguments=asked, progress=progress)
            frames.append(frame.assign(dynamics=dynamics))
    table = pd.concat(frames, ignore_index=True)
    return compare_dynamics(table, reference), table


def compare_dynamics(table: pd.DataFrame, reference: str = "oracle") -> Fidelity:
    """Compare the live and the recorded rows of a long table.

    Args:
        table: with a column `dynamics`, `"live"` or `"recorded"`, and the same agents and seeds
            in both.
        reference: the agent that recovery is held against.

    Raises:
        DataError: live and recorded streams differ.
    """
    live, recorded = (table[table["dynamics"] == kind] for kind in ("live", "recorded"))
    hashes: list[dict[Any, Any]] = [
        dict(rows[["seed", "stream_hash"]].drop_duplicates().itertuples(index=False))
        for rows in (live, recorded)
    ]
    if hashes[0] != hashes[1]:
        raise DataError(
            "The recorded environment drew other streams than the live one; the table was recorded "
            "from other tasks. Record it again."
        )
    left, right = (
        summarise(rows, reference=reference).set_index("agent").sort_index()
        for rows in (live, recorded)
    )
    agents = pd.DataFrame(index=left.index)
    for name in QUANTITIES:
        agents[f"{name}_live"], agents[f"{name}_recorded"] = left[name], right[name]
        agents[f"{name}_error"] = right[name] - left[name]
    returns = {
        kind: [
            rows.groupby(["agent", "seed"])[f"reward_{kind}"].sum().sort_index()
            for rows in (live, recorded)
        ]
        for kind in REWARD_KINDS
    }
    return Fidelity(
        agents=agents.reset_index(),
        rank_correlation={
            kind: spearman(*(pair.groupby("agent").mean().to_numpy() for pair in pairs))
            for kind, pairs in returns.items()
        },
        episode_correlation={
            kind: spearman(*(pair.to_numpy() for pair in pairs)) for kind, pairs in returns.items()
        },
        worst={name: float(agents[f"{name}_error"].abs().max()) for name in QUANTITIES},
        episodes=live["seed"].nunique(),
        streams=tuple(sorted(set(hashes[0].values()))),
    )


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's rank correlation of two samples (n,), ties by their mean rank.

    It is NaN where all of a sample are equal.
    """
    from scipy.stats import rankdata

    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
