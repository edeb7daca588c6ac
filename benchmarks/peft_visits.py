"""The visits of `benchmarks.visits` one at a time with Hugging Face PEFT, as fast as it can.

The adapted model is built once and called without PEFT's wrapper, the recalled model is a plain
module with merged weights whose outputs are computed once per visit, and Adam runs fused.
"""

from __future__ import annotations

import copy
import importlib.util
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from nsr_gym.backbones.pretrain import digits_backbone
from nsr_gym.datasets.vision import load_torchvision
from nsr_gym.errors import MissingDependencyError

if TYPE_CHECKING:
    from benchmarks.visits import Visits


class Perceptron(nn.Module):
    """The digits backbone as an ordinary module."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.head = (
            nn.Linear(weights[f"{name}.weight"].shape[1], weights[f"{name}.weight"].shape[0])
            for name in ("fc1", "fc2", "fc3", "head")
        )
        self.load_state_dict(weights)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (k, classes) of images (k, 64)."""
        for layer in (self.fc1, self.fc2, self.fc3):
            x = functional.relu(layer(x))
        logits: Tensor = self.head(x)
        return logits


class PeftVisits:
    """The same visits, one at a time with Hugging Face PEFT."""

    def __init__(self, visits: Visits) -> None:
        """Build the adapted model.

        Raises:
            MissingDependencyError: PEFT is not installed.
        """
        if importlib.util.find_spec("peft") is None:
            raise MissingDependencyError(
                "This benchmark compares with Hugging Face PEFT, which is not installed: use "
                "`make bench`, or install it with `pip install -e '.[peft]'`."
            )
        load_torchvision()  # PEFT imports it, by way of transformers
        from peft import LoraConfig, inject_adapter_in_model

        self._visits, self._config = visits, visits.learner.config
        self._weights = digits_backbone().weights
        self._recalled = Perceptron(self._weights).requires_grad_(False)
        self._sites = [site.name for site in visits.learner.backbone.sites]
        rank = visits.start.rank  # lora_alpha = r makes PEFT's scale 1
        lora = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=self._sites)
        self._model = inject_adapter_in_model(lora, copy.deepcopy(self._recalled))
        self._layers = [getattr(self._model, name) for name in self._sites]
        pool = visits.data.pool
        self._train = [(torch.tensor(t.x_train), torch.tensor(t.y_train)) for t in pool]
        self._test = [(torch.tensor(t.x_test), torch.tensor(t.y_test)) for t in pool]

    def learn(self, episode: int, *, merge: bool) -> Tensor:
        """Do one visit; return the accuracies (L + 1,)."""
        config, task = self._config, int(self._visits.tasks[episode])
        heat = config.temperature
        parameters = self._load(episode)
        optimiser = torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)
        batches = self._visits.batches[episode]
        images, labels = (part[batches] for part in self._train[task])  # (L, u, batch, ...)
        with torch.no_grad():
            target = torch.softmax(self._recalled(images.flatten(0, 2)) / heat, -1)
        target = target.unflatten(0, batches.shape)
        curve = [self._accuracy(task, merge)]
        for step in range(config.learning_steps):
            for update in range(config.updates):
                logits = self._model(images[step, update])
                loss = functional.cross_entropy(logits, labels[step, update])
                student = functional.log_softmax(logits / heat, -1)
                divergence = functional.kl_div(student, target[step, update], reduction="batchmean")
                loss = loss + config.distillation * heat**2 * divergence
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
            curve.append(self._accuracy(task, merge))
        return torch.stack(curve)

    @torch.no_grad()
    def _load(self, episode: int) -> list[Tensor]:
        """Put an episode's start into the model and, merged, into the frozen copy."""
        parameters = []
        for name, layer in zip(self._sites, self._layers, strict=True):
            up, down = (part[episode] for part in self._visits.start.factors[name])
            weight = self._weights[f"{name}.weight"]
            layer.base_layer.weight.copy_(weight)  # merging and its undoing leave rounding errors
            layer.lora_A["default"].weight.copy_(down)
            layer.lora_B["default"].weight.copy_(up)
            getattr(self._recalled, name).weight.copy_(weight + up @ down)
            parameters += [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        return parameters

    @torch.no_grad()
    def _accuracy(self, task: int, merge: bool) -> Tensor:
        images, labels = self._test[task]
        if merge:
            for layer in self._layers:
                layer.merge()
        right: Tensor = (self._model(images).argmax(-1) == labels).double().mean()
        if merge:
            for layer in self._layers:
                layer.unmerge()
        return right
