"""What Stable-Baselines3 sees of native environments is what it sees of single ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from nsr_gym.envs import BlindAllocationVectorEnv, FlatDiscrete, FlatDiscreteVector
from nsr_gym.envs.comparing import difference
from nsr_gym.envs.sb3 import SB3VecEnv, make_sb3_env
from nsr_gym.errors import InvalidValueError, NsrGymError, StateError, UnknownNameError

BLIND, PAGING = "NSR/BlindAllocation-v0", "NSR/Paging-v0"
LIVE = "NSR/CyclicDigits-v0"

EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "blind": (BLIND, {}),
    "blind, drawn": (
        BLIND, {"obs": "channel:0.4", "order": "iid", "instance": None, "rewards": "random",
                "feedback": "last-action+reward", "steps": 2},
    ),
    "blind, dict, cut off": (BLIND, {"observation": "dict", "max_episode_steps": 4}),
    "paging": (PAGING, {"slots": 2}),
    "paging, dict, drawn": (
        PAGING, {"bank": 2, "observation": "dict", "order": "reshuffled", "instance": None,
                 "costs": "random", "similarity_noise": 0.8},
    ),
    "paging, cut off in the last step": (PAGING, {"max_episode_steps": 6}),
    "until recovered": ("NSR/UntilRecovered-v0", {"obs": "channel:0.4", "redraw": True}),
    "until recovered, cut off": ("NSR/UntilRecovered-v0", {"max_episode_steps": 9}),
}  # fmt: skip

Pair = tuple[SB3VecEnv, DummyVecEnv]


@pytest.fixture
def make_pair(tiny_of: Callable[[str], dict[str, Any]]) -> Iterator[Callable[..., Pair]]:
    """Make the adapter and Stable-Baselines3's own over single environments."""
    made: list[Any] = []

    def make(env_id: str, n: int, **arguments: Any) -> Pair:
        chosen = tiny_of(env_id) | arguments
        ours = make_sb3_env(env_id, n, **chosen)
        theirs = DummyVecEnv([lambda: gym.make(env_id, **chosen)] * n)
        made.extend([ours, theirs])
        return ours, theirs

    yield make
    for env in made:
        env.close()


def assert_same(ours: Any, theirs: Any, tolerance: float, where: str) -> None:
    found = difference(ours, theirs, path=(where,), tolerance=tolerance)
    assert found is None, found


def assert_alike(ours: Any, theirs: Any, *, steps: int, tolerance: float = 0.0) -> set[bool]:
    """Reset and play both, compare every answer, return the kinds of ends: cut off or not."""
    kinds: set[bool] = set()
    assert_same(ours.reset(), theirs.reset(), tolerance, "reset")
    assert_same(ours.reset_infos, theirs.reset_infos, tolerance, "reset_infos")
    space = theirs.action_space
    space.seed(0)
    for step in range(steps):
        actions = np.stack([space.sample() for _ in range(theirs.num_envs)])
        answer, wanted = ours.step(actions), theirs.step(actions)
        for name, a, b in zip(("obs", "rewards", "dones", "infos"), answer, wanted, strict=True):
            assert_same(a, b, tolerance, f"step {step}, {name}")
        assert_same(ours.reset_infos, theirs.reset_infos, tolerance, f"step {step}, reset_infos")
        kinds |= {
            info["TimeLimit.truncated"] for info in answer[3] if "terminal_observation" in info
        }
    return kinds


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("case", EXACT)
def test_exact_trajectories_are_those_of_single_environments_bit_for_bit(
    case: str, n: int, make_pair: Callable[..., Pair]
) -> None:
    env_id, arguments = EXACT[case]
    ours, theirs = make_pair(env_id, n, **arguments)
    for env in (ours, theirs):
        env.seed(5)
    ends = assert_alike(ours, theirs, steps=30)
    assert ends == {case.endswith("cut off")}, "episodes end, and end as they should"
    # In the middle of episodes, seeded no more: each goes on with its own generator.
    assert_alike(ours, theirs, steps=7)


@pytest.mark.parametrize(
    "arguments", [{}, {"observation": "dict", "access": "memoryless"}], ids=["bank", "memoryless"]
)
def test_live_trajectories_are_those_of_single_environments_within_rounding(
    arguments: dict[str, Any], make_pair: Callable[..., Pair]
) -> None:
    ours, theirs = make_pair(LIVE, 2, **arguments)
    for env in (ours, theirs):
        env.seed(3)
    assert assert_alike(ours, theirs, steps=8, tolerance=1e-5) == {False}


def test_one_number_for_an_action_changes_nothing_else(
    tiny_of: Callable[[str], dict[str, Any]],
) -> None:
    arguments = tiny_of(PAGING) | {"slots": 2}
    ours = make_sb3_env(PAGING, 3, seed=1, flat_actions=True, **arguments)
    theirs = DummyVecEnv([lambda: FlatDiscrete(gym.make(PAGING, **arguments))] * 3)
    theirs.seed(1)
    assert ours.action_space == theirs.action_space
    assert_alike(ours, theirs, steps=15)
    assert_same(ours.env_method("action_masks"), theirs.env_method("action_masks"), 0.0, "masks")


def test_any_vector_environment_that_resets_in_the_same_step_is_adapted(
    tiny_of: Callable[[str], dict[str, Any]],
) -> None:
    one = lambda: gym.make(PAGING, **tiny_of(PAGING))  # noqa: E731
    theirs = DummyVecEnv([one] * 2)
    ours = SB3VecEnv(SyncVectorEnv([one] * 2, autoreset_mode=AutoresetMode.SAME_STEP))
    for env in (ours, theirs):
        env.seed(0)
    assert_alike(ours, theirs, steps=15)


class Ragged(VectorEnv[Any, Any, Any]):
    """Two environments of which only one says something, and that write over what they returned."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    num_envs = 2
    single_observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
    single_action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self.seen = np.zeros((2, 1), dtype=np.float32)
        self.resets: list[Any] = []

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.resets.append((seed, options))
        self.seen[:] = 0.0
        return self.seen, {}

    def step(self, actions: Any) -> Any:
        self.seen += 0.1
        there = np.array([False, True])
        nested = {"depth": np.array([0.0, 2.0]), "_depth": there}
        info = {"one": np.array([0, 7]), "_one": there, "deep": nested, "_deep": there}
        return self.seen, np.array([0.1, 0.2]), ~(there | True), ~(there | True), info


def test_an_environment_has_what_the_masks_say_that_it_has() -> None:
    env = SB3VecEnv(Ragged())
    env.reset()
    infos = env.step(np.zeros(2, dtype=np.int64))[3]
    assert infos == [
        {"TimeLimit.truncated": False},
        {"one": 7, "deep": {"depth": 2.0}, "TimeLimit.truncated": False},
    ]


def test_what_was_returned_is_not_written_over() -> None:
    env = SB3VecEnv(Ragged())
    first = env.reset()
    second = env.step(np.zeros(2, dtype=np.int64))[0]
    env.step(np.zeros(2, dtype=np.int64))
    assert first.tolist() == [[0.0], [0.0]]
    np.testing.assert_allclose(second, 0.1)


def test_seeds_and_options_are_for_one_reset() -> None:
    native = Ragged()
    env = SB3VecEnv(native)
    env.seed(4)
    env.set_options({"level": 2})
    env.reset()
    env.reset()
    # Consecutive seeds go as one number: Gymnasium's own native environments know no lists.
    assert native.resets == [(4, {"level": 2}), (None, None)]


def test_seeds_of_one_s_own_reach_each_environment() -> None:
    native = Ragged()
    env = SB3VecEnv(native)
    for seeds in ([9, 3], [None, 3], [None, None]):
        env._seeds = list(seeds)
        env.reset()
    assert [seed for seed, _ in native.resets] == [[9, 3], [None, 3], None]


@pytest.mark.parametrize(
    "options",
    [[{"level": 1}, {"level": 2}], {"reset_mask": [True, False]}],
    ids=["different", "of some environments"],
)
def test_options_that_cannot_be_followed_are_refused_once(options: Any) -> None:
    env = SB3VecEnv(Ragged())
    env.set_options(options)
    with pytest.raises(InvalidValueError, match="options"):
        env.reset()
    env.reset()


@pytest.mark.parametrize("mode", ["next_step", "disabled"])
def test_other_autoreset_modes_are_refused(mode: str, make_vec: Callable[..., Any]) -> None:
    with pytest.raises(InvalidValueError, match='autoreset_mode="same_step"'):
        SB3VecEnv(make_vec(2, PAGING, autoreset_mode=mode))
    with pytest.raises(InvalidValueError, match=mode.upper()):
        make_sb3_env(PAGING, 2, autoreset_mode=mode)


def test_single_environments_are_refused(make_env: Callable[..., Any]) -> None:
    with pytest.raises(InvalidValueError, match="make_vec"):
        SB3VecEnv(make_env(PAGING))


def test_actions_are_played_once() -> None:
    env = make_sb3_env(BLIND, 2)
    env.reset()
    with pytest.raises(StateError, match="step_async"):
        env.step_wait()
    env.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(StateError, match="step_async"):
        env.step_wait()


def test_wrong_arguments_get_the_environment_s_own_answer() -> None:
    with pytest.raises(UnknownNameError, match="num_tasks"):
        make_sb3_env(BLIND, 2, num_task=3)
    with pytest.raises(InvalidValueError, match="num_envs"):
        make_sb3_env(BLIND, 0)
    with pytest.raises(gym.error.Error, match="vector entry point"):
        make_sb3_env("Pendulum-v1", 2)


def test_ids_may_name_their_module() -> None:
    assert make_sb3_env(f"nsr_gym:{BLIND}", 2, num_tasks=3).action_space.n == 3


def test_attributes_are_asked_for_as_of_single_environments(
    make_pair: Callable[..., Pair],
) -> None:
    ours, theirs = make_pair(PAGING, 3)
    for name in ("observation_space", "action_space", "render_mode"):
        assert ours.get_attr(name) == theirs.get_attr(name), name
    assert ours.get_attr("render_mode", indices=[0, 2]) == [None, None]
    assert ours.get_attr("render_mode", indices=1) == [None]
    for name in ("action_masks", "engine", "no_such_attribute"):
        assert ours.has_attr(name) == theirs.has_attr(name), name
    with pytest.raises(IndexError):
        ours.get_attr("render_mode", indices=3)


@pytest.mark.parametrize("indices", [None, 1, [0, 2], [-1]], ids=str)
def test_masks_come_one_for_each_environment(indices: Any, make_pair: Callable[..., Pair]) -> None:
    ours, theirs = make_pair(PAGING, 3)
    for env in (ours, theirs):
        env.seed(0)
        env.reset()
        env.step(np.array([[0, 0, 1], [0, 0, 0], [0, 0, 1]]))
    masks = ours.env_method("action_masks", indices=indices)
    wanted = theirs.env_method("action_masks", indices=indices)
    assert isinstance(masks, list)
    assert_same(masks, wanted, 0.0, "masks")


def test_attributes_are_set_for_all_or_not_at_all() -> None:
    env = make_sb3_env(BLIND, 3)
    env.set_attr("label", "a")
    env.set_attr("label", "b", indices=[2, 0, 1])
    assert env.get_attr("label") == ["b"] * 3
    with pytest.raises(InvalidValueError, match="all 3 environments"):
        env.set_attr("label", "c", indices=[0, 1])
    assert env.get_attr("label") == ["b"] * 3


@pytest.mark.parametrize("name", ["reset", "step", "close", "__repr__"])
def test_methods_that_do_not_answer_for_each_environment_are_refused(name: str) -> None:
    env = make_sb3_env(BLIND, 2)
    with pytest.raises(NsrGymError, match=name):
        env.env_method(name)


def test_wrappers_are_found() -> None:
    env = make_sb3_env(PAGING, 2, flat_actions=True)
    assert env.env_is_wrapped(FlatDiscreteVector) == [True, True]
    assert env.env_is_wrapped(Monitor, indices=[0]) == [False]
    assert env.has_attr("engine"), "attributes are found through wrappers"


def test_pictures_are_those_of_single_environments(make_pair: Callable[..., Pair]) -> None:
    ours, theirs = make_pair(PAGING, 2, render_mode="rgb_array")
    for env in (ours, theirs):
        env.seed(0)
        env.reset()
        env.step(np.array([[0, 0, 1], [0, 0, 0]]))
    for a, b in zip(ours.get_images(), theirs.get_images(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(ours.render(), theirs.render())
    assert ours.metadata["render_fps"] == theirs.metadata["render_fps"]


def test_without_pictures_there_are_none(make_pair: Callable[..., Pair]) -> None:
    ours, _ = make_pair(PAGING, 2, render_mode="ansi")
    ours.reset()
    assert ours.get_images() == [None, None]
    assert ours.render() is None
    assert [text.splitlines()[1] for text in ours.env_method("render")] == ["  0 (slot): empty"] * 2


def test_logs_of_episodes_name_the_environment(tmp_path: Any) -> None:
    env = VecMonitor(make_sb3_env(BLIND, 2, num_tasks=2, cycles=1), str(tmp_path / "log"))
    env.reset()
    for _ in range(2):
        *_, infos = env.step(np.zeros(2, dtype=np.int64))
    env.close()
    assert {info["episode"]["l"] for info in infos} == {2}
    assert BLIND in (tmp_path / "log.monitor.csv").read_text()


def test_closing_closes_the_vector_environment(make_vec: Callable[..., Any]) -> None:
    native = make_vec(2, PAGING, autoreset_mode="same_step")
    SB3VecEnv(native).close()
    assert native.closed


def test_a_native_class_of_one_s_own_is_adapted_without_an_id() -> None:
    env = SB3VecEnv(BlindAllocationVectorEnv(2, num_tasks=3, autoreset_mode="same_step"))
    assert env.spec is None
    assert env.reset().shape == (2, *env.observation_space.shape)
