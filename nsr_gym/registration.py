"""Environment ids. Entry points are strings: nothing heavy is imported, specs serialise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from nsr_gym.registry import ACCESS

RECORDED_ACCESS = ("bank", "visit")
"""Access levels with recorded outcomes, which know no adapter that holds parts of several tasks."""


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec:
    """What is known of an environment before it is built.

    Attributes:
        entry_point: of the single environment.
        vector_entry_point: of the native vector environment.
        family: which agents play it: `"live"`, `"allocation"` or `"paging"`.
        summary: one line.
        max_episode_steps: steps after which an episode is truncated; None for no limit.
        kwargs: arguments that the id stands for.
        data: data sets that the defaults need and that do not come with the package.
    """

    entry_point: str
    vector_entry_point: str
    family: str
    summary: str
    max_episode_steps: int | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[str, ...] = ()

    @property
    def needs_data(self) -> bool:
        """Whether it needs data that does not come with the package."""
        return bool(self.data)

    @property
    def access(self) -> tuple[str, ...]:
        """Access levels that the environment has."""
        return _access(self.kwargs)


def _spec(
    name: str,
    family: str,
    summary: str,
    limit: int | None = None,
    *,
    data: tuple[str, ...] = (),
    **kwargs: Any,
) -> EnvironmentSpec:
    module, classes = name.split(":")
    return EnvironmentSpec(
        entry_point=f"nsr_gym.envs.{module}:{classes}Env",
        vector_entry_point=f"nsr_gym.envs.{module}:{classes}VectorEnv",
        family=family,
        summary=summary,
        max_episode_steps=limit,
        kwargs=kwargs,
        data=data,
    )


def _access(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    return RECORDED_ACCESS if arguments.get("dynamics") == "recorded" else ACCESS


DIGITS = {
    "Cyclic": "recurring tasks on real handwritten digits",
    "Capped": "digits, and a bank with room for half of the tasks: what to keep",
    "Aliased": "digits whose labels are permuted: similarity misleads",
    "Budget": "easy and hard digits, and a bank with few bytes: which rank to spend on which",
    "Related": "rotated digits: warm starts from other tasks help new ones",
    "Mixed": "digits; each episode draws its family, tasks, order, bank and noise",
}
"""Environments on digits, each live and recorded: name in the id -> what it is about."""

IMAGES: dict[str, EnvironmentSpec] = {
    "NSR/SplitCIFAR100-v0": _spec(
        "split_cifar100:SplitCIFAR100",
        "live",
        "the classes of CIFAR-100 as recurring tasks, adapters trained live",
        data=("cifar-100",),
    ),
    "NSR/FiveDatasets-v0": _spec(
        "five_datasets:FiveDatasets",
        "live",
        "five data sets as recurring tasks, adapters trained live",
        data=("cifar-10", "mnist", "svhn", "fashion-mnist", "notmnist"),
    ),
}
"""Environments on image benchmarks, whose data every user fetches: id -> what is known of it."""

RECORDED_IMAGES: dict[str, EnvironmentSpec] = {
    "NSR/SplitCIFAR100Recorded-v0": _spec(
        "split_cifar100:SplitCIFAR100",
        "live",
        "the classes of CIFAR-100 as recurring tasks, outcomes looked up",
        dynamics="recorded",
        ranks=[2, 8],
    ),
    "NSR/FiveDatasetsRecorded-v0": _spec(
        "five_datasets:FiveDatasets",
        "live",
        "the offline stand-in of five data sets as recurring tasks, outcomes looked up",
        dynamics="recorded",
        manifest="offline5",
        ranks=[2, 8],
    ),
}
"""Their recorded twins, which need no data: id -> what is known of it."""


ENVIRONMENTS: dict[str, EnvironmentSpec] = {
    **{
        f"NSR/{name}Digits-v0": _spec(
            f"{name.lower()}_digits:{name}Digits", "live", f"{summary}, adapters trained live"
        )
        for name, summary in DIGITS.items()
    },
    **{
        f"NSR/{name}DigitsRecorded-v0": _spec(
            f"{name.lower()}_digits:{name}Digits",
            "live",
            f"{summary}, outcomes looked up",
            dynamics="recorded",
        )
        for name, summary in DIGITS.items()
    },
    "NSR/BlindAllocation-v0": _spec(
        "blind_allocation:BlindAllocation",
        "allocation",
        "exact: the best allocation of a task that is not shown (reading A)",
    ),
    "NSR/Paging-v0": _spec(
        "paging:Paging",
        "paging",
        "exact: what to hold where not everything can be held (reading B)",
    ),
    "NSR/UntilRecovered-v0": _spec(
        "until_recovered:UntilRecovered",
        "allocation",
        "exact: a visit lasts until the right allocation was tried (reading C)",
        10_000,
    ),
    **IMAGES,
    **RECORDED_IMAGES,
}
"""Every environment of the suite."""


def environment_family(name: str) -> str:
    """Return which agents play an environment, `"live"` where nothing else is known.

    Args:
        name: a registered id, `"module:id"` too; an id of one's own is of the family of the
            suite's environment that it was registered with, as a string or as a class, which
            may be a subclass.
    """
    registered = gym.registry.get(name.rpartition(":")[2])
    entry_point: Any = None if registered is None else registered.entry_point
    bases = getattr(entry_point, "__mro__", ())
    known = {entry_point, *(f"{base.__module__}:{base.__qualname__}" for base in bases)}
    for spec in ENVIRONMENTS.values():
        if spec.entry_point in known:
            return spec.family
    return "live"


def environment_access(name: str, arguments: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Return the access levels that an environment has; all where nothing else is known.

    Args:
        name: a registered id, `"module:id"` too.
        arguments: that it is built with; `dynamics` decides.
    """
    registered = gym.registry.get(name.rpartition(":")[2])
    known: Mapping[str, Any] = {} if registered is None else registered.kwargs
    return _access({**known, **(arguments or {})})


def register_environments() -> None:
    """Register every environment of the suite with Gymnasium; repeated calls do nothing."""
    for name, spec in ENVIRONMENTS.items():
        if name not in gym.registry:
            gym.register(
                id=name,
                entry_point=spec.entry_point,
                vector_entry_point=spec.vector_entry_point,
                max_episode_steps=spec.max_episode_steps,
                kwargs=dict(spec.kwargs),
            )
