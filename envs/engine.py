"""The episode engine: the one place where the rules of an episode are written.

It runs E episodes side by side on arrays with a leading episode dimension. The single
environment is E = 1, the native vector environment E = n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from nsr_gym.envs.config import VisitConfig
from nsr_gym.envs.dynamics import Arrival, Dynamics, Floats, Ints, Visits
from nsr_gym.envs.layout import ObservationLayout
from nsr_gym.envs.memory import Limits, Memory, Progress
from nsr_gym.envs.noise import EmbeddingNoise
from nsr_gym.envs.plans import EpisodePlan
from nsr_gym.envs.protocol import Info
from nsr_gym.envs.render import render
from nsr_gym.metrics.recovery import NO_REFERENCE, recovery_steps, shortfall
from nsr_gym.streams import TaskStream

if TYPE_CHECKING:
    from nsr_gym.envs.routed import Routed

Choose = Callable[[NDArray[np.float32], NDArray[np.bool_]], Ints]


class EpisodeEngine:
    """Continual-learning episodes: a stream of visits, a memory, and rewards.

    Episodes side by side may differ in length and in the room that their banks have.

    Attributes:
        family: `"live"`, for the agents that play it.
        num_episodes: E.
        config: the arguments.
        dynamics: what happens inside a visit.
        pool_name: of the tasks.
        layout: of the observations.
        action_space: recall, rank index, reserve.
        observation_space: values in [0, 1].
        plans: each episode's plan, None before its first reset.
        num_tasks: (E,) M of each episode.
        num_visits: (E,) V of each episode.
        members: (E, largest M) the tasks of each episode, as positions in the pool.
        visit: (E,) visits each episode has had.
        accuracy: (E, largest V) accuracy after each visit so far, NaN beyond.
    """

    family = "live"

    def __init__(
        self, config: VisitConfig, dynamics: Dynamics, memory: Memory, num_episodes: int
    ) -> None:
        config.check_pool(dynamics.pool)
        self.num_episodes, self.config = num_episodes, config
        self.layout: ObservationLayout = memory.layout
        self.memory = memory
        self.dynamics = dynamics
        self.pool_name = dynamics.pool.name
        self.action_space = spaces.MultiDiscrete(
            [config.view_size + 1, len(config.ranks), 3], dtype=np.int64
        )
        self.observation_space = self.layout.space(config.observation)
        self.plans: list[EpisodePlan | None] = [None] * num_episodes
        tasks, visits = (num_episodes, config.max_tasks), (num_episodes, config.max_visits)
        self.num_tasks = np.full(num_episodes, config.max_tasks, dtype=np.int64)
        self.num_visits = np.full(num_episodes, config.max_visits, dtype=np.int64)
        self.members = np.zeros(tasks, dtype=np.int64)
        self._names = np.full(tasks, "", dtype=object)
        self._order = np.zeros(visits, dtype=np.int64)
        self._is_return = np.zeros(visits, dtype=bool)
        self._hash, self._family = (np.full(num_episodes, "", dtype=object) for _ in range(2))
        self._split = np.full(num_episodes, config.split, dtype=object)
        self._ranks = np.array(config.ranks, dtype=np.int64)
        self._noise = EmbeddingNoise(num_episodes)
        self.visit = np.zeros(num_episodes, dtype=np.int64)
        self.accuracy = np.full(visits, np.nan)
        self._reached = np.full(tasks, np.nan)
        self._probed: tuple[Ints, Arrival] | None = None

    @property
    def streams(self) -> list[TaskStream | None]:
        """Each episode's stream, None before its first reset."""
        return [None if plan is None else plan.stream for plan in self.plans]

    def reset(
        self, rows: Ints, generators: Sequence[np.random.Generator]
    ) -> tuple[NDArray[np.float32], Info]:
        """Start new episodes.

        Args:
            rows: (n,) the episodes.
            generators: n generators. The plan and a key are drawn from each; all else an
                episode ever draws follows from the key.

        Returns:
            Observations (n, size) and info.
        """
        keys = np.empty((len(rows), 2), dtype=np.uint64)
        limits = np.empty((2, len(rows)), dtype=np.int64)
        noise = np.empty(len(rows))
        for i, (row, rng) in enumerate(zip(rows.tolist(), generators, strict=True)):
            plan = self.config.draw_plan(self.dynamics.pool, rng)
            keys[i] = rng.integers(2**63, size=2, dtype=np.uint64)
            for limit, most in zip(limits, (plan.capacity, plan.capacity_bytes), strict=True):
                limit[i] = -1 if most is None else most
            noise[i] = plan.embedding_noise
            self._place(row, plan)
        self._probed = None
        self.dynamics.begin(rows, keys)
        self._noise.begin(rows, keys, noise)
        self.memory.begin(rows, Limits(self.num_visits[rows], *limits))
        self.visit[rows] = 0
        self.accuracy[rows] = np.nan
        self._reached[rows] = np.nan
        observations = self._arrive(rows)
        n, steps = len(rows), self.dynamics.learning_steps
        info = self._info(
            rows,
            number=np.full(n, -1),
            executed=np.full((n, 3), 0),
            projected=np.zeros(n, dtype=bool),
            curve=np.zeros((n, steps + 1)),
            reference=np.full(n, np.nan),
        )
        info["action_mask"] = self.masks(rows)
        return observations, info

    def _place(self, row: int, plan: EpisodePlan) -> None:
        stream = plan.stream
        m, v = stream.num_tasks, stream.num_visits
        self.plans[row] = plan
        self.num_tasks[row], self.num_visits[row] = m, v
        self.members[row, :m] = stream.pool_indices(self.dynamics.pool)
        self._names[row, :m] = stream.tasks
        self._order[row, :v] = stream.visits
        self._is_return[row, :v] = stream.is_return
        self._hash[row], self._family[row] = stream.hash, plan.family

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
        config, number = self.config, self.visit[rows]
        tasks = self._order[rows, number]
        visits = Visits(rows, self.members[rows, tasks], number)
        executed, curve = self.memory.visit(visits, actions)
        projected = (executed != actions).any(axis=1)
        reference = self._reached[rows, tasks]
        info = self._info(rows, number, executed, projected, curve, reference)
        reward = info[f"reward_{config.reward}"] - config.rank_cost * info["rank"]
        self._reached[rows, tasks] = curve[:, -1]
        self.accuracy[rows, number] = curve[:, -1]
        self.visit[rows] = number + 1
        terminated = number + 1 == self.num_visits[rows]
        if not terminated.any():
            observations = self._arrive(rows)
        else:
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
            choose: maps observations (k, size) and masks (k, S + 1 + Q + 3) to actions (k, 3),
                for the k tasks of all these episodes, one episode after the other; None
                measures the most similar entry.

        Returns:
            (n, largest M) test accuracies in the order of the stream's task list, NaN beyond
            the episode's own M.
        """
        arrival, progress = self._probe(rows)
        actions = None
        if choose is not None:
            seen = self.memory.observe(arrival, progress)
            actions = choose(seen, self.memory.masks_for(arrival))
        return self._by_task(rows, self.memory.used_accuracy(arrival, actions))

    def routed(self, router: str | None = None) -> Routed:
        """Measure all tasks image by image, without a task identity; see `routed_accuracy`."""
        from nsr_gym.envs.routed import routed_accuracy  # needs torch

        return routed_accuracy(self, router)

    def render(self, row: int, mode: str) -> str | NDArray[np.uint8]:
        """Return the memory as a table (`"ansi"`) or a picture of accuracies (`"rgb_array"`)."""
        return render(self, row, mode)

    def baseline(self, rows: Ints) -> Floats:
        """Return the bare backbone's accuracy on every task of the stream, as `retention` does."""
        tasks = self.members[rows][self._part(rows)]
        return self._by_task(rows, self.dynamics.bare_accuracy(tasks))

    def _part(self, rows: Ints) -> NDArray[np.bool_]:
        """Return which of the largest M places (n, largest M) stand for a task."""
        return np.arange(self.config.max_tasks) < self.num_tasks[rows, None]

    def _by_task(self, rows: Ints, values: Floats) -> Floats:
        table = np.full((len(rows), self.config.max_tasks), np.nan)
        table[self._part(rows)] = values
        return table

    def _probe(self, rows: Ints) -> tuple[Arrival, Progress]:
        """Let every task of the streams arrive, in the order of their task lists."""
        which, tasks = np.nonzero(self._part(rows))
        row = rows[which]
        visits = Visits(row, self.members[row, tasks], self.visit[row])
        # The same for the whole episode: what a probe is disturbed by depends on the task alone.
        if self._probed is None or not np.array_equal(self._probed[0], rows):
            arrival = self._noise.disturb(self.dynamics.probe(visits))
            self._probed = rows.copy(), arrival
        return self._probed[1], self._progress(visits, tasks)

    def _arrive(self, rows: Ints) -> NDArray[np.float32]:
        number = self.visit[rows]
        tasks = self._order[rows, number]
        arrival = self.dynamics.arrive(Visits(rows, self.members[rows, tasks], number))
        arrival = self._noise.disturb(arrival)
        return self.memory.admit(arrival, self._progress(arrival.visits, tasks))

    def _progress(self, visits: Visits, tasks: Ints) -> Progress:
        return Progress(
            visits_left=1.0 - visits.numbers / self.num_visits[visits.rows],
            task_share=tasks / np.maximum(1, self.num_tasks[visits.rows] - 1),
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
        steps = recovery_steps(curve, reference)
        area = np.where(steps == NO_REFERENCE, 0.0, np.nan_to_num(shortfall(curve, reference)))
        made = number >= 0
        tasks = np.where(made, self._order[rows, number], -1)
        return {
            "visit": number,
            "cycle": np.where(made, number // self.num_tasks[rows], -1),
            "task": tasks,
            "task_name": np.where(made, self._names[rows, tasks], ""),
            "is_return": self._is_return[rows, number] & made,
            "recall": executed[:, 0].copy(),
            "rank": np.where(made, self._ranks[executed[:, 1]], 0),
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
            "split": self._split[rows],
            "family": self._family[rows],
            "stream": self._hash[rows],
        }
