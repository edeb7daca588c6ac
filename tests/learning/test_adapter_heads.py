"""Heads of their own go wherever the adapters go."""

from __future__ import annotations

import torch

from nsr_gym.backbones.base import Site
from nsr_gym.learning.adapters import Adapters
from nsr_gym.learning.site_maps import apply_heads

SITES = (Site("a", 6, 5), Site("b", 4, 6))


def adapters(n: int, seed: int) -> Adapters:
    g = torch.Generator().manual_seed(seed)
    made = Adapters.zeros(SITES, n, 3, head=(4, 7))
    assert made.head is not None
    for part in (*made.head, *(part for pair in made.factors.values() for part in pair)):
        part.copy_(torch.randn(part.shape, generator=g))
    return made


def heads(made: Adapters) -> torch.Tensor:
    assert made.head is not None
    return torch.cat([made.head[0].flatten(1), made.head[1]], dim=1)


def test_selecting_joining_and_reordering_keep_the_heads() -> None:
    some, more = adapters(3, 0), adapters(2, 1)
    joined = Adapters.cat([some, more])
    torch.testing.assert_close(heads(joined), torch.cat([heads(some), heads(more)]))
    torch.testing.assert_close(heads(joined[1:4]), heads(joined)[1:4])
    order = torch.tensor([[2, 0, 1]]).expand(3, 3)
    torch.testing.assert_close(heads(some.reorder(order)), heads(some))
    some.keep(torch.tensor([1, 2, 3]))
    torch.testing.assert_close(heads(some), heads(adapters(3, 0)))


def test_putting_overwrites_the_heads_of_those_episodes_alone() -> None:
    some, more = adapters(3, 0), adapters(1, 1)
    before = heads(some).clone()
    some.put(torch.tensor([1]), more)
    torch.testing.assert_close(heads(some)[1], heads(more)[0])
    torch.testing.assert_close(heads(some)[[0, 2]], before[[0, 2]])


def test_a_head_that_is_not_finite_is_seen() -> None:
    some = adapters(3, 0)
    assert some.finite().all()
    assert some.head is not None
    some.head[1][2, 0] = torch.nan
    assert some.finite().tolist() == [True, True, False]


def test_heads_are_applied_episode_by_episode() -> None:
    some = adapters(3, 0)
    assert some.head is not None
    x = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(2))
    found = apply_heads(x, some.head)
    for i in range(3):
        torch.testing.assert_close(found[i], x[i] @ some.head[0][i].mT + some.head[1][i])
