"""Each router by itself, against its formula written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from nsr_gym.bank import CountedFactors, TaskKnowledgeBank
from nsr_gym.errors import InvalidValueError
from nsr_gym.routing.base import Query, Written

BANKS = [0, 1]
TASKS = [0, 1, 2, 3]
ALL = np.array(BANKS)


def test_a_sets_cosine_is_the_similarity_that_the_bank_recalls_by(world: Any) -> None:
    router = world.teach(world.build("cosine", BANKS), BANKS, TASKS)
    store = CountedFactors(sites={"a": (4, 4)}, max_rank=2)
    bank = TaskKnowledgeBank(embedding_dim=24, num_banks=2, store=store)
    for task in TASKS:
        written = world.written(BANKS, [task] * 2, [task] * 2)
        bank.reserve(embedding=written.embedding.numpy(), rank=np.array([1, 1]))
    query = world.query(BANKS, [1, 3])
    mean = functional.normalize(query.features, dim=-1).mean(1)
    hits = bank.recall(functional.normalize(mean, dim=-1).numpy(), top_n=4)
    scores = router.set_scores(query).numpy()[:, 1:]
    for row in range(2):
        recalled = hits.similarity[row].clip(0, 1)
        assert np.allclose(scores[row, hits.slot[row]], recalled, atol=1e-6)
        assert scores[row].argmax() == hits.slot[row, 0]


def test_a_threshold_leaves_unlike_inputs_to_the_backbone(world: Any) -> None:
    router = world.teach(world.build("cosine", BANKS, threshold=0.6), BANKS, [0, 1])
    known, new = world.query(BANKS, [1, 1]), world.query(BANKS, [3, 3])
    assert (router.weights(known).argmax(-1) == 2).all()
    assert (router.weights(new).argmax(-1) == 0).all()
    assert (router.scores(known)[..., 0] == 0.6).all()


def test_embeddings_of_another_length_are_refused_by_routers_that_read_them(world: Any) -> None:
    written = world.written([0], [0], [0])
    other = Written(**(vars(written) | {"embedding": torch.ones(1, 3)}))
    for name in ("cosine", "soft_gate"):
        with pytest.raises(InvalidValueError, match="'ncm' or 'rls'"):
            world.build(name, [0]).learn(other)
    world.build("ncm", [0]).learn(other)


@pytest.mark.parametrize("normalise", [False, True])
def test_ncm_is_the_distance_to_the_mean_of_all_inputs_of_an_entry(
    world: Any, normalise: bool
) -> None:
    router = world.build("ncm", [0], normalise=normalise)
    world.teach(router, [0], TASKS, k=11)
    world.teach(router, [0], [2], k=30, number=5)
    query = world.query([0], [2], k=6)

    def scaled(z: torch.Tensor) -> torch.Tensor:
        return functional.normalize(z.double(), dim=-1) if normalise else z.double()

    z = scaled(query.features[0])
    for task in TASKS:
        seen = world.features([0], [task], 11, 0)[0]
        if task == 2:
            seen = torch.cat([seen, world.features([0], [2], 30, 5)[0]])
        mean = scaled(seen).mean(0)
        wanted = -(z - mean).norm(dim=-1)
        assert torch.allclose(router.scores(query)[0, :, 1 + task], wanted, atol=1e-10)
        of_set = 1 / (1 + (z.mean(0) - mean).square().sum() / z.mean(0).square().sum())
        assert torch.allclose(router.set_scores(query)[0, 1 + task], of_set, atol=1e-10)


def test_the_soft_gate_mixes_by_softmax_of_cosines(world: Any) -> None:
    router = world.teach(world.build("soft_gate", BANKS, temperature=0.1), BANKS, TASKS)
    query = world.query(BANKS, [1, 3])
    cosine = world.teach(world.build("cosine", BANKS), BANKS, TASKS).scores(query)
    wanted = (cosine[..., 1:5] / 0.1).softmax(-1)
    weights = router.weights(query)
    assert torch.allclose(weights[..., 1:5], wanted, atol=1e-12)
    assert not weights[..., [0, 5, 6]].any()
    cold = world.teach(world.build("soft_gate", BANKS, temperature=1e-4), BANKS, TASKS)
    assert torch.allclose(cold.weights(query)[0, :, 2], torch.ones(20).double())


def test_a_threshold_gives_the_backbone_a_part_in_the_mixture(world: Any) -> None:
    for name in ("soft_gate", "energy"):
        router = world.teach(world.build(name, BANKS, threshold=0.5), BANKS, TASKS)
        weights, scores = (f(world.query(BANKS, [1, 3])) for f in (router.weights, router.scores))
        wanted = (scores / 0.05).softmax(-1)
        assert torch.allclose(weights, wanted)
        assert (weights[..., 0] > 0).all()


def test_keys_follow_the_gradient_of_one_minus_cosine(world: Any) -> None:
    start = world.build("key_query", [0], steps=1, learning_rate=1e-12)
    world.teach(start, [0], [1])
    router = world.build("key_query", [0], steps=9, learning_rate=0.7, pull=0.4)
    world.teach(router, [0], [1])
    key = torch.from_numpy(start.state()["part/key"][0, 1])
    queries = world.features([0], [1], 40, 0)[0].double()
    for _ in range(9):
        key.requires_grad_(True)
        loss = (1 - functional.cosine_similarity(queries, key[None], dim=-1)).mean()
        (gradient,) = torch.autograd.grad(loss, key)
        key = (key - 0.7 * 0.4 * gradient).detach()
    assert np.allclose(router.state()["part/key"][0, 1], key.numpy(), atol=1e-10)


def test_first_keys_differ_between_episodes_and_slots_and_updates_continue(world: Any) -> None:
    router = world.build("key_query", BANKS, steps=1, learning_rate=1e-12)
    world.teach(router, BANKS, [1, 2])
    first = router.state()["part/key"]
    pairs = [(0, 1), (0, 2), (1, 1), (1, 2)]
    cosines = [abs(first[a] @ first[b]) for a in pairs for b in pairs if a < b]
    assert max(cosines) < 0.8
    assert np.allclose(np.linalg.norm(first[:, 1:3], axis=-1), 1)

    trained = world.teach(world.build("key_query", [0], steps=40), [0], [1])
    once = trained.set_scores(world.query([0], [1]))[0, 2]
    world.teach(trained, [0], [1])
    assert trained.set_scores(world.query([0], [1]))[0, 2] > once


def test_energy_is_the_share_in_the_leading_eigenvectors(world: Any) -> None:
    world.noise = 1.0
    for energy, most in ((0.9, 16), (0.9, 2), (0.4, 16)):
        router = world.build("energy", [0], energy=energy, max_directions=most)
        world.teach(router, [0], [0, 1])
        query, total = world.query([0], [1]), 0
        for task in (0, 1):
            z = world.features([0], [task], 40, 0)[0].double()
            values, vectors = torch.linalg.eigh(z.mT @ z)
            shares = values.flip(0).cumsum(0) / values.sum()
            kept = min(int((shares < energy).sum()) + 1, most)
            assert kept == most or shares[kept - 1] >= energy
            basis, x = vectors.flip(1)[:, :kept], query.features[0].double()
            wanted = (x @ basis).square().sum(-1) / x.square().sum(-1)
            assert torch.allclose(router.scores(query)[0, :, 1 + task], wanted, atol=1e-9)
            total += kept
        assert router.nbytes(np.array([0])).tolist() == [8 * 24 * total]


def test_energy_takes_no_directions_of_a_null_space_and_scores_zero_as_zero(world: Any) -> None:
    router = world.build("energy", [0], energy=1.0)
    written = world.written([0], [0], [0], k=3)
    flat = Written(**(vars(written) | {"features": written.features[:, :1].expand(-1, 3, -1)}))
    router.learn(flat)
    assert router.nbytes(np.array([0])).tolist() == [8 * 24]
    router.learn(Written(**(vars(flat) | {"features": flat.features * 0, "slots": flat.slots + 1})))
    assert router.nbytes(np.array([0])).tolist() == [8 * 24]
    query = world.query([0], [0])
    empty = Query(query.rows, query.features * 0, query.tasks, query.inputs)
    assert (router.scores(empty)[..., 1:3] == 0).all()
    assert (router.scores(query)[..., 2] == 0).all()


def test_the_oracle_prefers_the_entry_written_last_and_sends_new_tasks_to_the_backbone(
    world: Any,
) -> None:
    router = world.build("oracle", BANKS)
    for slots, tasks in (([0, 2], [3, 1]), ([1, 0], [3, 3]), ([4, 1], [0, 1])):
        router.learn(world.written(BANKS, slots, tasks))

    def places(task: int) -> list[int]:
        found = router.weights(world.query(BANKS, [task] * 2)).argmax(-1)
        assert (found == found[:, :1]).all()
        return [int(place) for place in found[:, 0]]

    assert places(3) == [2, 1]
    assert places(1) == [0, 2]
    assert places(2) == [0, 0]
    assert router.set_scores(world.query(BANKS, [3, 3]))[0].tolist() == [0, 0.5, 1, 0, 0, 0, 0]
    router.learn(world.written([0], [0], [3]))
    assert places(3) == [1, 1]
    assert not router.nbytes(ALL).any()


def test_random_sends_inputs_everywhere_and_the_same_input_always_the_same_way(world: Any) -> None:
    router = world.teach(world.build("random", BANKS), BANKS, TASKS)
    query = world.query(BANKS, [1, 1], k=2000)
    weights = router.weights(query)
    shares = weights.mean(1)
    assert (shares[:, 1:5] - 0.25).abs().max() < 0.05
    assert torch.equal(router.weights(query), weights)
    # Another episode guesses otherwise about the same inputs.
    router.begin(ALL, world.keys([5, 6]))
    world.teach(router, BANKS, TASKS)
    same = (router.weights(query).argmax(-1) == weights.argmax(-1)).double().mean()
    assert abs(float(same) - 0.25) < 0.05
    of_sets = [router.set_scores(world.query([0], [1], number=i)) for i in range(60)]
    first = torch.cat(of_sets)[:, 1:5].argmax(-1)
    assert first.unique().tolist() == [0, 1, 2, 3]


def test_sgd_steps_are_those_of_autograd_on_cross_entropy(world: Any) -> None:
    router = world.build("sgd", [0], steps=7, learning_rate=0.9, slots=4)
    w = torch.zeros(4, 24, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    held: list[int] = []
    for task in (2, 0, 3):
        world.teach(router, [0], [task])
        held.append(task)
        z = functional.normalize(world.features([0], [task], 40, 0)[0].double(), dim=-1)
        for _ in range(7):
            logits = (z @ w.mT + b)[:, held]
            loss = functional.cross_entropy(logits, torch.full((40,), held.index(task)))
            gradients = torch.autograd.grad(loss, [w, b])
            with torch.no_grad():
                w -= 0.9 * gradients[0]
                b -= 0.9 * gradients[1]
    query = world.query([0], [0])
    z = functional.normalize(query.features[0].double(), dim=-1)
    wanted = (z @ w.mT + b)[:, held].detach()
    assert torch.allclose(router.scores(query)[0][:, [1 + t for t in held]], wanted, atol=1e-12)
    of_set = router.set_scores(query)[0]
    assert torch.allclose(of_set[[3, 1, 4]], wanted.softmax(-1).mean(0))


@pytest.mark.parametrize(
    ("name", "each"), [("ncm", 24), ("key_query", 24), ("sgd", 25), ("cosine", 0), ("arrow", 0)]
)
def test_bytes_are_those_of_what_each_entry_adds(world: Any, name: str, each: int) -> None:
    router = world.teach(world.build(name, BANKS), BANKS, TASKS)
    router.drop(np.array([1]), np.array([0]))
    assert router.nbytes(ALL).tolist() == [8 * each * 4, 8 * each * 3]


@pytest.mark.parametrize("name", ["cosine", "ncm", "key_query", "energy", "arrow"])
def test_a_slot_that_is_used_again_knows_nothing_of_the_entry_before(world: Any, name: str) -> None:
    router, new = world.teach(world.build(name, [0]), [0], TASKS), world.build(name, [0])
    router.drop(np.array([0]), np.array([1]))
    for one in (router, new):
        one.learn(world.written([0], [1], [3]))
    query = world.query([0], [1])
    assert torch.equal(router.scores(query)[..., 2], new.scores(query)[..., 2])
    assert router.nbytes(np.array([0])) >= new.nbytes(np.array([0]))
