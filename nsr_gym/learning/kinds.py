"""Learners and modifiers by name; listing them loads no torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nsr_gym.errors import unknown

if TYPE_CHECKING:
    from nsr_gym.backbones.base import Backbone
    from nsr_gym.learning.learner import LearnerConfig, LoRALearner
    from nsr_gym.learning.run import Run

LEARNERS: Mapping[str, str] = {
    "lora": "learner:LoRALearner",
    "coef_only": "coef_only:CoefficientLearner",
    "lora_sub_drs": "drs:DriftResistantLearner",
    "inflora": "inflora:InfLoRALearner",
    "dual": "dual:DualLearner",
    "sequential": "bounds:SequentialLearner",
    "joint": "bounds:JointLearner",
    "olora": "olora:OLoRALearner",
    "sdlora": "sdlora:SDLoRALearner",
}
"""How a visit trains: name -> where in `nsr_gym.learning`."""

MODIFIERS: Mapping[str, str] = {
    "ema_merge": "ema:EMAMerge",
    "badam": "badam:BAdam",
    "rank_gates": "gates:RankGates",
    "align_uniform": "align_uniform:AlignUniform",
    "sam": "sam:SharpnessAware",
}
"""What may be put in front of any learner's training: name -> where in `nsr_gym.learning`."""


def learner_class(name: str) -> type[LoRALearner]:
    """Look a learner up.

    Raises:
        UnknownNameError: there is none of that name; the message names the closest.
    """
    kind: type[LoRALearner] = _load("learner", name, LEARNERS)
    return kind


def make_learner(
    name: str,
    backbone: Backbone,
    config: LearnerConfig,
    *,
    modifiers: Mapping[str, Mapping[str, Any]] | None = None,
    front: Mapping[str, tuple[type[Run], Mapping[str, Any]]] | None = None,
    options: Mapping[str, Any] | None = None,
    **sizes: Any,
) -> LoRALearner:
    """Build a learner.

    Args:
        name: of `LEARNERS`.
        backbone: the frozen network.
        config: how a visit trains.
        modifiers: name of `MODIFIERS` -> its options; the first stands in front.
        front: name -> (run, its options), in front of all modifiers.
        options: of the learner.
        **sizes: `num_episodes`, `num_tasks`, `max_rank`, `num_classes` of the learner's
            constructor.

    Raises:
        UnknownNameError: a learner, a modifier or an option that does not exist.
        InvalidValueError: an option out of range.
    """
    chosen: dict[str, tuple[type[Run], Mapping[str, Any]]] = dict(front or {})
    for modifier, values in (modifiers or {}).items():
        kind = _load("modifier", modifier, MODIFIERS)
        for option in values:
            if option not in kind.defaults:
                raise unknown(f"option of the modifier {modifier!r}", option, kind.defaults)
        complete = {**kind.defaults, **values}
        kind.check(complete)
        chosen[modifier] = (kind, complete)
    kind = learner_class(name)
    return kind(backbone, config, modifiers=chosen, **sizes, **(options or {}))


def _load(what: str, name: str, known: Mapping[str, str]) -> Any:
    if name not in known:
        raise unknown(what, name, known)
    module, attribute = known[name].split(":")
    return getattr(importlib.import_module(f"nsr_gym.learning.{module}"), attribute)
