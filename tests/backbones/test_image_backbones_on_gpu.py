"""Where there is a GPU, image backbones say there what they say on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from image_samples import factors, images, resnet, vit

from nsr_gym.learning.site_maps import FactoredMap, MergedMap

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("made", [vit, resnet])
def test_features_and_gradients_are_those_of_the_cpu(made: Any) -> None:
    here, x = made(), images(2, 5)
    there = here.to("cuda")
    assert there.device.type == "cuda"
    assert (there.sites, there.fingerprint) == (here.sites, here.fingerprint)
    grads, features = [], []
    for backbone in (here, there):
        pairs = {
            site: (up.to(backbone.device), down.to(backbone.device))
            for site, (up, down) in factors(here.sites, n=2).items()
        }
        leaves = {
            site: (up.mT.contiguous().requires_grad_(), down.clone().requires_grad_())
            for site, (up, down) in pairs.items()
        }
        prefix = backbone.prefix(x.to(backbone.device))
        out = backbone.forward(prefix, FactoredMap(backbone, leaves))
        out.square().sum().backward()
        features += [out.detach().cpu(), backbone.forward(prefix, MergedMap(backbone, pairs)).cpu()]
        grads.append([part.grad.cpu() for pair in leaves.values() for part in pair])
    for other in features[1:]:
        torch.testing.assert_close(other, features[0], rtol=1e-3, atol=1e-4)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
