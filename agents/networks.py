"""A policy network for banks: it encodes each entry alike and points at the one to recall.

None of its parameters has a shape that depends on how many entries are in view, so that a network
trained on a view of 8 plays a view of 50 with the same weights. Shuffling the view shuffles the
scores of its entries and changes nothing else. (Pointing by attention: Vinyals et al. 2015,
arXiv 1506.03134; reading sets: Zaheer et al. 2017, arXiv 1703.06114.)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from nsr_gym.agents.settings import ACTIVATIONS
from nsr_gym.envs.layout import VIEW_FIELDS, Layout
from nsr_gym.envs.memory import UPDATE
from nsr_gym.errors import InvalidValueError, unknown

ENTRY_FIELDS = (*VIEW_FIELDS, "same_task")
"""Fields with one value for each entry in view; whatever else is observed is context."""

_CLASSES = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU}
_UPDATE_BIAS = 1.5
"""Logit by which the first policy prefers updating the recalled entry to discarding or adding.

While entries are still recalled at random, an update destroys what another task needs and adding
is best; a policy that has learned to add always gains nothing by a single update, since its
bank is full of duplicates either way, and stays there. Measured in NSR/MixedDigitsRecorded-v0."""
_NEVER = -1e8
"""Score of recalling an entry that is not there; sb3-contrib masks with the same number."""


def activation(name: str) -> type[nn.Module]:
    """Return the class of a non-linear function.

    Raises:
        UnknownNameError: none of `nsr_gym.agents.settings.ACTIVATIONS`.
    """
    if name not in _CLASSES:
        raise unknown("activation", name, ACTIVATIONS)
    return _CLASSES[name]


class Fields(BaseFeaturesExtractor):
    """Lays flat or named observations out in one order, (n, size); learns nothing."""

    def __init__(self, observation_space: spaces.Space[Any], sizes: Mapping[str, int]) -> None:
        """Check that the space has the fields.

        Args:
            observation_space: flat, or a dict with the names of the fields.
            sizes: field name -> number of values.

        Raises:
            InvalidValueError: the space has other fields or another size.
        """
        size = sum(sizes.values())
        super().__init__(observation_space, size)
        self._names = list(sizes)
        if isinstance(observation_space, spaces.Dict):
            shapes = {name: space.shape for name, space in observation_space.items()}
            fits = shapes == {name: (number,) for name, number in sizes.items()}
        else:
            fits = observation_space.shape == (size,)
        if not fits:
            raise InvalidValueError(
                f"Expected observations with the fields {dict(sizes)}; got {observation_space}."
            )

    def forward(self, observations: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return observations (n, size)."""
        if isinstance(observations, Tensor):
            return observations
        return torch.cat([observations[name] for name in self._names], dim=1)


class BankView(NamedTuple):
    """What the policy's part of the network has made of observations.

    Attributes:
        entries: (n, S, width).
        context: (n, width).
        held: (n, S) where there is an entry.
    """

    entries: Tensor
    context: Tensor
    held: Tensor


class EntryFeatures(nn.Module):
    """Takes observations apart: numbers of each entry, and of the bank as a whole.

    An entry is told by its values, and by how far each is from the largest and from the
    smallest among the entries held: which one is nearest, or fits best, is a matter of
    comparison. Similarities crowd near 1, so their distance from 1 is shown on a log scale too.
    The bank is told by what is observed beside the entries, by the largest, the smallest and
    the mean of each of these numbers, and by how many entries there are.

    Attributes:
        entry_size: numbers of an entry.
        bank_size: numbers of the bank.
    """

    index: Tensor
    rest: Tensor

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """Find the fields.

        Raises:
            InvalidValueError: entries are not in view, or a field has not one value for each.
        """
        super().__init__()
        names = [name for name in sizes if name in ENTRY_FIELDS]
        missing = [name for name in ("similarity", "stored_rank") if name not in sizes]
        views = {sizes[name] for name in names}
        if missing or len(views) != 1:
            raise InvalidValueError(
                "The pointer network needs entries in view (similarity and stored_rank, one value "
                f"of each field for each entry, as access='bank' shows them); got {dict(sizes)}. "
                "Use network='mlp'."
            )
        places = Layout(sizes).slices
        every = np.arange(sum(sizes.values()))
        index = np.stack([every[places[name]] for name in names], axis=1)
        rest = [every[places[name]] for name in sizes if name not in names]
        # Where values lie follows from the layout, so it is no part of the weights.
        self.register_buffer("index", torch.from_numpy(index), persistent=False)
        self.register_buffer(
            "rest", torch.from_numpy(np.concatenate([*rest, every[:0]])), persistent=False
        )
        self._similarity, self._rank = names.index("similarity"), names.index("stored_rank")
        numbers = len(names) + 1
        self.entry_size = 3 * numbers
        self.bank_size = 3 * numbers + int(self.rest.numel()) + 1

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (n, S, entry_size), (n, bank_size) and where entries are held (n, S)."""
        values = observations[:, self.index]
        held = values[..., self._rank] > 0
        distance = (1.0 - values[..., self._similarity, None]).clamp(min=0.0)
        values = torch.cat([values, -0.25 * torch.log10(distance + 1e-4)], dim=-1)
        there = held.unsqueeze(-1).to(values.dtype)
        number = there.sum(dim=1)
        # All values lie in [-1, 1]. Without entries, all three are 0.
        some = (number > 0).to(values.dtype)
        high = (values * there + 2.0 * (there - 1.0)).amax(dim=1) * some
        low = (values * there - 2.0 * (there - 1.0)).amin(dim=1) * some
        mean = (values * there).sum(dim=1) / number.clamp(min=1.0)
        compared = [values, high.unsqueeze(1) - values, values - low.unsqueeze(1)]
        count = torch.log1p(number) / 4.0
        bank = torch.cat([observations[:, self.rest], count, high, low, mean], dim=1)
        return torch.cat(compared, dim=-1) * there, bank, held


class BankTorso(nn.Module):
    """What policy and value make of observations; they share no weights.

    Only the policy encodes entries one by one, which is what costs time in training.
    """

    def __init__(self, sizes: Mapping[str, int], width: int, function: type[nn.Module]) -> None:
        super().__init__()
        self.features = EntryFeatures(sizes)
        entry, bank = self.features.entry_size, self.features.bank_size
        self.entry = _layers(entry, width, function)
        self.context = _layers(bank, width, function)
        self.value = _layers(bank, width, function)

    def forward(self, observations: Tensor) -> tuple[BankView, Tensor]:
        """Return what the policy and what the value read, of observations (n, size)."""
        entries, bank, held = self.features(observations)
        return BankView(self.entry(entries), self.context(bank), held), self.value(bank)

    def forward_actor(self, observations: Tensor) -> BankView:
        """Return what the policy reads."""
        entries, bank, held = self.features(observations)
        return BankView(self.entry(entries), self.context(bank), held)

    def forward_critic(self, observations: Tensor) -> Tensor:
        """Return what the value reads, (n, width)."""
        value: Tensor = self.value(self.features(observations)[1])
        return value


class PointerHead(nn.Module):
    """Logits of an action: recall (fresh, then each entry), and the components beside it.

    Entries are scored by their product with what the context asks for. The other components
    read the context and the entries in proportion to how likely each is to be recalled.
    """

    def __init__(self, width: int, others: int, function: type[nn.Module]) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.fresh = nn.Linear(width, 1)
        self.joint = nn.Sequential(nn.Linear(2 * width, width), function())
        self.others = nn.Linear(width, others)

    def forward(self, view: BankView) -> Tensor:
        """Return logits (n, S + 1 + others)."""
        scores = torch.bmm(view.entries, self.query(view.context).unsqueeze(-1)).squeeze(-1)
        scores = scores.masked_fill(~view.held, _NEVER)
        recall = torch.cat([self.fresh(view.context), scores], dim=1)
        likely = torch.softmax(recall, dim=1)[:, None, 1:]
        pointed = torch.bmm(likely, view.entries).squeeze(1)
        others = self.others(self.joint(torch.cat([view.context, pointed], dim=1)))
        return torch.cat([recall, others], dim=1)


def _layers(size: int, width: int, function: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, width), function(), nn.Linear(width, width), function())


class _Pointing:
    """The part that both pointer policies share; goes in front of a policy of SB3."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        sizes: Mapping[str, int],
        width: int = 64,
        **arguments: Any,
    ) -> None:
        self._sizes, self._width = dict(sizes), width
        view = sizes.get("stored_rank", 0)
        if not isinstance(action_space, spaces.MultiDiscrete) or action_space.nvec[0] != view + 1:
            raise InvalidValueError(
                "The pointer network recalls one of the entries in view or none; expected "
                f"actions MultiDiscrete([{view + 1}, ...]), got {action_space}. Use network='mlp'."
            )
        super().__init__(  # type: ignore[call-arg]
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=Fields,
            features_extractor_kwargs={"sizes": self._sizes},
            **arguments,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        """Create networks and optimizer, as `ActorCriticPolicy._build` does for perceptrons."""
        policy: Any = self
        width, function = self._width, policy.activation_fn
        others = int(policy.action_space.nvec[1:].sum())
        policy.mlp_extractor = BankTorso(self._sizes, width, function)
        policy.action_net = PointerHead(width, others, function)
        policy.value_net = nn.Linear(width, 1)
        head = policy.action_net
        for module, gain in (
            (policy.mlp_extractor, np.sqrt(2)),
            (head.joint, np.sqrt(2)),
            (policy.value_net, 1.0),
            (head.query, 0.01),  # the first policy is close to uniform
            (head.fresh, 0.01),
            (head.others, 0.01),
        ):
            module.apply(partial(policy.init_weights, gain=float(gain)))
        with torch.no_grad():  # ... but for what becomes of the result, see `_UPDATE_BIAS`
            head.others.bias[-3 + UPDATE] += _UPDATE_BIAS
        policy.optimizer = policy.optimizer_class(
            policy.parameters(), lr=lr_schedule(1), **policy.optimizer_kwargs
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data: dict[str, Any] = super()._get_constructor_parameters()  # type: ignore[misc]
        for name in ("features_extractor_class", "features_extractor_kwargs"):
            del data[name]
        return data | {"sizes": self._sizes, "width": self._width}


class PointerPolicy(_Pointing, ActorCriticPolicy):
    """Actor and critic for PPO and A2C; plain Stable-Baselines3 in all else.

    Args of the constructor, beside those of `ActorCriticPolicy`: `sizes` (field name -> number of
    values, see `Layout`) and `width` of the layers.
    """


@cache
def pointer_policy(*, masks: bool) -> Any:
    """Return the class of the policy, for algorithms with or without masks.

    Raises:
        ModuleNotFoundError: masks, and sb3-contrib is not installed.
    """
    if not masks:
        return PointerPolicy
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

    # The attribute tells zips of such policies from others (see `nsr_gym.agents.foreign`).
    bases = (_Pointing, MaskableActorCriticPolicy)
    return type("MaskablePointerPolicy", bases, {"takes_masks": True})
