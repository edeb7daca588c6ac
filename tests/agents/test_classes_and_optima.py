"""No agent of a class beats the exact optimum of its class, on instances drawn at random."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsr_gym.evaluation.rollout import play
from nsr_gym.registry import agent_specs
from nsr_gym.regret.verdict import judge

# The examples are the same in every run; of a hundred, none should lie four standard errors off.

BLIND, PAGING, UNTIL = (
    f"NSR/{name}-v0" for name in ("BlindAllocation", "Paging", "UntilRecovered")
)


def memoryless(family: str) -> list[str]:
    """Return the agents of the class; feedback is a memory, so those that ask for it are none."""
    return [
        spec.name
        for spec in agent_specs(family)
        if spec.access == "memoryless" and not spec.plays[family]
    ]


def assert_not_below(env_id: str, agent: str, arguments: dict[str, Any], seeds: range) -> None:
    """Hold an agent's mean regret against the optimum, four standard errors allowed."""
    optimum = judge(env_id, {"split": "test"} | arguments).optimum
    assert optimum is not None
    table = play(env_id, agent, seeds, arguments=arguments)
    regret = (table["oracle_reward"] - table["reward"]).groupby(table["seed"]).sum()
    allowed = 4 * regret.std() / np.sqrt(len(seeds)) + 1e-9 * max(1.0, optimum)
    assert regret.mean() >= optimum - allowed, (env_id, agent, arguments)


def draw_seeds(data: Any, count: int) -> range:
    first = data.draw(st.integers(0, 10**6))
    return range(first, first + count)


def test_the_classes_are_not_empty() -> None:
    assert set(memoryless("allocation")) >= {"best-memoryless", "pin", "uniform-random"}
    assert set(memoryless("paging")) >= {"best-memoryless", "pin", "lru", "fifo", "lfu"}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("agent", memoryless("allocation"))
def test_reading_a(agent: str, data: Any) -> None:
    m = data.draw(st.integers(2, 5))
    arguments = {
        "num_tasks": m,
        "cycles": data.draw(st.integers(1, 5)),
        "steps": data.draw(st.integers(1, 2)),
        "instance": data.draw(st.integers(0, 999)),
        "rewards": data.draw(st.sampled_from(["equal", "random", "compromise"])),
        "obs": data.draw(st.sampled_from(["blind", "classes:2", "channel:0.6", "full"])),
        "order": data.draw(st.sampled_from(["fixed", "reshuffled", "iid"])),
        "clock": data.draw(st.sampled_from([0, 2, 3])) if agent == "best-memoryless" else 0,
    }
    assert_not_below(BLIND, agent, arguments, draw_seeds(data, 200))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("agent", ["best-memoryless", "uniform-random"])  # pin never finishes
def test_reading_c(agent: str, data: Any) -> None:
    arguments = {
        "num_tasks": data.draw(st.integers(2, 4)),
        "cycles": data.draw(st.integers(1, 3)),
        "instance": data.draw(st.integers(0, 999)),
        "obs": data.draw(st.sampled_from(["blind", "classes:2", "channel:0.6", "full"])),
        "redraw": data.draw(st.booleans()),
    }
    assert_not_below(UNTIL, agent, arguments, draw_seeds(data, 200))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("agent", memoryless("paging"))
def test_reading_b(agent: str, data: Any) -> None:
    arguments = {
        "num_tasks": data.draw(st.integers(2, 5)),
        "cycles": data.draw(st.integers(1, 4)),
        "instance": data.draw(st.integers(0, 999)),
        "slots": data.draw(st.integers(1, 2)),
        "costs": data.draw(st.sampled_from(["equal", "random"])),
        **data.draw(
            st.sampled_from(
                [
                    {},
                    {"bank": 1, "recall_error": 0.3},
                    {"transfer": 0.4},
                    {"forced": True},
                    {"residual": [1.0, 0.5, 0.2, 0.0]},
                    {"similarity_noise": 0.8},
                ]
            )
        ),
    }
    assert_not_below(PAGING, agent, arguments, draw_seeds(data, 20))
