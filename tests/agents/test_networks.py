"""The pointer network: entries alike, any number of them, and what it can learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from nsr_gym.agents.networks import ENTRY_FIELDS, EntryFeatures, activation, pointer_policy
from nsr_gym.agents.settings import ACTIVATIONS
from nsr_gym.envs.layout import GLOBAL_FIELDS, TASK_FIELDS, VIEW_FIELDS, Layout
from nsr_gym.errors import InvalidValueError, UnknownNameError

RANKS, RESERVE = 4, 3
KINDS = [False, True]


def layout_of(view: int, *, task_id: bool = False) -> Layout:
    sizes = dict.fromkeys(VIEW_FIELDS, view) | dict.fromkeys(GLOBAL_FIELDS, 1)
    return Layout(sizes | (dict(zip(TASK_FIELDS, (view, 1), strict=True)) if task_id else {}))


def policy_of(view: int, *, masks: bool = False, kind: str = "flat", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    if masks:
        pytest.importorskip("sb3_contrib")
    layout = layout_of(view)
    policy = pointer_policy(masks=masks)(
        layout.space(kind),
        spaces.MultiDiscrete([view + 1, RANKS, RESERVE]),
        lambda _: 1e-3,
        sizes=layout.sizes,
    )
    # Initial heads are close to 0; let entries and ranks differ in earnest.
    for name, part in policy.action_net.named_parameters():
        torch.nn.init.normal_(part, std=0.3) if "weight" in name else None
    return policy


def banks(n: int, view: int, held: Any, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Return n observations by name, with so many entries held."""
    rng = np.random.default_rng(seed)
    there = np.arange(view) < np.reshape(held, (-1, 1))
    named = {name: rng.uniform(size=(n, view)) * there for name in VIEW_FIELDS}
    named["stored_rank"] = rng.choice([0.125, 0.25, 0.5, 1.0], size=(n, view)) * there
    named["trial_loss"] = np.where(there, named["trial_loss"], 1.0)  # what the suite shows there
    return named | {name: rng.uniform(size=(n, 1)) for name in GLOBAL_FIELDS}


def logits(policy: Any, named: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return recall logits (n, S + 1) and the others (n, Q + 3)."""
    sizes = {name: values.shape[1] for name, values in named.items()}
    flat = torch.from_numpy(Layout(sizes).encode(len(named["age"]), named))
    with torch.no_grad():
        out = policy.action_net(policy.mlp_extractor.forward_actor(flat))
    return out[:, : sizes["age"] + 1], out[:, sizes["age"] + 1 :]


def shuffled(named: dict[str, np.ndarray], order: np.ndarray) -> dict[str, np.ndarray]:
    return {k: v[:, order] if k in ENTRY_FIELDS else v for k, v in named.items()}


def widened(named: dict[str, np.ndarray], view: int) -> dict[str, np.ndarray]:
    """Return the same banks in a wider view, with nothing in the further places."""
    out = dict(named)
    for name in VIEW_FIELDS:
        more = view - named[name].shape[1]
        out[name] = np.pad(
            named[name], ((0, 0), (0, more)), constant_values=float(name == "trial_loss")
        )
    return out


@pytest.mark.parametrize("masks", KINDS)
def test_shuffling_the_view_shuffles_the_scores_and_nothing_else(masks: bool) -> None:
    policy, named = policy_of(8, masks=masks), banks(16, 8, 8)
    order = np.random.default_rng(1).permutation(8)
    recall, others = logits(policy, named)
    moved, same = logits(policy, shuffled(named, order))
    assert recall[:, 1:].std(dim=1).min() > 1e-3, "entries must not all have the same score"
    torch.testing.assert_close(moved[:, 1:], recall[:, 1:][:, order])
    torch.testing.assert_close(moved[:, 0], recall[:, 0])
    torch.testing.assert_close(same, others)


@pytest.mark.parametrize("masks", KINDS)
@pytest.mark.parametrize("view", [1, 20, 50])
def test_the_same_weights_play_any_view(view: int, masks: bool) -> None:
    small, large = policy_of(8, masks=masks), policy_of(view, masks=masks, seed=1)
    large.load_state_dict(small.state_dict(), strict=True)
    if view < 8:
        return
    named = banks(16, 8, np.arange(16) % 9)
    recall, others = logits(small, named)
    wide, same = logits(large, widened(named, view))
    torch.testing.assert_close(wide[:, :9], recall)
    assert (wide[:, 9:] < -1e7).all()
    torch.testing.assert_close(same, others)


def test_entries_that_are_not_there_are_never_recalled() -> None:
    policy = policy_of(8)
    held = np.arange(512) % 9
    flat = layout_of(8).encode(512, banks(512, 8, held))
    for deterministic in (True, False):
        actions, _ = policy.predict(flat, deterministic=deterministic)
        assert (actions[:, 0] <= held).all()
    assert len(np.unique(actions[:, 0])) == 9, "every place is recalled where something is held"
    _, _, entropy = policy.evaluate_actions(torch.from_numpy(flat), torch.from_numpy(actions))
    assert torch.isfinite(entropy).all()


@pytest.mark.parametrize("held", [0, 3])
def test_gradients_are_finite_with_any_number_of_entries(held: int) -> None:
    policy = policy_of(8)
    flat = torch.from_numpy(layout_of(8).encode(4, banks(4, 8, held)))
    actions, values, chance = policy(flat)
    assert actions.shape == (4, 3)
    (values.mean() + chance.mean()).backward()
    reached = [p for p in policy.parameters() if p.grad is not None]
    assert len(reached) == len(list(policy.parameters()))
    assert all(torch.isfinite(p.grad).all() for p in reached)


def test_values_and_scores_share_no_weights() -> None:
    policy = policy_of(8)
    flat = torch.from_numpy(layout_of(8).encode(4, banks(4, 8, 5)))
    policy.predict_values(flat).sum().backward()
    touched = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert touched == {n for n, _ in policy.named_parameters() if "value" in n}


def test_flat_and_named_observations_say_the_same() -> None:
    flat, named = policy_of(8), policy_of(8, kind="dict", seed=1)
    named.load_state_dict(flat.state_dict(), strict=True)
    observation = layout_of(8).encode(32, banks(32, 8, 6))
    expected, _ = flat.predict(observation, deterministic=True)
    got, _ = named.predict(layout_of(8).as_dict(observation), deterministic=True)
    np.testing.assert_array_equal(got, expected)


def test_features_compare_entries_with_those_held_only() -> None:
    features = EntryFeatures(layout_of(3).sizes)
    named = banks(1, 3, 2)
    named["accuracy"] = np.array([[0.2, 0.6, 0.0]])
    entries, bank, held = features(torch.from_numpy(layout_of(3).encode(1, named)))
    assert held.tolist() == [[True, True, False]]
    number = len(VIEW_FIELDS) + 1
    accuracy = VIEW_FIELDS.index("accuracy")
    torch.testing.assert_close(entries[0, :, accuracy], torch.tensor([0.2, 0.6, 0.0]))
    below, above = entries[0, :, number + accuracy], entries[0, :, 2 * number + accuracy]
    torch.testing.assert_close(below, torch.tensor([0.4, 0.0, 0.0]))
    torch.testing.assert_close(above, torch.tensor([0.0, 0.4, 0.0]))
    high, low, mean = bank[0, len(GLOBAL_FIELDS) + 1 :].reshape(3, number)[:, accuracy]
    assert [high, low, mean] == pytest.approx([0.6, 0.2, 0.4])


def test_what_it_cannot_read_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="access='bank'"):
        EntryFeatures({"loss": 1, "empty": 1})
    with pytest.raises(InvalidValueError, match="one value"):
        EntryFeatures({"similarity": 4, "stored_rank": 3})
    sizes = layout_of(8).sizes
    make = pointer_policy(masks=False)
    with pytest.raises(InvalidValueError, match=r"MultiDiscrete\(\[9, ...\]\)"):
        make(layout_of(8).space("flat"), spaces.Discrete(108), lambda _: 1e-3, sizes=sizes)
    actions = spaces.MultiDiscrete([9, 4, 3])
    with pytest.raises(InvalidValueError, match="with the fields"):
        make(layout_of(5).space("flat"), actions, lambda _: 1e-3, sizes=sizes)


def test_task_ids_are_read_where_they_are_shown() -> None:
    with_id = EntryFeatures(layout_of(8, task_id=True).sizes)
    without = EntryFeatures(layout_of(8).sizes)
    assert with_id.entry_size == without.entry_size + 3
    assert with_id.bank_size == without.bank_size + 3 + 1


def test_activations_have_names() -> None:
    assert {activation(name) for name in ACTIVATIONS} >= {torch.nn.Tanh, torch.nn.ReLU}
    assert len({activation(name) for name in ACTIVATIONS}) == len(ACTIVATIONS)
    with pytest.raises(UnknownNameError, match="Did you mean 'tanh'"):
        activation("tahn")


def fitting(view: int, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return banks, and the action of a rule: the entry that fits best, if better than none."""
    rng = np.random.default_rng(seed)
    held = rng.integers(0, view + 1, size=n)
    named = banks(n, view, held, seed=seed)
    named["bare_loss"] = rng.uniform(0.0, 0.5, size=(n, 1))
    best = named["trial_loss"].argmin(axis=1)
    fits = named["trial_loss"].min(axis=1) < named["bare_loss"][:, 0]
    recall = np.where(fits, best + 1, 0)
    actions = np.stack([recall, np.where(fits, RANKS - 1, 0), np.where(fits, 1, 2)], axis=1)
    flat = layout_of(view).encode(n, named)
    return torch.from_numpy(flat), torch.from_numpy(actions)


def test_it_learns_which_entry_fits_and_does_so_in_a_larger_view() -> None:
    torch.manual_seed(0)
    make = pointer_policy(masks=False)

    def build(view: int) -> Any:
        actions = spaces.MultiDiscrete([view + 1, RANKS, RESERVE])
        shown = layout_of(view)
        return make(shown.space("flat"), actions, lambda _: 3e-3, sizes=shown.sizes)

    policy = build(8)
    for step in range(300):
        seen, wanted = fitting(8, 256, seed=step)
        _, chance, _ = policy.evaluate_actions(seen, wanted)
        policy.optimizer.zero_grad()
        (-chance.mean()).backward()
        policy.optimizer.step()
    large = build(20)
    large.load_state_dict(policy.state_dict(), strict=True)
    for view, player in ((8, policy), (20, large)):
        seen, wanted = fitting(view, 2000, seed=999)
        chosen, _ = player.predict(seen.numpy(), deterministic=True)
        right = (chosen == wanted.numpy()).all(axis=1).mean()
        assert right > 0.9, f"{right:.2f} of the choices in a view of {view}"
