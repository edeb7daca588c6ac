"""A frozen multilayer perceptron with a frozen linear head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nsr_gym.backbones.base import Prefix, Site, SiteMap, select_sites
from nsr_gym.backbones.weight_files import fingerprint
from nsr_gym.errors import InvalidValueError


class MLPBackbone:
    """Fully connected layers with ReLU after each, then a linear head.

    The layers are the sites `fc1`, `fc2`, ... The head is frozen as well: an adapter has to
    bring a task's images to where the head already looks for their classes.

    Attributes:
        sites: the adapted layers.
        input_shape: `(d_in of fc1,)`.
        feature_dim: width of the last layer.
        num_classes: outputs of the head.
        fingerprint: SHA-256 over names, shapes and values of all weights.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        adapt: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Build the network from its tensors.

        Args:
            weights: `fc1.weight` (d1, d0), `fc1.bias` (d1,), ..., `head.weight`, `head.bias`.
            adapt: names or regular expressions of the layers that adapters modify; None
                takes all.
            device: where to keep the weights.

        Raises:
            InvalidValueError: a tensor is missing or the shapes do not fit each other.
        """
        self.device = torch.device(device)
        self.input_shape: tuple[int, ...]
        depth = sum(name.startswith("fc") and name.endswith(".weight") for name in weights)
        expected = [f"{layer}.{part}" for layer in (*_names(depth), "head") for part in _PARTS]
        if depth == 0 or sorted(weights) != sorted(expected):
            raise InvalidValueError(
                "Expected tensors fc1.weight, fc1.bias, ..., head.weight, head.bias; "
                f"got {', '.join(sorted(weights)) or 'none'}."
            )
        self._weights = {
            name: weights[name].detach().to(self.device, torch.float32) for name in expected
        }
        width = int(self._weights["fc1.weight"].shape[-1])
        self.input_shape = (width,)
        for layer in (*_names(depth), "head"):
            weight, bias = self._weights[f"{layer}.weight"], self._weights[f"{layer}.bias"]
            if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
                raise InvalidValueError(
                    f"Expected {layer}.weight of shape (outputs, {width}) and a bias of as many "
                    f"outputs; got {tuple(weight.shape)} and {tuple(bias.shape)}."
                )
            width = int(weight.shape[0])
        self._layers = _names(depth)
        available = {
            name: Site(name, *map(int, self._weights[f"{name}.weight"].shape))
            for name in self._layers
        }
        self.sites = select_sites(available, adapt)
        self._adapted = {site.name for site in self.sites}
        self._first = self._layers.index(self.sites[0].name)
        self.feature_dim = int(self._weights["head.weight"].shape[1])
        self.num_classes = width
        self.fingerprint = fingerprint(self._weights)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors, by name (those the constructor takes)."""
        return dict(self._weights)

    def to(self, device: torch.device | str) -> MLPBackbone:
        """Return this backbone on `device` (itself, where it is there already)."""
        if torch.device(device) == self.device:
            return self
        return MLPBackbone(self._weights, adapt=[site.name for site in self.sites], device=device)

    def weight(self, site: str) -> tuple[Tensor, Tensor | None]:
        """Return the frozen weight (d_out, d_in) and bias (d_out,) of a site."""
        return self._weights[f"{site}.weight"], self._weights[f"{site}.bias"]

    def prefix(self, x: Tensor) -> Prefix:
        """Return the first adapted site's input and its frozen output, for images (N, d)."""
        for layer in self._layers[: self._first]:
            x = functional.relu_(functional.linear(x, *self.weight(layer)))
        return x, functional.linear(x, *self.weight(self._layers[self._first]))

    def forward(self, prefix: Prefix, site_map: SiteMap) -> Tensor:
        """Return features (..., feature_dim) from a prefix."""
        x, frozen = prefix
        x = functional.relu_(site_map(self._layers[self._first], x, frozen))
        for layer in self._layers[self._first + 1 :]:
            if layer in self._adapted:
                x = functional.relu_(site_map(layer, x))
            else:
                x = functional.relu_(functional.linear(x, *self.weight(layer)))
        return x

    def head(self, features: Tensor) -> Tensor:
        """Return logits (..., num_classes) from features."""
        return functional.linear(features, *self.weight("head"))

    def to_module(self) -> nn.Module:
        """Return the same network as a module of its own, images (..., d) to logits.

        Its linear layers are called `fc1`, ..., `head`, as the sites and tensors here are, so that
        other packages (Hugging Face PEFT) can wrap them. Frozen copies: merging an adapter into
        the module leaves the backbone as it is.
        """
        return _Perceptron({name: tensor.clone() for name, tensor in self._weights.items()})


class _Perceptron(nn.Module):
    """Linear layers with ReLU between them, made of given weights."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._order = [name.removesuffix(".weight") for name in weights if ".weight" in name]
        for name in self._order:
            weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            layer.weight = nn.Parameter(weight, requires_grad=False)
            layer.bias = nn.Parameter(bias, requires_grad=False)
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (..., classes) of images (..., d)."""
        for name in self._order[:-1]:
            x = functional.relu(self.get_submodule(name)(x))
        logits: Tensor = self.get_submodule(self._order[-1])(x)
        return logits


_PARTS = ("weight", "bias")


def _names(depth: int) -> tuple[str, ...]:
    return tuple(f"fc{i}" for i in range(1, depth + 1))
