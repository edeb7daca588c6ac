"""Which assumptions of the regret theorem hold in an environment, and what is left of its bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from nsr_gym.regret.solution import Certificate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Assumption:
    """One thing that the theorem needs.

    Attributes:
        name: what is assumed.
        holds: whether it does; None where that cannot be told.
        detail: the numbers behind it.
    """

    name: str
    holds: bool | None
    detail: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the theorem says of one environment.

    Regret is that of a whole episode.

    Attributes:
        environment: id.
        reading: `"A"`, `"B"` or `"C"`.
        policies: the class of policies that bound and optimum are about.
        comparator: whom regret is relative to.
        unit: of regret.
        theorem: the number T(M-1)Delta_switch, with the smallest Delta_switch (live: the mean one).
        theorem_text: the same with its factors.
        formula: the bound with its factors; empty where there is none.
        bound: what no policy of the class gets below (exact environments: in the mean); None
            where there is no such bound above 0, or the assumptions do not hold.
        applies: whether there is a bound.
        why: why there is none, or why the bound is not T(M-1)Delta_switch; else empty.
        optimum: exact expected regret of the best policy of the class, None where unknown.
        certificate: what proves the optimum; its value may be of a cycle or count tries.
        expected: agent -> expected regret, where it is known exactly.
        assumptions: each with its numbers.
        notes: what else there is to know.
    """

    environment: str
    reading: Literal["A", "B", "C"]
    policies: str
    comparator: str
    unit: str
    theorem: float
    theorem_text: str
    formula: str = ""
    bound: float | None = None
    why: str = ""
    optimum: float | None = None
    certificate: Certificate | None = None
    expected: Mapping[str, float] = field(default_factory=dict)
    assumptions: tuple[Assumption, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def applies(self) -> bool:
        """Whether there is a bound."""
        return self.bound is not None

    @property
    def expected_ratio(self) -> float | None:
        """Optimum over T(M-1)Delta_switch: the ratio that the best policy is expected to have."""
        if self.optimum is None or not self.theorem > 0:
            return None
        return self.optimum / self.theorem

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self) | {"applies": self.applies, "expected_ratio": self.expected_ratio}


def judge(environment: str, arguments: Mapping[str, Any]) -> Verdict:
    """Judge an exact environment.

    Args:
        environment: id.
        arguments: of the environment, plain JSON; `split` is `"train"` where they do not say.

    Raises:
        InvalidValueError: it is a live environment, of which only results can be judged
            (`judge_table`), or arguments out of range.
    """
    import gymnasium as gym

    from nsr_gym.errors import InvalidValueError
    from nsr_gym.regret.judge_allocation import judge_allocation
    from nsr_gym.regret.judge_paging import judge_paging

    env: Any = gym.make_vec(environment, num_envs=1, vectorization_mode=None, **arguments)
    engine = env.unwrapped.engine
    env.close()
    if engine.family == "live":
        raise InvalidValueError(
            f"{environment} is a live environment: its verdict rests on measured regret. Make a "
            "table with `nsr-gym compare` and judge that (judge_table)."
        )
    config = engine.config
    judged = judge_paging if engine.family == "paging" else judge_allocation
    verdict = judged(environment, config.problem(config.numbers[0]), config)
    if config.instance is not None or config.alike:
        return verdict
    return replace(
        verdict,
        formula="",
        bound=None,
        optimum=None,
        certificate=None,
        expected={},
        why="Every episode draws its own instance, and what is best for one is not for another: "
        "what a policy that does not know which it is has to lose is not known here. Choose one, "
        "such as instance=0. (The numbers of the assumptions are those of instance 0.)",
        notes=(),
    )


def judge_table(
    table: pd.DataFrame,
    environment: str,
    arguments: Mapping[str, Any],
    *,
    reference: str = "oracle",
    reward: Literal["online", "post_task"] = "online",
) -> Verdict:
    """Judge a live environment by the results measured in it.

    Args:
        table: the long table.
        environment: id.
        arguments: of the environment, as far as they were given.
        reference: the history-aware agent that regret is relative to.
        reward: which reward regret is in.

    Raises:
        UnknownNameError: the reference is not in the table.
        DataError: the table is not a valid long table.
    """
    from nsr_gym.regret.judge_live import judge_live
    from nsr_gym.regret.measured import measured_regret

    regret = measured_regret(table, environment=environment, reference=reference, reward=reward)
    rows = table[table["environment"] == environment]
    held = rows.groupby(["agent", "seed"])["bytes"].max().groupby("agent").max()
    return judge_live(regret, {str(a): int(b) for a, b in held.items()})
