"""LoRA subtraction steps where the new inputs lie, and answers by the nearest class mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nsr_gym.backbones.base import FrozenMap
from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.errors import InvalidValueError, StateError, UnknownNameError
from nsr_gym.learning.adapters import Adapters, OffsetMap, summed
from nsr_gym.learning.data import TaskData
from nsr_gym.learning.drs import DriftResistantLearner, ProjectedRun, principal
from nsr_gym.learning.kinds import make_learner
from nsr_gym.learning.run import Run
from nsr_gym.learning.triplet import augmented_triplet
from nsr_gym.learning.visit import Visit

EPISODES, ENTRIES, RANK = 3, 2, 3
ROWS = np.arange(EPISODES)
TASKS = torch.tensor([2, 0, 3])
MakeWorld = Callable[..., Any]


class DoubleBackbone(MLPBackbone):
    """The same network in double precision, for what is to hold to 1e-12."""

    def __init__(self, weights: Any, **arguments: Any) -> None:
        super().__init__(weights, **arguments)
        self._weights = {name: weight.double() for name, weight in self._weights.items()}

    def prefix(self, x: Tensor) -> Any:
        return super().prefix(x.double())


@dataclasses.dataclass
class Setting:
    """A learner, and a visit to a bank that holds two entries in episodes 1 and 2."""

    world: Any
    backbone: MLPBackbone
    data: TaskData
    learner: DriftResistantLearner
    visit: Visit


@pytest.fixture
def make_setting(make_world: MakeWorld) -> Callable[..., Setting]:
    def make(*, double: bool = True, rate: float = 0.03, **options: Any) -> Setting:
        world = make_world(learning_rate=rate, learning_steps=4)
        backbone = (DoubleBackbone if double else MLPBackbone)(world.backbone.weights)
        learner = make_learner(
            "lora_sub_drs",
            backbone,
            world.learner.config,
            options=options,
            num_episodes=EPISODES,
            num_tasks=4,
            max_rank=4,
        )
        assert isinstance(learner, DriftResistantLearner)
        dtype = torch.float64 if double else torch.float32
        entries = [world.adapters(EPISODES, RANK, seed=5 + j, up=0.4) for j in range(ENTRIES)]
        others = {}
        for site in world.backbone.sites:
            pair = [
                torch.stack([e.factors[site.name][i] for e in entries], dim=1).to(dtype)
                for i in (0, 1)
            ]
            pair[0][0], pair[1][0] = 0, 0
            others[site.name] = (pair[0], pair[1])
        fresh = world.adapters(EPISODES, RANK, up=0.0)
        start = Adapters({s: (u.to(dtype), d.to(dtype)) for s, (u, d) in fresh.factors.items()})
        visit = Visit(
            tasks=TASKS, start=start, batches=world.batches(EPISODES), rows=ROWS, others=others
        )
        return Setting(world, backbone, TaskData(world.pool, backbone), learner, visit)

    return make


MakeSetting = Callable[..., Setting]


def dense(setting: Setting, sign: int, i: int) -> dict[str, Tensor]:
    """Weights of episode i with all entries added or subtracted, one product at a time."""
    weights = setting.backbone.weights
    assert setting.visit.others is not None
    for site, (up, down) in setting.visit.others.items():
        for entry in range(ENTRIES):
            change = sign * up[i, entry] @ down[i, entry]
            weights[f"{site}.weight"] = weights[f"{site}.weight"] + change
    return weights


def outside(setting: Setting, trained: Adapters, projectors: Any) -> Tensor:
    """Share of the down factors' change that lies outside the projectors, (sites, n)."""
    shares = []
    for site, (_, down) in trained.factors.items():
        change = down - setting.visit.start.factors[site][1]
        left = change - change @ projectors[site]
        shares.append(left.norm(dim=(1, 2)) / change.norm(dim=(1, 2)))
    return torch.stack(shares)


def test_the_subtracted_model_is_that_of_weights_built_by_hand(
    make_setting: MakeSetting, dense_forward: Any
) -> None:
    """Acceptance check 4.9.1: to 1e-12 relative; without an entry it is the bare backbone."""
    setting = make_setting()
    assert setting.visit.others is not None
    x = torch.tensor(setting.world.pool[0].x_test).double()
    prefix = tuple(p.expand(EPISODES, *p.shape) for p in setting.backbone.prefix(x))
    for sign in (-1, 0, 1):
        deltas = summed(setting.visit.others, torch.full((EPISODES, ENTRIES), sign))
        site_map = OffsetMap(FrozenMap(setting.backbone), deltas)
        logits = setting.backbone.head(setting.backbone.forward(prefix, site_map))
        for i in range(EPISODES):
            expected = dense_forward(dense(setting, sign, i), x)
            torch.testing.assert_close(logits[i], expected, rtol=1e-12, atol=1e-12)
        bare = dense_forward(setting.backbone.weights, x)
        torch.testing.assert_close(logits[0], bare, rtol=1e-12, atol=1e-12)
        assert ((logits[1] - bare).abs().max() > 0.1) == (sign != 0)


def test_signs_may_differ_by_entry(make_setting: MakeSetting) -> None:
    others = make_setting().visit.others
    assert others is not None
    signs = torch.tensor([[1, -1], [0, -1], [1, 0]])
    for site, delta in summed(others, signs).items():
        up, down = others[site]
        for i in range(EPISODES):
            expected = sum(float(signs[i, j]) * up[i, j] @ down[i, j] for j in range(ENTRIES))
            torch.testing.assert_close(delta[i], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eps", [0.5, 0.9, 0.99, 1.0])
def test_projectors_are_projectors_of_the_smallest_dimension_that_holds_eps(eps: float) -> None:
    """Acceptance check 4.9.2."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 50, 9, generator=g, dtype=torch.float64)
    x = x * torch.tensor([1.0, 1.0, 0.5, 0.4, 0.2, 0.1, 0.1, 0.05, 0.0])
    c = x.mT @ x / 50
    p, k = principal(c, eps)
    torch.testing.assert_close(p, p.mT, rtol=0, atol=1e-14)
    torch.testing.assert_close(p @ p, p, rtol=0, atol=1e-14)
    spectrum = torch.linalg.svdvals(c)
    shares = spectrum.cumsum(-1) / spectrum.sum(-1, keepdim=True)
    for i in range(4):
        size = int(k[i])
        assert p[i].trace().item() == pytest.approx(size)
        assert shares[i, size - 1] >= eps - 1e-12
        assert size == 1 or shares[i, size - 2] < eps
        held = (p[i] @ c[i]).trace() / c[i].trace()
        assert held.item() == pytest.approx(float(shares[i, size - 1]))
    if eps == 1.0:
        assert k.tolist() == [8] * 4  # inputs never use the ninth direction


def test_projectors_come_from_inputs_of_the_subtracted_model(make_setting: MakeSetting) -> None:
    setting = make_setting(eps=0.9)
    prepared = setting.learner.prepare(setting.data, setting.visit)
    for i in range(EPISODES):
        weights = dense(setting, -1, i)
        chosen = setting.visit.batches[i].flatten().unique()
        x = torch.tensor(setting.world.pool[int(TASKS[i])].x_train)[chosen].double()
        for site in ("fc1", "fc2", "fc3"):
            expected = principal((x.mT @ x / len(x))[None], 0.9)
            found = prepared.extra["projectors"][site][i]
            if i == 0:  # its bank is empty
                torch.testing.assert_close(found, torch.eye(x.shape[1]).double(), rtol=0, atol=0)
                assert setting.learner.dimensions[site][i] == x.shape[1]
            else:
                torch.testing.assert_close(found, expected[0][0], rtol=0, atol=1e-9)
                assert setting.learner.dimensions[site][i] == expected[1][0] < x.shape[1]
            x = torch.relu(x @ weights[f"{site}.weight"].mT + weights[f"{site}.bias"])


@pytest.mark.parametrize("sign", [-1, 0, 1])
def test_the_recalled_entry_enters_with_its_sign(sign: int, make_setting: MakeSetting) -> None:
    setting = make_setting(eps=0.9, recalled_sign=sign)
    entry = setting.world.adapters(EPISODES, RANK, seed=9, up=0.5)
    start = Adapters({s: (u.double(), d.double()) for s, (u, d) in entry.factors.items()})
    recalled = setting.learner.prepare(
        setting.data, dataclasses.replace(setting.visit, start=start)
    )
    # As if it were one more of the others, with the opposite of a sign of -1 undone.
    others = {
        site: (
            torch.cat([up, -sign * start.factors[site][0][:, None]], dim=1),
            torch.cat([down, start.factors[site][1][:, None]], dim=1),
        )
        for site, (up, down) in (setting.visit.others or {}).items()
    }
    listed = setting.learner.prepare(
        setting.data, dataclasses.replace(setting.visit, others=others)
    )
    for site, p in recalled.extra["projectors"].items():
        torch.testing.assert_close(p[1:], listed.extra["projectors"][site][1:], rtol=0, atol=1e-9)
        # An episode that recalls has an entry.
        assert (setting.learner.dimensions[site] <= p.shape[1]).all()
        identity = torch.eye(p.shape[1]).double()
        assert not torch.allclose(p[0], identity)


def test_down_factors_change_within_the_projected_space_only(make_setting: MakeSetting) -> None:
    """Acceptance check 4.9.3: the share outside is at most 1e-6 (double precision)."""
    setting = make_setting(eps=0.9)
    prepared = setting.learner.prepare(setting.data, setting.visit)
    trained, _ = setting.learner.learn(setting.data, setting.visit)
    assert outside(setting, trained, prepared.extra["projectors"]).max() <= 1e-6
    for site, (up, down) in trained.factors.items():
        assert (down - setting.visit.start.factors[site][1]).abs().max() > 0.05
        assert (up.abs().amax(dim=(1, 2)) > 0.05).all()


def test_in_single_precision_the_share_outside_is_that_of_rounding(
    make_setting: MakeSetting,
) -> None:
    """As the environments run: every step rounds the factor itself, so 1e-5."""
    setting = make_setting(double=False, eps=0.9)
    prepared = setting.learner.prepare(setting.data, setting.visit)
    trained, _ = setting.learner.learn(setting.data, setting.visit)
    assert outside(setting, trained, prepared.extra["projectors"]).max() <= 1e-5


def test_projecting_gradients_in_place_of_steps_leaves_the_space(
    make_setting: MakeSetting,
) -> None:
    """The negative control of 4.9.3: Adam turns projected gradients out of the space."""

    class GradientsProjected(ProjectedRun):
        def step(self, gradients: Sequence[Tensor]) -> None:
            for site, (_, down) in self._pairs.items():
                at = next(i for i, part in enumerate(self.leaves) if part is down)
                gradients[at].copy_(gradients[at] @ self.visit.extra["projectors"][site])
            Run.step(self, gradients)

    setting = make_setting(eps=0.9)
    prepared = setting.learner.prepare(setting.data, setting.visit)
    setting.learner._run = GradientsProjected
    trained, _ = setting.learner.learn(setting.data, setting.visit)
    shares = outside(setting, trained, prepared.extra["projectors"])
    assert not shares[:, 0].any()  # P = I
    assert (shares[:, 1:] > 1e-3).all()
    assert shares.max() > 0.1


def test_while_the_bank_is_empty_training_is_that_of_plain_lora(make_setting: MakeSetting) -> None:
    setting = make_setting(triplet=0.0)
    trained, _ = setting.learner.learn(setting.data, setting.visit)
    plain = make_learner("lora", setting.backbone, setting.learner.config, num_episodes=EPISODES)
    expected, _ = plain.learn(setting.data, dataclasses.replace(setting.visit, others=None))
    for site, pair in expected.factors.items():
        for ours, theirs in zip(trained.factors[site], pair, strict=True):
            torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-12)
            assert (ours[1:] - theirs[1:]).abs().max() > 1e-3


def test_normalised_projectors_take_shorter_steps(make_setting: MakeSetting) -> None:
    plain, normalised = make_setting(), make_setting(normalise=True)
    first = plain.learner.prepare(plain.data, plain.visit)
    second = normalised.learner.prepare(normalised.data, normalised.visit)
    for site, p in first.extra["projectors"].items():
        q = second.extra["projectors"][site]
        assert torch.equal(q[0], p[0])
        torch.testing.assert_close(q[1:], p[1:] / p[1:].norm(dim=(1, 2), keepdim=True))


def test_up_factors_are_projected_at_square_sites_only_and_on_demand(
    make_world: MakeWorld,
) -> None:
    world = make_world(learning_rate=0.05)
    g = torch.Generator().manual_seed(0)
    weights = {}
    for name, d_in, d_out in (("fc1", 7, 6), ("fc2", 6, 6), ("head", 6, 3)):
        weights[f"{name}.weight"] = torch.randn(d_out, d_in, generator=g)
        weights[f"{name}.bias"] = torch.randn(d_out, generator=g)
    backbone = MLPBackbone(weights)
    data = TaskData(world.pool, backbone)
    entry, start = (Adapters.zeros(backbone.sites, EPISODES, RANK) for _ in range(2))
    for factors in (entry.factors, start.factors):
        for up, down in factors.values():
            up.normal_(generator=g)
            down.normal_(generator=g)
    for up, _ in start.factors.values():
        up.zero_()
    others = {s: (up[:, None], down[:, None]) for s, (up, down) in entry.factors.items()}
    visit = Visit(
        tasks=TASKS, start=start, batches=world.batches(EPISODES), rows=ROWS, others=others
    )
    shares = {}
    for project_up in (False, True):
        learner = make_learner(
            "lora_sub_drs", backbone, world.learner.config, num_episodes=EPISODES,
            options={"eps": 0.5, "project_up": project_up},
        )  # fmt: skip
        p = learner.prepare(data, visit).extra["projectors"]["fc2"]
        trained, _ = learner.learn(data, visit)
        up = trained.factors["fc2"][0]
        shares[project_up] = (up - p @ up).norm(dim=(1, 2)) / up.norm(dim=(1, 2))
        assert trained.factors["fc1"][0].any()
    assert (shares[True] < 1e-5).all()
    assert (shares[False] > 0.1).all()
    with pytest.raises(InvalidValueError, match="as many outputs as inputs"):
        make_learner(
            "lora_sub_drs", world.backbone, world.learner.config, options={"project_up": True}
        )


def test_the_triplet_loss_takes_part_with_its_weight_and_the_stored_prototypes(
    make_setting: MakeSetting,
) -> None:
    setting = make_setting(triplet=0.7, margin=2.0)
    # An earlier visit leaves prototypes in episodes 1 and 2.
    setting.learner.learn(setting.data, setting.visit)
    setting.learner.commit(ROWS[1:], np.array([0, 3]), None)
    prepared = setting.learner.prepare(setting.data, setting.visit)
    run = ProjectedRun(setting.learner, prepared, {})
    images = setting.data.train(TASKS, setting.visit.batches[:, 0, 0])
    found = run.gradients(images, torch.zeros_like)  # without the loss on the logits
    known = setting.learner.prototypes.of(torch.arange(EPISODES))
    assert known.valid.any(dim=1).tolist() == [False, True, True]
    features = setting.backbone.forward(images.prefix, run.site_map())
    loss = 0.7 * augmented_triplet(features, images.labels, 2.0, known).sum()
    expected = torch.autograd.grad(loss, run.leaves)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert max(part.abs().max() for part in expected) > 1e-3
    off = make_setting(triplet=0.0)
    run = ProjectedRun(off.learner, off.learner.prepare(off.data, off.visit), {})
    assert run.extra_loss(features, images) is None


def class_mean_answers(
    setting: Setting, features: Any, i: int, x: Tensor, kept: list[tuple[int, Tensor]]
) -> Tensor:
    """Nearest class mean of episode i, from the visit's images and kept (class, mean) pairs."""
    task = setting.world.pool[int(TASKS[i])]
    chosen = setting.visit.batches[i].flatten().unique()
    seen = features(torch.tensor(task.x_train)[chosen].double())
    labels = torch.tensor(task.y_train)[chosen]
    pairs = [*kept, *((c, seen[labels == c].mean(dim=0)) for c in labels.unique().tolist())]
    unit = functional.normalize(torch.stack([mean for _, mean in pairs]), dim=-1)
    nearest = torch.cdist(functional.normalize(features(x), dim=-1), unit).argmin(dim=1)
    return torch.tensor([c for c, _ in pairs])[nearest]


def test_a_visit_is_measured_by_prototypes_of_its_own_images_and_stored_ones(
    make_setting: MakeSetting,
) -> None:
    setting = make_setting()
    learner, visit = setting.learner, setting.visit
    learner.learn(setting.data, visit)
    learner.commit(ROWS[1:2], np.array([1]), None)
    stored = learner.prototypes.of(torch.tensor([1]))
    pairs = [
        (int(c), v)
        for c, v, ok in zip(stored.classes[0], stored.values[0], stored.valid[0], strict=True)
        if ok
    ]
    assert len(pairs) > 1
    _, curve = learner.learn(setting.data, visit)
    for i in range(EPISODES):
        weights = dense(setting, 1, i)

        def features(x: Tensor, weights: dict[str, Tensor] = weights) -> Tensor:
            for layer in ("fc1", "fc2", "fc3"):
                x = torch.relu(x @ weights[f"{layer}.weight"].mT + weights[f"{layer}.bias"])
            return x

        task = setting.world.pool[int(TASKS[i])]
        x, y = torch.tensor(task.x_test).double(), torch.tensor(task.y_test)
        said = class_mean_answers(setting, features, i, x, pairs if i == 1 else [])
        assert curve[i, 0] == (said == y).double().mean()


def test_reserved_prototypes_are_class_means_under_the_trained_model_and_answer_later(
    make_setting: MakeSetting,
) -> None:
    setting = make_setting()
    learner, visit = setting.learner, setting.visit
    images = setting.data.test(TASKS)
    base = summed(visit.others or {})
    by_head = learner.accuracy(images, visit.start, base)
    assert torch.equal(learner.accuracy(images, visit.start, base, ROWS), by_head)  # none yet
    trained, curve = learner.learn(setting.data, visit)
    head_after = learner.accuracy(images, trained, base)
    assert torch.equal(learner.accuracy(images, trained, base, ROWS), head_after)
    learner.commit(ROWS[:2], np.array([2, 0]), None)
    later = learner.accuracy(images, trained, base, ROWS)
    # What answers then is what the visit's last measurement answered with.
    assert torch.equal(later[:2], curve[:2, -1])
    assert later[2] == head_after[2]
    assert not torch.equal(later[:2], head_after[:2])
    means = learner.prototypes.of(torch.arange(EPISODES))
    assert learner.nbytes(ROWS).tolist() == [
        int(n) * setting.backbone.feature_dim * 4 for n in means.valid.sum(dim=1)
    ]
    learner.begin(ROWS[:1])
    assert learner.accuracy(images, trained, base, ROWS)[0] == head_after[0]
    assert learner.nbytes(ROWS)[0] == 0 < learner.nbytes(ROWS)[1]


def test_the_head_answers_where_it_is_asked_to(make_setting: MakeSetting) -> None:
    setting = make_setting(classifier="head")
    trained, curve = setting.learner.learn(setting.data, setting.visit)
    setting.learner.commit(ROWS, ROWS, None)
    base = summed(setting.visit.others or {})
    by_head = setting.learner.accuracy(setting.data.test(TASKS), trained, base)
    assert torch.equal(curve[:, -1], by_head)


@pytest.mark.parametrize("i", range(EPISODES))
def test_an_episode_learns_the_same_alone(i: int, make_setting: MakeSetting) -> None:
    together, alone = make_setting(double=False), make_setting(double=False)
    row = slice(i, i + 1)
    for slot in range(2):  # the second time with prototypes
        trained, curves = together.learner.learn(together.data, together.visit)
        one, curve = alone.learner.learn(alone.data, alone.visit[row])
        together.learner.commit(ROWS, np.full(EPISODES, slot), None)
        alone.learner.commit(ROWS[row], np.array([slot]), None)
        for site, pair in one.factors.items():
            for ours, theirs in zip(pair, trained.factors[site], strict=True):
                torch.testing.assert_close(ours, theirs[row], rtol=0, atol=1e-3)
        torch.testing.assert_close(curve, curves[row], rtol=0, atol=1.01 / 20)
    assert together.learner.nbytes(ROWS)[i] == alone.learner.nbytes(ROWS)[i] > 0


def test_results_of_no_or_another_visit_are_refused(make_setting: MakeSetting) -> None:
    setting = make_setting()
    with pytest.raises(StateError, match="last visit"):
        setting.learner.commit(ROWS, ROWS, None)
    setting.learner.learn(setting.data, setting.visit[:2])
    with pytest.raises(StateError, match="last visit"):
        setting.learner.commit(ROWS[2:], ROWS[2:], None)


@pytest.mark.parametrize(
    "options",
    [
        {"eps": 0.0}, {"recalled_sign": 2}, {"normalise": 1}, {"project_up": "no"},
        {"triplet": -0.1}, {"margin": float("nan")}, {"samples": 1.5},
    ],
    ids=str,
)  # fmt: skip
def test_options_out_of_range_are_refused(
    options: dict[str, Any], make_setting: MakeSetting
) -> None:
    with pytest.raises(InvalidValueError, match=r"Expected .* to be .*; got"):
        make_setting(**options)


def test_unknown_names_are_refused(make_setting: MakeSetting) -> None:
    with pytest.raises(UnknownNameError, match=r"classifier.*'nmc'.*'ncm'"):
        make_setting(classifier="nmc")
    with pytest.raises(UnknownNameError, match="marginal"):
        make_setting(marginal=1.0)


@pytest.mark.parametrize("modifier", ["ema_merge", "badam", "align_uniform", "sam"])
def test_modifiers_do_not_leave_the_projected_space(
    modifier: str, make_setting: MakeSetting
) -> None:
    """Rank gates scale whole directions, and so what they started with, and are left out."""
    setting = make_setting(eps=0.9)
    prepared = setting.learner.prepare(setting.data, setting.visit)
    learner = make_learner(
        "lora_sub_drs", setting.backbone, setting.learner.config, modifiers={modifier: {}},
        options={"eps": 0.9}, num_episodes=EPISODES, num_tasks=4, max_rank=4,
    )  # fmt: skip
    keys = np.arange(2 * EPISODES, dtype=np.uint64).reshape(EPISODES, 2)
    visit = dataclasses.replace(setting.visit, numbers=ROWS, keys=keys)
    trained, _ = learner.learn(setting.data, visit)
    assert outside(setting, trained, prepared.extra["projectors"]).max() <= 1e-6


def test_a_head_of_its_own_answers_where_there_are_no_prototypes(
    make_setting: MakeSetting,
) -> None:
    setting = make_setting(double=False)
    g = torch.Generator().manual_seed(0)
    head = (torch.randn(EPISODES, 3, 4, generator=g), torch.randn(EPISODES, 3, generator=g))
    start = dataclasses.replace(setting.visit.start, head=head)
    visit = dataclasses.replace(setting.visit, start=start)
    images, base = setting.data.test(TASKS), summed(setting.visit.others or {})
    by_own_head = setting.learner.accuracy(images, start, base)
    assert torch.equal(setting.learner.accuracy(images, start, base, ROWS), by_own_head)
    assert not torch.equal(by_own_head, setting.learner.accuracy(images, visit.start, None))
    trained, _ = setting.learner.learn(setting.data, visit)
    assert trained.head is not None
    assert (trained.head[0] - head[0]).abs().amax(dim=(1, 2)).min() > 1e-3
