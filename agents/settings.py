"""Hyper-parameters as plain JSON: which values each takes, schedules, batches that fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nsr_gym.envs.arguments import check_number, check_whole
from nsr_gym.errors import InvalidValueError, unknown

ACTIVATIONS = ("tanh", "relu", "elu", "gelu", "silu")
"""Names of the networks' non-linear functions."""

ROLLOUT = 2048
"""Steps of a rollout over all environments, about."""

ROLLOUT_DEFAULTS: dict[str, Any] = {
    "n_steps": None,
    "gamma": 0.99,
    "ent_coef": 0.0,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
}
"""Of all algorithms that learn from rollouts; `n_steps` depends on the number of environments."""

_LINEAR = "lin_"
_SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf", "ent_coef")
_OPTIONAL = ("clip_range_vf", "target_kl")
_COUNTS = (
    "n_steps", "batch_size", "n_epochs", "buffer_size", "train_freq", "gradient_steps",
    "target_update_interval", "width", "lstm_hidden_size", "n_lstm_layers",
)  # fmt: skip
_SWITCHES = ("normalize_advantage", "use_rms_prop", "ortho_init", "enable_critic_lstm")
_SHARES = (
    "gamma", "gae_lambda", "tau", "exploration_fraction", "exploration_initial_eps",
    "exploration_final_eps",
)  # fmt: skip


@dataclass(frozen=True)
class Linear:
    """A value that falls linearly to 0 over the training.

    Attributes:
        start: where it begins.
    """

    start: float

    def __call__(self, progress_remaining: float) -> float:
        """Return the value when a share of the training is left, 1 at its beginning."""
        return self.start * progress_remaining

    @staticmethod
    def parse(value: Any) -> Any:
        """Return the schedule that `"lin_1e-3"` names, other values as they are.

        Raises:
            InvalidValueError: no number follows.
        """
        if not isinstance(value, str) or not value.startswith(_LINEAR):
            return value
        try:
            return Linear(float(value.removeprefix(_LINEAR)))
        except ValueError as error:
            raise InvalidValueError(
                f"Expected a schedule such as 'lin_1e-3', with a number to begin at; got {value!r}."
            ) from error


def check_setting(name: str, value: Any, *, lists_only: bool = False) -> None:
    """Refuse a value that a hyper-parameter cannot have.

    Args:
        name: one that an algorithm takes.
        value: plain JSON.
        lists_only: whether `net_arch` must be a list, without parts for policy and value.

    Raises:
        UnknownNameError: an activation that does not exist.
        InvalidValueError: another type or out of range.
    """
    if name in _OPTIONAL and value is None:
        return
    if name in _SCHEDULES:
        parsed = Linear.parse(value)
        start = parsed.start if isinstance(parsed, Linear) else parsed
        if isinstance(start, str):
            raise InvalidValueError(
                f"Expected {name} to be a number or a schedule such as 'lin_1e-3'; got {value!r}."
            )
        check_number(name, start, low=0.0, open_low=name != "ent_coef")
    elif name in _COUNTS:
        check_whole(name, value, least=1)
    elif name == "learning_starts":
        check_whole(name, value, least=0)
    elif name in _SWITCHES:
        if not isinstance(value, bool):
            raise InvalidValueError(f"Expected {name} to be true or false; got {value!r}.")
    elif name in _SHARES:
        check_number(name, value, low=0.0, high=1.0)
    elif name == "activation":
        if value not in ACTIVATIONS:
            raise unknown("activation", value, ACTIVATIONS)
    elif name == "net_arch":
        _check_layers(value, lists_only)
    else:
        positive = name in ("max_grad_norm", "target_kl", "rms_prop_eps")
        check_number(name, value, low=0.0, open_low=positive)


def fit_batch(rollout: int, wanted: int) -> int:
    """Return the largest divisor of a rollout of at most `wanted`, the rollout if all are tiny."""
    best = max(size for size in range(1, min(wanted, rollout) + 1) if rollout % size == 0)
    return best if 4 * best >= min(wanted, rollout) else rollout


def _check_layers(value: Any, lists_only: bool) -> None:
    parts = [value]
    if isinstance(value, dict) and not lists_only:
        if set(value) != {"pi", "vf"}:
            raise InvalidValueError(
                f"Expected net_arch with the parts 'pi' and 'vf'; got {', '.join(map(str, value))}."
            )
        parts = list(value.values())
    for part in parts:
        if not isinstance(part, list):
            named = "" if lists_only else ", or one for each of 'pi' and 'vf'"
            raise InvalidValueError(
                f"Expected net_arch as a list of layer widths{named}; got {value!r}."
            )
        for width in part:
            check_whole("every width in net_arch", width, least=1)
