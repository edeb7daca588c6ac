"""Thresholds are chosen on train-split streams, by the lowest balanced error."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsr_gym.errors import DataError, StateError
from nsr_gym.evaluation.calibrate import best_cut, calibrate, update_file


def cut(high: list[float], low: list[float]) -> tuple[float, float]:
    return best_cut(np.array(high, dtype=float), np.array(low, dtype=float))


def test_separate_samples_are_cut_in_the_middle_of_the_gap() -> None:
    assert cut([8, 9, 10], [1, 2, 4]) == (6.0, 0.0)


def test_errors_are_shares_of_each_sample() -> None:
    # Of 4 high values one lies below every cut above 2; of the single low one none may pass.
    value, error = cut([1, 5, 6, 7], [3])
    assert value == 4.0
    assert error == pytest.approx(0.25 / 2)


def test_a_rare_wrong_start_counts_as_much_as_a_common_right_one() -> None:
    high, low = [float(i) for i in range(10, 110)] + [1.0] * 5, [5.0]
    value, error = cut(high, low)
    assert value == 7.5
    assert error == pytest.approx(5 / 105 / 2)


@pytest.mark.parametrize(("high", "low"), [([], []), ([1], []), ([], [1, 2]), ([1, 1], [1])])
def test_where_there_is_nothing_to_cut_the_error_says_so(
    high: list[float], low: list[float]
) -> None:
    with pytest.raises(DataError, match="longer episodes"):
        cut(high, low)


numbers = st.lists(st.integers(-20, 20), min_size=1, max_size=12)


@given(high=numbers, low=numbers)
def test_no_other_cut_is_better(high: list[int], low: list[int]) -> None:
    if len({*high, *low}) < 2:
        return
    _, error = cut([float(x) for x in high], [float(x) for x in low])

    def balanced(at: float) -> float:
        return (np.mean(np.array(high) < at) + np.mean(np.array(low) >= at)) / 2

    between = np.unique([*high, *low])
    best = min(balanced(c) for c in (between[1:] + between[:-1]) / 2)
    assert error == pytest.approx(best)


@pytest.fixture
def short_id(monkeypatch: pytest.MonkeyPatch) -> str:
    """Register the digits with short episodes under an id of this test's own."""
    spec = copy.deepcopy(gym.spec("NSR/CyclicDigits-v0"))
    spec.kwargs = {"num_tasks": 4, "cycles": 3, "learning_steps": 4}
    monkeypatch.setitem(gym.registry, "NSR/ShortDigits-v0", spec)
    return "NSR/ShortDigits-v0"


def test_calibration_is_on_train_streams(short_id: str) -> None:
    pool, found = calibrate(short_id, seeds=range(2), arguments={"tasks": "rotation"})
    assert pool == "digits-rotation"
    pool, found = calibrate(short_id, seeds=range(2))
    assert pool == "digits-permutation"
    assert found["split"] == "train"
    assert found["episodes"] == 2
    assert found["arrivals"] == 2 * 11  # all but the first, which meets an empty bank
    assert 0.9 < found["similarity"] < 1.0
    assert found["trial_loss"] > 0
    assert found["similarity_error"] < 0.1
    assert json.loads(json.dumps(found)) == found


def test_one_entry_of_a_file_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    update_file(path, "NSR/A-v0", {"similarity": 0.5})
    update_file(path, "NSR/B-v0", {"similarity": 0.6})
    update_file(path, "NSR/A-v0", {"similarity": 0.7})
    assert json.loads(path.read_text()) == {
        "NSR/A-v0": {"similarity": 0.7},
        "NSR/B-v0": {"similarity": 0.6},
    }
    assert list(tmp_path.iterdir()) == [path]


def test_scores_of_other_routers_and_novelty_are_cut_apart_from_the_rest(short_id: str) -> None:
    arguments = {"router": "rls", "observe_signals": True}
    pool, found = calibrate(short_id, seeds=range(2), arguments=arguments)
    assert pool == "digits-permutation"
    assert set(found) == {"scores"}
    assert set(found["scores"]) == {"rls", "novelty/per_task"}
    for cut_ in found["scores"].values():
        assert 0.0 < cut_["threshold"] < 1.0
        assert cut_["error"] < 0.5, "better than no decision"
        assert (cut_["split"], cut_["episodes"], cut_["arrivals"]) == ("train", 2, 2 * 11)
        assert cut_["arguments"] == arguments
    assert found["scores"]["rls"]["error"] < 0.1
    assert json.loads(json.dumps(found)) == found


def test_scores_stay_when_the_rest_is_calibrated_and_the_rest_when_scores_are(
    tmp_path: Path,
) -> None:
    path = tmp_path / "thresholds.json"
    with pytest.raises(StateError, match=r"'a'.*first"):
        update_file(path, "a", {"scores": {"rls": {"threshold": 0.9}}})
    update_file(path, "a", {"similarity": 0.5, "rank_cuts": [1.0]})
    update_file(path, "a", {"scores": {"rls": {"threshold": 0.9}}})
    update_file(path, "a", {"scores": {"tree": {"threshold": 0.2}}})
    update_file(path, "a", {"scores": {"rls": {"threshold": 0.8}}})
    scores = {"rls": {"threshold": 0.8}, "tree": {"threshold": 0.2}}
    assert json.loads(path.read_text()) == {
        "a": {"similarity": 0.5, "rank_cuts": [1.0], "scores": scores}
    }
    update_file(path, "a", {"similarity": 0.6})
    assert json.loads(path.read_text()) == {"a": {"similarity": 0.6, "scores": scores}}


def test_thresholds_of_an_unknown_network_replace_none_of_a_known(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    update_file(path, "a", {"similarity": 0.5, "backbone": "one"})
    with pytest.raises(StateError, match=r"network that is known.*one"):
        update_file(path, "a", {"similarity": 0.7, "backbone": None})
    assert json.loads(path.read_text())["a"]["similarity"] == 0.5


def test_thresholds_of_another_network_come_beside(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    rls, tree = ({name: {"threshold": 0.9, "backbone": "one"}} for name in ("rls", "tree"))
    one, other = ({"similarity": 0.5, "backbone": name} for name in ("one", "other"))
    update_file(path, "a", one)
    update_file(path, "a", {"scores": rls})
    with pytest.raises(StateError, match=r"'a@other'.*first"):
        update_file(path, "a", {"scores": {"rls": {"threshold": 0.2, "backbone": "other"}}})
    update_file(path, "a", other)
    update_file(path, "a", {"scores": {"rls": {"threshold": 0.2, "backbone": "other"}}})
    update_file(path, "a", {"scores": tree})
    found = json.loads(path.read_text())
    assert set(found) == {"a", "a@other"}
    assert set(found["a"]["scores"]) == {"rls", "tree"}
    assert found["a@other"]["scores"]["rls"]["threshold"] == 0.2
    update_file(path, "a", {"scores": {"tree": {"threshold": 0.2}}})  # of one that is not known
    assert json.loads(path.read_text())["a"]["scores"]["tree"]["threshold"] == 0.2


def test_scores_of_a_network_do_not_come_under_another_one(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    one, unknown = {"threshold": 0.9, "backbone": "one"}, {"threshold": 0.3}
    update_file(path, "a", {"similarity": 0.5})  # with a network that is not known
    update_file(path, "a", {"scores": {"rls": one, "tree": unknown}})
    first = json.loads(path.read_text())["a"]
    update_file(path, "a", {"similarity": 0.6, "backbone": "other"})
    found = json.loads(path.read_text())
    assert found == {"a": first, "a@other": {"similarity": 0.6, "backbone": "other"}}
    update_file(path, "a", {"similarity": 0.7, "backbone": "one"})
    found = json.loads(path.read_text())
    assert found["a"] == {
        "similarity": 0.7, "backbone": "one", "scores": {"rls": one, "tree": unknown},
    }  # fmt: skip
    assert set(found) == {"a", "a@other"}


def test_where_scores_of_two_networks_were_mixed_those_of_the_network_stay(
    tmp_path: Path,
) -> None:
    path = tmp_path / "thresholds.json"
    scores = {name: {"threshold": 0.9, "backbone": name} for name in ("one", "other")}
    path.write_text(json.dumps({"a": {"similarity": 0.5, "scores": scores}}))
    update_file(path, "a", {"similarity": 0.6, "backbone": "one"})
    assert json.loads(path.read_text()) == {
        "a": {"similarity": 0.6, "backbone": "one", "scores": {"one": scores["one"]}}
    }


def test_an_entry_of_the_very_network_is_replaced_where_another_is_of_none(
    tmp_path: Path,
) -> None:
    path = tmp_path / "thresholds.json"
    own = {"similarity": 0.5, "backbone": "other"}
    path.write_text(json.dumps({"a": {"similarity": 0.1}, "a@other": own}))
    update_file(path, "a", own | {"similarity": 0.6})
    assert json.loads(path.read_text()) == {
        "a": {"similarity": 0.1}, "a@other": own | {"similarity": 0.6},
    }  # fmt: skip
