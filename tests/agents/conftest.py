"""What the tests of agents share: whole exact episodes, and live observations made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from nsr_gym.agents import agent_spec, make_agent
from nsr_gym.envs.layout import GLOBAL_FIELDS, VIEW_FIELDS, ObservationLayout
from nsr_gym.registration import ENVIRONMENTS


@pytest.fixture
def regrets() -> Callable[..., np.ndarray]:
    """Play a named agent until every episode has ended once, and return their regrets (n,)."""

    def play(
        env_id: str,
        agent: str,
        n: int = 2,
        *,
        agent_arguments: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> np.ndarray:
        family = ENVIRONMENTS[env_id].family
        chosen = agent_spec(agent).environment_arguments(family) | arguments
        env = gym.make_vec(env_id, n, vectorization_mode=None, **chosen)
        player = make_agent(agent, env, **(agent_arguments or {}))
        seeds = list(range(n))
        observation, _ = env.reset(seed=seeds)
        state = player.initial_state(seeds)
        regret, over = np.zeros(n), np.zeros(n, dtype=bool)
        while not over.all():
            actions, state = player.predict(observation, state)
            observation, _, terminated, truncated, info = env.step(actions)
            assert not truncated.any(), "no episode of these tests may run into the limit"
            ends = terminated & ~over  # what an autoreset plays after the end does not count
            regret[ends] = info["regret"][ends]
            over |= terminated
        env.close()
        return regret

    return play


@pytest.fixture
def agrees() -> Callable[[np.ndarray, float], bool]:
    """Whether a mean lies within three standard errors of an exact value."""

    def within(values: np.ndarray, exact: float) -> bool:
        error = values.std(ddof=1) / np.sqrt(len(values))
        return bool(error > 0 and abs(values.mean() - exact) <= 3 * error)

    return within


class ByHand:
    """Live observations made by hand, and agents that are shown them without an environment.

    Attributes:
        ranks: that can be granted.
        view: S, entries in view.
    """

    ranks = (1, 2, 4, 8)
    view = 4

    def stub(self, router: str = "cosine", *, signals: bool = False) -> Any:
        """Return what an agent reads of an environment; a direction takes 1000 bytes."""
        sizes = dict.fromkeys(VIEW_FIELDS, self.view) | dict.fromkeys(GLOBAL_FIELDS, 1)
        if router != "cosine":
            sizes["route_backbone"] = 1
        if signals:
            sizes |= {"energy": len(self.ranks), "novelty": 1, "free_capacity": 1}
        store = SimpleNamespace(
            entry_bytes=lambda rank: {"factors": rank * 1000}, shared_bytes=lambda entries: {}
        )
        bank = SimpleNamespace(store=store, embedding=np.zeros(0, np.float32), embedding_dim=0)
        most = self.ranks[-1]
        engine = SimpleNamespace(
            family="live",
            layout=ObservationLayout(sizes, 10, self.ranks),
            config=SimpleNamespace(
                access="bank",
                ranks=self.ranks,
                max_rank=most,
                router=router,
                bank="per_task",
                view_size=self.view,
            ),
            dynamics=None,
            memory=SimpleNamespace(bank=bank),
            pool_name="digits-permutation",
        )
        env = SimpleNamespace(engine=engine)
        env.unwrapped = env
        return env

    def agent(self, name: str, **arguments: Any) -> Any:
        """Make a named agent for a stub of the environment that it asks for."""
        chosen = agent_spec(name).environment_arguments("live")
        router = chosen.get("router", "cosine")
        env = self.stub(router, signals=chosen.get("observe_signals", False))
        return make_agent(name, env, **arguments)

    def seen(self, agent: Any, *, stored: Sequence[int] = (), **fields: Any) -> np.ndarray:
        """Lay out one observation, (size,), as it is encoded; `stored` are the ranks held."""
        values = {name: np.zeros((1, size)) for name, size in agent.layout.sizes.items()}
        values["trial_loss"][:] = values["budget_left"][:] = 1.0
        fields["stored_rank"] = np.array(stored) / self.ranks[-1]
        for name, given in fields.items():
            values[name][0, : np.size(given)] = given
        return np.asarray(agent.layout.encode(1, values)[0])

    def action(self, agent: Any, **fields: Any) -> list[int]:
        """Return what an agent does on seeing that."""
        return list(agent.predict(self.seen(agent, **fields))[0].tolist())


@pytest.fixture(scope="session")
def by_hand() -> ByHand:
    return ByHand()
