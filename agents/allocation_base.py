"""What the agents of readings A and C share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.agents.base import Ints, RuleAgent, find_engine
from nsr_gym.errors import InvalidValueError
from nsr_gym.regret.problems import AllocationProblem


class AllocationAgent(RuleAgent):
    """An agent that plays one allocation in every step.

    Attributes:
        num_tasks: M.
        num_allocations: A.
        num_symbols: O.
    """

    family = "allocation"

    def __init__(self, env: Any) -> None:
        """Fit the agent to an environment (single or vector, wrapped or not)."""
        super().__init__(env)
        engine = find_engine(env)
        self.num_tasks = int(self.config.num_tasks)
        self.num_allocations = int(engine.action_space.n)
        self.num_symbols = int(self.layout.sizes["observation"])
        self._problem: AllocationProblem | None = engine.problem

    def known_problem(self) -> AllocationProblem:
        """Return the instance that is played.

        Raises:
            InvalidValueError: every episode draws its own.
        """
        if self._problem is None:
            raise InvalidValueError(
                f"{type(self).__name__} has to know the tables, but with instance=None every "
                "episode draws its own; choose one, such as instance=0."
            )
        return self._problem

    def need_feedback(self, *kinds: str) -> None:
        """Make sure that the agent observes what it needs.

        Raises:
            InvalidValueError: the environment's feedback is none of these kinds.
        """
        if self.config.feedback not in kinds:
            wanted = " or ".join(repr(kind) for kind in kinds)
            raise InvalidValueError(
                f"{type(self).__name__} needs feedback={wanted} here; the environment has "
                f"feedback={self.config.feedback!r}."
            )

    def need_fixed_order(self) -> None:
        """Make sure that the tasks come in a fixed order.

        Raises:
            InvalidValueError: they do not.
        """
        if self.config.order != "fixed":
            raise InvalidValueError(
                f"{type(self).__name__} needs order='fixed'; the environment has "
                f"order={self.config.order!r}."
            )

    def succeeded(self, observation: NDArray[Any]) -> NDArray[np.bool_]:
        """Return (n,) whether the last step earned the highest reward of the table.

        The right allocation of a task does, unless a table of rewards was given in which the
        tasks' best rewards differ. The first step of an episode is preceded by no success.
        """
        return np.asarray(self.layout.read(observation, "last_reward")[:, 0] >= 1.0)

    def symbol(self, observation: NDArray[Any]) -> Ints:
        """Return (n,) the observed symbols."""
        return np.asarray(self.layout.read(observation, "observation").argmax(axis=1))

    def visits(self, observation: NDArray[Any], steps: NDArray[Any], before: Ints) -> Ints:
        """Return (n,) how many visits are over.

        Args:
            observation: (n, size).
            steps: (n,) made so far.
            before: (n,) how many visits were over one step ago. Counts in reading C, where a
                success ends a visit; in reading A visits have a known number of steps.
        """
        if self.config.visit_steps is None:
            return before + self.succeeded(observation)
        return np.asarray(steps.astype(np.int64) // self.config.visit_steps)
