"""Controllers come back as they were saved, and nothing that is read can run code."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.save_util import data_to_json

from nsr_gym.agents.algorithms import ALGORITHMS, build_model, flat_actions
from nsr_gym.agents.checkpoint import load_model, read_card, save_controller
from nsr_gym.agents.controller import ControllerAgent
from nsr_gym.envs import make_sb3_env
from nsr_gym.errors import FileFormatError, InvalidValueError

LIVE = "NSR/CyclicDigits-v0"
TINY: dict[str, Any] = {
    "num_tasks": 2,
    "cycles": 2,
    "learning_steps": 2,
    "updates": 1,
    "support_size": 32,
}
PAIRS = [(name, network) for name, one in ALGORITHMS.items() for network in one.networks]


def environments(algorithm: str = "ppo", n: int = 2, **arguments: Any) -> Any:
    return make_sb3_env(LIVE, n, flat_actions=flat_actions(algorithm), **(TINY | arguments))


def save(
    folder: Path, algorithm: str = "ppo", network: str = "mlp", *, seed: int = 3, **arguments: Any
) -> Any:
    """Save a controller whose weights are far from where training begins, and return its model."""
    few = {"n_steps": 4} if algorithm != "dqn" else {"buffer_size": 64}
    model = build_model(
        algorithm, environments(algorithm, **arguments), network=network, seed=seed, **few
    )
    with torch.no_grad():
        for part in model.policy.parameters():
            part.add_(torch.randn_like(part) * 0.3)
    model.num_timesteps = 128
    save_controller(
        model,
        folder,
        algorithm=algorithm,
        network=network,
        hyperparameters=few,
        environment=LIVE,
        arguments=TINY | arguments,
        split="train",
        scores={"validation": 1.5},
        extra={"note": "of a test"},
    )
    return model


def seen(env: Any, n: int = 64) -> Any:
    """Return n observations of any kind that the environments could show."""
    env.observation_space.seed(0)
    samples = [env.observation_space.sample() for _ in range(n)]
    if isinstance(samples[0], dict):
        return {name: np.stack([one[name] for one in samples]) for name in samples[0]}
    return np.stack(samples)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(tmp_path / "one")
    return tmp_path / "one"


@pytest.mark.parametrize("observation", ["flat", "dict"])
@pytest.mark.parametrize(("algorithm", "network"), PAIRS)
def test_a_controller_comes_back_as_it_was(
    tmp_path: Path, algorithm: str, network: str, observation: str
) -> None:
    model = save(tmp_path, algorithm, network, observation=observation)
    env = environments(algorithm, n=3, observation=observation)
    loaded = load_model(tmp_path, env)
    shown = seen(env)
    expected, _ = model.predict(shown, deterministic=True)
    assert len(np.unique(expected, axis=0)) > 1, "a controller that always does the same"
    got, _ = loaded.predict(shown, deterministic=True)
    np.testing.assert_array_equal(got, expected)
    assert loaded.num_timesteps == 128
    before = model.policy.state_dict()
    for name, part in loaded.policy.state_dict().items():
        assert torch.equal(part, before[name]), name


def test_a_loaded_controller_can_be_trained_on(tmp_path: Path) -> None:
    save(tmp_path, network="pointer")
    model = load_model(tmp_path, environments(n=3), seed=0)
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(16)
    assert any((a != b).any() for a, b in zip(before, model.policy.parameters(), strict=True))


def test_a_batch_size_is_fitted_only_where_a_rollout_is_cut_into_batches(tmp_path: Path) -> None:
    for algorithm, kept in (("dqn", 48), ("ppo", None)):
        chosen = {"batch_size": 48, "n_steps": 24 if algorithm == "ppo" else 1}
        model = build_model(algorithm, environments(algorithm), **chosen)
        save_controller(
            model, tmp_path / algorithm, algorithm=algorithm, network="mlp",
            hyperparameters=chosen, environment=LIVE, arguments=TINY, split="train",
        )  # fmt: skip
        loaded = load_model(tmp_path / algorithm, environments(algorithm, n=3))
        assert loaded.batch_size == (kept or 72), "72 is the rollout of three environments"


@pytest.mark.parametrize("name", ["n_steps", "batch_size"])
@pytest.mark.parametrize("value", [0, "x", None, 1.5])
def test_sizes_that_are_none_are_no_sizes_of_a_card(saved: Path, name: str, value: Any) -> None:
    card = json.loads((saved / "controller.json").read_text())
    card["hyperparameters"][name] = value
    (saved / "controller.json").write_text(json.dumps(card))
    with pytest.raises(FileFormatError, match=name):
        load_model(saved, environments())


def test_a_card_nested_without_end_is_damaged(saved: Path) -> None:
    (saved / "controller.json").write_text("[" * 100_000)
    with pytest.raises(FileFormatError, match="damaged"):
        read_card(saved)


def test_the_card_says_what_it_is(saved: Path) -> None:
    card = read_card(saved)
    assert (card.algorithm, card.network, card.split, card.steps) == ("ppo", "mlp", "train", 128)
    assert (card.environment, card.arguments) == (LIVE, TINY)
    assert (card.scores, card.extra) == ({"validation": 1.5}, {"note": "of a test"})
    assert (card.actions, card.ranks, card.sizes["similarity"]) == ([9, 4, 3], [1, 2, 4, 8], 8)
    assert {"nsr-gym", "torch", "stable-baselines3"} <= card.versions.keys()
    assert sorted(file.name for file in saved.iterdir()) == [
        "controller.json",
        "controller.safetensors",
    ]


def test_saving_again_replaces(saved: Path) -> None:
    first = read_card(saved)
    model = save(saved, "a2c", seed=4)
    assert read_card(saved).algorithm == "a2c"
    assert read_card(saved).sha256 != first.sha256
    shown = seen(model.env)
    loaded = load_model(saved, environments())
    np.testing.assert_array_equal(
        loaded.predict(shown, deterministic=True)[0], model.predict(shown, deterministic=True)[0]
    )


def test_what_cannot_be_written_leaves_the_controller_that_was_there(saved: Path) -> None:
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    model = load_model(saved, environments())
    for bad in (float("nan"), np.float32(1.0), object()):
        with pytest.raises(InvalidValueError, match="plain JSON"):
            save_controller(
                model,
                saved,
                algorithm="ppo",
                network="mlp",
                hyperparameters={},
                environment=LIVE,
                arguments={},
                split="train",
                scores={"bad": bad},
            )
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before


@pytest.mark.parametrize("view", [3, 20])
def test_the_pointer_network_is_loaded_into_another_view(tmp_path: Path, view: int) -> None:
    model = save(tmp_path, network="pointer")
    loaded = load_model(tmp_path, environments(view_size=view))
    before = model.policy.state_dict()
    for name, part in loaded.policy.state_dict().items():
        assert torch.equal(part, before[name]), name


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        ("mlp", {"view_size": 3}, "fields"),
        ("mlp", {"ranks": [1, 2, 4]}, "4, 3.*3, 3"),
        ("mlp", {"ranks": [1, 2, 4, 16]}, "grants the ranks"),
        ("mlp", {"observation": "dict"}, "observation='flat'"),
        ("mlp", {"access": "memoryless"}, "fields"),
        ("mlp", {"observe_task_id": True}, "fields"),
        ("pointer", {"ranks": [1, 2, 4]}, "4, 3.*3, 3"),
        ("pointer", {"access": "memoryless"}, "fields"),
        ("pointer", {"observe_task_id": True}, "fields"),
    ],
)
def test_environments_that_do_not_fit_are_refused(
    tmp_path: Path, network: str, arguments: dict[str, Any], message: str
) -> None:
    save(tmp_path, network=network)
    with pytest.raises(InvalidValueError, match=message):
        load_model(tmp_path, environments(**arguments))


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="other"), "not the card"),
        (lambda c: c.update(version=2), "later nsr-gym"),
        (lambda c: c.pop("sizes"), "'sizes'"),
        (lambda c: c.update(steps="many"), "'steps'"),
        (lambda c: c.update(actions=[]), "no sizes"),
        (lambda c: c["sizes"].update(similarity=-1), "no sizes"),
        (lambda c: c.update(observation="picture"), "no sizes"),
        (lambda c: c.update(algorithm="sac"), "no algorithm 'sac'"),
        (lambda c: c.update(network="transformer"), "no network"),
        (lambda c: c["hyperparameters"].update(activation="os.system"), "no activation"),
        (lambda c: c["hyperparameters"].update(policy_class="os.system"), "policy_class"),
        (lambda c: c.update(sha256="0" * 64), "hash"),
        (lambda c: c["hyperparameters"].update(net_arch=[32]), "not those of the network"),
    ],
)
def test_cards_that_were_tampered_with_are_refused(
    saved: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    edit(saved / "controller.json", change)
    with pytest.raises(FileFormatError, match=message):
        load_model(saved, environments())


def test_damaged_and_missing_files_are_refused(saved: Path, tmp_path: Path) -> None:
    env = environments()
    with pytest.raises(FileNotFoundError, match="no controller"):
        load_model(tmp_path / "nowhere", env)
    with pytest.raises(FileNotFoundError, match="no controller"):
        read_card(tmp_path)
    tensors, card = saved / "controller.safetensors", saved / "controller.json"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-4])
    with pytest.raises(FileFormatError, match="hash"):
        load_model(saved, env)
    changed = bytearray(whole)
    changed[-1] ^= 1
    tensors.write_bytes(changed)
    with pytest.raises(FileFormatError, match="hash"):
        load_model(saved, env)
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match=r"controller\.safetensors"):
        load_model(saved, env)
    card.write_text(card.read_text()[:-20])
    with pytest.raises(FileFormatError, match="damaged"):
        load_model(saved, env)


class Trap:
    """An object that makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def crafted(file: Path, marker: Path) -> None:
    """Write a zip that looks like one of Stable-Baselines3, with traps in all of its members."""
    weights = io.BytesIO()
    torch.save({"weights": Trap(marker)}, weights)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", data_to_json({"policy_class": Trap(marker), "clip_range": 0.2}))
        for member in ("policy.pth", "policy.optimizer.pth", "pytorch_variables.pth"):
            archive.writestr(member, weights.getvalue())
        archive.writestr("_stable_baselines3_version", "2.6.0")


def readers(place: Path) -> list[Callable[[], Any]]:
    env = environments()
    return [
        lambda: read_card(place),
        lambda: load_model(place, env),
        lambda: ControllerAgent(env.vector_env, folder=place),
    ]


def test_a_crafted_zip_is_refused_and_nothing_in_it_runs(tmp_path: Path, saved: Path) -> None:
    marker, file = tmp_path / "it-ran", tmp_path / "best_model.zip"
    crafted(file, marker)
    folder, renamed, dressed = tmp_path / "folder", tmp_path / "renamed", tmp_path / "dressed"
    for place, name in ((folder, "best_model.zip"), (renamed, "controller.safetensors")):
        place.mkdir()
        shutil.copy(file, place / name)
    bare = tmp_path / "best_model"
    shutil.copy(file, bare)
    for place in (file, bare, folder, renamed):
        for read in readers(place):
            with pytest.raises(FileFormatError, match="runs whatever code") as caught:
                read()
            assert "--trust-pickle" in str(caught.value)
    # Even in a folder with a proper card that vouches for it.
    shutil.copytree(saved, dressed)
    shutil.copy(file, dressed / "controller.safetensors")
    for read in readers(dressed)[1:]:
        with pytest.raises(FileFormatError, match="runs whatever code"):
            read()
    assert not marker.exists()


def test_a_pickle_by_another_name_is_refused(tmp_path: Path, saved: Path) -> None:
    marker = tmp_path / "it-ran"
    (saved / "controller.safetensors").write_bytes(pickle.dumps(Trap(marker)))
    for read in readers(saved)[1:]:
        with pytest.raises(FileFormatError, match="runs whatever code"):
            read()
    assert not marker.exists()


def test_the_crafted_zip_would_have_run(tmp_path: Path) -> None:
    marker, file = tmp_path / "it-ran", tmp_path / "best_model.zip"
    crafted(file, marker)
    with pytest.raises(Exception):  # noqa: B017, PT011 (whatever breaks after the trap)
        ALGORITHMS["ppo"].load().load(file)
    assert marker.exists()


@pytest.mark.parametrize(("algorithm", "network"), PAIRS)
def test_a_trusted_zip_is_loaded(tmp_path: Path, algorithm: str, network: str) -> None:
    model = save(tmp_path / "own", algorithm, network)
    file = tmp_path / "model.zip"
    model.save(file)
    with pytest.raises(FileFormatError, match="trust_pickle=True"):
        load_model(file, environments(algorithm))
    env = environments(algorithm)
    loaded = load_model(file, env, trust_pickle=True)
    assert type(loaded) is type(model)
    shown = seen(env)
    np.testing.assert_array_equal(
        loaded.predict(shown, deterministic=True)[0], model.predict(shown, deterministic=True)[0]
    )


def test_a_trusted_zip_must_fit_all_the_same(tmp_path: Path) -> None:
    model, file = save(tmp_path / "own"), tmp_path / "model.zip"
    model.save(file)
    wider = environments(view_size=5)
    with pytest.raises(InvalidValueError, match="cannot play"):
        load_model(file, wider, trust_pickle=True)
    with pytest.raises(InvalidValueError, match="this environment shows"):
        ControllerAgent(wider.vector_env, folder=file, trust_pickle=True)
    file.write_bytes(b"PK\x03\x04 no more than that")
    with pytest.raises(FileFormatError, match="damaged"):
        load_model(file, environments(), trust_pickle=True)
