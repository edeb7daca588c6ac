"""Chance does not help a controller that sees nothing: n states are worth a divisor of M."""

from __future__ import annotations

import numpy as np
import pytest

from nsr_gym.regret import states_regret

PERIODS = 12
"""A multiple of every period that a chain of up to four states can have."""


def long_run_matches(transitions: np.ndarray, num_tasks: int) -> float:
    """Return the most right allocations per cycle of a chain with the best allocation per state.

    Tasks come in a fixed order, so that the chain's state at task m in the long run, averaged over
    cycles, is all that counts; each state then plays the allocation of its likeliest task. The
    best state to start in is taken.
    """
    settle = np.linalg.matrix_power(transitions, num_tasks * PERIODS)
    for _ in range(40):  # 2^40 times as many steps: what can mix has mixed
        settle = settle @ settle
        settle /= settle.sum(axis=1, keepdims=True)
    matches = []
    for state in settle:  # row s: where a start in state s ends up
        at_task = np.zeros((num_tasks, len(transitions)))
        for _ in range(PERIODS):
            for task in range(num_tasks):
                at_task[task] += state / PERIODS
                state = state @ transitions
        matches.append(float(at_task.max(axis=0).sum()))
    return max(matches)


@pytest.mark.parametrize(("num_tasks", "states"), [(4, 3), (5, 3), (6, 3), (6, 4), (7, 4), (9, 4)])
def test_no_stochastic_controller_beats_the_largest_divisor(num_tasks: int, states: int) -> None:
    most = num_tasks - states_regret(num_tasks, states)
    rng = np.random.default_rng(num_tasks)
    found = []
    for number in range(300):
        # From dense chains to nearly and fully deterministic ones.
        concentration = (1.0, 0.1, 0.01, 0.0)[number % 4]
        if concentration:
            chain = rng.dirichlet(np.full(states, concentration), size=states)
        else:
            chain = np.eye(states)[rng.integers(states, size=states)]
        found.append(long_run_matches(chain, num_tasks))
    assert max(found) <= most + 1e-6


@pytest.mark.parametrize(("num_tasks", "divisor"), [(4, 2), (6, 3), (9, 3), (7, 1)])
def test_counting_modulo_a_divisor_attains_it(num_tasks: int, divisor: int) -> None:
    chain = np.roll(np.eye(divisor), 1, axis=1)
    assert long_run_matches(chain, num_tasks) == pytest.approx(divisor)
    assert divisor == num_tasks - states_regret(num_tasks, divisor)


def test_a_period_that_does_not_divide_is_worth_its_common_divisor() -> None:
    assert long_run_matches(np.roll(np.eye(4), 1, axis=1), 6) == pytest.approx(2)
    assert long_run_matches(np.roll(np.eye(3), 1, axis=1), 5) == pytest.approx(1)
