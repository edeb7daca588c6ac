"""Regret: measured on recorded visits, and held against the bound T(M-1)Delta_switch."""

from nsr_gym.regret.delta import DeltaSwitch, delta_switch
from nsr_gym.regret.measured import (
    AgentRegret,
    ExpectedRatio,
    MeasuredRegret,
    cumulative_bounds,
    expected_ratio,
    measured_regret,
)

__all__ = [
    "AgentRegret",
    "DeltaSwitch",
    "ExpectedRatio",
    "MeasuredRegret",
    "cumulative_bounds",
    "delta_switch",
    "expected_ratio",
    "measured_regret",
]
