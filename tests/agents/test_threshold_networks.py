"""Thresholds hold for the frozen network that they were calibrated with, and for no other."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

from nsr_gym.agents import thresholds as module
from nsr_gym.agents.thresholds import (
    Thresholds,
    backbone_of,
    entry_key,
    score_threshold,
    thresholds,
)
from nsr_gym.errors import StateError

POOL = "digits-permutation"


@pytest.fixture(params=["NSR/CyclicDigits-v0", "NSR/CyclicDigitsRecorded-v0"])
def env(request: pytest.FixtureRequest) -> Any:
    made = gym.make(request.param)
    yield made
    made.close()


def known(monkeypatch: pytest.MonkeyPatch, backbone: str | None) -> Thresholds:
    found = Thresholds(0.9, 1.0, (), {"rls": 0.7}, backbone)
    monkeypatch.setattr(module, "_table", lambda: {POOL: found})
    return found


def test_networks_are_known_where_they_matter() -> None:
    live = gym.make("NSR/CyclicDigits-v0")
    assert backbone_of(live) == live.unwrapped.engine.dynamics.learner.backbone.fingerprint
    assert backbone_of(gym.make("NSR/CyclicDigitsRecorded-v0")) is None


def test_several_networks_stand_side_by_side(env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = backbone_of(env)
    if own is None:
        pytest.skip("nothing is known of its network")
    first, second = (Thresholds(value, 1.0, (), {}, of) for value, of in ((0.9, "x"), (0.8, own)))
    table = {POOL: first, entry_key(POOL, own): second}
    monkeypatch.setattr(module, "_table", lambda: table)
    assert thresholds(env) == second
    monkeypatch.setattr(module, "backbone_of", lambda _: "x")
    assert thresholds(env) == first
    monkeypatch.setattr(module, "backbone_of", lambda _: "y")
    with pytest.raises(
        StateError, match=f"tasks '{POOL}'.*another frozen network.*x or {own}, not y"
    ):
        thresholds(env)


def test_thresholds_of_the_very_network_come_before_those_of_one_that_is_not_known(
    env: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = backbone_of(env)
    if own is None:
        pytest.skip("nothing is known of its network")
    table = {
        POOL: Thresholds(0.9, 1.0, (), {"rls": 0.7}),
        entry_key(POOL, own): Thresholds(0.8, 1.0, (), {"rls": 0.6}, own),
    }
    monkeypatch.setattr(module, "_table", lambda: table)
    assert thresholds(env).similarity == 0.8
    assert score_threshold(env, "rls", None, 0.5) == 0.6
    monkeypatch.setattr(module, "backbone_of", lambda _: "y")
    assert thresholds(env).similarity == 0.9


def test_another_network_has_other_thresholds(env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = backbone_of(env)
    for fits in (None, own):
        found = known(monkeypatch, fits)
        assert thresholds(env) == found
        assert score_threshold(env, "rls", None, 0.5) == 0.7
    known(monkeypatch, "of another")
    if own is None:  # nothing is known of it
        assert thresholds(env).backbone == "of another"
        return
    with pytest.raises(StateError, match=f"another frozen network than.*{own}"):
        thresholds(env)
    assert score_threshold(env, "rls", None, 0.5) == 0.5
