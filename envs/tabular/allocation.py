"""The engine of readings A and C: one allocation each step, right or wrong for the present task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from nsr_gym.envs.layout import Layout
from nsr_gym.envs.protocol import Info, Ints, Outcome
from nsr_gym.envs.render import draw_grid
from nsr_gym.envs.tabular.config import AllocationConfig, RecoveryConfig
from nsr_gym.envs.tabular.stream import Streams
from nsr_gym.noise import uniform
from nsr_gym.regret.problems import AllocationProblem


@dataclass(frozen=True, eq=False)
class _Tables:
    """The tables of all instances behind each other, so that one look-up serves all episodes.

    Attributes:
        first: the first instance.
        rewards: reward by instance, task and allocation, flat.
        scaled: the same in the range 0 to 1 of its instance; 1 where all are equal.
        optimal: whether the allocation is optimal for the task.
        best: best reward by instance and task, flat.
        symbol: most likely symbol by instance and task.
        cumulative: (instances M, O - 1) distribution function of the symbol. Its last value is
            left out: rounding must not lead beyond the last symbol.
        random: whether any symbol is drawn.
    """

    first: AllocationProblem
    rewards: NDArray[np.float64]
    scaled: NDArray[np.float32]
    optimal: NDArray[np.bool_]
    best: NDArray[np.float64]
    symbol: Ints
    cumulative: NDArray[np.float64]
    random: bool


@lru_cache(maxsize=4)
def _tables(config: AllocationConfig) -> _Tables:
    """Return the tables of the instances that an episode can be of; environments share them."""
    first = config.problem(config.numbers[0])
    rewards, scaled, optimal, kernels = [], [], [], []
    for number in config.numbers:
        problem = config.problem(number)
        low, span = problem.rewards.min(), float(np.ptp(problem.rewards))
        rewards.append(problem.rewards)
        scaled.append((problem.rewards - low) / span if span else np.ones_like(problem.rewards))
        optimal.append(problem.optimal)
        kernels.append(problem.kernel)
    kernel, stacked = np.concatenate(kernels), np.stack(rewards)
    return _Tables(
        first=first,
        rewards=stacked.ravel(),
        scaled=np.stack(scaled).astype(np.float32).ravel(),
        optimal=np.stack(optimal).ravel(),
        best=stacked.max(axis=2).ravel(),
        symbol=kernel.argmax(axis=1),
        cumulative=np.cumsum(kernel, axis=1)[:, :-1],
        random=not np.isin(kernel, (0.0, 1.0)).all(),
    )


class AllocationEngine:
    """M recurring tasks; each step plays one of A allocations for the task that is present.

    A visit lasts L steps (reading A), or until the right allocation was played (reading C).

    Attributes:
        family: `"allocation"`, for the agents that play it.
        num_episodes: E.
        config: the arguments.
        problem: the instance; None where every episode draws its own.
        layout: of the observations.
        action_space: an allocation.
        observation_space: values in [0, 1].
        streams: of the episodes.
    """

    family = "allocation"

    def __init__(self, config: AllocationConfig, num_episodes: int) -> None:
        """Prepare E episodes."""
        self._tables = _tables(config)
        first = self._tables.first
        self.num_episodes, self.config = num_episodes, config
        self.problem: AllocationProblem | None = first if len(config.numbers) == 1 else None
        self.streams = Streams(config, num_episodes)
        sizes = {"observation": first.num_observations}
        if config.feedback != "none":
            sizes["last_reward"] = 1
        if config.feedback == "last-action+reward":
            sizes["last_action"] = first.num_allocations
        if config.clock:
            sizes["clock"] = config.clock
        self.layout = Layout(sizes)
        self.action_space = spaces.Discrete(first.num_allocations)
        self.observation_space = self.layout.space(config.observation)
        # In reading C an observation may stay for the whole visit.
        self._redraw = config.redraw if isinstance(config, RecoveryConfig) else True
        self._visit, self._tries, self._steps, self._task, self._base = (
            np.zeros(num_episodes, dtype=np.int64) for _ in range(5)
        )
        self._regret = np.zeros(num_episodes)
        self._lost = np.zeros((num_episodes, config.num_visits))
        self._split = np.full(num_episodes, config.split, dtype=object)

    def reset(
        self, rows: Ints, generators: Sequence[np.random.Generator]
    ) -> tuple[NDArray[np.float32], Info]:
        """Start new episodes; see `nsr_gym.envs.protocol.Engine`."""
        self.streams.draw(rows, generators)
        if self.problem is None:
            self._base[rows] = self.streams.instance[rows] * self.config.num_tasks
        for values in (self._visit, self._tries, self._steps, self._regret, self._lost):
            values[rows] = 0
        n = len(rows)
        none, no = np.full(n, -1), np.zeros(n, dtype=bool)
        info = self._info(
            rows, none, none.copy(), no, no.copy(), np.zeros(n, np.int64), np.zeros(n)
        )
        return self._arrive(rows, np.zeros(n, dtype=np.int64)), info

    def step(self, rows: Ints, actions: Ints) -> Outcome:
        """Play one allocation in each episode; see `nsr_gym.envs.protocol.Engine`."""
        config = self.config
        # All episodes at once, the usual case, are addressed without gathering.
        some: Ints | slice = slice(None) if len(rows) == self.num_episodes else rows
        visit, task = self._visit[some].copy(), self._task[some].copy()
        place = self._base[some] + task
        cell = place * int(self.action_space.n) + actions
        reward, correct = self._tables.rewards.take(cell), self._tables.optimal.take(cell)
        oracle = self._tables.best.take(place)
        tries = self._tries[some] + 1
        self._regret[some] += oracle - reward
        self._lost[rows, visit] += oracle - reward
        returns = self.streams.returns(rows, visit)
        info = self._info(rows, visit, task, returns, correct, tries, oracle)
        over = correct if config.visit_steps is None else tries == config.visit_steps
        self._tries[some] = np.where(over, 0, tries)
        self._steps[some] += 1
        self._visit[some] += over
        now = self._visit[some]
        terminated = now == config.num_visits
        observations = self._arrive(rows, np.minimum(now, config.num_visits - 1))
        fields = self.layout.slices
        if "last_reward" in fields:
            observations[:, fields["last_reward"].start] = self._tables.scaled.take(cell)
        if "last_action" in fields:
            observations[np.arange(len(rows)), fields["last_action"].start + actions] = 1.0
        observations[terminated] = 0.0
        return observations, reward, terminated, info

    def masks(self, rows: Ints) -> NDArray[np.bool_]:
        """Return which allocations may be played: all, (n, A)."""
        return np.ones((len(rows), int(self.action_space.n)), dtype=bool)

    def render(self, row: int, mode: str) -> str | NDArray[np.uint8]:
        """Return the present visit as text, or what every visit lost as a picture."""
        config, done = self.config, int(self._visit[row])
        regret = f"regret {self._regret[row]:g}"
        head = f"{config.split} instance {self.streams.instance[row]}, "
        head += f"{done}/{config.num_visits} visits"
        if mode == "rgb_array":
            return draw_grid(
                self.streams.order(row),
                np.where(np.arange(config.num_visits) <= done, self._lost[row], np.nan),
                config.num_tasks,
                title=f"lost in each visit ({head}, {regret})",
                label="oracle's reward minus reward",
            )
        if done == config.num_visits:
            return f"{head}, {regret}"
        return f"{head}, {regret}, task {self._task[row]}, tries in this visit {self._tries[row]}"

    def _arrive(self, rows: Ints, visit: Ints) -> NDArray[np.float32]:
        """Let the visits' tasks be present and draw what is observed of them."""
        n, config = len(rows), self.config
        task = self.streams.tasks(rows, visit)
        self._task[rows] = task
        place = self._base[rows] + task
        if self._tables.random:
            counter = self._steps[rows] if self._redraw else visit
            number = uniform(self.streams.key[rows], counter)
            symbol = (number[:, None] >= self._tables.cumulative[place]).sum(axis=1)
        else:
            symbol = self._tables.symbol.take(place)
        observations = np.zeros((n, self.layout.size), dtype=np.float32)
        every = np.arange(n)
        observations[every, symbol] = 1.0
        if config.clock:
            observations[every, self.layout.slices["clock"].start + visit % config.clock] = 1.0
        return observations

    def _info(
        self,
        rows: Ints,
        visit: Ints,
        task: Ints,
        is_return: NDArray[np.bool_],
        correct: NDArray[np.bool_],
        tries: Ints,
        oracle: NDArray[np.float64],
    ) -> Info:
        """Describe the step just made; a reset describes "none yet" with the same keys."""
        n = len(rows)
        return {
            "visit": visit,
            "cycle": visit // self.config.num_tasks,  # -1 before the first
            "task": task,
            "is_return": is_return,
            "tries": tries,
            "correct": correct,
            "projected": np.zeros(n, dtype=bool),
            "oracle_reward": oracle,
            "regret": self._regret[rows],
            "split": self._split[:n].copy(),
            "instance": self.streams.instance[rows],
            "action_mask": self.masks(rows),
        }
