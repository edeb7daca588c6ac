"""Hyper-parameter files: blocks by environment, checked, with the suite's own beneath."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nsr_gym.agents.algorithms import ALGORITHMS, complete_hyperparameters
from nsr_gym.agents.hyperparameters import DEFAULT, FOLDER, read_blocks, recipe
from nsr_gym.errors import FileFormatError, InvalidValueError, UnknownNameError
from nsr_gym.registration import ENVIRONMENTS

LIVE = "NSR/CyclicDigits-v0"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own.yml"


def test_there_is_a_file_for_every_algorithm_and_no_other() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(ALGORITHMS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_suites_files_hold_a_default_and_blocks_of_its_environments(algorithm: str) -> None:
    blocks = read_blocks(FOLDER / f"{algorithm}.yml", algorithm)
    assert blocks.pop(DEFAULT)
    assert set(blocks) <= set(ENVIRONMENTS)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_pair_of_algorithm_and_environment_has_a_recipe_that_can_be_built(
    algorithm: str, environment: str
) -> None:
    said = recipe(algorithm, environment)
    complete_hyperparameters(
        algorithm, said.hyperparameters, network=said.network, num_envs=said.envs
    )


def test_a_block_says_what_differs_from_the_default_and_ones_own_file_wins(own: Path) -> None:
    own.write_text(
        "default: {gamma: 0.5, n_envs: 8}\n"
        f"{LIVE}: {{gamma: 0.7, n_timesteps: 1e6}}\n"
        "NSR/Paging-v0: {gamma: 0.9}\n"
    )
    there, other = recipe("ppo", LIVE, file=own), recipe("ppo", "NSR/UntilRecovered-v0", file=own)
    assert (there.hyperparameters["gamma"], other.hyperparameters["gamma"]) == (0.7, 0.5)
    assert (there.envs, other.envs) == (8, 8)
    assert (there.steps, other.steps) == (1_000_000, recipe("ppo", LIVE).steps)
    assert there.hyperparameters["n_epochs"] == recipe("ppo", LIVE).hyperparameters["n_epochs"]


def test_what_is_given_directly_wins_over_every_file(own: Path) -> None:
    own.write_text("default: {gamma: 0.5}\n")
    said = recipe("ppo", LIVE, file=own, hyperparameters={"gamma": 0.25})
    assert said.hyperparameters["gamma"] == 0.25


def test_an_id_with_its_module_finds_the_block_of_the_id(own: Path) -> None:
    own.write_text(f"{LIVE}: {{gamma: 0.5}}\n")
    assert recipe("ppo", f"nsr_gym:{LIVE}", file=own).hyperparameters["gamma"] == 0.5


def test_numbers_that_yaml_takes_for_text_are_numbers(own: Path) -> None:
    own.write_text("default: {learning_rate: 1e-3, n_steps: 1e2, clip_range: lin_0.2}\n")
    assert yaml.safe_load(own.read_text())["default"]["learning_rate"] == "1e-3"
    said = recipe("ppo", LIVE, file=own).hyperparameters
    assert said["learning_rate"] == 0.001
    assert (said["n_steps"], type(said["n_steps"])) == (100, int)
    assert said["clip_range"] == "lin_0.2"


def test_a_block_in_the_style_of_the_zoo_is_understood(own: Path) -> None:
    # As in RL Baselines3 Zoo's hyperparams/ppo.yml, for CartPole-v1.
    own.write_text(
        f"{LIVE}:\n"
        "  normalize: false\n"
        "  n_envs: 8\n"
        "  n_timesteps: !!float 1e5\n"
        "  policy: 'MlpPolicy'\n"
        "  n_steps: 32\n"
        "  batch_size: 256\n"
        "  gae_lambda: 0.8\n"
        "  gamma: 0.98\n"
        "  n_epochs: 20\n"
        "  ent_coef: 0.0\n"
        "  learning_rate: lin_0.001\n"
        "  clip_range: lin_0.2\n"
        "  policy_kwargs: {net_arch: [32, 32]}\n"
    )
    said = recipe("ppo", LIVE, file=own)
    assert (said.envs, said.steps, said.network) == (8, 100_000, "mlp")
    expected = {
        "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20,
        "ent_coef": 0.0, "learning_rate": "lin_0.001", "clip_range": "lin_0.2",
        "net_arch": [32, 32],
    }  # fmt: skip
    assert said.hyperparameters == recipe("ppo", "none/such-v0").hyperparameters | expected


def test_what_a_file_says_of_another_network_is_left_out(own: Path) -> None:
    own.write_text("default: {net_arch: [8], width: 32}\n")
    assert "width" not in recipe("ppo", LIVE, file=own).hyperparameters
    pointing = recipe("ppo", LIVE, file=own, network="pointer")
    assert pointing.network == "pointer"
    assert pointing.hyperparameters["width"] == 32
    assert "net_arch" not in pointing.hyperparameters
    with pytest.raises(UnknownNameError, match="net_arch"):
        recipe("ppo", LIVE, network="pointer", hyperparameters={"net_arch": [8]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("default: {gama: 0.9}", r"own.yml, block 'default': .*'gama'.*Did you mean 'gamma'"),
        ("other: {gamma: 2}", r"own.yml, block 'other': Expected gamma .*at most 1; got 2"),
        ("default: {n_steps: 1.5}", "Expected n_steps to be a whole number"),
        ("default: {n_envs: 0}", "Expected n_envs to be a whole number of at least 1"),
        ("default: {learning_rate: fast}", "Expected learning_rate to be a number"),
        ("default: {normalize_advantage: 1}", "Expected normalize_advantage to be true or false"),
        ("default: {network: pointr}", "Did you mean 'pointer'"),
        ("default: {policy: CnnPolicy}", "There is no policy 'CnnPolicy'"),
        ("default: {normalize: true}", "scaled by construction"),
        ("default: {policy_kwargs: 'dict(net_arch=[8])'}", "run as Python"),
        ("default: {buffer_size: 100}", "There is no hyper-parameter of ppo 'buffer_size'"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name_file_and_block(
    own: Path, text: str, message: str
) -> None:
    own.write_text(text)
    with pytest.raises((UnknownNameError, InvalidValueError), match=message):
        recipe("ppo", LIVE, file=own)


@pytest.mark.parametrize("text", ["- a list", "gamma: 0.9", "default: [", ""])
def test_a_file_that_holds_no_blocks_is_refused(own: Path, text: str) -> None:
    own.write_text(text)
    with pytest.raises(FileFormatError, match=r"own\.yml"):
        recipe("ppo", LIVE, file=own)


def test_a_missing_file_is_named(own: Path) -> None:
    with pytest.raises(FileFormatError, match=r"own\.yml"):
        recipe("ppo", LIVE, file=own)


def test_a_file_runs_nothing(own: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    own.write_text(f"default: !!python/object/apply:pathlib.Path.touch [{str(marker)!r}]\n")
    with pytest.raises(FileFormatError, match="cannot be read as YAML"):
        recipe("ppo", LIVE, file=own)
    assert not marker.exists()


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'ppo'"):
        recipe("pp0", LIVE)
