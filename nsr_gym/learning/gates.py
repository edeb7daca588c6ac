"""Gates on an adapter's directions: training itself decides how many are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.adalora import Importance, budget
from nsr_gym.learning.checks import (
    check_amount,
    check_choice,
    check_flag,
    check_positive,
    check_share,
)
from nsr_gym.learning.data import Images
from nsr_gym.learning.modifier import Modifier, both
from nsr_gym.learning.run import Gradient


class RankGates(Modifier):
    """Puts a gate on every direction of every site, dW = B diag(g) A, and prunes by them.

    `prune="penalty"`: the loss gets `penalty` times the sum of the gates, which stay in [0, 1],
    once fresh directions have had time to become useful; a gate that ends at or below `threshold`
    is pruned. SNCL (arXiv 2202.10203, CVPR 2022) puts
    variational sparsity priors on neurons, and needs replay and a trainable body; a gate is the
    expectation of such a variable on a direction, the form that CoDyRA (arXiv 2412.01004) and
    AdaLoRA share.

    `prune="adalora"` (arXiv 2303.10512): gates may take any value, and after every update only
    the most important directions of all of an episode's sites together stay open. How many falls
    cubically (`nsr_gym.learning.adalora.budget`) from the granted ones to the share `target` of
    them. A direction's importance is the sum of that of its gate and the means of those of its
    two vectors. Where ours departs from the paper: factors start as LoRA's do (B = 0, A random,
    g = 1, against g = 0 and both random), there is no penalty on the orthogonality of the factors
    (the bank's canonical form makes them orthogonal), gradients are taken at the weights before
    the step, and gates are closed after every update.

    The environment's granted rank is the most that a visit may end with. Closed directions are
    zero in the result: `Adapters.used` says how many there are, and it is those that are stored.

    Options:
        prune: "penalty" or "adalora".
        start: the gates before training.
        rate: how many times faster than the weights gates are trained.
        train: whether gates are trained; if not, only "adalora" can close them.
        penalty: weight of the sum of gates, for "penalty".
        threshold: a gate from here down is closed at the end, for "penalty".
        target: share of the granted rank's directions on all sites to end with, for "adalora"; at
            least one is kept.
        warm: share of the visit's updates with all directions and without penalty.
        cool: share of the visit's updates with the target, for "adalora".
    """

    name: ClassVar[str] = "rank_gates"
    defaults: ClassVar[Mapping[str, Any]] = {
        "prune": "penalty",
        "start": 1.0,
        "rate": 4.0,
        "train": True,
        "penalty": 0.01,
        "threshold": 0.01,
        "target": 2.0 / 3.0,  # 8 of 12, as released
        "warm": 0.1,
        "cool": 0.3,
    }

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Refuse options that are out of range.

        Raises:
            InvalidValueError: one is, or `warm` and `cool` leave no update in between.
            UnknownNameError: no such way to prune.
        """
        named = {name: f"the option {name} of rank_gates" for name in options}
        check_choice("way to prune of rank_gates", options["prune"], ("penalty", "adalora"))
        check_flag(named["train"], options["train"])
        check_positive(named["rate"], options["rate"])
        for name in ("start", "target"):
            check_share(named[name], options[name])
        for name in ("penalty", "threshold", "warm", "cool"):
            check_amount(named[name], options[name])
        if options["warm"] + options["cool"] >= 1.0:
            raise InvalidValueError(
                "Expected warm and cool of rank_gates to add up to less than 1; got "
                f"{options['warm']!r} and {options['cool']!r}."
            )

    def begin(self) -> None:
        """Make the leaves and the gates."""
        super().begin()
        pairs = self.visit.start.factors
        self._column = {site: i for i, site in enumerate(pairs)}
        self._granted = self.visit.start.directions() & self.live[:, :, None]  # (n, R, sites)
        self._open = torch.ones_like(self._granted)
        self._over = False
        # A leaf is the gate divided by its rate: Adam's step on it is `rate` times that on it.
        dtype = next(iter(pairs.values()))[0].dtype
        values = torch.full(self._granted.shape, self._option("start") / self._option("rate"))
        values = values.to(self._granted.device, dtype)
        self._gate_leaf = self.add_leaf(values, self._granted) if self._option("train") else values
        self._slopes: dict[tuple[str, int], Tensor] = {}
        self._vectors: dict[tuple[str, int], Tensor] = {}
        self._importance: dict[tuple[str, int], Importance] = {}
        self._updates = 0

    def gates(self) -> Tensor:
        """Return the gates (n, R, sites), differentiable where trained; 1 where none is granted."""
        gates = self._gate_leaf * self._option("rate")
        # A trained gate that was closed is zero, and may open again by its gradient.
        if self._over or not self._option("train"):
            gates = gates * self._open
        return torch.where(self._granted, gates, 1.0)

    def factors(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return the factors with the gates in front of the last R directions' ups."""
        gates, gated = self.gates(), {}
        watched = self._option("prune") == "adalora" and torch.is_grad_enabled()
        for site, (up_t, down) in super().factors().items():
            if watched:
                up_t, down = self._watch((site, 0), up_t), self._watch((site, 1), down)
            gate = gates[:, :, self._column[site], None]
            before = up_t.shape[1] - gate.shape[1]
            if before:  # directions beside the adapter, such as those of other entries
                gate = torch.cat([gate.new_ones(len(gate), before, 1), gate], 1)
            gated[site] = up_t * gate, down * (gate != 0) if self._over else down
        return gated

    def extra_loss(self, features: Tensor, images: Images) -> Tensor | None:
        """Return the weighted sum of gates, beside what others add."""
        others = super().extra_loss(features, images)
        weight = self._option("penalty")
        penalised = self._option("prune") == "penalty" and self._option("train") and weight > 0
        if not penalised or self._updates < self._share_of_updates(self._option("warm")):
            return others
        return both(weight * (self.gates() * self._granted).sum(), others)

    def gradients(self, images: Images, gradient: Gradient) -> list[Tensor]:
        """Return the gradients of the leaves, and keep those of the directions' vectors."""
        self._slopes.clear()
        return super().gradients(images, gradient)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Change the leaves; keep gates in range, or open only as many as there may be."""
        scores = None
        if self._option("prune") == "adalora":
            scores = self._scores(gradients)  # from the weights that the gradients belong to
        super().step(gradients)
        self._updates += 1
        if scores is not None:
            self._allocate(scores)
        elif self._option("train"):
            self._gate_leaf.clamp_(0.0, 1.0 / self._option("rate"))

    def finish(self) -> None:
        """Close what is pruned for good."""
        super().finish()
        if self._option("prune") == "penalty":
            self._open = self.gates().detach() > self._option("threshold")
        self._over = True

    def _option(self, name: str) -> Any:
        return self.options["rank_gates"][name]

    def _share_of_updates(self, share: float) -> int:
        """Return how many of the visit's updates a share of them is."""
        config = self.learner.config
        return round(share * config.learning_steps * config.updates)

    def _watch(self, key: tuple[str, int], vectors: Tensor) -> Tensor:
        """Return a view of (n, .., d) that keeps its gradient, once there is one."""
        own = self._granted.shape[1]
        view = vectors.view_as(vectors)
        if not view.requires_grad:
            return view
        self._vectors[key] = vectors.detach()[:, -own:]

        def keep(gradient: Tensor) -> None:
            part = gradient[:, -own:]
            known = self._slopes.get(key)  # where an extra loss has contributed
            self._slopes[key] = part if known is None else known + part

        view.register_hook(keep)
        return view

    def _scores(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the importance of every direction, (n, R, sites)."""
        total = torch.zeros_like(self._gate_leaf)
        for i, part in enumerate(self.leaves):
            if part is self._gate_leaf:
                total = total + self._important(("", 0), part * gradients[i])
        for key, gradient in self._slopes.items():
            importance = self._important(key, self._vectors[key] * gradient)
            total[:, :, self._column[key[0]]] += importance.mean(dim=2)
        return total

    def _important(self, key: tuple[str, int], products: Tensor) -> Tensor:
        found = self._importance.setdefault(key, Importance()).update(products)
        assert isinstance(found, Tensor)
        return found

    def _allocate(self, scores: Tensor) -> None:
        """Close all gates but those of the most important directions."""
        granted = self._granted.flatten(1)
        most = granted.sum(1).double()
        ranks, sites = self.visit.ranks, self._granted.shape[2]
        full = most if ranks is None else ranks.double() * sites
        # An entry that was pruned when it was stored is not pruned again for being recalled.
        least = torch.minimum(most, (full * self._option("target")).round()).clamp(min=1.0)
        warm, cool = (self._share_of_updates(self._option(name)) for name in ("warm", "cool"))
        total = self._share_of_updates(1.0)
        allowed = budget(self._updates, total, most, least, warm, cool).round()
        scores = scores.flatten(1).masked_fill(~granted, -1.0)
        order = scores.argsort(stable=True, dim=1, descending=True)
        place = order.argsort(1)
        self._open = (place < allowed[:, None]).view_as(self._open) & self._granted
        if self._option("train"):
            self._gate_leaf.mul_(self._open)
