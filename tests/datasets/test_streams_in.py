"""Avalanche benchmarks and arrays become tasks with an explicit order of visits.

Avalanche is not needed: the stand-in has what its 0.6 benchmarks have, as described in the
contract (streams of experiences, data sets with `targets`, items `(x, y)` or `(x, y, t)`).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nsr_gym.datasets import from_arrays, from_avalanche
from nsr_gym.errors import DataError, InvalidValueError, UnknownNameError


class Examples:
    """A data set of Avalanche: examples with or without a task label, and `targets`."""

    def __init__(self, x: torch.Tensor, y: Sequence[int], task: int | None = None) -> None:
        self.x, self.targets, self.task = x, list(y), task

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        example = (self.x[index], self.targets[index])
        return example if self.task is None else (*example, self.task)


def examples(seed: int, labels: Sequence[int], n: int = 8, task: int | None = None) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    y = [labels[i % len(labels)] for i in range(n)]
    return Examples(torch.rand(n, 1, 4, 4, generator=generator), y, task)


def benchmark(train: Sequence[Examples], test: Sequence[Examples]) -> Any:
    def stream(datasets: Sequence[Examples]) -> list[Any]:
        return [
            SimpleNamespace(dataset=data, current_experience=i) for i, data in enumerate(datasets)
        ]

    return SimpleNamespace(train_stream=stream(train), test_stream=stream(test))


@pytest.mark.parametrize("task", [None, 3])
def test_each_training_experience_is_a_visit_to_the_task_with_its_classes(
    task: int | None,
) -> None:
    a, b = examples(0, [0, 1], task=task), examples(1, [2, 3], task=task)
    found = from_avalanche(
        benchmark([b, a, b], [examples(2, [0, 1], 4), examples(3, [2, 3], 6)]), split="test"
    )
    assert [t.name for t in found.pool] == ["avalanche-1", "avalanche-0"]
    assert found.visits == (0, 1, 0)
    first = found.pool[0]
    assert first.classes == (2, 3)
    np.testing.assert_array_equal(first.x_train, b.x.numpy())
    assert first.y_train.tolist() == [0, 1] * 4
    assert len(first.y_test) == 6
    assert first.definition["train_experiences"] == [0, 2]
    stream = found.stream()
    assert stream.tasks == ("avalanche-1", "avalanche-0")
    assert stream.visits == (0, 1, 0)
    assert stream.is_return.tolist() == [False, False, True]
    assert stream.split == "test"


def test_experiences_with_the_same_classes_belong_together_by_number() -> None:
    domains = [examples(i, [0, 1]) for i in range(3)]
    tests = [examples(10 + i, [0, 1], 2 + 2 * i) for i in range(3)]
    found = from_avalanche(benchmark(domains, tests), split="train", name="domains")
    assert found.visits == (0, 1, 2)
    assert [len(task.y_test) for task in found.pool] == [2, 4, 6]


def test_an_explicit_order_says_what_belongs_together() -> None:
    a, b = examples(0, [0, 1]), examples(1, [0, 1])
    made = benchmark([a, b, a, b], [examples(5, [0, 1]), examples(6, [0, 1])])
    with pytest.raises(InvalidValueError, match="pass `order`"):
        from_avalanche(made, split="test")
    assert from_avalanche(made, split="test", order=[1, 0, 1, 0]).visits == (0, 1, 0, 1)
    with pytest.raises(InvalidValueError, match="one entry for each of 4"):
        from_avalanche(made, split="test", order=[0, 1])
    with pytest.raises(InvalidValueError, match=r"order as a list of whole numbers in 0\.\.1"):
        from_avalanche(made, split="test", order=[0, 1, 2, 0])


def test_visits_with_other_examples_of_one_task_are_joined_only_where_asked() -> None:
    a, more, b = examples(0, [0, 1]), examples(1, [0, 1], 4), examples(2, [2, 3])
    made = benchmark([a, b, more, a], [examples(5, [0, 1]), examples(6, [2, 3])])
    with pytest.raises(DataError, match="experience 2 brings other examples"):
        from_avalanche(made, split="test")
    joined = from_avalanche(made, split="test", join=True)
    assert joined.visits == (0, 1, 0, 0)
    np.testing.assert_array_equal(joined.pool[0].x_train, np.concatenate([a.x, more.x]))
    assert joined.pool[0].definition["examples_per_visit"] == [8, 4, 8]


def test_classes_can_be_given_for_a_head_over_all_of_them() -> None:
    made = benchmark(
        [examples(0, [0, 1]), examples(1, [2, 3])], [examples(5, [0, 1]), examples(6, [2, 3])]
    )
    found = from_avalanche(made, split="test", classes=[3, 2, 1, 0])
    assert [task.classes for task in found.pool] == [(3, 2, 1, 0)] * 2
    assert found.pool[1].y_train.tolist() == [1, 0] * 4


def test_what_is_no_benchmark_is_refused() -> None:
    whole = [examples(0, [0, 1])]
    with pytest.raises(DataError, match="0 for training"):
        from_avalanche(benchmark([], whole), split="test")
    with pytest.raises(UnknownNameError, match="no split"):
        from_avalanche(benchmark(whole, whole), split="all")
    picture = Examples(torch.rand(2, 4), [0, 1])
    picture.x = ["a", "b"]  # type: ignore[assignment]
    with pytest.raises(DataError, match="ToTensor"):
        from_avalanche(benchmark([picture], [picture]), split="test")


def test_arrays_become_tasks_and_visits_by_name_or_position() -> None:
    x, y = np.arange(12.0).reshape(4, 3), [0, 1, 0, 1]
    tasks = {"a": (x, y, x[:2], y[:2]), "b": (x + 1, y, x[:2], y[:2])}
    assert from_arrays(tasks, split="train").visits == (0, 1)
    named = from_arrays(tasks, split="train", visits=["b", "a", "b"], name="mine")
    assert named.visits == (1, 0, 1)
    assert named.stream().hash == from_arrays(tasks, split="train", visits=[1, 0, 1]).stream().hash
    with pytest.raises(UnknownNameError, match="'c'"):
        from_arrays(tasks, split="train", visits=["a", "c"])
    assert from_arrays(tasks, split="train", visits=np.array([1, 0])).visits == (1, 0)
    for wrong in ([], [0, 2], [-1], [0.5], [True], [None], np.zeros(0, int)):
        with pytest.raises(InvalidValueError, match="visits as a list of whole numbers"):
            from_arrays(tasks, split="train", visits=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("visits", ["a", "ab", b"ab", 1, {"a": 1}, {0}, np.array(1), np.eye(2)])
def test_visits_that_are_no_list_are_refused(visits: Any) -> None:
    task = (np.eye(2), [0, 1], np.eye(2), [0, 1])
    with pytest.raises(InvalidValueError, match=r"list of task names or of positions in 0\.\.1"):
        from_arrays({"a": task, "b": task}, split="train", visits=visits)


@pytest.mark.parametrize("arrays", [None, 4, "four", np.array(4)])
def test_a_task_that_is_no_list_of_arrays_is_named(arrays: Any) -> None:
    with pytest.raises(DataError, match="Task 'a': expected a list of the 4 arrays"):
        from_arrays({"a": arrays}, split="train")


@pytest.mark.parametrize("what", [None, 3, SimpleNamespace(train_stream=4, test_stream=4)])
def test_what_has_no_streams_is_no_benchmark(what: Any) -> None:
    with pytest.raises(DataError, match="benchmark of Avalanche"):
        from_avalanche(what, split="test")


@pytest.mark.parametrize(
    "experience",
    [
        None,
        SimpleNamespace(current_experience=1),
        SimpleNamespace(current_experience=1, dataset=None),
        SimpleNamespace(current_experience=1, dataset=iter([])),
        SimpleNamespace(dataset=examples(0, [0, 1])),
    ],
)
def test_an_experience_that_lacks_something_is_named(experience: Any) -> None:
    made = benchmark([examples(0, [0, 1])], [examples(1, [0, 1])])
    made.test_stream.append(experience)
    with pytest.raises(DataError, match=r"experiences of test_stream .* number 1"):
        from_avalanche(made, split="test")


@pytest.mark.parametrize("order", [0, "01", {0: 1}, [[0], [1]]])
def test_an_order_that_is_no_list_is_refused(order: Any) -> None:
    whole = [examples(0, [0, 1]), examples(1, [2, 3])]
    with pytest.raises(InvalidValueError, match="order as a list of whole numbers"):
        from_avalanche(benchmark(whole, whole), split="test", order=order)


class Unlabelled(Examples):
    """Examples with labels, but without a list of all labels that can be read."""

    def __init__(self, whole: Examples, targets: Any) -> None:
        super().__init__(whole.x, whole.targets)
        self.labels = self.targets
        self.targets = targets
        if targets == "none":
            del self.targets

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.x[index], self.labels[index]


@pytest.mark.parametrize("targets", ["none", None, 3, ["a", "b"]])
def test_without_targets_an_order_is_asked_for_and_is_enough(targets: Any) -> None:
    data = [examples(0, [0, 1]), Unlabelled(examples(1, [2, 3]), targets)]
    made = benchmark(data, [examples(2, [0, 1]), examples(3, [2, 3])])
    with pytest.raises(DataError, match=r"of experience 1 has none .* Pass `order`"):
        from_avalanche(made, split="test")
    assert from_avalanche(made, split="test", order=[0, 1]).visits == (0, 1)
