"""Routers: which entry of a bank an input belongs to.

A router is told which inputs every entry of a bank was learned from, and answers for new inputs
which entry (or the backbone alone) should serve them. All of them share one interface,
`nsr_gym.routing.base.Router`. Listing them loads no torch.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from nsr_gym.errors import unknown

if TYPE_CHECKING:
    from nsr_gym.routing.base import Router

ROUTERS: dict[str, str] = {
    "cosine": "nsr_gym.routing.prototypes:CosineRouter",
    "ncm": "nsr_gym.routing.prototypes:MeanRouter",
    "rls": "nsr_gym.routing.rls:RLSRouter",
    "key_query": "nsr_gym.routing.key_query:KeyQueryRouter",
    "energy": "nsr_gym.routing.energy:EnergyRouter",
    "soft_gate": "nsr_gym.routing.prototypes:SoftGateRouter",
    "arrow": "nsr_gym.routing.arrow:ArrowRouter",
    "tree": "nsr_gym.routing.tree:TreeRouter",
    "oracle": "nsr_gym.routing.controls:OracleRouter",
    "random": "nsr_gym.routing.controls:RandomRouter",
    "sgd": "nsr_gym.routing.controls:SGDRouter",
}
"""Name -> where the class lies."""

__all__ = ["ROUTERS", "make_router"]


def make_router(
    name: str, *, num_banks: int, feature_dim: int, device: str = "cpu", **options: Any
) -> Router:
    """Build a router for `num_banks` banks side by side.

    Args:
        name: one of `ROUTERS`.
        num_banks: E, banks that the router serves at once.
        feature_dim: d, length of a routing feature.
        device: a torch device.
        **options: of the router, as its class names them.

    Raises:
        UnknownNameError: no such router, or it has no such option; the message names the closest.
        InvalidValueError: an option has a value that cannot be used.
    """
    if name not in ROUTERS:
        raise unknown("router", name, ROUTERS)
    module, name_in_module = ROUTERS[name].split(":")
    router: type[Router] = getattr(importlib.import_module(module), name_in_module)
    known = set(inspect.signature(router).parameters) - {"num_banks", "feature_dim", "device"}
    for option in options:
        if option not in known:
            raise unknown(f"option of the router {name!r} called", option, known)
    return router(num_banks=num_banks, feature_dim=feature_dim, device=device, **options)
