"""The Gymnasium environments of the suite, and the parts to build others from."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "AliasedDigitsEnv": "aliased_digits",
    "AliasedDigitsVectorEnv": "aliased_digits",
    "BlindAllocationEnv": "blind_allocation",
    "BlindAllocationVectorEnv": "blind_allocation",
    "BudgetDigitsEnv": "budget_digits",
    "BudgetDigitsVectorEnv": "budget_digits",
    "CappedDigitsEnv": "capped_digits",
    "CappedDigitsVectorEnv": "capped_digits",
    "CyclicDigitsEnv": "cyclic_digits",
    "CyclicDigitsVectorEnv": "cyclic_digits",
    "ContinualEnv": "custom",
    "ContinualVectorEnv": "custom",
    "EpisodeConfig": "config",
    "FiveDatasetsEnv": "five_datasets",
    "FiveDatasetsVectorEnv": "five_datasets",
    "FlatDiscrete": "wrappers",
    "FlatDiscreteVector": "wrappers",
    "MixedDigitsEnv": "mixed_digits",
    "MixedDigitsVectorEnv": "mixed_digits",
    "PagingEnv": "paging",
    "PagingVectorEnv": "paging",
    "RecordedEnv": "replay",
    "RecordedVectorEnv": "replay",
    "RelatedDigitsEnv": "related_digits",
    "RelatedDigitsVectorEnv": "related_digits",
    "Routed": "routed",
    "SB3VecEnv": "sb3",
    "SplitCIFAR100Env": "split_cifar100",
    "SplitCIFAR100VectorEnv": "split_cifar100",
    "UntilRecoveredEnv": "until_recovered",
    "UntilRecoveredVectorEnv": "until_recovered",
    "VectorEnvMismatch": "checking",
    "check_vector_env": "checking",
    "make_sb3_env": "sb3",
    "mask_parts": "single",
    "routed_accuracy": "routed",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    # Loaded on first use: the environments need torch, importing the package must not.
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
