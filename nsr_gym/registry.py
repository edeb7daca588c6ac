"""Agents by name. Entries are strings, so that listing them imports nothing heavy."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nsr_gym.errors import InvalidValueError, unknown

ACCESS = ("bank", "memoryless", "visit")
"""What a policy may use: the bank, an adapter of fixed rank, or nothing across a switch."""
FAMILIES = ("live", "allocation", "paging")
"""Kinds of environments, by what an action is."""


@dataclass(frozen=True, kw_only=True)
class AgentSpec:
    """What is known of an agent before it is built.

    Attributes:
        name: what `--agent` takes.
        entry_point: `"module:callable"`; called with the environment that the agent is to play.
        access: what it may use. In live environments the level that it is run with; in exact
            ones whether it acts on the observation alone (`"memoryless"`), forgets at every
            switch (`"visit"`) or remembers (`"bank"`).
        summary: one line.
        plays: families of environments -> arguments that the agent sets there on top of what is
            asked for, such as the feedback that it learns from; plain JSON.
        by_default: whether a comparison plays it where no agents are named.
    """

    name: str
    entry_point: str
    access: str
    summary: str
    plays: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"live": {}})
    by_default: bool = True

    def environment_arguments(self, family: str) -> dict[str, Any]:
        """Return the arguments that the agent sets in environments of a family.

        Raises:
            InvalidValueError: the agent plays no environments of the family.
        """
        if family not in self.plays:
            others = ", ".join(spec.name for spec in agent_specs(family))
            raise InvalidValueError(
                f"The agent {self.name!r} plays {' and '.join(self.plays)} environments, not "
                f"{family} ones; those are played by {others}."
            )
        access = {"access": self.access} if family == "live" else {}
        return access | dict(self.plays[family])


_AGENTS: dict[str, AgentSpec] = {}


def register_agent(
    name: str,
    entry_point: str,
    *,
    access: str,
    summary: str,
    plays: Mapping[str, Mapping[str, Any]] | None = None,
    by_default: bool = True,
) -> None:
    """Make an agent known by name; the same registration may be repeated.

    Args: as the attributes of `AgentSpec`.

    Raises:
        InvalidValueError: the name stands for another agent already, or the entry point is
            not of the form `"module:callable"`.
        UnknownNameError: an access level or a family that does not exist.
    """
    if access not in ACCESS:
        raise unknown("access level", access, ACCESS)
    plays = {"live": {}} if plays is None else plays
    for family in plays:
        if family not in FAMILIES:
            raise unknown("family of environments", family, FAMILIES)
    if entry_point.count(":") != 1:
        raise InvalidValueError(f"Expected an entry point 'module:callable'; got {entry_point!r}.")
    spec = AgentSpec(
        name=name,
        entry_point=entry_point,
        access=access,
        summary=summary,
        plays={family: dict(arguments) for family, arguments in plays.items()},
        by_default=by_default,
    )
    if _AGENTS.get(name, spec) != spec:
        raise InvalidValueError(
            f"The name {name!r} stands for {_AGENTS[name].entry_point} already; choose another."
        )
    _AGENTS[name] = spec


def register_controller(name: str, *, summary: str) -> None:
    """Make a saved controller known by name; its folder is an argument of the agent.

    Raises:
        InvalidValueError: the name stands for another agent already.
    """
    register_agent(
        name,
        "nsr_gym.agents.controller:ControllerAgent",
        access="bank",
        summary=summary,
        by_default=False,
    )


def agent_spec(name: str) -> AgentSpec:
    """Look an agent up.

    Raises:
        UnknownNameError: there is none of that name; the message names the closest.
    """
    if name not in _AGENTS:
        raise unknown("agent", name, _AGENTS)
    return _AGENTS[name]


def agent_specs(family: str | None = None) -> list[AgentSpec]:
    """Return every registered agent, or those of a family, in the order of registration."""
    return [spec for spec in _AGENTS.values() if family is None or family in spec.plays]


def make_agent(name: str, env: Any, **arguments: Any) -> Any:
    """Build a registered agent for an environment.

    Args:
        name: of the agent.
        env: a (vector) environment of the suite, wrapped or not, of a family that the agent plays
            (and of its access level where that is a live one).
        **arguments: of the agent's constructor, such as a threshold.

    Raises:
        UnknownNameError: no such agent.
        AccessError: the environment's access level withholds what the agent needs.
    """
    module, name_in_module = agent_spec(name).entry_point.split(":")
    return getattr(importlib.import_module(module), name_in_module)(env, **arguments)


_LIVE: dict[str, dict[str, Any]] = {"live": {}}
_TOLD: dict[str, dict[str, Any]] = {"live": {"observe_task_id": True}}
_SIGNALS: dict[str, dict[str, Any]] = {"live": {"observe_signals": True}}
_BOTH: dict[str, dict[str, Any]] = {"allocation": {}, "paging": {}}
_LEARNS = {"allocation": {"feedback": "last-action+reward"}}

_Entries = tuple[tuple[str, str, str, dict[str, dict[str, Any]], str], ...]

# Name, entry point in `nsr_gym.agents`, access, families with arguments, one line.
_BUILTIN: _Entries = (
    ("similarity", "bank_rules:SimilarityAgent", "bank", _LIVE,
     "recall the most similar entry above a threshold, at full rank"),
    ("trial-loss", "bank_rules:TrialLossAgent", "bank", _LIVE,
     "recall the entry with the lowest loss on a trial load"),
    ("oracle", "bank_rules:OracleAgent", "bank", _TOLD,
     "knows the task: recall its own entry (the history-aware reference)"),
    ("ppo", "controller:shipped_ppo", "bank", _LIVE,
     "a controller trained by PPO: the suite's own, or one trained on the spot"),
    ("random", "bank_rules:RandomAgent", "bank", _LIVE, "any legal action, uniformly"),
    ("greedy", "memoryless_rules:GreedyAgent", "memoryless", _LIVE,
     "the whole rank to the newcomer"),
    ("uniform", "memoryless_rules:UniformAgent", "memoryless", _LIVE,
     "R/M of the rank to each task"),
    ("loss-proportional", "memoryless_rules:LossProportionalAgent", "memoryless", _LIVE,
     "rank in proportion to the newcomer's loss"),
    ("recency", "memoryless_rules:RecencyAgent", "memoryless", _LIVE,
     "half the rank to the newcomer, half to the task before"),
    ("random-rank", "memoryless_rules:RandomRankAgent", "memoryless", _LIVE,
     "any rank, uniformly"),
    ("pin-one", "memoryless_rules:PinOneAgent", "memoryless", _LIVE,
     "keep the first task; learn the others in a scratch copy and revert"),
    ("fresh", "memoryless_rules:FreshAgent", "visit", _LIVE,
     "start every visit afresh at full rank; nothing survives"),
    ("history-aware", "references:history_aware", "bank", _LEARNS | {"paging": {"bank": None}},
     "learns a task in its first visits and recalls it on every return (the reference)"),
    ("best-memoryless", "references:best_memoryless", "memoryless", _BOTH,
     "the exact optimum: pi(a|o), or what to hold with the given capacity"),
    ("pin", "references:pin", "memoryless", _BOTH,
     "always the same allocation; hold the first tasks for good"),
    ("uniform-random", "references:uniform_random", "memoryless", _BOTH,
     "any allocation; evict anything, uniformly"),
    ("elimination", "allocation_learners:EliminationAgent", "visit", _LEARNS,
     "no allocation twice within a visit; forgets at the switch"),
    ("last-action", "allocation_rules:LastActionAgent", "memoryless", _LEARNS,
     "the successor of the last allocation after success, else the same again"),
    ("clock", "allocation_rules:ClockAgent", "bank", _LEARNS,
     "counts the visits modulo M: the best allocation for each count"),
    ("ucb", "bandits:UCBAgent", "bank", _LEARNS, "UCB1, one bandit for each observation"),
    ("thompson", "bandits:ThompsonAgent", "bank", _LEARNS,
     "Thompson sampling, one bandit for each observation"),
    ("linucb", "bandits:LinUCBAgent", "bank", _LEARNS,
     "LinUCB, a contextual bandit on the observation"),
    ("lru", "paging_rules:LRUAgent", "memoryless", {"paging": {}},
     "evict what was used least recently"),
    ("fifo", "paging_rules:FIFOAgent", "memoryless", {"paging": {}},
     "evict what was stored first"),
    ("lfu", "paging_rules:LFUAgent", "memoryless", {"paging": {}},
     "evict what was used least often"),
)  # fmt: skip

# Played where they are named: each is the best rule of one family of environments or another.
_VARIANTS: _Entries = (
    ("similarity-pin", "bank_variants:similarity_pin", "bank", _LIVE,
     "as similarity, but what a full bank holds stays"),
    ("trial-loss-pin", "bank_variants:trial_loss_pin", "bank", _LIVE,
     "as trial-loss, but what a full bank holds stays"),
    ("oracle-pin", "bank_variants:oracle_pin", "bank", _TOLD,
     "as oracle, but what a full bank holds stays"),
    ("nearest", "bank_variants:NearestAgent", "bank", _LIVE,
     "recall the most similar entry always; update it above a threshold, else add"),
    ("trial-loss-nearest", "bank_variants:TrialLossNearestAgent", "bank", _LIVE,
     "recall the best fitting entry that beats a fresh start; update it if it fits, else add"),
    ("oracle-nearest", "bank_variants:OracleNearestAgent", "bank", _TOLD,
     "as oracle, but a new task starts from the entry that fits best"),
    ("thrifty", "bank_variants:ThriftyAgent", "bank", _LIVE,
     "as trial-loss-pin, with ranks by difficulty where bytes are short"),
    ("similarity-thrifty", "bank_variants:SimilarityThriftyAgent", "bank", _LIVE,
     "as similarity-pin, with ranks by difficulty where bytes are short"),
    ("versatile", "bank_variants:VersatileAgent", "bank", _LIVE,
     "as thrifty, and a new task starts from the best fitting entry that beats a fresh start"),
    ("oracle-thrifty", "bank_variants:OracleThriftyAgent", "bank", _TOLD,
     "as oracle-pin, with ranks by difficulty where bytes are short"),
    ("bank-linucb", "bank_bandits:linucb", "bank", _LIVE,
     "recall and rank with the highest expected reward of this visit; trained by LinUCB"),
    ("bank-thompson", "bank_bandits:thompson", "bank", _LIVE,
     "the same, trained by linear Thompson sampling"),
    ("bank-epsilon-greedy", "bank_bandits:epsilon_greedy", "bank", _LIVE,
     "the same, trained with one random choice in ten"),
)  # fmt: skip

# Played where they are named: what other systems decide, in environments built from their parts.
_SYSTEMS: _Entries = (
    ("analytic-router", "system_rules:AnalyticRouterAgent", "bank", {"live": {"router": "rls"}},
     "recall what a recursive least-squares router names, unless it names the backbone (ASR)"),
    ("arrow", "system_rules:ArrowAgent", "bank", {"live": {"router": "arrow"}},
     "recall by prototypes read from the factors alone (Arrow)"),
    ("tree-bandit", "system_rules:TreeBanditAgent", "bank", {"live": {"router": "tree"}},
     "recall what a bandit on a tree over the bank finds similar (TreeLoRA)"),
    ("lorahub", "system_rules:LoraHubAgent", "bank",
     {"live": {"router": "lorahub", "warm_start": "mixture"}},
     "start from a blend of the bank, found without gradients (LoraHub)"),
    ("reuse-or-expand", "system_rules:ReuseOrExpandAgent", "bank", _LIVE,
     "reuse what is similar enough, else expand; a full bank reuses the nearest (LCIA, SEMA)"),
    ("residual-threshold", "system_rules:ResidualThresholdAgent", "bank", _SIGNALS,
     "add what lies outside the bank's span, else refine the nearest entry (Share)"),
    ("energy-ranks", "rank_rules:EnergyRanksAgent", "bank", _SIGNALS,
     "as similarity, at the least rank that keeps enough of the first gradient (InfLoRA, DyRA)"),
    ("adalora-budget", "rank_rules:AdaLoRABudgetAgent", "bank", _LIVE,
     "as similarity, with ranks from a shrinking budget by importance (AdaLoRA)"),
)  # fmt: skip

for _entries in (_BUILTIN, _VARIANTS, _SYSTEMS):
    for _name, _entry, _access, _plays, _summary in _entries:
        register_agent(
            _name,
            f"nsr_gym.agents.{_entry}",
            access=_access,
            summary=_summary,
            plays=_plays,
            by_default=_entries is _BUILTIN,
        )
