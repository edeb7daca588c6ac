"""Agents by name. Entries are strings, so that listing them imports nothing heavy."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from nsr_gym.errors import InvalidValueError, unknown

ACCESS = ("bank", "memoryless", "visit")
"""What a policy may use: the bank, an adapter of fixed rank, or nothing across a switch."""


@dataclass(frozen=True, kw_only=True)
class AgentSpec:
    """What is known of an agent before it is built.

    Attributes:
        name: what `--agents` takes.
        entry_point: `"module:Class"`; called with the environment it is to play.
        access: the access level it is run with.
        summary: one line.
        observe_task_id: whether it has to be told the task.
    """

    name: str
    entry_point: str
    access: str
    summary: str
    observe_task_id: bool = False


_AGENTS: dict[str, AgentSpec] = {}


def register_agent(
    name: str, entry_point: str, *, access: str, summary: str, observe_task_id: bool = False
) -> None:
    """Make an agent known by name; the same registration may be repeated.

    Raises:
        InvalidValueError: the name stands for another agent already, or the entry point is
            not of the form `"module:Class"`.
        UnknownNameError: an access level that does not exist.
    """
    if access not in ACCESS:
        raise unknown("access level", access, ACCESS)
    if entry_point.count(":") != 1:
        raise InvalidValueError(f"Expected an entry point 'module:Class'; got {entry_point!r}.")
    spec = AgentSpec(
        name=name,
        entry_point=entry_point,
        access=access,
        summary=summary,
        observe_task_id=observe_task_id,
    )
    if _AGENTS.get(name, spec) != spec:
        raise InvalidValueError(
            f"The name {name!r} stands for {_AGENTS[name].entry_point} already; choose another."
        )
    _AGENTS[name] = spec


def agent_spec(name: str) -> AgentSpec:
    """Look an agent up.

    Raises:
        UnknownNameError: there is none of that name; the message names the closest.
    """
    if name not in _AGENTS:
        raise unknown("agent", name, _AGENTS)
    return _AGENTS[name]


def agent_specs() -> list[AgentSpec]:
    """Return every registered agent, in the order of registration."""
    return list(_AGENTS.values())


def make_agent(name: str, env: Any, **arguments: Any) -> Any:
    """Build a registered agent for an environment.

    Args:
        name: of the agent.
        env: a (vector) environment of the suite, wrapped or not, of the agent's access level.
        **arguments: of the agent's constructor, such as a threshold.

    Raises:
        UnknownNameError: no such agent.
        AccessError: the environment's access level withholds what the agent needs.
    """
    module, name_in_module = agent_spec(name).entry_point.split(":")
    return getattr(importlib.import_module(module), name_in_module)(env, **arguments)


_BUILTIN = (
    ("similarity", "bank_rules:SimilarityAgent", "bank",
     "recall the most similar entry above a threshold, at full rank"),
    ("trial-loss", "bank_rules:TrialLossAgent", "bank",
     "recall the entry with the lowest loss on a trial load"),
    ("oracle", "bank_rules:OracleAgent", "bank",
     "knows the task: recall its own entry (the history-aware reference)"),
    ("random", "bank_rules:RandomAgent", "bank", "any legal action, uniformly"),
    ("greedy", "memoryless_rules:GreedyAgent", "memoryless", "the whole rank to the newcomer"),
    ("uniform", "memoryless_rules:UniformAgent", "memoryless", "R/M of the rank to each task"),
    ("loss-proportional", "memoryless_rules:LossProportionalAgent", "memoryless",
     "rank in proportion to the newcomer's loss"),
    ("recency", "memoryless_rules:RecencyAgent", "memoryless",
     "half the rank to the newcomer, half to the task before"),
    ("random-rank", "memoryless_rules:RandomRankAgent", "memoryless", "any rank, uniformly"),
    ("pin-one", "memoryless_rules:PinOneAgent", "memoryless",
     "keep the first task; learn the others in a scratch copy and revert"),
    ("fresh", "memoryless_rules:FreshAgent", "visit",
     "start every visit afresh at full rank; nothing survives"),
)  # fmt: skip

for _name, _entry, _access, _summary in _BUILTIN:
    register_agent(
        _name,
        f"nsr_gym.agents.{_entry}",
        access=_access,
        summary=_summary,
        observe_task_id=_name == "oracle",
    )
