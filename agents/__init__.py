"""Agents: rules with the `predict` signature of Stable-Baselines3."""

from nsr_gym.agents.base import LiveRuleAgent, RuleAgent
from nsr_gym.registry import agent_spec, agent_specs, make_agent, register_agent

__all__ = [
    "LiveRuleAgent",
    "RuleAgent",
    "agent_spec",
    "agent_specs",
    "make_agent",
    "register_agent",
]
