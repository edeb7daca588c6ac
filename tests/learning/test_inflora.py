"""InfLoRA trains where nothing is protected, and protects what is reserved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.errors import StateError, UnknownNameError
from nsr_gym.learning.adapters import Adapters, FactoredMap, OffsetMap, summed
from nsr_gym.learning.covariance import covariances, seen
from nsr_gym.learning.data import TaskData
from nsr_gym.learning.dualgpm import projector
from nsr_gym.learning.inflora import InfLoRALearner, UpRun
from nsr_gym.learning.kinds import MODIFIERS, make_learner
from nsr_gym.learning.visit import Visit

EPISODES, RANK = 3, 3
ROWS = np.arange(EPISODES)
MakeWorld = Callable[..., Any]


class DoubleBackbone(MLPBackbone):
    """The same network in double precision, for what is to hold to 1e-10."""

    def __init__(self, weights: Any, **arguments: Any) -> None:
        super().__init__(weights, **arguments)
        self._weights = {name: weight.double() for name, weight in self._weights.items()}

    def prefix(self, x: Tensor) -> Any:
        return super().prefix(x.double())


class Episodes:
    """A learner and an additive bank of its results, that a visit adds to."""

    def __init__(
        self, world: Any, *, double: bool = True, n: int = EPISODES, **options: Any
    ) -> None:
        self.world, self.n = world, n
        kind = DoubleBackbone if double else MLPBackbone
        self.backbone = kind(world.backbone.weights)
        self.data = TaskData(world.pool, self.backbone)
        self.dtype = torch.float64 if double else torch.float32
        learner = make_learner(
            "inflora",
            self.backbone,
            world.learner.config,
            options=options,
            num_episodes=EPISODES,
            num_tasks=4,
            max_rank=4,
        )
        assert isinstance(learner, InfLoRALearner)
        self.learner = learner
        self.entries: list[Adapters] = []

    def fresh(self, rank: int = RANK, seed: int = 1) -> Adapters:
        made = self.world.adapters(EPISODES, rank, seed=seed, up=0.0)[: self.n]
        return Adapters(
            {s: (up.to(self.dtype), down.to(self.dtype)) for s, (up, down) in made.factors.items()}
        )

    def visit(self, task: int, start: Adapters, rows: np.ndarray = ROWS, **parts: Any) -> Visit:
        others = None
        if self.entries:
            others = {
                site: tuple(
                    torch.stack([e.factors[site][i] for e in self.entries], 1) for i in (0, 1)
                )
                for site in start.factors
            }
        n = len(rows)
        return Visit(
            tasks=(torch.arange(n) + task) % 4,
            start=start,
            batches=self.world.batches(n, seed=task),
            rows=rows,
            others=others,  # type: ignore[arg-type]
            **parts,
        )

    def learn(self, task: int, start: Adapters) -> tuple[Adapters, Tensor]:
        trained, curve = self.learner.learn(self.data, self.visit(task, start))
        self.learner.commit(ROWS, np.full(EPISODES, len(self.entries)), None)
        self.entries.append(trained)
        return trained, curve

    def protected(self, site: str) -> Tensor:
        return self.learner.memories[site].protected(torch.arange(EPISODES))


@pytest.fixture
def after_two(make_world: MakeWorld) -> Episodes:
    """Two tasks learned and protected, with room left at every site."""
    episodes = Episodes(make_world(learning_rate=0.05), eps=0.4)
    for task in range(2):
        episodes.learn(task, episodes.fresh(seed=task))
    for memory in episodes.learner.memories.values():
        free = memory.free_dimension(torch.arange(EPISODES))
        assert ((free > 0) & (free < memory.dimension)).all()
    return episodes


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


def test_only_reserved_results_are_protected_and_episodes_start_anew_alone(
    after_two: Episodes,
) -> None:
    before = {site: after_two.protected(site) for site in after_two.learner.memories}
    bytes_before = after_two.learner.nbytes(ROWS)
    after_two.learner.learn(after_two.data, after_two.visit(2, after_two.fresh(2)))
    after_two.learner.commit(ROWS[1:2], np.array([2]), None)
    grown = 0
    for site, p in before.items():
        now = after_two.protected(site)
        assert torch.equal(now[[0, 2]], p[[0, 2]])
        grown += int((now[1].trace() - p[1].trace()).round())
    assert grown > 0
    after_two.learner.begin(ROWS[:1])
    nbytes, room = after_two.learner.nbytes(ROWS), after_two.learner.free_capacity(ROWS)
    free = [m.free_dimension(torch.arange(EPISODES)) for m in after_two.learner.memories.values()]
    assert room.tolist() == pytest.approx((sum(free) / (7 + 6 + 5)).tolist())
    assert room[0] == 1 > room[1:].max()
    assert nbytes[0] == 0
    assert nbytes[2] == bytes_before[2] > 0
    sizes = [
        min(int(p[2].trace().round()), site.d_in - int(p[2].trace().round())) * site.d_in * 8
        for site, p in zip(after_two.backbone.sites, before.values(), strict=True)
    ]
    assert nbytes[2] == sum(sizes)


def test_results_of_no_or_another_visit_are_refused(make_world: MakeWorld) -> None:
    episodes = Episodes(make_world(), n=2)
    with pytest.raises(StateError, match="last visit"):
        episodes.learner.commit(ROWS, ROWS, None)
    episodes.learner.learn(episodes.data, episodes.visit(0, episodes.fresh(), rows=ROWS[:2]))
    with pytest.raises(StateError, match="last visit"):
        episodes.learner.commit(ROWS[2:], ROWS[2:], None)
    nobody = episodes.visit(0, episodes.fresh(), rows=ROWS[:2])
    nobody = dataclasses.replace(nobody, rows=ROWS[:0])
    with pytest.raises(StateError, match="Give Visit its rows"):
        episodes.learner.prepare(episodes.data, nobody)


def test_the_model_is_the_sum_of_all_entries(after_two: Episodes) -> None:
    visit = after_two.visit(2, after_two.fresh(2))
    trained, curve = after_two.learner.learn(after_two.data, visit)
    images, base = after_two.data.test(visit.tasks), summed(visit.others or {})
    first = after_two.learner.accuracy(images, None, base)
    assert torch.equal(curve[:, 0], first)
    factors = {
        site: (
            torch.cat([e.factors[site][0] for e in [*after_two.entries, trained]], 2),
            torch.cat([e.factors[site][1] for e in [*after_two.entries, trained]], 1),
        )
        for site in base
    }
    last = after_two.learner.accuracy(images, Adapters(factors))
    torch.testing.assert_close(curve[:, -1], last, rtol=0, atol=1.01 / 20)


@pytest.mark.parametrize("i", range(EPISODES))
def test_an_episode_learns_the_same_alone(i: int, make_world: MakeWorld) -> None:
    """In single precision, as the environments run; updates as a whole, within 1e-3.

    Directions of nearly equal energy may be turned into each other, and their adapters with
    them, so the products are compared.
    """
    world = make_world(learning_rate=0.05)
    together = Episodes(world, double=False, eps=0.4)
    alone = Episodes(world, double=False, eps=0.4)
    row = slice(i, i + 1)
    for task in range(3):
        start = together.fresh(2, seed=task)
        whole = together.visit(task, start)
        entries = alone.entries
        alone.entries = together.entries
        part = alone.visit(task, start)[row]
        alone.entries = entries
        all_trained, curves = together.learner.learn(together.data, whole)
        one, curve = alone.learner.learn(alone.data, part)
        together.learner.commit(ROWS, ROWS * 0 + task, None)
        alone.learner.commit(ROWS[row], np.array([task]), None)
        together.entries.append(all_trained)
        for site, (up, down) in one.factors.items():
            all_up, all_down = all_trained.factors[site]
            torch.testing.assert_close(up @ down, (all_up @ all_down)[row], rtol=0, atol=1e-3)
            assert (up @ down).abs().max() > 0.05
        torch.testing.assert_close(curve, curves[row], rtol=0, atol=1.01 / 20)
        assert np.array_equal(alone.learner.nbytes(ROWS[row]), together.learner.nbytes(ROWS[row]))


def test_an_episode_that_diverges_leaves_its_neighbours_alone(after_two: Episodes) -> None:
    visit = after_two.visit(2, after_two.fresh(2))
    sound, _ = after_two.learner.learn(after_two.data, visit)
    spoilt_start = after_two.fresh(2)
    spoilt_start.factors["fc1"][0][1] = torch.nan
    spoilt, _ = after_two.learner.learn(after_two.data, after_two.visit(2, spoilt_start))
    assert spoilt.finite().tolist() == [True, False, True]
    for site, (up, down) in sound.factors.items():
        for i in (0, 2):
            torch.testing.assert_close(spoilt.factors[site][0][i], up[i], rtol=0, atol=1e-8)
            torch.testing.assert_close(spoilt.factors[site][1][i], down[i], rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "options",
    [{"eps": 0}, {"lame": 2.0}, {"horizon": 0, "lame": 0.9}, {"samples": 0}, {"down_scale": -1.0}],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any], make_world: MakeWorld) -> None:
    with pytest.raises(ValueError, match=r"Expected .* to be .*; got"):
        Episodes(make_world(), **options)


def test_unknown_options_are_refused(make_world: MakeWorld) -> None:
    with pytest.raises(UnknownNameError, match="epsilon"):
        Episodes(make_world(), epsilon=0.9)
    with pytest.raises(UnknownNameError, match="energy convention"):
        Episodes(make_world(), energy="none")


@pytest.mark.parametrize("modifier", MODIFIERS)
def test_modifiers_leave_the_down_factors_where_they_are(
    modifier: str, make_world: MakeWorld
) -> None:
    """In single precision: rows stay designed ones, or parts of them, within 1e-5."""
    episodes = Episodes(make_world(learning_rate=0.05), double=False, eps=0.4)
    episodes.learn(0, episodes.fresh())
    options = {"penalty": 0.0} if modifier == "rank_gates" else {}  # closes none of them
    made = make_learner(
        "inflora", episodes.backbone, episodes.learner.config, modifiers={modifier: options},
        options={"eps": 0.4}, num_episodes=EPISODES, num_tasks=4, max_rank=4,
    )  # fmt: skip
    assert isinstance(made, InfLoRALearner)
    made.memories = episodes.learner.memories
    visit = episodes.visit(
        1,
        episodes.fresh(seed=2),
        numbers=ROWS,
        keys=np.arange(2 * EPISODES, dtype=np.uint64).reshape(EPISODES, 2),
    )
    trained, _ = made.learn(episodes.data, visit)
    for site, (_, down) in trained.factors.items():
        assert (down.double() @ episodes.protected(site)).abs().max() <= 1e-5
    assert all(up.flatten(1).any(dim=1).all() for up, _ in trained.factors.values())


def test_a_head_of_its_own_is_trained_beside_the_up_factors(make_world: MakeWorld) -> None:
    episodes = Episodes(make_world(learning_rate=0.05), double=False)
    bare = episodes.fresh()
    start = dataclasses.replace(bare, head=(torch.zeros(3, 3, 4), torch.zeros(3, 3)))
    visit = episodes.visit(0, start)
    trained, _ = episodes.learner.learn(episodes.data, visit)
    prepared = episodes.learner.prepare(episodes.data, visit)
    assert trained.head is not None
    assert all(part.flatten(1).any(dim=1).all() for part in trained.head)
    for site, (_, down) in trained.factors.items():
        assert torch.equal(down, prepared.start.factors[site][1])
