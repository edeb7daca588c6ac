"""The frozen vision transformer is torchvision's, and adapters change its maps and nothing else."""

from __future__ import annotations

import pytest
import torch
from image_samples import HEADS, factors, frozen_features, images, vit, vit_module
from torch import Tensor

from nsr_gym.backbones.base import FrozenMap, Site
from nsr_gym.backbones.entrance import Entrance
from nsr_gym.backbones.torchvision_models import vit_tensors
from nsr_gym.backbones.vit import ViTBackbone
from nsr_gym.errors import InvalidValueError, StateError
from nsr_gym.learning.site_maps import CapturingMap, FactoredMap, MergedMap


def tensors(**changes: Tensor | None) -> dict[str, Tensor]:
    made = vit_tensors(vit_module().state_dict()) | changes
    return {name.replace("__", "."): part for name, part in made.items() if part is not None}


def test_logits_are_torchvisions() -> None:
    module, x = vit_module(), images(6)
    backbone = vit(module)
    logits = backbone.head(frozen_features(backbone, x))
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, module(x), rtol=1e-4, atol=1e-5)


def test_without_a_class_token_features_are_the_mean_of_the_tokens() -> None:
    made = tensors()
    del made["class_token"]
    made["position"] = made["position"][1:]
    backbone = ViTBackbone(made, heads=HEADS)
    whole = ViTBackbone(tensors(), heads=HEADS)
    assert backbone.prefix(images(2))[0].shape == (2, 4, 12)
    assert whole.prefix(images(2))[0].shape == (2, 5, 12)
    # All four patches alike and without positions: every token is the mean of the tokens.
    made["position"] = torch.zeros_like(made["position"])
    backbone = ViTBackbone(made, heads=HEADS)
    x = images(2, side=4).tile(1, 1, 2, 2)
    one = {name: part for name, part in made.items() if name != "position"}
    single = ViTBackbone(one | {"position": torch.zeros(1, 12)}, heads=HEADS)
    torch.testing.assert_close(
        frozen_features(backbone, x), frozen_features(single, x[..., :4, :4]), rtol=1e-4, atol=1e-5
    )


def test_what_a_backbone_says_of_itself() -> None:
    backbone = vit()
    names = [f"blocks.{i}.attn.{part}" for i in range(3) for part in "qv"]
    assert backbone.sites == tuple(Site(name, 12, 12) for name in names)
    assert (backbone.input_shape, backbone.feature_dim, backbone.num_classes) == ((3, 8, 8), 12, 5)
    every = vit(adapt=[".*"]).sites
    assert [site.name for site in every[:6]] == [
        *(f"blocks.0.attn.{part}" for part in "qkvo"), "blocks.0.mlp.fc1", "blocks.0.mlp.fc2",
    ]  # fmt: skip
    assert every[4] == Site("blocks.0.mlp.fc1", 20, 12)
    assert vit(fused=True).sites[0] == Site("blocks.0.attn.qkv", 36, 12)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
def test_leading_dimensions_are_the_callers_business(lead: tuple[int, ...]) -> None:
    backbone = vit(adapt=["blocks.1.attn.v"])
    x = images(*lead)
    features = frozen_features(backbone, x)
    assert features.shape == (*lead, 12)
    flat = frozen_features(backbone, x.reshape(-1, 3, 8, 8))
    torch.testing.assert_close(features.reshape(-1, 12), flat)


SPLITS = {
    "blocks.0.attn.q": 0, "blocks.0.mlp.fc2": 1, "blocks.1.attn.o": 2, "blocks.1.mlp.fc1": 3,
    "blocks.2.attn.v": 4, "blocks.2.mlp.fc2": 5,
}  # fmt: skip


@pytest.mark.parametrize("site", SPLITS)
def test_wherever_the_frozen_part_ends_the_features_are_the_same(site: str) -> None:
    module, x = vit_module(), images(4)
    whole, part = vit(module, adapt=["blocks.0.attn.q"]), vit(module, adapt=[site])
    torch.testing.assert_close(frozen_features(part, x), frozen_features(whole, x))
    # A map that is never called would hide a prefix that goes too far or not far enough.
    seen = CapturingMap(FrozenMap(part))
    part.forward(part.prefix(x[None]), seen)
    assert list(seen.inputs) == [site]
    moved = [not torch.equal(a, b) for a, b in zip(part.prefix(x), whole.prefix(x), strict=True)]
    assert moved == [SPLITS[site] > 0]


def test_many_images_have_the_prefix_that_each_has_alone() -> None:
    backbone = vit(adapt=["blocks.2.attn.q"])
    x = images(300)
    (prefix,) = backbone.prefix(x)
    for i in (0, 127, 128, 299):
        torch.testing.assert_close(prefix[i], backbone.prefix(x[i])[0])


@pytest.mark.parametrize(
    "adapt", [None, ["blocks.2.*"], [".*attn.k", ".*mlp.*"], [".*attn.o", "blocks.1.attn.q"]]
)
def test_adapters_equal_weights_they_are_added_to(adapt: list[str] | None) -> None:
    module = vit_module()
    backbone, x = vit(module, adapt=adapt), images(3, 4)
    made = factors(backbone.sites, n=3)
    prefix = backbone.prefix(x)
    leaves = {s: (up.mT.contiguous(), down) for s, (up, down) in made.items()}
    factored = backbone.forward(prefix, FactoredMap(backbone, leaves))
    merged = backbone.forward(prefix, MergedMap(backbone, made))
    for i in range(3):
        dense = backbone.weights
        for site, (up, down) in made.items():
            dense[f"{site}.weight"] = dense[f"{site}.weight"] + up[i] @ down[i]
        expected = frozen_features(ViTBackbone(dense, heads=HEADS), x[i])
        assert not torch.allclose(expected, frozen_features(backbone, x[i]), atol=1e-2)
        torch.testing.assert_close(factored[i], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(merged[i], expected, rtol=1e-4, atol=1e-5)


def test_a_fused_adapter_is_three_adapters_on_top_of_each_other() -> None:
    module, x = vit_module(), images(2, 3)
    fused = vit(module, fused=True)
    made = factors(fused.sites, n=2)
    split = vit(module, adapt=[r".*attn\.[qkv]"])
    thirds = {
        site.replace("qkv", part): (up.chunk(3, dim=1)["qkv".index(part)], down)
        for site, (up, down) in made.items()
        for part in "qkv"
    }
    torch.testing.assert_close(
        fused.forward(fused.prefix(x), MergedMap(fused, made)),
        split.forward(split.prefix(x), MergedMap(split, thirds)),
    )
    torch.testing.assert_close(frozen_features(fused, x), frozen_features(split, x))
    assert fused.fingerprint == split.fingerprint


def test_gradients_reach_every_factor_and_are_those_of_the_merged_weights() -> None:
    """Automatic differentiation of the merged form is the reference of the written-out one."""
    backbone, x = vit(adapt=[r"blocks\.[12]\.attn\.[qv]"]), images(2, 3)
    made = factors(backbone.sites, n=2)
    leaves = {
        site: (up.mT.contiguous().requires_grad_(), down.clone().requires_grad_())
        for site, (up, down) in made.items()
    }
    dense = {
        site: (up.requires_grad_(), down.requires_grad_()) for site, (up, down) in made.items()
    }
    aim = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(9))
    for site_map in (FactoredMap(backbone, leaves), MergedMap(backbone, dense)):
        (backbone.forward(backbone.prefix(x), site_map) * aim).sum().backward()
    for site in made:
        (up_t, down), (up, other) = leaves[site], dense[site]
        for grad, expected in ((up_t.grad, up.grad), (down.grad, other.grad)):
            assert grad is not None
            assert expected is not None
            assert float(grad.flatten(1).norm(dim=1).min()) > 1e-3
        assert up.grad is not None
        torch.testing.assert_close(up_t.grad, up.grad.mT, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(down.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_the_fingerprint_is_of_the_function() -> None:
    made = tensors()
    backbone = ViTBackbone(made, heads=HEADS)
    same = ViTBackbone(dict(reversed(made.items())), heads=HEADS, adapt=["blocks.1.mlp.fc1"])
    assert same.fingerprint == backbone.fingerprint
    others = [
        ViTBackbone(made, heads=3),
        ViTBackbone(made, heads=HEADS, eps=1e-5),
        ViTBackbone(made, heads=HEADS, entrance=Entrance(mean=(0.5,) * 3, std=(0.2,) * 3)),
        ViTBackbone(made | {"norm.bias": made["norm.bias"] + 1e-6}, heads=HEADS),
        backbone.with_head(made["head.weight"], made["head.bias"] + 1),
    ]
    prints = {backbone.fingerprint, *(other.fingerprint for other in others)}
    assert len(prints) == 6
    assert backbone.to("cpu") is backbone


def test_the_entrance_normalises_and_resizes() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    module, x = vit_module(), images(3)
    inside = vit(module, entrance=Entrance(mean=mean, std=std))
    outside = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(frozen_features(inside, x), frozen_features(vit(module), outside))
    small = vit(module, entrance=Entrance(side=4))
    assert small.input_shape == (3, 4, 4)
    flat = torch.full((1, 3, 4, 4), 0.7)  # constant images stay what they are
    torch.testing.assert_close(
        frozen_features(small, flat), frozen_features(vit(module), flat.tile(1, 1, 2, 2))
    )


def test_a_head_can_be_missing_or_replaced() -> None:
    bare = ViTBackbone(
        {name: part for name, part in tensors().items() if "head" not in name}, heads=HEADS
    )
    features = frozen_features(bare, images(2))
    assert bare.num_classes == 0
    with pytest.raises(StateError, match="no head; put one on"):
        bare.head(features)
    weight = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    headed = bare.with_head(weight)
    assert headed.num_classes == 7
    torch.testing.assert_close(headed.head(features), features @ weight.mT)
    assert bare.num_classes == 0
    assert headed.fingerprint != bare.fingerprint
    for wrong in (weight[:, :5], weight[0]):
        with pytest.raises(InvalidValueError, match=r"shape \(classes, 12\)"):
            bare.with_head(wrong)
    with pytest.raises(InvalidValueError, match="as many classes"):
        bare.with_head(weight, torch.zeros(6))


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"norm__weight": None}, {}, r"vision transformer: missing norm\.weight; unknown none"),
        ({"more": torch.zeros(1)}, {}, "unknown more"),
        ({"head__bias": None}, {}, r"missing head\.bias"),
        ({}, {"heads": 5}, "divides the width 12; got 5"),
        ({"position": torch.zeros(4, 12)}, {}, "square of patches; got 3"),
        ({"patch__weight": torch.zeros(12, 3, 4, 2)}, {}, "patch.weight of shape"),
        ({"blocks__1__attn__k__weight": torch.zeros(12, 11)}, {}, r"attn.k.weight.*got \(12, 11\)"),
        ({}, {"adapt": ["attn.q"]}, r"No site matches 'attn\.q'"),
        ({}, {"adapt": [".*qkv"]}, "No site matches"),
        ({}, {"entrance": Entrance(mean=(0.5,), std=(1.0,))}, "3 channels; got 1"),
    ],
)  # fmt: skip
def test_what_does_not_make_a_network_is_refused(
    changes: dict[str, Tensor | None], arguments: dict[str, object], message: str
) -> None:
    made = tensors()
    for name, part in changes.items():
        if part is None:
            del made[name.replace("__", ".")]
        else:
            made[name.replace("__", ".")] = part
    with pytest.raises(InvalidValueError, match=message):
        ViTBackbone(made, **({"heads": HEADS} | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments", [{"mean": (0.1,)}, {"mean": (0.1,), "std": (0.0,)}, {"side": 0}], ids=str
)
def test_an_entrance_that_makes_no_sense_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidValueError, match="Expected"):
        Entrance(**arguments)  # type: ignore[arg-type]
