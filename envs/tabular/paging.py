"""The engine of reading B: what to hold where not everything can be held."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from nsr_gym.envs.layout import Layout
from nsr_gym.envs.protocol import Info, Ints, Outcome
from nsr_gym.envs.render import draw_grid
from nsr_gym.envs.tabular.config import PagingConfig
from nsr_gym.envs.tabular.stream import Streams
from nsr_gym.noise import uniform
from nsr_gym.regret.problems import PagingProblem

EMPTY = -1
_PLACE_FIELDS = ("similarity", "stored_rank", "age", "stored_age", "uses")


@lru_cache(maxsize=4)
def _costs(config: PagingConfig) -> tuple[PagingProblem, NDArray[np.float64]]:
    """Return the first instance, and what a visit from nothing costs in all, (instances, M)."""
    costs = np.stack([config.problem(number).delta for number in config.numbers])
    return config.problem(config.numbers[0]), costs


class PagingEngine:
    """M recurring tasks whose solutions are held in places: active slots, and entries of a Bank.

    A step is a visit: start from a place or afresh, pay, and store the result or not.

    Attributes:
        family: `"paging"`, for the agents that play it.
        num_episodes: E.
        config: the arguments.
        problem: the instance; None where every episode draws its own.
        layout: of the observations.
        action_space: recall, place, rank.
        observation_space: values in [0, 1].
        streams: of the episodes.
        held: (E, P) task whose solution lies in each place, -1 where it is empty.
        rank: (E, P) rank at which it is stored.
    """

    family = "paging"

    def __init__(self, config: PagingConfig, num_episodes: int) -> None:
        """Prepare E episodes."""
        first, self._delta = _costs(config)
        self.num_episodes, self.config = num_episodes, config
        self.problem: PagingProblem | None = first if len(config.numbers) == 1 else None
        self.streams = Streams(config, num_episodes)
        self._units = first.capacity * first.max_rank
        self._active = first.slots * first.max_rank
        self._residual, self._full = np.array(first.residual), first.max_rank
        self._error = float(first.recall_error)
        # What place j's solution is worth to a visit of task i; its own is worth everything.
        self._worth = np.where(np.eye(config.num_tasks, dtype=bool), 1.0, first.transfer)
        self._shares = bool((self._worth[~np.eye(config.num_tasks, dtype=bool)] > 0).any())
        e, p, r = num_episodes, self._units, first.max_rank
        per_place = dict.fromkeys(_PLACE_FIELDS, p)
        self.layout = Layout(per_place | {"occupancy": 1, "visits_left": 1})
        self.action_space = spaces.MultiDiscrete([p + 1, p, r + 1], dtype=np.int64)
        self.observation_space = self.layout.space(config.observation)
        self.held = np.full((e, p), EMPTY, dtype=np.int64)
        self.rank, self._used, self._stored, self._uses = (
            np.zeros((e, p), dtype=np.int64) for _ in range(4)
        )
        self._visit, self._task, self._occupied, self._entries = (
            np.zeros(e, dtype=np.int64) for _ in range(4)
        )
        self._base = np.zeros(e, dtype=np.int64)  # where an episode's costs begin
        self._seen = np.zeros((e, config.num_tasks), dtype=bool)
        self._regret = np.zeros(e)
        self._cost = np.zeros((e, config.num_visits))
        self._split = np.full(e, config.split, dtype=object)

    def reset(
        self, rows: Ints, generators: Sequence[np.random.Generator]
    ) -> tuple[NDArray[np.float32], Info]:
        """Start new episodes; see `nsr_gym.envs.protocol.Engine`."""
        self.streams.draw(rows, generators)
        if self.problem is None:
            self._base[rows] = self.streams.instance[rows] * self.config.num_tasks
        self.held[rows] = EMPTY
        for values in (
            self.rank, self._used, self._stored, self._uses, self._visit, self._seen,
            self._regret, self._cost, self._occupied, self._entries,
        ):  # fmt: skip
            values[rows] = 0
        n = len(rows)
        none, no = np.full(n, -1), np.zeros(n, dtype=bool)
        observations = self._arrive(rows, np.zeros(n, dtype=np.int64))
        info = self._info(rows, none, none.copy(), no, no.copy(), no.copy(), np.zeros(n))
        return observations, info

    def step(self, rows: Ints, actions: Ints) -> Outcome:
        """Play one visit in each episode; see `nsr_gym.envs.protocol.Engine`."""
        config = self.config
        # All episodes at once, the usual case, are addressed without gathering.
        some: Ints | slice = slice(None) if len(rows) == self.num_episodes else rows
        visit, task = self._visit[some].copy(), self._task[some].copy()
        recall, place, rank = actions[:, 0], actions[:, 1], actions[:, 2]
        # Start: the cost is what the recalled solution leaves to be learned, and the recall's.
        first = rows * self._units
        source, target = first + np.maximum(recall - 1, 0), first + place
        found, kept = self.held.take(source), self.rank.take(source)
        asked = recall > 0
        started = asked & (found != EMPTY)
        hit = started & (found == task)
        if self._shares:
            saved = self._save(task, found, kept, started)
        else:
            saved = hit * (1.0 - self._residual[kept])
        delta = self._delta.take(self._base[some] + task)
        reward = delta * (saved - 1.0)
        if self._error:
            reward -= (started & (recall > self._active)) * self._error
        oracle, returns = self._oracle(rows, task, delta)
        self._uses.reshape(-1)[source] += started
        begun = np.flatnonzero(started)
        self._used.reshape(-1)[source.take(begun)] = visit.take(begun)
        # Store: the units of the place itself can be used again, others' cannot.
        wanted = np.where(rank == 0, self._full, rank) if config.forced else rank
        before = self.rank.take(target)
        granted = np.minimum(wanted, self._units - self._occupied[some] + before)
        projected = (started != asked) | (granted != rank)
        self._store(target, granted, task, visit, update=started & (source == target))
        stores = granted > 0
        self._occupied[some] += (granted - before) * stores
        self._entries[some] += stores & (before == 0)
        self._regret[some] += oracle - reward
        self._cost.reshape(-1)[rows * config.num_visits + visit] = -reward
        info = self._info(rows, visit, task, returns, hit, projected, oracle)
        self._visit[some] += 1
        terminated = visit + 1 == config.num_visits
        observations = self._arrive(rows, np.minimum(visit + 1, config.num_visits - 1))
        observations[terminated] = 0.0
        return observations, reward, terminated, info

    def masks(self, rows: Ints) -> NDArray[np.bool_]:
        """Return which values each action component may take, (n, 2 P + R + 2).

        Empty places cannot be recalled; where storing is forced, rank 0 is closed.
        """
        n, p = len(rows), self._units
        masks = np.ones((n, int(self.action_space.nvec.sum())), dtype=bool)
        masks[:, 1 : p + 1] = self.held[rows] != EMPTY
        masks[:, 2 * p + 1] = not self.config.forced
        return masks

    def render(self, row: int, mode: str) -> str | NDArray[np.uint8]:
        """Return what is held as text, or the cost of every visit as a picture."""
        config, done = self.config, int(self._visit[row])
        head = (
            f"{config.split} instance {self.streams.instance[row]}, "
            f"{done}/{config.num_visits} visits, regret {self._regret[row]:g}"
        )
        if mode == "rgb_array":
            return draw_grid(
                self.streams.order(row),
                np.where(np.arange(config.num_visits) < done, self._cost[row], np.nan),
                config.num_tasks,
                title=f"cost of each visit ({head})",
                label="cost",
            )
        lines = [head if done == config.num_visits else f"{head}, task {self._task[row]}"]
        for place, (task, rank) in enumerate(zip(self.held[row], self.rank[row], strict=True)):
            kind = "slot" if place < self._active else "Bank"
            content = "empty" if task == EMPTY else f"task {task} at rank {rank}"
            lines.append(f"  {place} ({kind}): {content}")
        return "\n".join(lines)

    def _oracle(
        self, rows: Ints, task: Ints, delta: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the reward of holding everything ever seen without error, and what returns."""
        cell = rows * self.config.num_tasks + task
        returns = self._seen.take(cell)
        saved = (
            (self._worth[task] * self._seen[rows]).max(axis=1) if self._shares else 1.0 * returns
        )
        self._seen.reshape(-1)[cell] = True
        return delta * (saved - 1.0), returns

    def _save(
        self, task: Ints, found: Ints, kept: Ints, started: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return the share of delta that starting from any task's solution saves."""
        # Where nothing was found the task is -1 and its worth the last one's: not counted.
        return np.where(started, self._worth[task, found] * (1.0 - self._residual[kept]), 0.0)

    def _store(
        self, target: Ints, rank: Ints, task: Ints, visit: Ints, *, update: NDArray[np.bool_]
    ) -> None:
        """Put results into places; an update of the recalled entry keeps its history."""
        stores = np.flatnonzero(rank)
        place = target.take(stores)
        self.held.reshape(-1)[place] = task.take(stores)
        self.rank.reshape(-1)[place] = rank.take(stores)
        self._used.reshape(-1)[place] = visit.take(stores)
        new = np.flatnonzero((rank > 0) & ~update)
        place = target.take(new)
        self._stored.reshape(-1)[place] = visit.take(new)
        self._uses.reshape(-1)[place] = 0

    def _arrive(self, rows: Ints, visit: Ints) -> NDArray[np.float32]:
        """Let the visits' tasks come and observe what is held."""
        config, n = self.config, len(rows)
        task = self.streams.tasks(rows, visit)
        self._task[rows] = task
        # All episodes at once, the usual case, are addressed without gathering.
        some: Ints | slice = slice(None) if n == self.num_episodes else rows
        held, rank = self.held[some], self.rank[some]
        full = held != EMPTY
        similarity = (held == task[:, None]).astype(np.float64)
        if config.similarity_noise:
            counter = visit[:, None] * self._units + np.arange(self._units)
            noise = 2.0 * uniform(self.streams.key[some][:, None], counter) - 1.0
            similarity = np.clip(similarity + config.similarity_noise * noise, 0.0, 1.0) * full
        now, share = visit[:, None], full / config.num_visits
        places = (
            similarity,
            rank / self._full,
            (now - self._used[some]) * share,
            (now - self._stored[some]) * share,
            self._uses[some] * share,
        )
        # Field by field: rows of the transposed array are written in one go.
        fields = np.empty((self.layout.size, n), dtype=np.float32)
        for i, values in enumerate(places):
            fields[i * self._units : (i + 1) * self._units] = values.T
        fields[-2] = self._occupied[some] / self._units
        fields[-1] = 1.0 - visit / config.num_visits
        return np.ascontiguousarray(fields.T)

    def _info(
        self,
        rows: Ints,
        visit: Ints,
        task: Ints,
        is_return: NDArray[np.bool_],
        hit: NDArray[np.bool_],
        projected: NDArray[np.bool_],
        oracle: NDArray[np.float64],
    ) -> Info:
        """Describe the visit just made; a reset describes "none yet" with the same keys."""
        return {
            "visit": visit,
            "cycle": visit // self.config.num_tasks,  # -1 before the first
            "task": task,
            "is_return": is_return,
            "hit": hit,
            "projected": projected,
            "oracle_reward": oracle,
            "regret": self._regret[rows],
            "entries": self._entries[rows],
            "split": self._split[: len(rows)].copy(),
            "instance": self.streams.instance[rows],
            "action_mask": self.masks(rows),
        }
