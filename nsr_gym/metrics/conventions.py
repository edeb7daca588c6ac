"""Every published convention of one long table: the square accuracy matrix of the last cycle.

The conventions of `nsr_gym.metrics.matrix` are defined on a stream that visits every task once.
On a recurring stream the last cycle is such a stream: row t is the retention after its t-th visit,
column i the task of its i-th visit. In the first cycle of `schedule="once"` nothing is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import DataError
from nsr_gym.metrics.episodes import Episode, environments, read_episodes
from nsr_gym.metrics.matrix import matrix_metrics

if TYPE_CHECKING:
    import pandas as pd


def last_cycle(episode: Episode) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the accuracy matrix (M, M) of the last M visits, and the bare accuracies (M,).

    Raises:
        DataError: the last M visits do not hold each task once.
    """
    m = episode.num_tasks
    order = episode.tasks[-m:]
    if len(order) != m or len(set(order.tolist())) != m:
        raise DataError(
            f"The last {m} visits of seed {episode.seed} ({episode.agent}) do not hold each of "
            f"{m} tasks once, so they make no square accuracy matrix; use the metrics of "
            "nsr_gym.metrics.visits on such streams."
        )
    return episode.retention[-m:][:, order], episode.baseline[order]


def conventions(table: pd.DataFrame) -> pd.DataFrame:
    """Compute every convention for every episode whose last cycle holds each task once.

    Args:
        table: the long table.

    Returns:
        One row per environment, agent and seed with the names of
        `nsr_gym.metrics.matrix.matrix_metrics`; forward transfer is that of the last cycle.
        Episodes of other streams are left out.

    Raises:
        DataError: the table is not a valid long table.
    """
    import pandas as pd

    rows = []
    for environment in environments(table):
        for agent, by_seed in read_episodes(table, environment).items():
            for seed, episode in by_seed.items():
                try:
                    matrix, bare = last_cycle(episode)
                except DataError:
                    continue
                key = {"environment": environment, "agent": agent, "seed": seed}
                rows.append(key | matrix_metrics(matrix, bare))
    return pd.DataFrame(rows)
