"""The native vector environment equals `SyncVectorEnv` over single ones, seed for seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from playable import playable_ids

from nsr_gym.errors import InvalidValueError, NsrGymError, StateError

# Exact environments: test_exact_vector.py.
ENV_IDS = playable_ids("live")
CYCLIC = [name for name in ENV_IDS if "Cyclic" in name]
MODES = {
    "next_step": AutoresetMode.NEXT_STEP,
    "same_step": AutoresetMode.SAME_STEP,
    "disabled": AutoresetMode.DISABLED,
}
TOLERANCE = 1e-5
"""Of observed and measured numbers, all of order 1: sums of float32 in another order."""

Pair = tuple[Any, SyncVectorEnv]
MakePair = Callable[..., Pair]


@pytest.fixture
def make_pair(tiny_of: Callable[[str], dict[str, Any]]) -> Iterator[MakePair]:
    """Make the native environment and Gymnasium's own with the same arguments."""
    made: list[Any] = []

    def make(n: int, mode: str = "next_step", env_id: str = ENV_IDS[0], **arguments: Any) -> Pair:
        chosen = tiny_of(env_id) | {"num_tasks": 2} | arguments
        native = gym.make_vec(env_id, n, vectorization_mode=None, autoreset_mode=mode, **chosen)
        one = lambda: gym.make(env_id, **chosen)  # noqa: E731
        sync = SyncVectorEnv([one] * n, autoreset_mode=MODES[mode])
        made.extend([native, sync])
        return native, sync

    yield make
    for env in made:
        env.close()


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    """Compare nested answers: floats within the tolerance, all else exactly, types included."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict), where
        assert set(ours) == set(theirs), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(theirs, tuple):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(theirs, np.ndarray):
        assert isinstance(ours, np.ndarray), where
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), where
        if theirs.dtype == object:
            for i, (a, b) in enumerate(zip(ours.ravel(), theirs.ravel(), strict=True)):
                assert_same(a, b, f"{where}[{i}]")
        elif theirs.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE, err_msg=where)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=where)
    else:
        assert type(ours) is type(theirs), where
        assert ours == theirs, where


def play_both(pair: Pair, *, seed: Any, steps: int, rng: np.random.Generator) -> int:
    """Play the same random actions in both and compare all they answer; return the ends seen."""
    native, sync = pair
    assert_same(native.reset(seed=seed), sync.reset(seed=seed), "reset")
    over = np.zeros(native.num_envs, dtype=bool)
    ends = 0
    for step in range(steps):
        if over.any() and native.metadata["autoreset_mode"] is AutoresetMode.DISABLED:
            ours = native.reset(options={"reset_mask": over.copy()})
            theirs = sync.reset(options={"reset_mask": over.copy()})
            assert_same(ours, theirs, f"reset before step {step}")
        actions = rng.integers(native.single_action_space.nvec, size=(native.num_envs, 3))
        ours, theirs = native.step(actions), sync.step(actions)
        names = ("observation", "reward", "terminated", "truncated", "info")
        for name, a, b in zip(names, ours, theirs, strict=True):
            assert_same(a, b, f"{name} of step {step}")
        over = ours[2] | ours[3]
        ends += int(over.sum())
    return ends


@pytest.mark.parametrize(
    ("env_id", "mode", "n"),
    [
        *((env_id, mode, n) for env_id in CYCLIC for mode in MODES for n in (1, 2, 5)),
        *((env_id, "next_step", 3) for env_id in ENV_IDS if env_id not in CYCLIC),
    ],
)
def test_two_and_a_half_episodes_are_the_same(
    n: int, mode: str, env_id: str, make_pair: MakePair
) -> None:
    pair = make_pair(n, mode, env_id)
    ends = play_both(pair, seed=3, steps=11, rng=np.random.default_rng(n))
    assert ends == 2 * n


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "arguments",
    [
        {"access": "memoryless"},
        {"access": "visit"},
        {"observation": "dict"},
        {"access": "memoryless", "observation": "dict"},
        {"observe_task_id": True, "reward": "online", "rank_cost": 0.01},
        {"capacity": 1, "retention": "pin", "schedule": "reshuffled"},
        {"capacity_bytes": 30_000, "energy": 0.9, "split": "test"},
        {"schedule": "iid", "tasks": "rotation"},
    ],
    ids=lambda arguments: "-".join(map(str, arguments.values())),
)
def test_other_arguments_are_the_same(
    arguments: dict[str, Any], mode: str, make_pair: MakePair
) -> None:
    pair = make_pair(2, mode, **arguments)
    assert play_both(pair, seed=5, steps=6, rng=np.random.default_rng(0)) == 2


@pytest.mark.parametrize("env_id", [name for name in ENV_IDS if "Mixed" in name])
@pytest.mark.parametrize("mode", MODES)
def test_episodes_of_different_kinds_and_lengths_are_the_same(
    mode: str, env_id: str, make_pair: MakePair
) -> None:
    pair = make_pair(6, mode, env_id, num_tasks=[1, 4], cycles=2, embedding_noise=[0.0, 0.3])
    ends = play_both(pair, seed=3, steps=14, rng=np.random.default_rng(1))
    assert ends >= 6
    plans = pair[0].unwrapped.engine.plans
    assert len({plan.family for plan in plans}) > 1
    assert len({plan.stream.num_visits for plan in plans}) > 1


@pytest.mark.parametrize("mode", MODES)
def test_episodes_that_end_at_different_steps_are_the_same(mode: str, make_pair: MakePair) -> None:
    # Reset one environment in the middle, so that live and ended ones meet in a step.
    native, sync = make_pair(3, mode)
    rng = np.random.default_rng(1)
    assert_same(native.reset(seed=0), sync.reset(seed=0), "reset")
    over = np.zeros(3, dtype=bool)
    for step in range(12):
        mask = over if mode == "disabled" else np.zeros(3, dtype=bool)
        if step == 2:
            mask = mask | np.array([False, True, False])
        if mask.any():
            assert_same(
                native.reset(options={"reset_mask": mask.copy()}),
                sync.reset(options={"reset_mask": mask.copy()}),
                f"masked reset before step {step}",
            )
        actions = rng.integers(native.single_action_space.nvec, size=(3, 3))
        ours, theirs = native.step(actions), sync.step(actions)
        assert_same(ours, theirs, f"step {step}")
        over = ours[2]


@pytest.mark.parametrize("arguments", [{}, {"observation": "dict"}, {"access": "memoryless"}])
@pytest.mark.parametrize("n", [1, 5])
def test_spaces_are_the_same(n: int, arguments: dict[str, Any], make_pair: MakePair) -> None:
    native, sync = make_pair(n, **arguments)
    for name in (
        "single_observation_space", "observation_space", "single_action_space", "action_space",
    ):  # fmt: skip
        assert getattr(native, name) == getattr(sync, name), name


@pytest.mark.parametrize("seed", [7, [7, 7], [1, None], (4, 2)], ids=str)
def test_seeds_of_every_form_are_the_same(seed: Any, make_pair: MakePair) -> None:
    native, sync = make_pair(2)
    for env in (native, sync):
        env.reset(seed=0)
    assert_same(native.reset(seed=seed), sync.reset(seed=seed), "seeded reset")
    assert_same(native.reset(), sync.reset(), "unseeded reset after it")


def test_an_unseeded_reset_goes_on_with_each_generator(make_pair: MakePair) -> None:
    native, sync = make_pair(2)
    for env in (native, sync):
        env.reset(seed=11)
    for _ in range(3):
        assert_same(native.reset(), sync.reset(), "unseeded reset")


def test_answers_belong_to_the_caller(make_vec: Callable[..., Any]) -> None:
    env = make_vec(2)
    first, info = env.reset(seed=0)
    kept, mask = first.copy(), info["action_mask"].copy()
    second, *_ = env.step(np.array([[0, 0, 2]] * 2))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(info["action_mask"], mask)
    second[:] = 9.0
    third, *_ = env.step(np.array([[0, 0, 0]] * 2))
    assert third.max() <= 1.0


def test_options_of_the_caller_are_left_alone(make_vec: Callable[..., Any]) -> None:
    env = make_vec(2)
    env.reset(seed=0)
    options = {"reset_mask": np.array([True, False])}
    env.reset(options=options)
    assert list(options) == ["reset_mask"]


def test_masks_of_a_vector_environment_are_its_info(make_vec: Callable[..., Any]) -> None:
    env = make_vec(3)
    _, info = env.reset(seed=0)
    assert env.action_masks().shape == (3, int(env.single_action_space.nvec.sum()))
    np.testing.assert_array_equal(env.action_masks(), info["action_mask"])
    *_, info = env.step(np.array([[0, 0, 2], [0, 1, 0], [0, 0, 2]]))
    np.testing.assert_array_equal(env.action_masks(), info["action_mask"])


def test_a_finished_episode_is_not_stepped_where_autoreset_is_disabled(
    make_vec: Callable[..., Any],
) -> None:
    env = make_vec(1, num_tasks=1, cycles=1, autoreset_mode="disabled")
    env.reset(seed=0)
    *_, terminated, _, _ = env.step(np.array([[0, 0, 0]]))
    assert terminated.all()
    with pytest.raises(StateError, match="reset_mask"):
        env.step(np.array([[0, 0, 0]]))


def test_a_first_reset_of_some_environments_leaves_the_others_unstarted(
    make_vec: Callable[..., Any],
) -> None:
    env = make_vec(2)
    with pytest.raises(StateError):
        env.step(np.zeros((2, 3), dtype=np.int64))
    env.reset(seed=0, options={"reset_mask": np.array([True, False])})
    with pytest.raises(StateError):
        env.step(np.zeros((2, 3), dtype=np.int64))


@pytest.mark.parametrize(
    "mask",
    [
        [True, False],
        np.array([1, 0]),
        np.array([True]),
        np.array([False, False]),
        np.array([[True, False]]),
    ],
    ids=["list", "integers", "too short", "none true", "two-dimensional"],
)
def test_wrong_reset_masks_are_refused(mask: Any, make_vec: Callable[..., Any]) -> None:
    env = make_vec(2)
    env.reset(seed=0)
    with pytest.raises(InvalidValueError, match="reset_mask"):
        env.reset(options={"reset_mask": mask})


@pytest.mark.parametrize("seed", [[1], [1, 2, 3], [0.5, 1.5], ["a", "b"], 1.5, "seed"], ids=str)
def test_wrong_seeds_are_refused(seed: Any, make_vec: Callable[..., Any]) -> None:
    env = make_vec(2)
    with pytest.raises(NsrGymError, match="seed"):
        env.reset(seed=seed)


def test_whole_numbers_of_any_type_are_seeds(make_vec: Callable[..., Any]) -> None:
    env = make_vec(2)
    plain, _ = env.reset(seed=4)
    for seed in (np.int64(4), [4, 5], (4, 5), np.array([4, 5]), [np.int64(4), np.uint8(5)]):
        np.testing.assert_array_equal(env.reset(seed=seed)[0], plain)


@pytest.mark.parametrize("n", [0, -1, 1.5, True])
def test_wrong_numbers_of_environments_are_refused(n: Any, make_vec: Callable[..., Any]) -> None:
    with pytest.raises(InvalidValueError, match="num_envs"):
        make_vec(n)
