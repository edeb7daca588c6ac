"""What a run of training is: environment, learner, seed and length, in plain JSON values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from nsr_gym.agents.algorithms import complete_hyperparameters
from nsr_gym.agents.hyperparameters import recipe
from nsr_gym.envs.arguments import check_whole
from nsr_gym.errors import InvalidValueError
from nsr_gym.evaluation.compare import check_environment
from nsr_gym.registration import environment_family
from nsr_gym.registry import agent_spec


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A run of training, in plain JSON values.

    Attributes:
        environment: id. Streams of the train split with seeds below 1,000,000 are trained on.
        arguments: of the environment; `reward` is `"online"` in live environments where they do
            not say.
        algorithm: a name of `nsr_gym.agents.algorithms.ALGORITHMS`.
        network: a name of `nsr_gym.agents.algorithms.NETWORKS`.
        hyperparameters: of algorithm and network; see `nsr_gym.agents.hyperparameters.recipe`.
        steps: environment steps over all environments, rounded up to whole rollouts.
        envs: environments side by side.
        seed: of weights, actions and training streams.
        eval_every: steps between two evaluations, rounded up to whole rollouts.
        eval_episodes: validation streams played each time.
        imitate: agent that the controller begins as a copy of (see `nsr_gym.agents.imitation`);
            None for none.
        imitation_episodes: that the agent plays for it.
        device: `"cpu"` or a CUDA device, of the learner.
    """

    environment: str
    arguments: dict[str, Any] = field(default_factory=dict)
    algorithm: str = "ppo"
    network: str = "mlp"
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    steps: int = 131_072
    envs: int = 64
    seed: int = 0
    eval_every: int = 16_384
    eval_episodes: int = 32
    imitate: str | None = None
    imitation_episodes: int = 2048
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            UnknownNameError: an environment, algorithm, network or hyper-parameter that does not
                exist.
            InvalidValueError: a value out of range, the test split, or an argument of the
                environment that training sets itself.
        """
        check_environment(self.environment)
        for name, least in (
            ("steps", 1), ("envs", 1), ("seed", 0), ("eval_every", 1), ("eval_episodes", 1),
            ("imitation_episodes", 1),
        ):  # fmt: skip
            check_whole(name, getattr(self, name), least=least)
        if self.arguments.get("split", "train") != "train":
            raise InvalidValueError(
                "Expected to train on split='train', so that the test split stays held out; got "
                f"split={self.arguments['split']!r}. Leave it out; compare on the test split."
            )
        if "autoreset_mode" in self.arguments:
            raise InvalidValueError("Training sets autoreset_mode itself; leave it out.")
        self.complete_hyperparameters()
        if self.imitate is not None:
            agent_spec(self.imitate)
        try:
            self.plain()
        except TypeError as error:
            raise InvalidValueError(f"Expected plain JSON values ({error}); got {self}.") from error

    @classmethod
    def from_files(
        cls,
        environment: str,
        *,
        algorithm: str = "ppo",
        network: str | None = None,
        file: Path | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> Self:
        """Describe a run by the files of hyper-parameters; what is given here wins.

        Args:
            environment: id.
            algorithm: whose file is read.
            network: instead of the files'.
            file: of one's own.
            hyperparameters: laid over the files'.
            **others: attributes; None stands for what the files say, or the default.

        Raises:
            NsrGymError: as `nsr_gym.agents.hyperparameters.recipe` and the constructor.
        """
        said = recipe(
            algorithm, environment, file=file, hyperparameters=hyperparameters, network=network
        )
        given = {name: value for name, value in others.items() if value is not None}
        return cls(environment=environment, algorithm=algorithm, **(asdict(said) | given))

    def plain(self) -> dict[str, Any]:
        """Return the configuration as it comes back from a JSON file."""
        return dict(json.loads(json.dumps(asdict(self))))

    def environment_arguments(self) -> dict[str, Any]:
        """Return the arguments that the environments are made with."""
        exact = environment_family(self.environment) in ("allocation", "paging")
        reward = {} if exact else {"reward": "online"}
        return {**reward, **self.arguments, "split": "train"}

    def complete_hyperparameters(self) -> dict[str, Any]:
        """Return all hyper-parameters, with the defaults of those that were left open."""
        return complete_hyperparameters(
            self.algorithm, self.hyperparameters, network=self.network, num_envs=self.envs
        )
