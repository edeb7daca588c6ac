"""The episode engine: the one place where the rules of an episode are written.

It runs E episodes side by side on arrays with a leading episode dimension. The single
environment is E = 1, the native vector environment E = n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from nsr_gym.envs.config import EpisodeConfig
from nsr_gym.envs.dynamics import Arrival, Dynamics, Floats, Ints, Visits
from nsr_gym.envs.layout import ObservationLayout
from nsr_gym.envs.memory import Memory, Progress
from nsr_gym.envs.protocol import Info
from nsr_gym.envs.render import render
from nsr_gym.errors import InvalidValueError
from nsr_gym.metrics.recovery import NO_REFERENCE, recovery_steps, shortfall
from nsr_gym.streams import TaskStream, make_stream

Choose = Callable[[NDArray[np.float32], NDArray[np.bool_]], Ints]


class EpisodeEngine:
    """Continual-learning episodes: a stream of visits, a memory, and rewards.

    Attributes:
        family: `"live"`, for the agents that play it.
        num_episodes: E.
        config: the arguments.
        pool_name: of the tasks.
        layout: of the observations.
        action_space: recall, rank index, reserve.
        observation_space: values in [0, 1].
        streams: each episode's stream, None before its first reset.
        visit: (E,) visits each episode has had.
        accuracy: (E, V) accuracy after each visit so far, NaN beyond.
    """

    family = "live"

    def __init__(
        self, config: EpisodeConfig, dynamics: Dynamics, memory: Memory, num_episodes: int
    ) -> None:
        if config.num_tasks > len(dynamics.pool):
            raise InvalidValueError(
                f"Expected num_tasks to be at most {len(dynamics.pool)}, the tasks of the pool "
                f"{dynamics.pool.name!r}; got {config.num_tasks}."
            )
        self.num_episodes, self.config = num_episodes, config
        self.layout: ObservationLayout = memory.layout
        self.memory = memory
        self.pool_name = dynamics.pool.name
        self._dynamics = dynamics
        self.action_space = spaces.MultiDiscrete(
            [config.view_size + 1, len(config.ranks), 3], dtype=np.int64
        )
        self.observation_space = self.layout.space(config.observation)
        self.streams: list[TaskStream | None] = [None] * num_episodes
        shape = (num_episodes, config.num_visits)
        self._members = np.zeros((num_episodes, config.num_tasks), dtype=np.int64)
        self._order = np.zeros(shape, dtype=np.int64)
        self._is_return = np.zeros(shape, dtype=bool)
        self.visit = np.zeros(num_episodes, dtype=np.int64)
        self.accuracy = np.full(shape, np.nan)
        self._reached = np.full((num_episodes, config.num_tasks), np.nan)
        self._probed: tuple[Ints, Arrival] | None = None

    def reset(
        self, rows: Ints, generators: Sequence[np.random.Generator]
    ) -> tuple[NDArray[np.float32], Info]:
        """Start new episodes.

        Args:
            rows: (n,) the episodes.
            generators: n generators. The stream and a key are drawn from each; all else an
                episode ever draws follows from the key.

        Returns:
            Observations (n, size) and info.
        """
        config, pool = self.config, self._dynamics.pool
        keys = np.empty((len(rows), 2), dtype=np.uint64)
        for i, (row, rng) in enumerate(zip(rows, generators, strict=True)):
            stream = make_stream(
                pool,
                schedule=config.schedule,
                num_tasks=config.num_tasks,
                cycles=config.cycles,
                rng=rng,
                options=config.schedule_options,
            )
            keys[i] = rng.integers(2**63, size=2, dtype=np.uint64)
            self.streams[row] = stream
            self._members[row] = stream.pool_indices(pool)
            self._order[row] = stream.visits
            self._is_return[row] = stream.is_return
        self._probed = None
        self._dynamics.begin(rows, keys)
        self.memory.begin(rows)
        self.visit[rows] = 0
        self.accuracy[rows] = np.nan
        self._reached[rows] = np.nan
        observations = self._arrive(rows)
        n, steps = len(rows), self._dynamics.learning_steps
        curve = np.zeros((n, steps + 1))
        nothing = np.full((n, 3), 0)
        before = np.full(n, -1)
        info = self._info(rows, before, nothing, np.zeros(n, dtype=bool), curve, np.full(n, np.nan))
        return observations, info

    def step(
        self, rows: Ints, actions: Ints
    ) -> tuple[NDArray[np.float32], Floats, NDArray[np.bool_], Info]:
        """Play one visit of some episodes.

        Args:
            rows: (n,) the episodes, none of them over.
            actions: (n, 3) recall, rank index, reserve.

        Returns:
            Observations of the next visits (zeros after the last), rewards (n,), terminated
            (n,) and info.
        """
        config, number = self.config, self.visit[rows].copy()
        tasks = self._order[rows, number]
        visits = Visits(rows, self._members[rows, tasks], number)
        executed, curve = self.memory.visit(visits, actions)
        projected = (executed != actions).any(axis=1)
        reference = self._reached[rows, tasks]
        info = self._info(rows, number, executed, projected, curve, reference)
        reward = info[f"reward_{config.reward}"] - config.rank_cost * info["rank"]
        self._reached[rows, tasks] = curve[:, -1]
        self.accuracy[rows, number] = curve[:, -1]
        self.visit[rows] = number + 1
        terminated = self.visit[rows] == config.num_visits
        observations = np.zeros((len(rows), self.layout.size), dtype=np.float32)
        if not terminated.all():
            observations[~terminated] = self._arrive(rows[~terminated])
        info["action_mask"] = self.masks(rows)
        return observations, reward, terminated, info

    def masks(self, rows: Ints) -> NDArray[np.bool_]:
        """Return which values each action component may take, (n, S + 1 + Q + 3)."""
        return self.memory.masks(rows)

    def retention(self, rows: Ints, choose: Choose | None = None) -> Floats:
        """Return the accuracy on every task of the stream, as the memory would be used for it.

        For each task the policy is asked what it would do if the task came now; the entry it
        would recall is measured as it lies. Without a bank the active adapter is measured.
        Nothing changes and nothing is learned.

        Args:
            rows: (n,) the episodes.
            choose: maps observations (k, size) and masks (k, S + 1 + Q + 3) to actions (k, 3);
                None measures the most similar entry.

        Returns:
            (n, M) test accuracies in the order of the stream's task list.
        """
        arrival, progress = self._probe(rows)
        actions = None
        if choose is not None:
            seen = self.memory.observe(arrival, progress)
            actions = choose(seen, self.memory.masks_for(arrival))
        accuracies = self.memory.used_accuracy(arrival, actions)
        return accuracies.reshape(len(rows), self.config.num_tasks)

    def render(self, row: int, mode: str) -> str | NDArray[np.uint8]:
        """Return the memory as a table (`"ansi"`) or a picture of accuracies (`"rgb_array"`)."""
        return render(self, row, mode)

    def baseline(self, rows: Ints) -> Floats:
        """Return the bare backbone's accuracy on every task of the stream, (n, M)."""
        tasks = self._members[rows].ravel()
        return self._dynamics.bare_accuracy(tasks).reshape(len(rows), self.config.num_tasks)

    def _probe(self, rows: Ints) -> tuple[Arrival, Progress]:
        """Let every task of the streams arrive, in the order of their task lists."""
        m = self.config.num_tasks
        visits = Visits(
            np.repeat(rows, m), self._members[rows].ravel(), np.repeat(self.visit[rows], m)
        )
        # The same for the whole episode: support images of a probe depend on the task alone.
        if self._probed is None or not np.array_equal(self._probed[0], rows):
            self._probed = rows.copy(), self._dynamics.probe(visits)
        return self._probed[1], self._progress(visits, np.tile(np.arange(m), len(rows)))

    def _arrive(self, rows: Ints) -> NDArray[np.float32]:
        number = self.visit[rows]
        tasks = self._order[rows, number]
        arrival = self._dynamics.arrive(Visits(rows, self._members[rows, tasks], number))
        self.memory.admit(arrival)
        return self.memory.observe(arrival, self._progress(arrival.visits, tasks))

    def _progress(self, visits: Visits, tasks: Ints) -> Progress:
        return Progress(
            visits_left=1.0 - visits.numbers / self.config.num_visits,
            task_share=tasks / max(1, self.config.num_tasks - 1),
        )

    def _info(
        self,
        rows: Ints,
        number: Ints,
        executed: Ints,
        projected: NDArray[np.bool_],
        curve: Floats,
        reference: Floats,
    ) -> Info:
        """Describe the visit just made; a reset describes "none yet" with the same keys."""
        config = self.config
        steps = recovery_steps(curve, reference)
        area = np.where(steps == NO_REFERENCE, 0.0, np.nan_to_num(shortfall(curve, reference)))
        streams = [self.streams[row] for row in rows]
        made = number >= 0
        tasks = np.where(made, self._order[rows, number], -1)
        names = [
            stream.tasks[task] if task >= 0 and stream is not None else ""
            for stream, task in zip(streams, tasks, strict=True)
        ]
        ranks = np.array(config.ranks, dtype=np.int64)[executed[:, 1]]
        return {
            "visit": number,
            "cycle": np.where(made, number // config.num_tasks, -1),
            "task": tasks,
            "task_name": np.array(names, dtype=object),
            "is_return": self._is_return[rows, number] & made,
            "recall": executed[:, 0].copy(),
            "rank": np.where(made, ranks, 0),
            "reserve": executed[:, 2].copy(),
            "projected": projected,
            "accuracy_before": curve[:, 0].copy(),
            "accuracy_after": curve[:, -1].copy(),
            "curve": curve.copy(),
            "reward_post_task": curve[:, -1].copy(),
            "reward_online": curve[:, 1:].mean(axis=1),
            "recovery_steps": steps.astype(np.int64),
            "shortfall": area,
            "entries": self.memory.entries(rows),
            "bytes": self.memory.nbytes(rows),
            "split": np.full(len(rows), config.split, dtype=object),
            "stream": np.array([s.hash if s else "" for s in streams], dtype=object),
            "action_mask": self.masks(rows),
        }
