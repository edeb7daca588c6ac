"""The verdict on a live environment: reading B, with a Delta_switch that was measured."""

from __future__ import annotations

from collections.abc import Mapping

from nsr_gym.regret.measured import AgentRegret, MeasuredRegret
from nsr_gym.regret.paging_bounds import recall_error_limit
from nsr_gym.regret.verdict import Assumption, Verdict


def judge_live(regret: MeasuredRegret, held: Mapping[str, int]) -> Verdict:
    """Judge what was measured.

    Args:
        regret: of every agent relative to the reference.
        held: agent -> largest number of bytes that it held.
    """
    m, cycles, delta = regret.num_tasks, regret.cycles, regret.delta
    size = delta.mean.point if delta is not None else float("nan")
    pays = delta is not None and size > 0
    why = ""
    if not regret.cyclic:
        why = "The streams are not cyclic: tasks do not come once in every cycle."
    elif m == 1:
        why = "There is one task: nothing has to be switched."
    elif delta is None:
        why = "No task returns: Delta_switch cannot be measured, and nothing is lost by forgetting."
    elif not pays:
        why = (
            f"Delta_switch is {delta.mean}: starting from what was stored does not pay, and there "
            "is nothing to lose by forgetting."
        )
    bound = None if why else (cycles - 1) * (m - 1) * size
    notes = list(regret.notes)
    if bound is not None and delta is not None:
        least = (cycles - 1) * (m - 1) * delta.minimum.point
        notes.append(
            f"The bound takes the mean Delta_switch of the tasks, as for a policy that holds any "
            f"one of them; with the smallest, the theorem's own, it is {least:.4f}. Whoever knows "
            "which task costs most may come between the two."
        )
        notes.append(
            f"Where the assumptions hold, the best policy holding one is expected at "
            f"(C-1)/C = {regret.expected.best_bank_free:.4f} of T(M-1)Delta_switch, one forced to "
            f"train every present task at {regret.expected.forced_reload:.4f}."
        )
    return Verdict(
        environment=regret.environment,
        reading="B",
        policies="policies without a bank, which hold one solution",
        comparator=f"the agent {regret.reference}",
        unit=f"{regret.reward.replace('_', '-')} reward x visits",
        theorem=cycles * (m - 1) * size,
        theorem_text=f"T = {cycles:g} cycles, M = {m}, Delta_switch = {size:.4f} (measured)",
        formula="" if why else f"(C-1)(M-1) Delta_switch = {cycles - 1:g} x {m - 1} x {size:.4f}",
        bound=bound,
        why=why,
        assumptions=tuple(_assumptions(regret, held)),
        notes=tuple(notes),
    )


def _assumptions(regret: MeasuredRegret, held: Mapping[str, int]) -> list[Assumption]:
    delta, found = regret.delta, []
    found.append(
        Assumption(
            "every task comes once in each cycle",
            regret.cyclic,
            "read from the streams of the table",
        )
    )
    found.append(
        Assumption(
            "tasks return",
            delta is not None,
            f"T = {regret.cycles:g} cycles of M = {regret.num_tasks}",
        )
    )
    if delta is None:
        return found
    low = delta.mean.low
    found.append(
        Assumption(
            "lacking a task's knowledge costs something",
            None if low != low or low <= 0 < delta.mean.high else delta.mean.point > 0,
            f"Delta_switch = {delta.mean}, {delta.mean.runs} runs ({delta.estimator}), smallest "
            f"task {delta.minimum}",
        )
    )
    found += _about_policies(regret, held)
    return found


def _about_policies(regret: MeasuredRegret, held: Mapping[str, int]) -> list[Assumption]:
    """What the agents' results say of the remaining assumptions."""
    free = [a for a in regret.agents.values() if a.access != "bank"]
    found = []
    if free:
        kept = ", ".join(f"{a.agent} {held.get(a.agent, 0):,}" for a in free)
        found.append(
            Assumption(
                "nothing but one adapter survives without a bank",
                True,
                f"enforced by the environment; bytes held at most, scratch copies included: {kept}",
            )
        )
        best = min(free, key=lambda a: a.ratio.point)
        expected = regret.expected.best_bank_free
        low, high = best.ratio.low, best.ratio.high
        # Divisible knowledge or transfer would let a policy get below; noise lets the mean.
        whole = None if high != high else not high < expected
        found.append(
            Assumption(
                "a solution is held whole or not at all, and nothing transfers",
                whole,
                f"no policy without a bank may get below {expected:.4f} of T(M-1)Delta_switch; the "
                f"best is {best.agent} with {best.ratio}"
                + ("" if low != low or low > expected else ", not clearly above it"),
            )
        )
    found.append(_recall(regret, [a for a in regret.agents.values() if a.access == "bank"]))
    return found


def _recall(regret: MeasuredRegret, banked: list[AgentRegret]) -> Assumption:
    size = regret.delta.mean.point if regret.delta is not None else float("nan")
    limit = recall_error_limit(regret.num_tasks, size)
    returns = regret.num_visits - regret.num_tasks
    per_return = {
        a.agent: a.total.point / returns for a in banked if a.agent != regret.reference and returns
    }
    if not per_return:
        return Assumption(
            "recall is cheaper than relearning", None, "no agent with a bank but the reference"
        )
    listed = ", ".join(f"{agent} {error:.4f}" for agent, error in per_return.items())
    return Assumption(
        "recall is cheaper than relearning",
        min(per_return.values()) < limit,
        f"regret per return against {regret.reference}: {listed}; it has to be below "
        f"(1-1/M)Delta_switch = {limit:.4f}",
    )
