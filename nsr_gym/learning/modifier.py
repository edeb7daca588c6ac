"""What may be put in front of any learner's training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from nsr_gym.learning.run import Run


class Modifier(Run):
    """A way of training that goes with every learner.

    Modifiers stand in front of the learner's run in the order of inheritance, the first that was
    asked for in front of all. Every override calls `super()`, which is the next modifier or the
    learner, so that they compose. The options of one are `self.options[name]`, and not by
    `self.name`, since a run is all of its modifiers at once; for the same reason no two of them
    use the same private names.

    Attributes:
        name: what the argument `modifiers` of an environment takes.
        defaults: option -> its default.
    """

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Refuse options that are out of range.

        Args:
            options: all of `defaults`, each with its value.

        Raises:
            InvalidValueError: one is out of range.
            UnknownNameError: one names something that does not exist.
        """


def both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Add two losses, either of which may not be there."""
    if one is None or other is None:
        return other if one is None else one
    return one + other
