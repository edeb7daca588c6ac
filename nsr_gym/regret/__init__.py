"""Regret: exact optima and bounds in three readings of the theorem, and measured regret."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "AllocationProblem": "problems",
    "PagingProblem": "problems",
    "observation_kernel": "problems",
    "with_clock": "problems",
    "draw_allocation": "instances",
    "draw_paging_costs": "instances",
    "Certificate": "solution",
    "Solution": "solution",
    "solve_blind": "blind",
    "policy_regret": "blind",
    "gap_report": "blind",
    "clock_regret": "blind",
    "states_regret": "blind",
    "learner_regret": "blind",
    "solve_paging": "paging",
    "plan_cost": "paging",
    "clairvoyant": "held",
    "miss_bound": "paging_bounds",
    "optimal_misses": "paging_bounds",
    "recall_error_limit": "paging_bounds",
    "divisible_bound": "paging_bounds",
    "iid_miss_rate": "paging_bounds",
    "solve_recovery": "recovery",
    "recovery_cost": "recovery",
    "visit_local_tries": "recovery",
    "first_cycle_tries": "recovery",
    "relative_ratio": "recovery",
    "Verdict": "verdict",
    "judge": "verdict",
    "judge_table": "verdict",
    "exact_regret": "exact",
    "fit_exponents": "scaling",
    "DeltaSwitch": "delta",
    "delta_switch": "delta",
    "AgentRegret": "measured",
    "ExpectedRatio": "measured",
    "MeasuredRegret": "measured",
    "cumulative_bounds": "measured",
    "expected_ratio": "measured",
    "measured_regret": "measured",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    # Loaded on first use: environments need the problems, not the solvers and their scipy.
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
