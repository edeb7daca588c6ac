"""The arguments that every continual-learning environment takes."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nsr_gym.bank.retention import RETENTION_RULES
from nsr_gym.envs.arguments import (
    OBSERVATIONS,
    check_choices,
    check_number,
    check_whole,
)
from nsr_gym.envs.parts import PartsConfig
from nsr_gym.envs.plans import EpisodePlan
from nsr_gym.errors import InvalidValueError
from nsr_gym.pools import Pool
from nsr_gym.registry import ACCESS
from nsr_gym.streams import SCHEDULES, TaskStream, draw_visits, make_stream
from nsr_gym.tasks import SPLITS

REWARDS = ("post_task", "online")
HEADS = ("frozen", "trained")


@dataclass(frozen=True, kw_only=True)
class VisitConfig(PartsConfig, abc.ABC):
    """What all episodes of an environment have in common, in plain JSON values.

    Which parts it is put together from says `PartsConfig`.

    How long an episode is and how much its bank holds is drawn with it, see `draw_plan`.

    Attributes:
        split: `"train"` or `"test"`: from which pool tasks are drawn.
        access: `"bank"`, `"memoryless"` or `"visit"`: what a policy may use.
        view_size: S, bank entries in view.
        ranks: ranks that can be granted; the largest is R.
        retention: which entry goes when the bank is full.
        energy: store at the lowest rank that keeps this share of the energy, instead of the
            granted rank; None for the granted rank.
        reward: `"post_task"` (accuracy at the end of the visit) or `"online"` (mean over its
            learning steps).
        rank_cost: taken from the reward for every granted rank.
        observation: `"flat"` (a Box) or `"dict"` (the same values by name).
        observe_task_id: tell the agent the task and which entries are its own (an ablation,
            for the oracle).
        support_size: images that embed a task and measure trial loads.
        learning_steps: L, learning steps of a visit.
        updates: u, optimiser updates of a learning step.
        batch_size: images of an update.
        learning_rate: of Adam.
        distillation: weight of the distillation after a recall, kd.
        temperature: of the distillation.
        head: `"frozen"` (the backbone's, shared by all tasks) or `"trained"` (one for each
            entry, trained from zero with its adapter and kept with it).
        init_gain: standard deviation of a fresh direction's entries times sqrt(d_in).
        device: `"cpu"` or a CUDA device.
    """

    split: str = "train"
    access: str = "bank"
    view_size: int = 8
    ranks: tuple[int, ...] = (1, 2, 4, 8)
    retention: str = "lru"
    energy: float | None = None
    reward: str = "post_task"
    rank_cost: float = 0.0
    observation: str = "flat"
    observe_task_id: bool = False
    support_size: int = 128
    learning_steps: int = 15
    updates: int = 3
    batch_size: int = 32
    learning_rate: float = 1e-2
    distillation: float = 0.1
    temperature: float = 2.0
    head: str = "frozen"
    init_gain: float = 2.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            UnknownNameError: a split, schedule, access level, ... that does not exist.
            InvalidValueError: a value of another type or out of range.
        """
        choices: dict[str, tuple[str, ...]] = {
            "split": SPLITS,
            "access": ACCESS,
            "retention": tuple(RETENTION_RULES),
            "reward": REWARDS,
            "observation": OBSERVATIONS,
            "head": HEADS,
        }
        check_choices(self, choices)
        self.check_parts()
        for name in ("view_size", "support_size", "learning_steps", "updates", "batch_size"):
            check_whole(name, getattr(self, name), least=1)
        for name in ("rank_cost", "distillation"):
            check_number(name, getattr(self, name), low=0.0)
        for name in ("learning_rate", "temperature"):
            check_number(name, getattr(self, name), low=0.0, open_low=True)
        for name, kind in (("observe_task_id", bool), ("device", str)):
            if not isinstance(getattr(self, name), kind):
                raise InvalidValueError(
                    f"Expected {name} to be a {kind.__name__}; got {getattr(self, name)!r}."
                )
        check_number("init_gain", self.init_gain, low=0.0, open_low=True)
        if self.energy is not None:
            check_number("energy", self.energy, low=0.0, high=1.0, open_low=True)
        ranks: Any = self.ranks
        if isinstance(ranks, list):
            object.__setattr__(self, "ranks", ranks := tuple(ranks))
        if not isinstance(ranks, tuple) or not ranks:
            raise InvalidValueError(f"Expected ranks as a list of whole numbers; got {ranks!r}.")
        for rank in ranks:
            check_whole("every rank", rank, least=1)
        if list(ranks) != sorted(set(ranks)):
            raise InvalidValueError(
                f"Expected ranks in ascending order, each once; got {list(ranks)}."
            )

    @property
    def max_rank(self) -> int:
        """R, the largest rank that can be granted and the rank of the active adapter."""
        return self.ranks[-1]

    @property
    @abc.abstractmethod
    def max_tasks(self) -> int:
        """The largest number of tasks, M, that an episode can have."""

    @property
    @abc.abstractmethod
    def max_visits(self) -> int:
        """The largest number of visits, V, that an episode can have."""

    @abc.abstractmethod
    def draw_plan(self, pool: Pool, rng: np.random.Generator) -> EpisodePlan:
        """Draw an episode on tasks of a pool; `rng` is the only source of randomness."""

    @abc.abstractmethod
    def check_pool(self, pool: Pool) -> None:
        """Refuse a pool with too few tasks.

        Raises:
            InvalidValueError: the message says how many there are.
        """


@dataclass(frozen=True, kw_only=True)
class UniformConfig(VisitConfig):
    """Episodes with as many tasks and as much room each, whatever says in which order they come.

    Attributes:
        num_tasks: M, distinct tasks of one episode.
        capacity: entries the bank holds; None for no limit.
        capacity_bytes: bytes the bank holds; None for no limit.
        embedding_noise: sigma: an arriving task's embedding e becomes e + sigma g / sqrt(d),
            normalised, with g standard normal in d dimensions, anew at every arrival. Routers
            other than `"cosine"` see features, which are not disturbed.
    """

    num_tasks: int = 10
    capacity: int | None = 16
    capacity_bytes: int | None = None
    embedding_noise: float = 0.0

    def __post_init__(self) -> None:
        """Check every value; see `VisitConfig`."""
        super().__post_init__()
        check_whole("num_tasks", self.num_tasks, least=1)
        for name in ("capacity", "capacity_bytes"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), least=0)
        check_number("embedding_noise", self.embedding_noise, low=0.0)

    @property
    @abc.abstractmethod
    def num_visits(self) -> int:
        """V, the visits of an episode."""

    @property
    def max_tasks(self) -> int:
        """M."""
        return self.num_tasks

    @property
    def max_visits(self) -> int:
        """V."""
        return self.num_visits

    def plan(self, stream: TaskStream) -> EpisodePlan:
        """Return the episode of a stream."""
        return EpisodePlan(
            stream=stream,
            capacity=self.capacity,
            capacity_bytes=self.capacity_bytes,
            embedding_noise=self.embedding_noise,
        )


@dataclass(frozen=True, kw_only=True)
class EpisodeConfig(UniformConfig):
    """Episodes of one kind, whose order is drawn, in plain JSON values.

    Attributes:
        cycles: C; an episode has M C visits.
        schedule: order of the visits, a name of `nsr_gym.streams.SCHEDULES`.
        markov_noise: with `schedule="markov"`, the probability of leaving the cycle.
    """

    cycles: int = 6
    schedule: str = "cyclic"
    markov_noise: float | None = None

    def __post_init__(self) -> None:
        """Check every value; see `VisitConfig`."""
        super().__post_init__()
        check_choices(self, {"schedule": tuple(SCHEDULES)})
        check_whole("cycles", self.cycles, least=1)
        if self.markov_noise is not None:
            check_number("markov_noise", self.markov_noise, low=0.0, high=1.0)
        # Schedules check how their options fit together when they draw.
        rng = np.random.default_rng(0)
        draw_visits(self.schedule, self.num_tasks, self.cycles, rng, **self.schedule_options)

    @property
    def schedule_options(self) -> Mapping[str, float]:
        """The arguments that go to the schedule."""
        return {} if self.markov_noise is None else {"markov_noise": self.markov_noise}

    @property
    def num_visits(self) -> int:
        """V, the visits of an episode."""
        return self.num_tasks * self.cycles

    def draw_plan(self, pool: Pool, rng: np.random.Generator) -> EpisodePlan:
        """Draw an episode: the stream, and nothing else."""
        stream = make_stream(
            pool,
            schedule=self.schedule,
            num_tasks=self.num_tasks,
            cycles=self.cycles,
            rng=rng,
            options=self.schedule_options,
        )
        return self.plan(stream)

    def check_pool(self, pool: Pool) -> None:
        """Refuse a pool of fewer than M tasks."""
        if self.num_tasks > len(pool):
            raise InvalidValueError(
                f"Expected num_tasks to be at most {len(pool)}, the tasks of the pool "
                f"{pool.name!r}; got {self.num_tasks}."
            )
