"""A run in segments: where one ends, everything that the next needs lies in one file.

A segment is a number of whole rollouts between two evaluations. At its start the environments are
reset with seeds that depend on the run's seed and the segment alone, whether the run was stopped
there or not: no state of an environment has to be kept, and a run that was stopped goes on as the
one that was not. Episodes that a segment cuts off are bootstrapped, as at the end of any rollout.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from nsr_gym.agents.training_log import Row, Rows
from nsr_gym.agents.training_state import read_state, write_state
from nsr_gym.agents.training_validation import FIRST_VALIDATION_SEED

STATE = "state.safetensors"
_ROWS_PER_SEGMENT = 10


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a run is cut into segments.

    Attributes:
        rollout: steps of one rollout, over all environments.
        per_segment: rollouts between two evaluations.
        rollouts: of the whole run.
    """

    rollout: int
    per_segment: int
    rollouts: int

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.rollout * self.rollouts

    @classmethod
    def of(cls, model: Any, *, steps: int, eval_every: int) -> Plan:
        """Round a number of steps and an interval up to whole rollouts of a learner."""
        off_policy = getattr(model, "replay_buffer", None) is not None
        length = model.train_freq.frequency if off_policy else model.n_steps
        rollout = length * model.n_envs
        return cls(
            rollout=rollout,
            per_segment=math.ceil(eval_every / rollout),
            rollouts=math.ceil(steps / rollout),
        )


@dataclass
class Standing:
    """Where a run stands at the end of a segment; all of it goes into the state's notes.

    Attributes:
        best: score of the best controller so far, None before the first evaluation.
        last: score of the last evaluation.
        seconds: spent so far, in all processes that worked on the run.
        rows: of the log.
    """

    best: dict[str, float] | None = None
    last: dict[str, float] | None = None
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


class Segments(BaseCallback):
    """Cuts the one call of `learn` into segments."""

    def __init__(
        self,
        *,
        plan: Plan,
        seed: int,
        folder: Path,
        score: Callable[[Any], dict[str, float]],
        keep: Callable[[str, dict[str, float]], None],
        ended: Callable[[Standing, list[Row]], None],
        progress: Callable[[int, dict[str, float] | None], None],
    ) -> None:
        """Prepare a run.

        Args:
            plan: its segments.
            seed: of the run.
            folder: where the state is kept.
            score: evaluates the learner.
            keep: saves the learner as the controller of that name, with its score.
            ended: called at the end of a segment, before the state is written, with the new rows.
            progress: called with the steps made after every rollout, and with a score.
        """
        super().__init__()
        self._plan, self._seed, self._folder = plan, seed, folder
        self._score, self._keep, self._ended, self._progress = score, keep, ended, progress
        self.standing = Standing()
        self._done = 0
        self._began = time.perf_counter()

    def resume(self, model: Any) -> None:
        """Set a learner to the state in the folder, where there is one."""
        if (self._folder / STATE).exists():
            self.standing = Standing(**read_state(self._folder / STATE, model))
        self._rows = Rows(self.standing.rows)
        model.set_logger(self._rows.logger())
        self._done = model.num_timesteps // self._plan.rollout

    def _on_training_start(self) -> None:
        # What came before, such as building environments, is not training.
        self._began = time.perf_counter() - self.standing.seconds
        self._written = len(self._rows.rows)

    def _on_rollout_start(self) -> None:
        # Here, not at the rollout's end: the updates on the last rollout are made by now.
        if self.model.num_timesteps > self._done * self._plan.rollout:
            self._finish_rollout()
        if self._done % self._plan.per_segment == 0:
            self._begin_segment(self._done // self._plan.per_segment)
        model: Any = self.model
        if model.entropy_schedule is not None:
            left = 1.0 - model.num_timesteps / model._total_timesteps
            model.ent_coef = model.entropy_schedule(left)

    def _on_step(self) -> bool:
        self._sums += self.locals["rewards"]
        self._steps += len(self._sums)
        self._rewards += float(self.locals["rewards"].sum())
        ends = np.flatnonzero(self.locals["dones"])
        if len(ends):
            self._returns += self._sums[ends].tolist()
            self._sums[ends] = 0.0
        return True

    def _on_training_end(self) -> None:
        if self.model.num_timesteps > self._done * self._plan.rollout:
            self._finish_rollout()

    def _begin_segment(self, segment: int) -> None:
        model: Any = self.model
        env = self.training_env
        env.seed(segment_seed(self._seed, segment, env.num_envs))
        model._last_obs = env.reset()
        model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        states = getattr(model, "_last_lstm_states", None)
        if states is not None:
            zeros = [tuple(torch.zeros_like(part) for part in pair) for pair in states]
            model._last_lstm_states = type(states)(*zeros)
        buffer = getattr(model, "replay_buffer", None)
        if buffer is not None and buffer.size():
            # No return over several steps may reach from the episodes cut off into the new ones.
            last = buffer.pos - 1
            buffer.timeouts[last] = buffer.dones[last] == 0
        self._sums = np.zeros(env.num_envs)
        self._forget()

    def _forget(self) -> None:
        self._returns: list[float] = []
        self._rewards, self._steps = 0.0, 0

    def _finish_rollout(self) -> None:
        self._done += 1
        place = (self._done - 1) % self._plan.per_segment + 1
        ends = place == self._plan.per_segment or self._done == self._plan.rollouts
        score = self._score(self.model) if ends else None
        if ends or place % math.ceil(self._plan.per_segment / _ROWS_PER_SEGMENT) == 0:
            self._log(score)
        if score is not None:
            self._end_segment(score)
        self._progress(self.model.num_timesteps, score)

    def _log(self, score: Mapping[str, float] | None) -> None:
        record = self.logger.record
        if self._returns:
            record("train/return", float(np.mean(self._returns)))
        record("train/per_visit", self._rewards / self._steps)
        record("seconds", round(time.perf_counter() - self._began, 3))
        for name in ("return", "per_visit"):
            if score is not None:
                record(f"validation/{name}", score[name])
        self.logger.dump(self.model.num_timesteps)
        self._forget()

    def _end_segment(self, score: dict[str, float]) -> None:
        standing = self.standing
        standing.last = {"steps": self.model.num_timesteps, **score}
        better = standing.best is None or standing.last["return"] > standing.best["return"]
        if better:
            standing.best = standing.last
        for name in ("best", "last") if better else ("last",):
            self._keep(name, standing.last)
        standing.rows = self._rows.rows
        standing.seconds = time.perf_counter() - self._began
        self._rows.write_csv(self._folder)
        self._ended(standing, standing.rows[self._written :])
        self._written = len(standing.rows)
        # Last: whatever is killed before is done again, with the same result.
        write_state(self._folder / STATE, self.model, vars(standing))


def segment_seed(seed: int, segment: int, envs: int) -> int:
    """Return the seed of the first of the environments at the start of a segment.

    Those of all environments, the following ones, lie below the validation streams.
    """
    drawn = int(np.random.SeedSequence([seed, segment]).generate_state(1)[0])
    return drawn % (FIRST_VALIDATION_SEED - envs)
