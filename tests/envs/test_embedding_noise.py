"""The noise of embeddings: of the right size, by position, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nsr_gym.envs.dynamics import Arrival, Visits
from nsr_gym.envs.noise import EmbeddingNoise

Make = Callable[..., Any]
WIDTH = 64


def arrivals(n: int, *, number: int = 0, probe: bool = False) -> Arrival:
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((n, WIDTH)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    visits = Visits(np.arange(n), np.arange(n), np.full(n, number))
    return Arrival(visits, embedding, np.zeros(n), probe=probe)


def disturbed(
    sigma: Any, n: int, *, number: int = 0, probe: bool = False, only: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    keys = np.random.default_rng(1).integers(2**63, size=(n, 2), dtype=np.uint64)
    noise = EmbeddingNoise(n)
    noise.begin(np.arange(n), keys, np.broadcast_to(sigma, n).astype(float))
    arrival = arrivals(n, number=number, probe=probe)
    if only is not None:
        some = Visits(*(part[only] for part in vars(arrival.visits).values()))
        arrival = Arrival(some, arrival.embedding[only], arrival.bare_loss[only], probe=probe)
    return arrival.embedding, noise.disturb(arrival).embedding


def test_without_noise_nothing_is_touched() -> None:
    clean, noisy = disturbed(0.0, 5)
    assert noisy is clean


@pytest.mark.parametrize("sigma", [0.05, 0.2, 1.0])
def test_an_embedding_turns_by_the_angle_that_sigma_means(sigma: float) -> None:
    clean, noisy = disturbed(sigma, 2000)
    assert noisy.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(noisy, axis=1), 1.0, atol=1e-6)
    # A disturbance of length sigma, nearly all of it across: cosine 1 / sqrt(1 + sigma^2).
    cosine = (clean * noisy).sum(axis=1).mean()
    assert cosine == pytest.approx(1 / np.sqrt(1 + sigma**2 * (1 - 1 / WIDTH)), rel=0.02)


def test_noise_has_no_direction_of_its_own() -> None:
    clean, noisy = disturbed(0.3, 4000)
    drift = (noisy - clean * (clean * noisy).sum(axis=1, keepdims=True)).mean(axis=0)
    assert np.abs(drift).max() < 4 * 0.3 / np.sqrt(WIDTH) / np.sqrt(4000)


def test_each_visit_is_disturbed_anew_and_each_probe_always_alike() -> None:
    first, second = (disturbed(0.2, 6, number=number)[1] for number in (0, 1))
    assert np.abs(first - second).max() > 0.01
    probes = [disturbed(0.2, 6, number=number, probe=True)[1] for number in (0, 1)]
    np.testing.assert_array_equal(*probes)
    assert np.abs(probes[0] - first).max() > 0.01


def test_what_an_episode_draws_does_not_depend_on_those_beside_it() -> None:
    _, together = disturbed([0.1, 0.0, 0.2, 0.3, 0.0, 0.1], 6)
    for row in range(6):
        _, alone = disturbed([0.1, 0.0, 0.2, 0.3, 0.0, 0.1], 6, only=np.array([row]))
        np.testing.assert_array_equal(alone[0], together[row])


@pytest.mark.parametrize("env_id", ["NSR/CyclicDigits-v0", "NSR/CyclicDigitsRecorded-v0"])
def test_only_similarities_change(env_id: str, make_vec: Make) -> None:
    plain, noisy = (make_vec(3, env_id, embedding_noise=sigma) for sigma in (0.0, 0.2))
    layout = plain.engine.layout
    answers = [env.reset(seed=3) for env in (plain, noisy)]
    for step in range(5):
        seen = [layout.read(answer[0], "similarity")[:, 0] for answer in answers]
        assert (seen[0] == 0).all() == (step == 0)
        assert step == 0 or np.abs(seen[0] - seen[1]).max() > 1e-3
        for name in ("bare_loss", "visits_left", "occupancy"):
            a, b = (layout.read(answer[0], name) for answer in answers)
            np.testing.assert_array_equal(a, b)
        answers = [env.step(np.tile([0, 0, 2], (3, 1))) for env in (plain, noisy)]
        np.testing.assert_array_equal(answers[0][1], answers[1][1])


def test_live_and_recorded_episodes_are_disturbed_by_the_same_numbers(make_vec: Make) -> None:
    drawn = []
    for env_id in ("NSR/CyclicDigits-v0", "NSR/CyclicDigitsRecorded-v0"):
        env = make_vec(2, env_id, embedding_noise=0.2)
        env.reset(seed=5)
        clean = arrivals(2)
        drawn.append(env.engine._noise.disturb(clean).embedding)
        assert np.abs(drawn[-1] - clean.embedding).max() > 0.01
    np.testing.assert_array_equal(*drawn)
