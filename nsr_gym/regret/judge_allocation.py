"""The verdict on readings A and C: one allocation each step for a task that is not named."""

from __future__ import annotations

from typing import Any

import numpy as np

from nsr_gym.regret.blind import Gaps, gap_report, policy_regret, solve_blind
from nsr_gym.regret.problems import AllocationProblem, Floats, constant_symbols, with_clock
from nsr_gym.regret.recovery import recovery_cost, solve_recovery
from nsr_gym.regret.verdict import Assumption, Verdict

_TINY = 1e-9
_CHECKED = 500
"""Entries of a policy of reading C up to which the optimum is solved again as a check."""
_MEMORY = (
    "The observation holds the agent's own last reward (or action): that is a memory, and a policy "
    "on the observation alone can lock on to the cycle. Of an agent that ignores it the numbers of "
    "feedback='none' hold."
)


def judge_allocation(environment: str, problem: AllocationProblem, config: Any) -> Verdict:
    """Judge an instance of reading A or C.

    Args:
        environment: id.
        problem: the instance.
        config: the environment's arguments.
    """
    clocked = bool(config.clock) and config.order == "fixed"
    kernel = with_clock(problem.kernel, config.clock, config.cycles) if clocked else problem.kernel
    shown = AllocationProblem(problem.rewards, kernel)
    gaps = gap_report(shown)
    assumptions = _assumptions(problem, gaps, config)
    if config.visit_steps is None:
        # A clock stays for the visit; so does a symbol that drawing it again does not change.
        redraw = config.redraw and not constant_symbols(problem.kernel)
        known = not (clocked and redraw)
        return _judge_recovery(environment, shown, config, gaps, assumptions, redraw, known)
    return _judge_blind(environment, shown, config, gaps, assumptions)


def _judge_blind(
    environment: str,
    problem: AllocationProblem,
    config: Any,
    gaps: Gaps,
    assumptions: list[Assumption],
) -> Verdict:
    m, c, steps = problem.num_tasks, config.cycles, config.visit_steps
    scale = c * steps
    solution = solve_blind(problem)
    optimum, bound = scale * solution.value, scale * gaps.bound
    delta = 0.0 if np.isnan(gaps.delta) else steps * gaps.delta
    theorem = c * (m - 1) * delta
    remembers, notes = config.feedback != "none", []
    lossless = gaps.allocation_error <= _TINY or np.isnan(gaps.delta)
    why = ""
    if remembers:
        why = _MEMORY
    elif gaps.factor == 0:
        why = "One allocation is optimal for all tasks: nothing can be lost."
    elif lossless:
        why = "The observation tells an optimal allocation: a memoryless policy loses nothing."
    elif config.order == "iid":
        why = (
            "The tasks are drawn anew at every visit: what came before tells nothing of the "
            "present one. A policy that remembers, and knows the instance, does no better from "
            f"visit to visit, and relative to it nothing is lost. (Against the best allocation of "
            f"every task the best memoryless policy loses {optimum:g}.)"
        )
    elif abs(bound - theorem) > _TINY * max(bound, theorem):
        why = (
            f"T(M-1)Delta_switch = {theorem:g} is too much here: with what is observed, an optimal "
            f"allocation is missed with probability {gaps.allocation_error:.4f} instead of 1 - 1/M "
            f"= {1 - 1 / m:.4f}, and M times that replaces M - 1."
        )
    crossed = gaps.cross_task
    if np.isfinite(crossed) and crossed > gaps.delta + _TINY:
        naive = c * (m - 1) * steps * crossed
        notes.append(
            f"Measured as the loss of one task's best allocation on another ({crossed:g}), Delta "
            f"would make T(M-1)Delta_switch {naive:g}"
            + (
                f", more than the {optimum:g} that the best policy loses: the theorem needs the "
                f"minimum over all wrong allocations ({gaps.delta:g})."
                if naive > optimum + _TINY
                else "."
            )
        )
    learning = _learning_cost(problem, config, gaps)
    if learning is not None and not lossless:
        notes.append(
            f"A history-aware learner that tries nothing twice on a task loses {learning:g} "
            f"itself; relative to it the best memoryless policy loses {optimum - learning:g}."
        )
    holds = not remembers and not lossless and config.order != "iid"
    uniform = np.full((problem.num_observations, problem.num_allocations), 1.0)
    pinned = np.eye(problem.num_allocations)[np.zeros(problem.num_observations, dtype=int)]
    return Verdict(
        environment=environment,
        reading="A",
        policies="memoryless policies pi(a|o)",
        comparator="the best allocation of every task",
        unit="reward",
        theorem=theorem,
        theorem_text=f"T = {c} cycles, M = {m}, Delta_switch = L Delta = {delta:g}",
        formula=(
            f"T L M P Delta = {c} x {steps} x {m} x {gaps.allocation_error:g} x {gaps.delta:g}"
            if holds
            else ""
        ),
        bound=bound if holds else None,
        why=why,
        optimum=None if remembers else optimum,
        certificate=None if remembers else solution.certificate,
        expected={
            "best-memoryless": optimum,
            "uniform-random": scale * policy_regret(problem, uniform / problem.num_allocations),
            "pin": scale * policy_regret(problem, pinned),
        },
        assumptions=tuple(assumptions),
        notes=tuple(notes),
    )


def _judge_recovery(
    environment: str,
    problem: AllocationProblem,
    config: Any,
    gaps: Gaps,
    assumptions: list[Assumption],
    redraw: bool,
    known: bool,
) -> Verdict:
    m, c = problem.num_tasks, config.cycles
    delta, visits = float(config.delta), m * c
    theorem = visits * (m - 1) * delta
    remembers, notes = config.feedback != "none", []
    small = problem.num_observations * problem.num_allocations <= _CHECKED
    solution = solve_recovery(problem, redraw=redraw, check=small) if known else None
    optimum = None if solution is None else c * delta * solution.value
    why = ""
    if remembers:
        why = _MEMORY
    elif optimum is None:
        why = "With a clock and a symbol that is drawn again at every try the optimum is not known."
    elif optimum <= _TINY * max(1.0, theorem):
        why = "The observation tells the right allocation: a memoryless policy tries no wrong one."
    elif abs(optimum - theorem) > 1e-6 * max(1.0, theorem):
        why = (
            f"T(M-1)Delta_switch = {theorem:g} is not the least here: with what is observed the "
            f"best policy needs {optimum / visits / delta:.4f} wrong tries in a visit, not M - 1 "
            f"= {m - 1}."
        )
    assumptions.append(
        Assumption(
            "policies may randomise",
            True,
            "a deterministic policy never finishes a visit whose allocation it does not choose; "
            "episodes are cut off after the registered number of steps",
        )
    )
    a = problem.num_allocations
    blind = problem.num_observations == 1 and gaps.duplicates == 0 and a == m
    expected: dict[str, float] = {}
    if known:
        uniform = np.full((problem.num_observations, a), 1.0 / a)
        pinned = np.eye(a)[np.zeros(problem.num_observations, dtype=int)]
        for agent, policy in (("uniform-random", uniform), ("pin", pinned)):
            expected[agent] = c * delta * recovery_cost(problem, policy, redraw=redraw)
    if optimum is not None:
        expected["best-memoryless"] = optimum
    if gaps.duplicates == 0 and a == m:
        expected["elimination"] = visits * delta * (m - 1) / 2
    if blind and config.order == "fixed":
        tries = [_first_tries(config.problem(number)) for number in config.numbers]
        expected["history-aware"] = delta * float(np.mean(tries))
        notes.append(
            f"Relative to a policy that eliminates within the first cycle and recalls after it the "
            f"expected ratio to T(M-1)Delta_switch is 1 - 1/(4C) = {1 - 1 / (4 * c):.4f}, on "
            "average over instances."
        )
    holds = not remembers and optimum is not None and optimum > _TINY * max(1.0, theorem)
    return Verdict(
        environment=environment,
        reading="C",
        policies="memoryless policies pi(a|o), one try at a time",
        comparator="an oracle that never tries a wrong allocation",
        unit="cost of wrong tries",
        theorem=theorem,
        theorem_text=f"T = {visits} visits, M = {m}, Delta_switch = {delta:g}",
        formula=(
            f"T w Delta_switch = {visits} x {optimum / visits / delta:g} x {delta:g}, w the least "
            "expected wrong tries in a visit"
            if holds and optimum is not None
            else ""
        ),
        bound=optimum if holds else None,
        why=why,
        optimum=None if remembers else optimum,
        certificate=None if remembers or solution is None else solution.certificate,
        expected=expected,
        assumptions=tuple(assumptions),
        notes=tuple(notes),
    )


def _assumptions(problem: AllocationProblem, gaps: Gaps, config: Any) -> list[Assumption]:
    m = problem.num_tasks
    wrong = problem.gaps[~problem.optimal]
    equal = _equal(wrong)
    clock = "no clock is shown"
    if config.clock and config.order == "fixed":
        common = int(np.gcd(config.clock, m))
        clock = (
            f"the visit is shown modulo {config.clock}: with M = {m} tasks in a fixed order that "
            f"tells the task modulo {common}"
        )
    elif config.clock:
        clock = f"a clock is shown, but the order is {config.order}: it tells nothing of the task"
    return [
        Assumption(
            "tasks recur in an order that can be learned",
            config.order == "fixed",
            {
                "fixed": "the same order in every cycle",
                "reshuffled": "a new order in every cycle: only that each task comes once in it",
                "iid": "every visit's task is drawn anew: there is nothing to learn",
            }[config.order],
        ),
        Assumption(
            "the observation does not tell the task",
            bool(gaps.bayes_error >= 1 - 1 / m - _TINY),
            f"Bayes error P_e = {gaps.bayes_error:.4f} of naming it (blind: {1 - 1 / m:.4f}), "
            f"information {gaps.information:.4f} of {np.log(m):.4f} nats, Fano: P_e >= "
            f"{gaps.fano:.4f}",
        ),
        Assumption(
            "the policy does not see its own past",
            config.feedback == "none",
            f"feedback is {config.feedback!r}",
        ),
        Assumption("no clock", not (config.clock and config.order == "fixed"), clock),
        Assumption(
            "no two tasks share an optimal allocation",
            gaps.duplicates == 0,
            f"M - max over a of the tasks it is optimal for = {gaps.factor}",
        ),
        Assumption(
            "every wrong allocation loses the same",
            equal,
            f"losses from {wrong.min():g} to {wrong.max():g}" if len(wrong) else "none is wrong",
        ),
    ]


def _learning_cost(problem: AllocationProblem, config: Any, gaps: Gaps) -> float | None:
    """What a learner loses that tries nothing twice, with C L tries for each task."""
    wrong = problem.gaps[~problem.optimal]
    single = bool((problem.optimal.sum(axis=1) == 1).all())
    if not single or not _equal(wrong) or config.order != "fixed":
        return None
    # In ascending order, as many wrong tries as there are allocations before the right one.
    tries = np.minimum(config.cycles * config.visit_steps, problem.optimal.argmax(axis=1))
    return float(tries.sum() * gaps.delta)


def _first_tries(problem: AllocationProblem) -> int:
    """Wrong tries of a first cycle in ascending order without allocations already taken."""
    right = problem.optimal.argmax(axis=1)
    return sum(
        int(allocation - (right[:task] < allocation).sum()) for task, allocation in enumerate(right)
    )


def _equal(values: Floats) -> bool:
    return not len(values) or float(np.ptp(values)) <= _TINY * float(values.max())
