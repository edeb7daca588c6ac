"""The verdict on reading B: relearning under fixed capacity."""

from __future__ import annotations

from typing import Any

import numpy as np

from nsr_gym.errors import InvalidValueError
from nsr_gym.regret.paging import solve_paging
from nsr_gym.regret.paging_bounds import iid_miss_rate, optimal_misses, recall_error_limit
from nsr_gym.regret.problems import Floats, PagingProblem
from nsr_gym.regret.solution import Certificate
from nsr_gym.regret.verdict import Assumption, Verdict

_TINY = 1e-9


def judge_paging(environment: str, problem: PagingProblem, config: Any) -> Verdict:
    """Judge an instance of reading B.

    Args:
        environment: id.
        problem: the instance.
        config: the environment's arguments.
    """
    m, c, held = problem.num_tasks, config.cycles, problem.capacity
    delta = problem.delta_switch
    theorem = c * (m - 1) * delta
    missed = max(0, m - held)
    form = (c - 1) * missed * delta
    notes: list[str] = []
    optimum, certificate = _optimum(problem, config, notes)
    why = _why(problem, config, form, optimum)
    expected: dict[str, float] = {}
    told = config.similarity_noise <= 0.5
    equal = bool(np.ptp(problem.delta) <= _TINY * delta)
    plain = problem.plain and not problem.forced and equal
    played = certificate is not None if config.order == "fixed" else plain and told
    if optimum is not None and played:
        expected["best-memoryless"] = optimum
    if plain and told:
        expected["pin"] = form if config.order != "iid" else _iid_regret(problem, c)
        if config.order == "fixed" and missed:
            expected |= dict.fromkeys(("lru", "fifo"), (c - 1) * m * delta)
    if told and config.order != "iid" and not np.any(_others(problem)):
        expected["history-aware"] = (c - 1) * m * problem.recall_error
    if plain and held == 1 < m and c > 1 and config.order != "iid":
        notes.append(
            f"Relative to a policy that holds everything the best with one solution is expected at "
            f"(C-1)/C = {(c - 1) / c:.4f} of T(M-1)Delta_switch; where the present task has to be "
            f"stored, at (C-1)M / (C(M-1)) = {(c - 1) * m / (c * (m - 1)):.4f}."
        )
    if plain and held < m and config.order == "fixed":
        notes.append(
            "Evicting what was used or stored first misses every visit of a fixed cycle that does "
            "not fit as a whole; holding some tasks for good is what attains the bound."
        )
    bound = None if why else form
    if bound is not None and optimum is not None and optimum > bound * (1 + _TINY):
        why = (
            "The bound counts misses and prices each at the smallest Delta_switch; the best policy "
            f"loses {optimum:g}."
        )
    return Verdict(
        environment=environment,
        reading="B",
        policies=f"policies that hold k + K = {held} of the solutions, "
        + ("not knowing what comes" if config.order == "iid" else "clairvoyant ones too"),
        comparator="a policy that holds every solution it has seen, without error",
        unit="cost of visits",
        theorem=theorem,
        theorem_text=f"T = {c} cycles, M = {m}, Delta_switch = {delta:g}",
        formula=""
        if bound is None
        else f"(C-1)(M-c) Delta_switch = {c - 1} x {missed} x {delta:g}",
        bound=bound,
        why=why,
        optimum=optimum,
        certificate=certificate,
        expected=expected,
        assumptions=tuple(_assumptions(problem, config)),
        notes=tuple(notes),
    )


def _why(problem: PagingProblem, config: Any, form: float, optimum: float | None) -> str:
    """Return why (C-1)(M-c)Delta_switch does not bound the regret, empty where it does."""
    m, c, held = problem.num_tasks, config.cycles, problem.capacity
    if held >= m:
        return (
            f"Capacity is not scarce: k + K = {held} solutions can be held of M = {m}. Only the "
            "first visit of each task has to be relearned."
        )
    if c == 1:
        return "There is one cycle: no task returns, and nothing is lost by holding nothing."
    if config.order == "iid":
        return (
            f"The tasks are drawn anew at every visit: what is held at the start of a cycle bounds "
            f"nothing. Any policy that keeps its places full misses with probability 1 - c/M = "
            f"{iid_miss_rate(m, held):.4f}, evicting what was used least recently too."
        )
    if problem.max_rank > 1 and optimum is not None and optimum < form - _TINY:
        return (
            f"Knowledge is divisible: (C-1)(M-c)Delta_switch would be {form:g}, but splitting the "
            f"rank over the tasks costs {optimum:g}."
        )
    if problem.max_rank > 1 and optimum is None:
        return "Knowledge is divisible, and the optimum is not known here."
    limit = recall_error_limit(m, problem.delta_switch)
    if problem.recall_error >= limit:
        return (
            f"Recall costs eps = {problem.recall_error:g}, not less than (1-1/M)Delta_switch = "
            f"{limit:g}: relative to a policy that recalls every task from a Bank the statement is "
            f"reversed, holding one task for good costs no more. (Against recall without error "
            f"(C-1)(M-c)Delta_switch = {form:g} would remain.)"
        )
    return ""


def _optimum(
    problem: PagingProblem, config: Any, notes: list[str]
) -> tuple[float | None, Certificate | None]:
    """Return the best policy's expected regret and what proves it, where it is known."""
    transfers = bool(np.any(_others(problem)))
    if config.order == "iid":
        if problem.plain and np.ptp(problem.delta) <= _TINY:
            return _iid_regret(problem, config.cycles), None
        notes.append(
            "The optimum of drawn tasks is known for equal costs and whole solutions only."
        )
        return None, None
    if config.order == "reshuffled" and (transfers or problem.forced):
        notes.append(
            "With a new order in every cycle the optimum is known where nothing transfers and "
            "storing is free to choose."
        )
        return None, None
    try:
        solution = solve_paging(problem, config.cycles)
    except InvalidValueError as error:
        if problem.plain and np.ptp(problem.delta) <= _TINY * problem.delta_switch:
            visits = [task for _ in range(config.cycles) for task in range(problem.num_tasks)]
            misses = optimal_misses(visits, problem.capacity, forced=problem.forced)
            return float(problem.delta[0]) * (misses - problem.num_tasks), None
        notes.append(f"The optimum is not known: {error}")
        return None, None
    return solution.value - _first_cycle(problem), solution.certificate


def _first_cycle(problem: PagingProblem) -> float:
    """What a policy that holds everything pays: each task once, helped by those before it."""
    others = _others(problem)
    helped = [others[i, :i].max(initial=0.0) for i in range(problem.num_tasks)]
    return float((problem.delta * (1.0 - np.array(helped))).sum())


def _iid_regret(problem: PagingProblem, cycles: int) -> float:
    """Expected regret of any policy that keeps its places full, tasks drawn anew at every visit.

    With d tasks seen so far, the comparator hits with probability d/M and the policy with
    min(c, d)/M; d grows by one with probability 1 - d/M.
    """
    m, total = problem.num_tasks, 0.0
    seen = np.zeros(m + 1)
    seen[0] = 1.0
    counts = np.arange(m + 1)
    for _ in range(m * cycles):
        total += float(seen @ (counts - np.minimum(problem.capacity, counts))) / m
        grows = seen * (1.0 - counts / m)
        seen = seen - grows
        seen[1:] += grows[:-1]
    return float(problem.delta[0]) * total


def _others(problem: PagingProblem) -> Floats:
    """Return what other tasks' solutions save, 0 on the diagonal."""
    return np.where(np.eye(problem.num_tasks, dtype=bool), 0.0, problem.transfer)


def _assumptions(problem: PagingProblem, config: Any) -> list[Assumption]:
    m, held = problem.num_tasks, problem.capacity
    shares, error = float(_others(problem).max(initial=0.0)), float(problem.recall_error)
    limit = recall_error_limit(m, problem.delta_switch)
    noise = float(config.similarity_noise)
    return [
        Assumption(
            "every task comes once in each cycle",
            config.order != "iid",
            {
                "fixed": "in the same order",
                "reshuffled": "in a new order each time",
                "iid": "every visit's task is drawn anew",
            }[config.order],
        ),
        Assumption("tasks return", config.cycles > 1, f"C = {config.cycles}, M = {m}"),
        Assumption(
            "capacity is scarce",
            held < m,
            f"k + K = {problem.slots} + {problem.bank} = {held} solutions for M = {m} tasks",
        ),
        Assumption(
            "a solution is held whole or not at all",
            problem.max_rank == 1,
            "one rank"
            if problem.max_rank == 1
            else f"{problem.max_rank} ranks, of which 1 leaves {problem.residual[1]:g} to pay",
        ),
        Assumption(
            "what was learned may be discarded",
            not problem.forced,
            "the present task's solution has to be stored" if problem.forced else "storing is free",
        ),
        Assumption(
            "every task costs the same to relearn",
            bool(np.ptp(problem.delta) <= _TINY * problem.delta.min()),
            f"from {problem.delta.min():g} to {problem.delta.max():g}",
        ),
        Assumption(
            "nothing transfers between tasks",
            shares == 0,
            f"another task's solution saves up to {shares:g} of a visit's cost",
        ),
        Assumption(
            "recall is cheaper than relearning",
            error < limit or m == 1,
            f"eps = {error:g}, a Bank of all tasks beats one pinned task where eps < "
            f"(1-1/M)Delta_switch = {limit:g}",
        ),
        Assumption(
            "similarity tells the task",
            noise <= 0.5,
            f"noise of +-{noise:g}: own and other solutions' similarities "
            + ("do not overlap" if noise <= 0.5 else "overlap"),
        ),
    ]
