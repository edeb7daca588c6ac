"""Accuracy without a task identity: a router names the entry that answers each test image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsr_gym.backbones.base import SiteMap
from nsr_gym.envs.bank_memory import BankMemory
from nsr_gym.envs.dynamics import Floats, Visits
from nsr_gym.envs.finding import RouterFinder
from nsr_gym.envs.live import LiveDynamics
from nsr_gym.envs.parts import HUB
from nsr_gym.envs.starts import entries_of, heads_of
from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.adapters import Heads
from nsr_gym.learning.data import pieces
from nsr_gym.learning.site_maps import HeadedMap, MixedMap


@dataclass(frozen=True)
class Routed:
    """What test images come to when a router names the entry for each of them.

    Attributes:
        accuracy: (n, largest M) of the answers, in the order of the streams' task lists, NaN
            beyond an episode's own M. With heads of their own, entries of other tasks give labels
            of other tasks (class-incremental evaluation).
        right: (n, largest M) share of images whose entry was last trained on their own task.
    """

    accuracy: Floats
    right: Floats


def routed_accuracy(env: Any, router: str | None = None) -> Routed:
    """Measure all tasks of the running episodes, image by image, without a task identity.

    Every image is routed on its own: batches and their order do not matter. Where one model is
    in use for everything (an additive bank, a learner with a model of its own), the router has
    no say in the answers.

    Args:
        env: a live environment of the suite with `access="bank"`, or its engine.
        router: a router of `nsr_gym.routing.ROUTERS` with its defaults, which then learns from
            the bank as it lies; None takes the environment's own. `"oracle"` gives the bound.

    Returns:
        One row for each episode.

    Raises:
        InvalidValueError: another kind of environment, or one whose router names no entries
            for single images (`"lorahub"`).
        UnknownNameError: there is no such router.
    """
    engine = env.unwrapped.engine if hasattr(env, "unwrapped") else env
    memory, dynamics = getattr(engine, "memory", None), getattr(engine, "dynamics", None)
    if not isinstance(memory, BankMemory) or not isinstance(dynamics, LiveDynamics):
        raise InvalidValueError(
            'Expected a live environment with access="bank"; recorded and memoryless ones hold no '
            "adapters that a router could name."
        )
    name = engine.config.router if router is None else router
    if name == HUB:
        raise InvalidValueError(
            f"The router {HUB!r} weighs entries for a task's support images; name another one."
        )
    finder = memory.finder
    if not isinstance(finder, RouterFinder) or name != engine.config.router:
        finder = RouterFinder(dynamics, memory.bank, engine.config, name)
        finder.begin(np.arange(engine.num_episodes))
        finder.read()
    shape = (engine.num_episodes, engine.config.max_tasks)
    accuracy, right = np.full(shape, np.nan), np.full(shape, np.nan)
    for task in range(engine.config.max_tasks):
        rows = np.flatnonzero(engine.num_tasks > task)
        if not len(rows):  # no running episode has so many
            continue
        visits = Visits(rows, engine.members[rows, task], engine.visit[rows])
        accuracy[rows, task], right[rows, task] = _route(dynamics, memory, finder, visits)
    return Routed(accuracy, right)


@torch.no_grad()
def _route(
    dynamics: LiveDynamics, memory: BankMemory, finder: RouterFinder, visits: Visits
) -> tuple[Floats, Floats]:
    bank, rows = memory.bank, visits.rows
    images = dynamics.data.test(dynamics.tensor(visits.tasks))
    valid = np.ones(images.labels.shape, dtype=bool)
    if images.valid is not None:
        valid = images.valid.cpu().numpy()
    # Images are answered one by one, so they can be asked for in pieces that fit into memory.
    parts = list(pieces(images))
    weights = [finder.router.weights(finder.query(visits, part)) for part in parts]
    named = torch.cat(weights, dim=1).argmax(dim=-1).cpu().numpy() - 1
    source = bank.tags["task"][rows[:, None], np.maximum(named, 0)]
    right = _share((named >= 0) & (source == visits.tasks[:, None]), valid)
    if dynamics.whole:
        return dynamics.accuracy(visits, bank, np.full(len(rows), -1)), right
    shared, learner = dynamics.shared_model(bank, rows), dynamics.learner
    one = None if shared is None else learner.map(*shared)
    entries = entries_of(bank, rows) if one is None else {}
    heads, said = heads_of(bank, rows), []
    for part, weight in zip(parts, weights, strict=True):
        shares = weight[:, :, 1:]
        site_map: SiteMap = MixedMap(learner.backbone, entries, shares) if one is None else one
        if heads is not None:
            site_map = HeadedMap(site_map, partial(_mixed_heads, heads=heads, weights=shares))
        said.append(learner.answers(part, site_map, rows))
    answers = torch.cat(said, dim=1).cpu().numpy()
    labels = images.labels.cpu().numpy()
    # Heads of their own answer for their own task's classes: a wrong entry gives a wrong label.
    classes = np.array([task.classes for task in dynamics.pool])
    told = np.where(named >= 0, source, visits.tasks[:, None])
    hits = classes[told, answers] == classes[visits.tasks[:, None], labels]
    if heads is not None:
        hits &= named >= 0
    return _share(hits, valid), right


def _mixed_heads(features: Tensor, heads: Heads, weights: Tensor) -> Tensor:
    """Return logits (n, k, C) of heads (n, K, C, d) and (n, K, C), weighted for every image."""
    weight, bias = heads
    logits = torch.einsum("nkd,nscd->nksc", features, weight) + bias[:, None]
    return (logits * weights.to(logits)[..., None]).sum(dim=2)


def _share(hits: NDArray[np.bool_], valid: NDArray[np.bool_]) -> Floats:
    return np.asarray((hits & valid).sum(axis=1) / valid.sum(axis=1))
