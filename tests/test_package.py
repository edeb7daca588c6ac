"""The package: what importing it loads, and what it offers."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata, resources

import pytest

import nsr_gym

HEAVY = ("torch", "stable_baselines3", "sklearn", "pandas", "matplotlib", "torchvision", "scipy")


def loaded_by(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after some code."""
    tail = "import sys, json; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{code}\n{tail}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import nsr_gym",
        "import nsr_gym.envs",
        "import nsr_gym.agents",
        "import nsr_gym; nsr_gym.agent_specs()",
        "import nsr_gym, gymnasium; gymnasium.spec('NSR/CyclicDigits-v0').to_json()",
        "import nsr_gym.envs.config, nsr_gym.streams, nsr_gym.bank",
    ],
)
def test_importing_and_listing_load_nothing_heavy(code: str) -> None:
    assert not loaded_by(code) & set(HEAVY)


def test_importing_registers_the_environments() -> None:
    code = "import nsr_gym, gymnasium; assert 'NSR/CyclicDigits-v0' in gymnasium.registry"
    assert "nsr_gym" in loaded_by(code)


def test_making_an_environment_does_not_load_the_trainers() -> None:
    code = "import nsr_gym, gymnasium; gymnasium.make('NSR/CyclicDigits-v0', num_tasks=1)"
    found = loaded_by(code)
    assert "torch" in found
    assert not found & {"stable_baselines3", "torchvision", "matplotlib"}


@pytest.mark.parametrize("name", ["BlindAllocation", "Paging", "UntilRecovered"])
def test_exact_environments_need_numpy_only(name: str) -> None:
    code = (
        "import nsr_gym, gymnasium\n"
        f"env = gymnasium.make_vec('NSR/{name}-v0', 2)\n"
        "env.reset(seed=0); env.step(env.action_space.sample())"
    )
    assert not loaded_by(code) & {"torch", "scipy", "pandas", "sklearn", *HEAVY}


def test_the_version_is_that_of_the_installed_package() -> None:
    assert nsr_gym.__version__ == metadata.version("nsr-gym")


@pytest.mark.parametrize("name", ["nsr_gym", "nsr_gym.envs", "nsr_gym.agents", "nsr_gym.regret"])
def test_everything_announced_is_there(name: str) -> None:
    module = __import__(name, fromlist=["__all__"])
    assert module.__all__
    for attribute in module.__all__:
        assert getattr(module, attribute) is not None
    with pytest.raises(AttributeError):
        _ = module.no_such_thing


def test_types_weights_and_thresholds_ship_with_the_package() -> None:
    assert (resources.files("nsr_gym") / "py.typed").is_file()
    assert (resources.files("nsr_gym.agents") / "thresholds.json").is_file()
    weights = resources.files("nsr_gym.backbones") / "weights"
    assert (weights / "digits_mlp.safetensors").is_file()


def test_no_folder_of_the_repository_becomes_a_top_level_package() -> None:
    code = (
        "import importlib.util as u, os, sys; sys.path = [p for p in sys.path if p]\n"
        "assert u.find_spec('envs') is None and u.find_spec('agents') is None"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
