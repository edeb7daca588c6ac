"""The verdict on a live environment: reading B, with a Delta_switch that was measured."""

from __future__ import annotations

from collections.abc import Mapping

from nsr_gym.regret.delta import DeltaSwitch
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
    # A mean over tasks can be beaten by holding a task that costs more than the mean.
    least = delta.minimum.point if delta is not None else float("nan")
    pays = delta is not None and delta.minimum.low > 0
    why = ""
    if regret.fewest_tasks < m:
        why = f"Episodes differ: they have {regret.fewest_tasks} to {m} tasks."
    elif not regret.cyclic:
        why = "The streams are not cyclic: tasks do not come once in every cycle."
    elif m == 1:
        why = "There is one task: nothing has to be switched."
    elif delta is None:
        why = "No task returns: Delta_switch cannot be measured, and nothing is lost by forgetting."
    elif not pays:
        why = (
            f"Delta_switch, the minimum over tasks, is {delta.minimum}: not clear of 0, so that "
            "there may be nothing to lose by forgetting some task."
        )
    bound = None if why else (cycles - 1) * (m - 1) * least
    notes = list(regret.notes)
    if bound is not None:
        notes.append(
            f"With the mean Delta_switch of the tasks, as a policy pays that holds any one of them "
            f"whole, it is {(cycles - 1) * (m - 1) * size:.4f}: (C-1)/C = "
            f"{regret.expected.best_bank_free:.4f} of T(M-1)Delta_switch. One that has to train "
            f"every present task is expected at {regret.expected.forced_reload:.4f} of it."
        )
    return Verdict(
        environment=regret.environment,
        reading="B",
        policies="policies without a bank, which hold one solution",
        comparator=f"the agent {regret.reference}",
        unit=f"{regret.reward.replace('_', '-')} reward x visits",
        theorem=cycles * (m - 1) * size,
        theorem_text=f"T = {cycles:g} cycles, M = {m}, mean Delta_switch = {size:.4f}, measured",
        formula=""
        if why
        else f"(C-1)(M-1) Delta_switch = {cycles - 1:g} x {m - 1} x {least:.4f}, its minimum over "
        "tasks, measured",
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
    found += _about_policies(regret, delta, held)
    return found


def _about_policies(
    regret: MeasuredRegret, delta: DeltaSwitch, held: Mapping[str, int]
) -> list[Assumption]:
    """What the agents' results say of the remaining assumptions."""
    free = [a for a in regret.agents.values() if a.access != "bank"]
    found = []
    if free and delta.mean.point > 0:
        kept = ", ".join(f"{a.agent} {held.get(a.agent, 0):,}" for a in free)
        found.append(
            Assumption(
                "nothing but one adapter survives without a bank",
                True,
                f"enforced by the environment; bytes held at most, scratch copies included: {kept}",
            )
        )
        best = min(free, key=lambda a: a.ratio.point)
        floor = regret.expected.best_bank_free * delta.minimum.point / delta.mean.point
        refuted = best.ratio.high < floor  # False without an interval
        found.append(
            Assumption(
                "a solution is held whole or not at all, and nothing transfers",
                False if refuted else None,
                f"{'refuted' if refuted else 'not refuted by these agents'}: no policy without a "
                f"bank may get below {floor:.4f} of T(M-1)Delta_switch; the best is {best.agent} "
                f"with {best.ratio}",
            )
        )
    found.append(_recall(regret, [a for a in regret.agents.values() if a.access == "bank"]))
    return found


def _recall(regret: MeasuredRegret, banked: list[AgentRegret]) -> Assumption:
    size = regret.delta.mean.point if regret.delta is not None else float("nan")
    limit = recall_error_limit(regret.num_tasks, size)
    returns = regret.returns
    shares = {a.agent: a.total for a in banked if a.agent != regret.reference and returns}
    if not shares:
        return Assumption(
            "recall is cheaper than relearning", None, "no agent with a bank but the reference"
        )
    listed = ", ".join(f"{agent} {total.point / returns:.4f}" for agent, total in shares.items())
    best = min(shares.values(), key=lambda total: total.point)
    cheaper = None
    if best.high < limit * returns:
        cheaper = True
    elif best.low > limit * returns:
        cheaper = False
    return Assumption(
        "recall is cheaper than relearning",
        cheaper,
        f"regret per return against {regret.reference}: {listed}; it has to be below "
        f"(1-1/M)Delta_switch = {limit:.4f}",
    )
