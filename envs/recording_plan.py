"""How much is recorded for a table of outcomes."""

from __future__ import annotations

from dataclasses import dataclass, fields

from nsr_gym.errors import InvalidValueError


@dataclass(frozen=True, kw_only=True)
class RecordingPlan:
    """How much is recorded.

    Attributes:
        fresh_chains: D, lives of an adapter that begin with fresh directions.
        foreign_chains: lives that begin with another task's entry.
        levels: K, visits that a life is followed for.
        branches: levels from which other ranks than the entry's own are granted too.
        sources: G, other tasks whose entries are tried for each task.
        supports: P, samples of support images.
        seed: of everything drawn.
    """

    fresh_chains: int = 4
    foreign_chains: int = 2
    levels: int = 6
    branches: tuple[int, ...] = (0, 2, 5)
    sources: int = 8
    supports: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every number.

        Raises:
            InvalidValueError: a number too small, or branches outside the levels.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("seed", "foreign_chains") else 1
            if field.name == "branches":
                if not value or min(value) < 0 or max(value) >= self.levels:
                    raise InvalidValueError(
                        f"Expected branches as levels from 0 to {self.levels - 1}; got {value!r}."
                    )
            elif isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidValueError(
                    f"Expected {field.name} to be a whole number of at least {least}; got "
                    f"{value!r}."
                )
        if self.foreign_chains > self.sources:
            raise InvalidValueError(
                f"Expected foreign_chains of at most {self.sources}, the sources of a task; got "
                f"{self.foreign_chains}."
            )
