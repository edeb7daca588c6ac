"""What is known of environments before they are built."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nsr_gym.cli import envs
from nsr_gym.cli_shared import default_agents
from nsr_gym.registration import (
    ENVIRONMENTS,
    IMAGES,
    RECORDED_IMAGES,
    environment_access,
    environment_family,
)
from nsr_gym.registry import ACCESS, agent_spec

DIGITS = ("Cyclic", "Capped", "Aliased", "Budget", "Related", "Mixed")


@pytest.mark.parametrize("name", DIGITS)
def test_every_environment_on_digits_comes_live_and_recorded(name: str) -> None:
    live, recorded = f"NSR/{name}Digits-v0", f"NSR/{name}DigitsRecorded-v0"
    assert environment_family(live) == environment_family(recorded) == "live"
    assert ENVIRONMENTS[live].entry_point == ENVIRONMENTS[recorded].entry_point
    assert environment_access(live) == ENVIRONMENTS[live].access == ACCESS
    assert environment_access(f"nsr_gym:{recorded}") == ENVIRONMENTS[recorded].access
    assert ENVIRONMENTS[recorded].access == ("bank", "visit")
    assert environment_access(live, {"dynamics": "recorded"}) == ("bank", "visit")
    assert environment_access(recorded, {"dynamics": "live"}) == ACCESS


@pytest.mark.parametrize("name", ["SplitCIFAR100", "FiveDatasets"])
def test_every_environment_on_images_comes_live_and_recorded(name: str) -> None:
    live, recorded = f"NSR/{name}-v0", f"NSR/{name}Recorded-v0"
    assert environment_family(live) == environment_family(recorded) == "live"
    assert ENVIRONMENTS[live].entry_point == ENVIRONMENTS[recorded].entry_point
    assert ENVIRONMENTS[recorded].access == ("bank", "visit")
    assert (ENVIRONMENTS[live].needs_data, ENVIRONMENTS[recorded].needs_data) == (True, False)


def test_recorded_images_grant_the_ranks_that_were_recorded() -> None:
    assert {tuple(spec.kwargs["ranks"]) for spec in RECORDED_IMAGES.values()} == {(2, 8)}


def test_a_comparison_leaves_out_agents_without_their_access_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = default_agents(["NSR/CyclicDigitsRecorded-v0"], {})
    assert {"similarity", "oracle", "fresh"} <= set(chosen)
    assert all(agent_spec(name).access != "memoryless" for name in chosen)
    said = capsys.readouterr().err
    assert said.count("left out") == said.count("\n") == 1
    assert "greedy, uniform" in said
    assert "NSR/CyclicDigitsRecorded-v0 has bank and visit" in said
    everyone = default_agents(["NSR/CyclicDigits-v0"], {})
    assert set(everyone) > set(chosen)
    assert "left out" not in capsys.readouterr().err


def test_a_recorded_environment_plays_without_torch() -> None:
    code = (
        "import sys, gymnasium as gym, nsr_gym\n"
        "env = gym.make_vec('NSR/CyclicDigitsRecorded-v0', num_envs=2, vectorization_mode=None)\n"
        "env.reset(seed=0)\n"
        "env.step(env.action_space.sample())\n"
        "print('torch' in sys.modules)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"


def test_environments_on_images_say_which_data_they_need(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert set(IMAGES) == {"NSR/SplitCIFAR100-v0", "NSR/FiveDatasets-v0"}
    envs()
    listed = " ".join(capsys.readouterr().out.split())
    for name, spec in ENVIRONMENTS.items():
        assert spec.needs_data == (name in IMAGES)
        needed = f"{spec.summary} [needs {', '.join(spec.data)}]"
        assert (needed in listed) == spec.needs_data
