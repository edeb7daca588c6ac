"""What a run of training writes, where it trains and is judged, and what it refuses."""

from __future__ import annotations

import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch

from nsr_gym.agents import training
from nsr_gym.agents.algorithms import build_model
from nsr_gym.agents.checkpoint import load_model
from nsr_gym.agents.training import TrainingConfig, recorded_twin, train, train_on_the_spot
from nsr_gym.agents.training_log import TENSORBOARD
from nsr_gym.agents.training_run import STATE, segment_seed
from nsr_gym.agents.training_validation import FIRST_VALIDATION_SEED, Validation
from nsr_gym.envs import make_sb3_env
from nsr_gym.envs.wrappers import FlatDiscreteVector
from nsr_gym.errors import FileFormatError, InvalidValueError, StateError, UnknownNameError
from nsr_gym.evaluation.exact_rollout import play_exact
from nsr_gym.evaluation.rollout import play

BLIND = "NSR/BlindAllocation-v0"
LIVE, RECORDED = "NSR/CyclicDigits-v0", "NSR/CyclicDigitsRecorded-v0"
SHOWN: dict[str, Any] = {"num_tasks": 4, "cycles": 4, "obs": "full", "order": "iid"}
LEARNS = {"n_steps": 16, "batch_size": 256, "n_epochs": 10, "learning_rate": 0.01, "gamma": 0.0}


def config(environment: str = BLIND, **more: Any) -> TrainingConfig:
    chosen = {"steps": 512, "eval_every": 128, "envs": 8, "eval_episodes": 4} | more
    return TrainingConfig.from_files(
        environment, **({"hyperparameters": {"n_steps": 8, "n_epochs": 2}} | chosen)
    )


def test_a_controller_learns_and_its_best_score_is_that_of_the_oracle(tmp_path: Path) -> None:
    chosen = config(arguments=SHOWN, steps=8_192, eval_every=2_048, envs=16, hyperparameters=LEARNS)
    scores = train(chosen, tmp_path).scores
    assert scores["best"]["return"] == 16.0  # one for each of C M steps
    assert scores["best"]["per_visit"] == 1.0
    first = pd.read_csv(tmp_path / "progress.csv")["train/return"].iloc[0]
    assert first < 0.9 * 16.0, "it did not know before"


def test_an_unknown_device_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="got 'gpu7'"):
        train(config(device="gpu7"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_scoring_leaves_the_generator_of_a_gpu_alone_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[Any]] = []
    fork = torch.random.fork_rng

    def fork_rng(devices: list[Any]) -> Any:
        asked.append(devices)
        return fork(devices=[])

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    validation = Validation(BLIND, {"split": "train"}, algorithm="ppo", episodes=1)
    gpu = torch.device("cuda:0")
    stand_in = types.SimpleNamespace(
        device=gpu, predict=lambda seen, **_: (np.zeros(1, dtype=np.int64), None)
    )
    validation.score(stand_in)
    validation.close()
    assert asked == [[gpu]]


def test_everything_about_a_run_is_written_down(tmp_path: Path) -> None:
    chosen = config(arguments={"num_tasks": 3, "cycles": 2})
    result = train(chosen, tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["finished"] is True
    assert TrainingConfig(**run["config"]) == chosen
    assert run["environment_arguments"]["split"] == "train"
    assert run["hyperparameters"]["clip_range"] == 0.2, "also what was left open"
    assert run["installation"]["stable-baselines3"]
    assert run["scores"] == result.scores
    assert run["steps_per_second"] > 0
    rows = pd.read_csv(tmp_path / "progress.csv")
    assert rows["steps"].tolist() == list(range(64, 513, 64)), "a row for every rollout"
    scored = rows.dropna(subset="validation/return")
    assert scored["steps"].tolist() == [128, 256, 384, 512]
    assert scored["validation/return"].iloc[-1] == pytest.approx(result.scores["last"]["return"])
    assert result.scores["best"]["return"] == pytest.approx(scored["validation/return"].max())
    assert rows["train/value_loss"].notna().all(), "the updates on a rollout are in its row"
    assert {file.name for file in tmp_path.iterdir() if file.name[0] != "."} == {
        "best", "last", "progress.csv", "run.json",
    } | ({TENSORBOARD} if (tmp_path / TENSORBOARD).exists() else set())  # fmt: skip
    assert not (tmp_path / STATE).exists()


def test_steps_and_intervals_are_rounded_up_to_whole_rollouts(tmp_path: Path) -> None:
    result = train(config(steps=100, eval_every=70), tmp_path)
    assert result.scores["last"]["steps"] == result.trained == 128


def test_an_off_policy_run_logs_a_few_rows_between_evaluations(tmp_path: Path) -> None:
    chosen = config(
        algorithm="dqn", hyperparameters={"train_freq": 1, "learning_starts": 32}, steps=512
    )
    train(chosen, tmp_path)
    assert len(pd.read_csv(tmp_path / "progress.csv")) == 4 * 8, "16 rollouts in a segment"


def test_rows_reach_tensorboard_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, float, int]] = []
    opened: list[Any] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            opened.append((Path(folder), purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None:
            pass

        close = flush

    module: Any = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(config(), tmp_path)
    rows = pd.read_csv(tmp_path / "progress.csv")
    assert opened == [(tmp_path / TENSORBOARD, 1)]
    values = [value for name, value, _ in written if name == "train/per_visit"]
    assert values == pytest.approx(rows["train/per_visit"].tolist())


def test_without_tensorboard_nothing_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(config(), tmp_path)
    assert not (tmp_path / TENSORBOARD).exists()


def test_scores_are_those_of_the_validation_streams() -> None:
    arguments = {"num_tasks": 3, "cycles": 2, "order": "iid", "instance": None}
    model = build_model("dqn", make_sb3_env(BLIND, 2, flat_actions=True, **arguments))
    validation = Validation(BLIND, arguments, algorithm="dqn", episodes=5)
    score = validation.score(model)
    env: Any = FlatDiscreteVector(gym.make_vec(BLIND, 5, **arguments))
    seeds = [FIRST_VALIDATION_SEED + i for i in range(5)]

    class Likeliest:
        def predict(self, observation: Any, **given: Any) -> Any:
            return model.predict(observation, deterministic=True)

    table = play_exact(env, Likeliest(), seeds)
    assert score["return"] == pytest.approx(table.groupby("seed")["reward"].sum().mean())
    assert score == validation.score(model), "the same episodes each time"


def test_training_streams_lie_below_the_validation_streams() -> None:
    firsts = [segment_seed(seed, segment, 64) for seed in range(50) for segment in range(50)]
    assert max(firsts) + 63 < FIRST_VALIDATION_SEED
    assert len(set(firsts)) > 2_400, "another start for each"


def test_the_train_split_is_trained_on_and_the_reward_is_the_online_one() -> None:
    live = config(LIVE, arguments={"num_tasks": 3})
    assert live.environment_arguments() == {"reward": "online", "split": "train", "num_tasks": 3}
    asked = config(LIVE, arguments={"reward": "post_task"})
    assert asked.environment_arguments()["reward"] == "post_task"
    assert "reward" not in config(BLIND).environment_arguments()


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (InvalidValueError, "the test split stays held out", {"arguments": {"split": "test"}}),
        (InvalidValueError, "autoreset_mode", {"arguments": {"autoreset_mode": "same_step"}}),
        (InvalidValueError, "steps to be a whole number", {"steps": 0}),
        (InvalidValueError, "seed to be a whole number", {"seed": -1}),
        (InvalidValueError, "plain JSON", {"arguments": {"num_tasks": np.int64(3)}}),
        (InvalidValueError, "batch_size to divide", {"hyperparameters": {"batch_size": 99}}),
        (UnknownNameError, "Did you mean 'gamma'", {"hyperparameters": {"gama": 1}}),
        (UnknownNameError, "There is no algorithm 'sac'", {"algorithm": "sac"}),
        (UnknownNameError, "Did you mean 'pointer'", {"network": "point"}),
    ],
)
def test_a_run_that_cannot_be_is_refused(
    error: type[Exception], message: str, given: dict[str, Any]
) -> None:
    with pytest.raises(error, match=message):
        config(**given)


def test_an_unknown_environment_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Paging-v0"):
        config("NSR/Pging-v0")


def test_wrong_arguments_are_found_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="num_tasks"):
        train(config(arguments={"num_task": 3}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StateError, match="not empty and holds no training run"):
        train(config(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_card_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(FileFormatError, match="cannot be read as the card"):
        train(config(), tmp_path)


def test_training_leaves_the_random_numbers_and_threads_of_the_process_alone(
    tmp_path: Path,
) -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002

    for name in ("first", "second"):
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        torch.manual_seed(5)
        if name == "first":
            expected = drawn()
    torch.set_num_threads(2)
    try:
        train(config(steps=64), tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert drawn() == expected


def test_a_controller_is_trained_on_the_spot_on_the_train_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TrainingConfig] = []

    def short(chosen: TrainingConfig, folder: Path, **given: Any) -> Any:
        seen.append(chosen)
        return train(config(chosen.environment, arguments=chosen.arguments), folder, **given)

    monkeypatch.setattr(training, "train", short)
    steps: list[int] = []
    best = train_on_the_spot(
        BLIND,
        {"num_tasks": 3, "split": "test"},
        tmp_path,
        progress=lambda made, total, score: steps.append(made),
    )
    assert (best / "controller.json").exists()
    assert seen[0].environment_arguments() == {"num_tasks": 3, "split": "train"}
    assert steps[-1] == 512


def test_a_recorded_environment_stands_for_the_live_one_where_it_takes_the_arguments() -> None:
    assert recorded_twin(LIVE, {"num_tasks": 4}) == RECORDED
    # Without a bank, what a visit does depends on more than the recorded table knows.
    assert recorded_twin(LIVE, {"access": "memoryless"}) == LIVE
    assert recorded_twin(RECORDED, {}) == RECORDED
    assert recorded_twin(BLIND, {}) == BLIND


def test_ppo_comes_within_two_percent_of_the_similarity_rule_on_streams_it_never_saw(
    tmp_path: Path,
) -> None:
    # The pointer network gets there on every processor; how far the other gets depends on how
    # its sums are rounded.
    chosen = TrainingConfig.from_files(RECORDED, steps=32_768, network="pointer")
    best = train(chosen, tmp_path).scores["best"]["return"]
    seeds = range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + 32)
    rule = play(RECORDED, "similarity", seeds, arguments={"split": "train", "reward": "online"})
    assert best > 0.98 * rule.groupby("seed")["reward"].sum().mean()


def test_the_best_controller_plays_as_it_was_scored(tmp_path: Path) -> None:
    arguments = {"num_tasks": 3, "cycles": 3}
    best = train(config(RECORDED, arguments=arguments), tmp_path).scores["best"]["return"]
    env = make_sb3_env(RECORDED, 4, reward="online", **arguments)
    model = load_model(tmp_path / "best", env)
    chosen = {**arguments, "reward": "online"}
    validation = Validation(RECORDED, chosen, algorithm="ppo", episodes=4)
    assert validation.score(model)["return"] == best
