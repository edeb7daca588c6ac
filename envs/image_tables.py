"""Recorded twins of the environments on images: which table is theirs, what it answers for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from nsr_gym.datasets.image_pools import evaluation
from nsr_gym.datasets.manifests import five_manifest
from nsr_gym.envs.config import EpisodeConfig
from nsr_gym.envs.image_arguments import ADAPT, CifarArguments, FiveArguments, ImageArguments
from nsr_gym.errors import InvalidValueError, StateError
from nsr_gym.outcomes import OutcomeTable, shipped_pool_table, shipped_tables
from nsr_gym.tasks import check_split

IMAGES, BACKBONE = "images", "backbone"
"""Names in a table's provenance: arguments of data and backbone, fingerprint of the backbone."""

_WHERE = ("root", "download", "cache", "prefix_dtype")
"""Arguments that say where data and features lie and how they are kept, not what they are."""

_OWN_TABLE = (
    'Take dynamics="live", or record a table of your own (nsr-gym record) and play it with '
    "nsr_gym.envs.RecordedEnv."
)


def described(images: ImageArguments, config: EpisodeConfig) -> dict[str, Any]:
    """Return what data and backbone are, in plain JSON; what is left open is filled in.

    Args:
        images: arguments of data and backbone.
        config: the arguments of the episode.

    Raises:
        NsrGymError: an evaluation that does not exist or does not fit the split.
    """
    adapt = ADAPT[images.backbone] if images.adapt is None else images.adapt
    values = {
        field.name: getattr(images, field.name)
        for field in fields(images)
        if field.name not in _WHERE
    } | {
        "adapt": list(adapt),
        "image_size": images.side,
        "evaluate": evaluation(check_split(config.split), images.evaluate),
    }
    if isinstance(images, CifarArguments):
        values["division"] = images.divided(config)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def image_table(images: ImageArguments, config: EpisodeConfig) -> OutcomeTable:
    """Return the shipped table of an environment on images; no image is read.

    Args:
        images: arguments of data and backbone, which must be those of the recording.
        config: the arguments of the episode.

    Raises:
        StateError: no table of such tasks ships.
        InvalidValueError: an argument differs from what was recorded.
    """
    pool, hint = _pool(images, config)
    if f"{pool.replace('/', '-')}-{config.split}" not in shipped_tables():
        ships = [name for name in shipped_tables() if not name.startswith("digits-")]
        raise StateError(
            "Expected tasks on images whose recorded outcomes ship with the package "
            f"({', '.join(ships) or 'there are none'}); got {pool!r} of split {config.split!r}"
            f"{hint}. {_OWN_TABLE}"
        )
    table = shipped_pool_table(pool, config.split)
    check_images(table, images, config)
    return table


def check_images(table: OutcomeTable, images: ImageArguments, config: EpisodeConfig) -> None:
    """Refuse arguments of data and backbone that the table holds no outcomes for.

    Raises:
        InvalidValueError: one differs from what was recorded.
    """
    asked = described(images, config)
    # An argument that came after the recording had its default then.
    recorded: Mapping[str, Any] = {
        field.name: field.default for field in fields(images) if field.name in asked
    } | dict(table.provenance[IMAGES])
    given = asked.pop("weights_sha256")
    known = [str(table.provenance[BACKBONE]), str(recorded["weights_sha256"])]
    if given is not None and not any(one.startswith(given.lower()) for one in known):
        raise InvalidValueError(
            f"Expected weights with the hash {known[0]}, as the outcomes of {table.pool.name!r} "
            f"were recorded; got weights_sha256={given!r}. {_OWN_TABLE}"
        )
    for name, value in asked.items():
        if value != recorded[name]:
            raise InvalidValueError(
                f"Expected {name}={recorded[name]!r}, as the outcomes of {table.pool.name!r} were "
                f"recorded; got {value!r}. {_OWN_TABLE}"
            )


def _pool(images: ImageArguments, config: EpisodeConfig) -> tuple[str, str]:
    """Return the name of the pool that is asked for, and what made it that one."""
    if isinstance(images, CifarArguments):
        division = images.divided(config)
        hint = f" (num_tasks={config.num_tasks}, division={images.division}: into how many tasks "
        return f"split-cifar100-{division}", hint + "the classes are dealt; None follows num_tasks)"
    assert isinstance(images, FiveArguments)
    return five_manifest(images.manifest).name, ""
