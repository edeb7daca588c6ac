"""LoRA subtraction steps where the new inputs lie once old tasks are subtracted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from additive_samples import ENTRIES, EPISODES, RANK, ROWS, TASKS, Setting, dense, drs_setting
from torch import Tensor

from nsr_gym.backbones.base import FrozenMap
from nsr_gym.backbones.mlp import MLPBackbone
from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.adapters import Adapters, summed
from nsr_gym.learning.data import TaskData
from nsr_gym.learning.drs import ProjectedRun, principal
from nsr_gym.learning.kinds import make_learner
from nsr_gym.learning.run import Run
from nsr_gym.learning.site_maps import OffsetMap
from nsr_gym.learning.visit import Visit

MakeWorld = Callable[..., Any]


@pytest.fixture
def make_setting(make_world: MakeWorld) -> Callable[..., Setting]:
    return partial(drs_setting, make_world)


MakeSetting = Callable[..., Setting]


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
