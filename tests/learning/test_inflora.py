"""InfLoRA trains where nothing is protected, and protects what its tasks rely on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from additive_samples import EPISODES, RANK, ROWS, Episodes, two_learned
from torch import Tensor
from torch.nn import functional

from nsr_gym.learning.adapters import Adapters, summed
from nsr_gym.learning.covariance import covariances, seen
from nsr_gym.learning.dualgpm import projector
from nsr_gym.learning.inflora import UpRun
from nsr_gym.learning.site_maps import FactoredMap, OffsetMap
from nsr_gym.learning.visit import Visit

MakeWorld = Callable[..., Any]


@pytest.fixture
def after_two(make_world: MakeWorld) -> Episodes:
    return two_learned(make_world)


def test_the_down_factors_avoid_what_is_protected(after_two: Episodes) -> None:
    """Acceptance check 5.9.1, in double precision: max |D P| <= 1e-10, before and after."""
    visit = after_two.visit(2, after_two.fresh(2))
    prepared = after_two.learner.prepare(after_two.data, visit)
    trained, _ = after_two.learner.learn(after_two.data, visit)
    for site, (up, down) in trained.factors.items():
        assert torch.equal(down, prepared.start.factors[site][1])
        assert (down @ after_two.protected(site)).abs().max() <= 1e-10
        assert (visit.start.factors[site][1] @ after_two.protected(site)).abs().max() > 0.1
        assert (up != 0).any(dim=1).sum() > 0
        lengths = down.norm(dim=2)[down.any(dim=2)]
        torch.testing.assert_close(lengths, torch.full_like(lengths, 3**-0.5))


def test_outputs_for_protected_inputs_stay(after_two: Episodes) -> None:
    """Acceptance check 5.9.3: unchanged to 1e-10 after training, for inputs in the span of M."""
    trained, _ = after_two.learner.learn(after_two.data, after_two.visit(2, after_two.fresh(2)))
    base = summed(after_two.visit(2, trained).others or {})
    leaves = {s: (up.mT.contiguous(), down) for s, (up, down) in trained.factors.items()}
    new = OffsetMap(FactoredMap(after_two.backbone, leaves), base)
    g = torch.Generator().manual_seed(0)
    for site in after_two.backbone.sites:
        weight, bias = after_two.backbone.weight(site.name)
        x = torch.randn(EPISODES, 20, site.d_in, generator=g, dtype=torch.float64)
        inside = x @ after_two.protected(site.name)
        moved = {}
        for name, inputs in (("inside", inside), ("anywhere", x)):
            old = inputs @ (weight + base[site.name]).mT + bias
            moved[name] = float((new(site.name, inputs) - old).abs().max())
        assert moved["inside"] <= 1e-10
        assert moved["anywhere"] > 1e-2  # it did learn something


def test_a_gradient_step_is_the_projected_step_of_the_full_weights(after_two: Episodes) -> None:
    """Acceptance check 5.9.2: -eta G D^T D to 1e-10, G by automatic differentiation."""
    visit = after_two.visit(2, after_two.fresh(2))
    prepared = after_two.learner.prepare(after_two.data, visit)
    run = UpRun(after_two.learner, prepared, {})
    images = after_two.data.train(visit.tasks, visit.batches[:, 0, 0])

    def gradient(logits: Tensor) -> Tensor:
        y = functional.one_hot(images.labels, logits.shape[-1])
        return (torch.softmax(logits.detach(), -1) - y) / logits.shape[1]

    gradients = run.gradients(images, gradient)
    found = dict(zip(run.factors(), gradients[::2], strict=True))
    assert not any(part.any() for part in gradients[1::2])  # of the down factors
    assert prepared.base is not None
    dense = {s: d.clone().requires_grad_() for s, d in prepared.base.items()}
    zero = {s: (up.mT * 0, down) for s, (up, down) in prepared.start.factors.items()}
    site_map = OffsetMap(FactoredMap(after_two.backbone, zero), dense)
    logits = after_two.learner.logits(images, site_map)
    loss = functional.cross_entropy(logits.movedim(-1, 1), images.labels, reduction="none")
    loss.mean(dim=1).sum().backward()
    for site, (_, down) in prepared.start.factors.items():
        full = dense[site].grad
        assert full is not None
        torch.testing.assert_close(
            -0.1 * found[site].mT @ down, -0.1 * full @ down.mT @ down, rtol=0, atol=1e-10
        )
        assert full.abs().max() > 1e-3


def test_a_reserved_task_is_protected_to_eps_under_the_trained_model(after_two: Episodes) -> None:
    """Acceptance check 5.9.5 for the learner: on the inputs that its own trained model makes."""
    visit = after_two.visit(2, after_two.fresh(2))
    trained, _ = after_two.learner.learn(after_two.data, visit)
    after_two.learner.commit(ROWS, np.full(EPISODES, 2), None)
    found = covariances(
        after_two.learner, seen(after_two.data, visit, 256), trained, summed(visit.others or {})
    )
    for site, c in found.items():
        left = c - after_two.protected(site) @ c
        kept = 1 - left.square().sum(dim=(1, 2)) / c.square().sum(dim=(1, 2))
        assert (kept >= 0.4 - 1e-10).all()
        memory = after_two.learner.memories[site]
        assert (memory.held(torch.arange(EPISODES)).counts <= memory.dimension // 2).all()


def inputs_by_hand(episodes: Episodes, visit: Visit, model: Adapters) -> dict[str, Tensor]:
    """Covariances under all other entries and a model, with the network written out."""
    base = summed(visit.others or {})
    found: dict[str, list[Tensor]] = {}
    for i in range(EPISODES):
        chosen = visit.batches[i].flatten().unique()
        x = torch.tensor(episodes.world.pool[int(visit.tasks[i])].x_train)[chosen].double()
        for site, (up, down) in model.factors.items():
            found.setdefault(site, []).append(x.mT @ x / len(x))
            weight, bias = episodes.backbone.weight(site)
            assert bias is not None
            x = torch.relu(x @ (weight + base[site][i] + up[i] @ down[i]).mT + bias)
    return {site: torch.stack(parts) for site, parts in found.items()}


def test_directions_come_from_the_inputs_that_training_starts_with(after_two: Episodes) -> None:
    """Those under all other entries and the recalled part of the adapter."""
    start = after_two.fresh(4)
    for site, (up, down) in start.factors.items():
        known = after_two.entries[0].factors[site]
        up[:, :, :1], down[:, :1] = known[0][:, :, :1], known[1][:, :1]
    visit = after_two.visit(2, start)
    prepared = after_two.learner.prepare(after_two.data, visit)
    inputs = inputs_by_hand(after_two, visit, start)
    for site, memory in after_two.learner.memories.items():
        found = prepared.start.factors[site][1][:, 1:]
        expected = memory.design(inputs[site], torch.arange(EPISODES), 3) * 3**-0.5
        expected = expected * (expected * found).sum(dim=2, keepdim=True).sign()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_protection_comes_from_the_inputs_that_the_trained_model_makes(
    make_world: MakeWorld,
) -> None:
    world = make_world(learning_rate=0.1)
    episodes = Episodes(world, eps=0.9)
    other = world.adapters(EPISODES, RANK, seed=7)  # in the bank, but not protected
    episodes.entries.append(
        Adapters({s: (up.double(), down.double()) for s, (up, down) in other.factors.items()})
    )
    index, memories = torch.arange(EPISODES), episodes.learner.memories
    visit = episodes.visit(1, episodes.fresh(seed=2))
    trained, _ = episodes.learner.learn(episodes.data, visit)
    expected = {}
    for name, model in (("start", visit.start), ("trained", trained)):
        inputs = inputs_by_hand(episodes, visit, model)
        expected[name] = {
            site: projector(memory.updated(inputs[site], index))
            for site, memory in memories.items()
        }
    episodes.learner.commit(ROWS, ROWS, None)
    for site in memories:
        found = episodes.protected(site)
        torch.testing.assert_close(found, expected["trained"][site], rtol=0, atol=1e-7)
        if site != "fc1":  # whose inputs no adapter changes
            assert (found - expected["start"][site]).abs().max() > 0.01


def test_a_rank_above_the_free_dimension_is_clipped_and_reported(make_world: MakeWorld) -> None:
    """Acceptance check 5.9.6."""
    episodes = Episodes(make_world(learning_rate=0.05), eps=0.9)
    assert not len(episodes.learner.clipped)
    for task in range(2):
        episodes.learn(task, episodes.fresh(1, seed=task))
    free = torch.stack(
        [m.free_dimension(torch.arange(EPISODES)) for m in episodes.learner.memories.values()]
    )
    assert (free.amin(dim=0) < 4).all()
    asked = torch.tensor([4, 1, 4])
    start = episodes.fresh(4)
    start.keep(asked)
    visit = episodes.visit(2, start, ranks=asked)
    prepared = episodes.learner.prepare(episodes.data, visit)
    given = torch.minimum(free, asked)
    assert torch.equal(episodes.learner.clipped, asked - given.amin(dim=0))
    assert episodes.learner.clipped[0] > 0
    assert torch.equal(prepared.ranks, given.amax(dim=0))
    trained, _ = episodes.learner.learn(episodes.data, visit)
    for i, (up, down) in enumerate(trained.factors.values()):
        assert torch.equal(down.any(dim=2).sum(dim=1), given[i])
        assert not up.mT[~down.any(dim=2)].any()  # nothing is learned where nothing was granted


def test_a_recalled_entry_keeps_its_own_down_factors(after_two: Episodes) -> None:
    entry = after_two.entries.pop()
    start = after_two.fresh(4)
    for site, (up, down) in start.factors.items():
        old_up, old_down = entry.factors[site]
        # Episode 0 starts afresh, the others from their entry with one direction more.
        up[1:, :, :RANK], down[1:, :RANK] = old_up[1:], old_down[1:]
    visit = after_two.visit(1, start)
    prepared = after_two.learner.prepare(after_two.data, visit)
    for site, (up, down) in prepared.start.factors.items():
        assert torch.equal(up, start.factors[site][0])
        assert torch.equal(down[1:, :RANK], entry.factors[site][1][1:])
        designed = torch.cat([down[0], down[1:, RANK:].flatten(0, 1)])
        assert designed.any()
        assert (down[0] @ after_two.protected(site)[0]).abs().max() <= 1e-10
        assert (down[1:, RANK:] @ after_two.protected(site)[1:]).abs().max() <= 1e-10
    trained, _ = after_two.learner.learn(after_two.data, visit)
    for site, (_, down) in trained.factors.items():
        assert torch.equal(down, prepared.start.factors[site][1])


def test_directions_that_may_not_be_trained_are_not_designed(after_two: Episodes) -> None:
    start = after_two.fresh(3)
    trainable = torch.tensor([[True, False, True]] * EPISODES)
    visit = after_two.visit(2, start, trainable=trainable)
    prepared = after_two.learner.prepare(after_two.data, visit)
    for site, (_, down) in prepared.start.factors.items():
        assert torch.equal(down[:, 1], start.factors[site][1][:, 1])
        assert (down[:, [0, 2]] @ after_two.protected(site)).abs().max() <= 1e-10
