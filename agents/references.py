"""Agents that go by one name in all exact environments: the references that others lie between."""

from __future__ import annotations

from dataclasses import fields
from math import gcd
from typing import Any

import numpy as np

from nsr_gym.agents.allocation_learners import HistoryAwareAgent
from nsr_gym.agents.allocation_rules import PinAgent, TablePolicyAgent
from nsr_gym.agents.base import RuleAgent, find_engine
from nsr_gym.agents.paging_rules import (
    BankAgent,
    PagingPlanAgent,
    PinRetentionAgent,
    UniformRetentionAgent,
)
from nsr_gym.errors import InvalidValueError
from nsr_gym.regret.blind import solve_blind
from nsr_gym.regret.paging import solve_paging
from nsr_gym.regret.problems import (
    AllocationProblem,
    Floats,
    PagingProblem,
    constant_symbols,
    with_clock,
)
from nsr_gym.regret.recovery import solve_recovery
from nsr_gym.regret.solution import Solution


def history_aware(env: Any, **arguments: Any) -> RuleAgent:
    """Return the reference that learns a task in its first visits and recalls it on every return.

    Args:
        env: an exact environment.
        **arguments: of `HistoryAwareAgent` or `BankAgent`.

    Raises:
        InvalidValueError: another environment, or one that withholds what the reference needs.
    """
    paging = _family("history-aware", env) == "paging"
    return BankAgent(env, **arguments) if paging else HistoryAwareAgent(env, **arguments)


def pin(env: Any, **arguments: Any) -> RuleAgent:
    """Return the rule that never changes: one allocation, or the first tasks held for good.

    Args:
        env: an exact environment.
        **arguments: of `PinAgent` or `PinRetentionAgent`.

    Raises:
        InvalidValueError: another environment.
    """
    paging = _family("pin", env) == "paging"
    return PinRetentionAgent(env, **arguments) if paging else PinAgent(env, **arguments)


def uniform_random(env: Any, **arguments: Any) -> RuleAgent:
    """Return the uniform policy: any allocation, or any place (or none) for what was learned.

    In reading C it is the best blind memoryless policy.

    Args:
        env: an exact environment.
        **arguments: of `UniformRetentionAgent`; none with allocations.

    Raises:
        InvalidValueError: another environment.
    """
    if _family("uniform-random", env) == "paging":
        return UniformRetentionAgent(env, **arguments)
    engine = find_engine(env)
    shape = engine.layout.sizes["observation"], int(engine.action_space.n)
    return TablePolicyAgent(env, policy=np.full(shape, 1.0 / shape[1]), **arguments)


def best_memoryless(env: Any, *, solution: Solution | None = None) -> RuleAgent:
    """Return the exact optimum among memoryless policies.

    Readings A and C: the best pi(a|o), or pi(a|o, clock) where a clock is observed and means
    something, that is in a fixed order. (With a clock and a symbol that is drawn again at every
    try it is the best in the long run, where a task meets all its clock's values equally often.)
    Reading B: the cheapest use of the given capacity, as a plan in the fixed order; in other
    orders pinning, where that is optimal.

    Args:
        env: an exact environment of one instance.
        solution: of its problem, if it has been solved already.

    Raises:
        InvalidValueError: another environment, one where every episode draws its own instance, a
            solution of another problem, or no optimum is known.
    """
    family, engine = _family("best-memoryless", env), find_engine(env)
    if engine.problem is None:
        raise InvalidValueError(
            "best-memoryless is the optimum of one instance, but with instance=None every episode "
            "draws its own; choose one, such as instance=0."
        )
    if solution is not None and not _poses(engine, solution):
        raise InvalidValueError(
            "Expected a solution of the problem that the environment poses; got one of another "
            f"(reading {solution.reading}). Solve env.unwrapped.engine.problem."
        )
    if family == "allocation":
        policy = _stationary_optimum(engine) if solution is None else solution.policy
        return TablePolicyAgent(env, policy=policy)
    if engine.config.order == "fixed":
        if solution is None:
            solution = solve_paging(engine.problem, engine.config.cycles, check=False)
        return PagingPlanAgent(env, plan=solution.policy)
    problem, noise = engine.problem, engine.config.similarity_noise
    if not problem.plain or problem.forced or np.ptp(problem.delta) > 0 or noise > 0.5:
        raise InvalidValueError(
            f"The optimum can be played in order={engine.config.order!r} only where tasks cost the "
            "same, solutions are whole, may be discarded, do not transfer, are recalled without "
            "error, and similarity tells them apart; take order='fixed', or the agent 'pin'."
        )
    return PinRetentionAgent(env)


def _family(agent: str, env: Any) -> str:
    family = str(find_engine(env).family)
    if family not in ("allocation", "paging"):
        raise InvalidValueError(
            f"The agent {agent!r} plays allocation and paging environments; {env} is a {family} "
            "one."
        )
    return family


def _stationary_optimum(engine: Any) -> Floats:
    """Return the best pi(a|o), (O, A), or with a clock pi(a|o, clock), (O p, A)."""
    problem, config = engine.problem, engine.config

    # Drawing it again changes nothing where a task always shows the same symbol.
    redraw = config.visit_steps is None and config.redraw and not constant_symbols(problem.kernel)

    def solve(part: AllocationProblem) -> Floats:
        if config.visit_steps is None:
            return np.asarray(solve_recovery(part, redraw=redraw, check=False).policy)
        return np.asarray(solve_blind(part, check=False).policy)

    # In another order every task is seen with every value of the clock, equally often.
    if not config.clock or config.order != "fixed":
        return solve(problem)
    if not redraw:
        shown = with_clock(problem.kernel, config.clock, config.cycles)
        return solve(AllocationProblem(problem.rewards, shown))
    # Values of the clock that agree modulo g show the same tasks: g problems of their own. The
    # clock stays within a visit even where the symbol is redrawn.
    common, m = gcd(config.clock, problem.num_tasks), problem.num_tasks
    policy = np.zeros((problem.num_observations, config.clock, problem.num_allocations))
    for first in range(common):
        tasks = np.arange(first, m, common)
        part = AllocationProblem(problem.rewards[tasks], problem.kernel[tasks])
        policy[:, first::common] = solve(part)[:, None]
    return policy.reshape(-1, problem.num_allocations)


def _poses(engine: Any, solution: Solution) -> bool:
    """Whether an environment poses the problem that was solved."""
    ours, theirs, config = engine.problem, solution.problem, engine.config
    if isinstance(ours, PagingProblem):
        return (
            isinstance(theirs, PagingProblem)
            and len(solution.policy) == config.num_visits
            and all(
                np.array_equal(getattr(ours, field.name), getattr(theirs, field.name))
                for field in fields(theirs)
            )
        )
    if isinstance(theirs, PagingProblem):
        return False
    kernels = [ours.kernel]
    if config.clock and config.order == "fixed":
        kernels.append(with_clock(ours.kernel, config.clock, config.cycles))
    return (
        solution.reading == ("C" if config.visit_steps is None else "A")
        and (solution.redraw in (None, config.redraw) if config.visit_steps is None else True)
        and np.array_equal(ours.rewards, theirs.rewards)
        and any(np.array_equal(kernel, theirs.kernel) for kernel in kernels)
    )
