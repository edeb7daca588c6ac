"""The interchangeable parts of an environment: learner, bank, router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nsr_gym.bank.kinds import BANKS
from nsr_gym.envs.arguments import Arguments, check_choices
from nsr_gym.errors import InvalidValueError, unknown
from nsr_gym.learning.kinds import LEARNERS, MODIFIERS
from nsr_gym.routing import ROUTERS

HUB = "lorahub"
"""The router that searches weights over the bank without gradients, for each arrival anew."""
WARM_STARTS = ("entry", "mixture")
FEATURES = ("lower", "final", "layers")
_ON_EMBEDDINGS = ("cosine", "soft_gate")
_GIVEN = {
    "learner_options": (
        "backbone", "config", "num_episodes", "num_tasks", "max_rank", "num_classes", "modifiers",
    ),
    # Training and measuring are in single precision, and take entries as they lie in the bank.
    "bank_options": ("sites", "max_rank", "head", "dtype", "device"),
    "router_options": ("num_banks", "feature_dim", "device"),
}  # fmt: skip
"""What the environment itself gives to its parts."""


@dataclass(frozen=True, kw_only=True)
class PartsConfig(Arguments):
    """Which parts an environment is put together from, in plain JSON values.

    Attributes:
        learner: how a visit trains, a name of `nsr_gym.learning.kinds.LEARNERS`.
        learner_options: of the learner.
        modifiers: name of `nsr_gym.learning.kinds.MODIFIERS` -> its options, in front of the
            learner's training; a list of names takes their defaults.
        bank: how results are stored, a name of `nsr_gym.bank.kinds.BANKS`.
        bank_options: of the bank's store.
        router: what the view is sorted by and which entry answers an input, a name of
            `nsr_gym.routing.ROUTERS`, or `"lorahub"`.
        router_options: of the router.
        router_features: what routers see of an input: `"lower"` (what enters the first adapted
            site), `"final"` (the frozen features) or `"layers"` (all sites, see
            `nsr_gym.learning.features`); None: lower ones. `"cosine"` and `"soft_gate"` compare
            them with task embeddings, and always see final ones.
        warm_start: a recall starts from the viewed `"entry"`, or from the `"mixture"` of entries
            that the router blends, cut to the granted rank.
        observe_signals: show what the arriving task's first gradient says of ranks and novelty.
    """

    learner: str = "lora"
    learner_options: Mapping[str, Any] = field(default_factory=dict)
    modifiers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    bank: str = "per_task"
    bank_options: Mapping[str, Any] = field(default_factory=dict)
    router: str = "cosine"
    router_options: Mapping[str, Any] = field(default_factory=dict)
    router_features: str | None = None
    warm_start: str = "entry"
    observe_signals: bool = False

    def check_parts(self) -> None:
        """Check names and types; options are checked where the parts are built.

        Raises:
            UnknownNameError: a part that does not exist.
            InvalidValueError: options that are no mapping, or a value of another type.
        """
        check_choices(
            self,
            {
                "learner": tuple(LEARNERS),
                "bank": tuple(BANKS),
                "router": (*ROUTERS, HUB),
                "warm_start": WARM_STARTS,
            },
        )
        if self.router_features is not None:
            check_choices(self, {"router_features": FEATURES})
            if self.features_of(self.router) != self.router_features:
                raise InvalidValueError(
                    f"Expected router_features='final' for the router {self.router!r}, which "
                    f"compares them with task embeddings; got {self.router_features!r}."
                )
        modifiers: Any = self.modifiers
        if isinstance(modifiers, list | tuple):
            modifiers = {name: {} for name in modifiers}
            object.__setattr__(self, "modifiers", modifiers)
        for name in ("learner_options", "bank_options", "router_options", "modifiers"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                raise InvalidValueError(f"Expected {name} as a mapping by name; got {value!r}.")
        for name, given in _GIVEN.items():
            for option in getattr(self, name):
                if option in given:
                    raise InvalidValueError(
                        f"Expected {name} without {option!r}, which follows from the other "
                        "arguments of the environment; leave it out."
                    )
        for name, options in modifiers.items():
            if name not in MODIFIERS:
                raise unknown("modifier", name, MODIFIERS)
            if not isinstance(options, Mapping):
                raise InvalidValueError(
                    f"Expected the options of the modifier {name!r} as a mapping; got {options!r}."
                )
        if not isinstance(self.observe_signals, bool):
            raise InvalidValueError(
                f"Expected observe_signals to be a bool; got {self.observe_signals!r}."
            )

    def features_of(self, router: str) -> str:
        """Return which features a router sees."""
        if router in _ON_EMBEDDINGS:
            return "final"
        return "lower" if self.router_features is None else self.router_features

    def require_plain(self, reason: str, *, but: Sequence[str] = ()) -> None:
        """Refuse parts other than plain LoRA, a bank of entries apart, and cosine similarity.

        Args:
            reason: why no others are possible, a clause that begins with "since".
            but: arguments that may say something else.

        Raises:
            InvalidValueError: some part is another one.
        """
        plain = PartsConfig()
        names = ("learner", "modifiers", "bank", "router", "warm_start", "observe_signals")
        for name in names:
            value, expected = getattr(self, name), getattr(plain, name)
            if value != expected and name not in but:
                raise InvalidValueError(
                    f"Expected {name}={expected!r}, {reason}; got {name}={value!r}."
                )
