"""Environment ids. Entry points are strings: nothing heavy is imported, specs serialise."""

from __future__ import annotations

import gymnasium as gym

ENVIRONMENTS: dict[str, tuple[str, str, str]] = {
    "NSR/CyclicDigits-v0": (
        "nsr_gym.envs.cyclic_digits:CyclicDigitsEnv",
        "nsr_gym.envs.cyclic_digits:CyclicDigitsVectorEnv",
        "recurring tasks on real handwritten digits, adapters trained live",
    ),
}
"""Id -> entry point, entry point of the native vector environment, one line."""


def register_environments() -> None:
    """Register every environment of the suite with Gymnasium; repeated calls do nothing."""
    for name, (entry_point, vector_entry_point, _) in ENVIRONMENTS.items():
        if name not in gym.registry:
            gym.register(id=name, entry_point=entry_point, vector_entry_point=vector_entry_point)
