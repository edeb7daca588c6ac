"""Learners of Stable-Baselines3 by name, built from plain JSON hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium import spaces

from nsr_gym.agents.algorithm_specs import (
    ALGORITHMS,
    NETWORKS,
    POINTER,
    Algorithm,
    algorithm_spec,
    flat_actions,
)
from nsr_gym.agents.settings import ROLLOUT, Linear, check_setting, fit_batch
from nsr_gym.errors import InvalidValueError, unknown

__all__ = [
    "ALGORITHMS",
    "NETWORKS",
    "Algorithm",
    "algorithm_spec",
    "build_model",
    "complete_hyperparameters",
    "default_hyperparameters",
    "engine_behind",
    "flat_actions",
    "layout_sizes",
    "policy_and_arguments",
]


def default_hyperparameters(
    algorithm: str, *, network: str = "mlp", num_envs: int = 64
) -> dict[str, Any]:
    """Return every hyper-parameter that an algorithm and a network take, with its default.

    Args:
        algorithm: a name of `ALGORITHMS`.
        network: a name of `NETWORKS`.
        num_envs: environments side by side, over which a rollout of about 2,000 steps is spread.

    Raises:
        UnknownNameError: no such algorithm or network.
        InvalidValueError: the algorithm cannot train the network.
    """
    spec = algorithm_spec(algorithm)
    if network not in NETWORKS:
        raise unknown("network", network, NETWORKS)
    if network not in spec.networks:
        able = ", ".join(name for name, one in ALGORITHMS.items() if network in one.networks)
        raise InvalidValueError(
            f"Expected one of the algorithms that train the network {network!r} ({able}); got "
            f"{algorithm!r}. It trains {' and '.join(spec.networks)}."
        )
    values = {**spec.defaults, **(POINTER if network == "pointer" else spec.network)}
    if values["n_steps"] is None:
        # A multiple of 16, so that batches of nearly any size divide the rollout.
        values["n_steps"] = 16 * max(1, round(ROLLOUT / (16 * num_envs)))
    if "target_update_interval" in values:
        values["target_update_interval"] = max(values["target_update_interval"], num_envs)
    return values


def complete_hyperparameters(
    algorithm: str,
    hyperparameters: Mapping[str, Any],
    *,
    network: str = "mlp",
    num_envs: int = 64,
) -> dict[str, Any]:
    """Check hyper-parameters and fill in what they leave open.

    Args:
        algorithm: a name of `ALGORITHMS`.
        hyperparameters: plain JSON, names of `default_hyperparameters`.
        network: a name of `NETWORKS`.
        num_envs: environments side by side.

    Returns:
        All of them. A batch size that is not given is the largest of at most 256 that divides the
        rollout of `n_steps` times `num_envs`.

    Raises:
        UnknownNameError: no such algorithm, network or hyper-parameter.
        InvalidValueError: a value of another type or out of range, a batch size that does not
            divide the rollout, or an algorithm that cannot train the network.
    """
    values = default_hyperparameters(algorithm, network=network, num_envs=num_envs)
    for name, value in hyperparameters.items():
        if name not in values:
            raise unknown(f"hyper-parameter of {algorithm} with network {network}", name, values)
        check_setting(name, value, lists_only=algorithm_spec(algorithm).flat_actions)
    values |= hyperparameters
    if "batch_size" not in values or "n_epochs" not in values:
        return values  # no rollout that is cut into batches
    rollout = values["n_steps"] * num_envs
    if rollout < 2:
        raise InvalidValueError(
            f"Expected a rollout of at least two steps; got n_steps={values['n_steps']} in one "
            "environment. Set n_steps higher."
        )
    fitting = fit_batch(rollout, values["batch_size"])
    if "batch_size" not in hyperparameters:
        values["batch_size"] = fitting
    elif values["batch_size"] < 2 or rollout % values["batch_size"]:
        raise InvalidValueError(
            f"Expected batch_size to divide the rollout of n_steps x environments = "
            f"{values['n_steps']} x {num_envs} = {rollout} into batches of at least two steps; "
            f"got {values['batch_size']}. Nearest: {fitting}."
        )
    return values


def build_model(
    algorithm: str,
    env: Any,
    *,
    network: str = "mlp",
    seed: int | None = 0,
    device: str = "cpu",
    **hyperparameters: Any,
) -> Any:
    """Build a learner of Stable-Baselines3 for environments of the suite.

    Args:
        algorithm: a name of `ALGORITHMS`.
        env: a `VecEnv`, as `nsr_gym.envs.make_sb3_env` returns it, in wrappers or not; for
            algorithms with `flat_actions`, made with that.
        network: `"mlp"` or `"pointer"` (see `nsr_gym.agents.networks`).
        seed: of the weights, of drawn actions and of the environments; None for none.
        device: `"cpu"` or a CUDA device.
        **hyperparameters: plain JSON under the names of Stable-Baselines3 (with `net_arch`,
            `activation` and the like next to them). A learning rate, clip range or entropy
            coefficient `"lin_1e-3"` falls linearly to 0. What is not given:
            `default_hyperparameters`.

    Returns:
        The learner, with `learn` and `predict`. Its attribute `entropy_schedule` is the schedule
        of the entropy coefficient, which Stable-Baselines3 does not know (`nsr-gym train` follows
        it), None for a constant. The same seed gives the same one where torch uses
        one thread, which is the caller's to set.

    Raises:
        UnknownNameError: no such algorithm, network or hyper-parameter.
        InvalidValueError: a value out of range, or actions that the algorithm cannot learn.
        MissingDependencyError: it needs sb3-contrib, which is not installed.
    """
    values = complete_hyperparameters(
        algorithm, hyperparameters, network=network, num_envs=env.num_envs
    )
    sizes = layout_sizes(env) if network == "pointer" else {}
    policy, arguments = policy_and_arguments(
        algorithm, network, values, env.observation_space, env.action_space, sizes
    )
    own = algorithm_spec(algorithm).defaults
    settings = {name: Linear.parse(value) for name, value in values.items() if name in own}
    entropy = settings.get("ent_coef")
    if isinstance(entropy, Linear):
        settings["ent_coef"] = entropy.start
    model = algorithm_spec(algorithm).load()(
        policy, env, seed=seed, device=device, policy_kwargs=arguments, **settings
    )
    model.entropy_schedule = entropy if isinstance(entropy, Linear) else None
    return model


def policy_and_arguments(
    algorithm: str,
    network: str,
    values: Mapping[str, Any],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    sizes: Mapping[str, int],
) -> tuple[Any, dict[str, Any]]:
    """Return a policy class and the arguments of its network.

    Args:
        algorithm: a name of `ALGORITHMS`.
        network: a name of `NETWORKS`.
        values: complete hyper-parameters.
        observation_space: flat or a dict.
        action_space: of one environment.
        sizes: of the observation's fields, for the pointer network.

    Raises:
        InvalidValueError: actions that the algorithm or observations that the network cannot take.
        MissingDependencyError: the algorithm needs sb3-contrib, which is not installed.
    """
    spec = algorithm_spec(algorithm)
    if spec.flat_actions and not isinstance(action_space, spaces.Discrete):
        raise InvalidValueError(
            f"{algorithm!r} learns actions that are one number; got {action_space}. Make the "
            "environment by make_sb3_env(..., flat_actions=True)."
        )
    loaded = spec.load()
    from nsr_gym.agents import networks

    arguments: dict[str, Any] = {"activation_fn": networks.activation(values["activation"])}
    if network == "pointer":
        arguments |= {"sizes": dict(sizes), "width": values["width"]}
        return networks.pointer_policy(masks=spec.masks), arguments
    named = isinstance(observation_space, spaces.Dict)
    arguments |= {name: values[name] for name in spec.network if name != "activation"}
    return loaded.policy_aliases[spec.policies[named]], arguments


def layout_sizes(env: Any) -> dict[str, int]:
    """Return the names and sizes of the fields that environments show.

    Args:
        env: a `VecEnv` over environments of the suite.

    Raises:
        InvalidValueError: it is over other environments.
    """
    return {name: int(size) for name, size in engine_behind(env).layout.sizes.items()}


def engine_behind(env: Any) -> Any:
    """Return the engine of the first environment behind a `VecEnv`.

    Raises:
        InvalidValueError: there is none.
    """
    try:
        return env.get_attr("engine", indices=0)[0]
    except AttributeError as error:
        raise InvalidValueError(
            f"Expected a VecEnv over environments of the suite, as make_sb3_env makes it; got "
            f"{env}."
        ) from error
