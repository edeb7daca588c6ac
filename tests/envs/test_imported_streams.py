"""Imported streams are played: the order of visits is the stream's, all else follows the seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from vector_tasks import arrays, small_backbone

from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.datasets import ImportedStream, from_arrays, from_avalanche
from nsr_gym.envs import ContinualEnv, ContinualVectorEnv, EpisodeConfig, check_vector_env
from nsr_gym.envs.ordered import OrderedConfig
from nsr_gym.errors import InvalidValueError, UnknownNameError
from nsr_gym.evaluation.rollout import play
from nsr_gym.report.summary import summarise

SETTINGS: dict[str, Any] = {
    "learning_steps": 2, "updates": 1, "support_size": 16, "ranks": [1, 2, 4],
}  # fmt: skip
ORDER = ["b", "a", "b", "c", "c", "a", "b"]
VISITS = (1, 0, 1, 2, 2, 0, 1)
FRESH = np.array([0, 2, 1])
IMPORTED = "NSR/ImportedStreamOfATest-v0"


@pytest.fixture(scope="module")
def backbone() -> MLPBackbone:
    return small_backbone()


@pytest.fixture(scope="module")
def stream() -> ImportedStream:
    """Three visited tasks in an order that no schedule draws, and one that is never visited."""
    tasks = {name: arrays(i) for i, name in enumerate("abcd")}
    return from_arrays(tasks, split="test", visits=ORDER, classes=range(4))


@pytest.fixture
def registered(stream: ImportedStream, backbone: MLPBackbone) -> Iterator[str]:
    def single(**arguments: Any) -> ContinualEnv:
        return ContinualEnv(stream.pool, backbone, **arguments)

    def vector(num_envs: int = 1, **arguments: Any) -> ContinualVectorEnv:
        return ContinualVectorEnv(stream.pool, backbone, num_envs, **arguments)

    gym.register(
        IMPORTED, entry_point=single, vector_entry_point=vector,
        kwargs=SETTINGS | {"visits": list(stream.visits)},
    )  # fmt: skip
    yield IMPORTED
    del gym.registry[IMPORTED]


def played(env: Any, seed: int) -> list[dict[str, Any]]:
    _, info = env.reset(seed=seed)
    infos = [info]
    while True:
        *_, over, _, info = env.step(FRESH)
        infos.append(info)
        if over:
            return infos


def test_every_episode_visits_the_tasks_in_the_given_order(
    stream: ImportedStream, backbone: MLPBackbone
) -> None:
    env = ContinualEnv(stream.pool, backbone, visits=stream.visits, **SETTINGS)
    check_env(env, skip_render_check=True)
    assert env.engine.config.num_visits == 7
    episodes = [played(env, seed) for seed in (0, 1, 1)]
    for first, *visits in episodes:
        assert {info["stream"] for info in (first, *visits)} == {stream.stream().hash}
        assert [info["task_name"] for info in visits] == ORDER
        assert tuple(info["task"] for info in visits) == VISITS
        assert [info["is_return"] for info in visits] == [
            False, False, True, False, True, True, True,
        ]  # fmt: skip
    curves = [np.stack([info["curve"] for info in visits]) for _, *visits in episodes]
    assert not np.array_equal(curves[0], curves[1])
    np.testing.assert_array_equal(curves[1], curves[2])


def test_a_task_that_is_never_visited_takes_part(
    stream: ImportedStream, backbone: MLPBackbone
) -> None:
    env = ContinualEnv(stream.pool, backbone, visits=stream.visits, **SETTINGS)
    infos = played(env, 0)
    # A cycle is as many visits as there are tasks.
    assert [info["cycle"] for info in infos[1:]] == [0, 0, 0, 0, 1, 1, 1]
    retention, bare = (of(np.zeros(1, int)) for of in (env.engine.retention, env.engine.baseline))
    assert retention.shape == bare.shape == (1, 4)
    assert np.isfinite(retention).all()
    one = ContinualEnv(stream.pool, backbone, visits=[3], **SETTINGS)
    assert [info["task_name"] for info in played(one, 0)[1:]] == ["d"]


def test_single_and_vector_environments_agree(registered: str) -> None:
    check_vector_env(registered, num_envs=3, episodes=2, tolerance=1e-5)


@pytest.mark.parametrize(
    ("agent", "own"),
    [
        ("oracle", {}),
        ("similarity", {"threshold": 0.9}),
        ("fresh", {}),
        ("pin-one", {"threshold": 1.0}),
    ],
)
def test_agents_are_evaluated_on_an_imported_stream(
    agent: str, own: dict[str, float], registered: str, stream: ImportedStream
) -> None:
    table = play(registered, agent, [0, 1, 2], agent_arguments=own)
    assert set(table["stream_hash"]) == {stream.stream().hash}
    for _, episode in table.groupby("seed"):
        assert episode["task_name"].tolist() == ORDER
    assert set(table["num_tasks"]) == {4}
    if agent == "oracle":
        np.testing.assert_array_equal(table["recall"] > 0, table["is_return"])
    if agent == "fresh":
        assert not table["recall"].any()
    (row,) = summarise(table, reference=agent).to_dict("records")
    assert np.isfinite([row[name] for name in ("online", "post_task", "acc", "bwt", "aia")]).all()


def test_a_benchmark_of_avalanche_is_played(backbone: MLPBackbone) -> None:
    def experiences(parts: list[tuple[np.ndarray, np.ndarray]]) -> list[Any]:
        class Pairs(list[Any]):
            targets: Any = ()

        found = []
        for number, (x, y) in enumerate(parts):
            data = Pairs(zip(torch.tensor(x), y.tolist(), strict=True))
            data.targets = y.tolist()
            found.append(SimpleNamespace(dataset=data, current_experience=number))
        return found

    first, second = arrays(0), arrays(1)
    benchmark: Any = SimpleNamespace(
        train_stream=experiences([part[:2] for part in (second, first, first, second)]),
        test_stream=experiences([part[2:] for part in (first, second)]),
    )
    found = from_avalanche(benchmark, split="test", order=[1, 0, 0, 1], classes=range(4))
    env = ContinualEnv(found.pool, backbone, visits=found.visits, **SETTINGS)
    names = [info["task_name"] for info in played(env, 0)[1:]]
    assert names == ["avalanche-1", "avalanche-0", "avalanche-0", "avalanche-1"]


@pytest.mark.parametrize(
    "given",
    [{"num_tasks": 4}, {"cycles": 1}, {"schedule": "once"}, {"markov_noise": None}],
)
@pytest.mark.parametrize("face", [ContinualEnv, ContinualVectorEnv])
def test_an_order_is_given_or_drawn_but_not_both(
    face: Any, given: dict[str, Any], stream: ImportedStream, backbone: MLPBackbone
) -> None:
    with pytest.raises(InvalidValueError, match=f"visits without {next(iter(given))}: "):
        face(stream.pool, backbone, visits=stream.visits, **SETTINGS, **given)


@pytest.mark.parametrize("visits", [[], 3, "01", [0, 4], [-1], [True], [0.5], ["a"], [[0]]])
def test_visits_that_are_no_positions_are_refused(
    visits: Any, stream: ImportedStream, backbone: MLPBackbone
) -> None:
    with pytest.raises(InvalidValueError, match=r"visits as a list of whole numbers in 0\.\.3"):
        ContinualEnv(stream.pool, backbone, visits=visits, **SETTINGS)


def test_other_arguments_are_checked_as_without_visits(
    stream: ImportedStream, backbone: MLPBackbone
) -> None:
    with pytest.raises(UnknownNameError, match="'capacity'"):
        ContinualEnv(stream.pool, backbone, visits=[0], capacty=3)
    with pytest.raises(UnknownNameError, match="'visits'"):
        ContinualEnv(stream.pool, backbone, visit=[0])
    for name, value in (("capacity", -1), ("capacity_bytes", 0.5), ("embedding_noise", -1.0)):
        with pytest.raises(InvalidValueError, match=name):
            ContinualEnv(stream.pool, backbone, visits=[0], **{name: value})
    with pytest.raises(InvalidValueError, match="split"):
        ContinualEnv(stream.pool, backbone, visits=[0], split="train")
    config = OrderedConfig(visits=(0, 1), num_tasks=2, split="test")
    with pytest.raises(InvalidValueError, match="to be 4, the tasks of the pool"):
        config.check_pool(stream.pool)


def test_what_is_not_the_order_has_the_same_defaults_and_the_same_effect(
    stream: ImportedStream, backbone: MLPBackbone
) -> None:
    drawn = {f.name: f.default for f in fields(EpisodeConfig)}
    given = {f.name: f.default for f in fields(OrderedConfig)}
    order = {"num_tasks", "cycles", "schedule", "markov_noise", "visits"}
    assert set(drawn) - set(given) == {"cycles", "schedule", "markov_noise"}
    assert {n: v for n, v in given.items() if n not in order and n in drawn} == {
        n: v for n, v in drawn.items() if n not in order and n in given
    }
    small = ContinualEnv(stream.pool, backbone, visits=stream.visits, capacity=2, **SETTINGS)
    assert max(info["entries"] for info in played(small, 0)) == 2
    few = ContinualEnv(stream.pool, backbone, visits=stream.visits, capacity_bytes=0, **SETTINGS)
    assert max(info["entries"] for info in played(few, 0)) == 0
    seen = []
    for sigma in (0.0, 1.0):
        env = ContinualEnv(stream.pool, backbone, visits=[0, 0], embedding_noise=sigma, **SETTINGS)
        env.reset(seed=0)
        seen.append(env.step(FRESH)[0])  # of an entry that is the task's own
    assert not np.array_equal(*seen)
