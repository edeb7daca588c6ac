"""The recursion gives the weights of one joint ridge regression, however the data came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from nsr_gym.errors import InvalidValueError, StateError, UnknownNameError
from nsr_gym.routing.expansion import RandomExpansion
from nsr_gym.routing.ridge import RecursiveRidge

BANKS, TASKS, ROWS, D, WIDTH = 2, 8, 45, 16, 128
ALL = torch.arange(BANKS)
FORMS = ["gram", "recursive"]


@pytest.fixture(scope="module")
def data() -> Tensor:
    """ReLU features of 8 tasks, (banks, tasks, rows, width)."""
    g = torch.Generator().manual_seed(3)
    centres = torch.randn(BANKS, TASKS, 1, D, generator=g)
    z = centres + 0.5 * torch.randn(BANKS, TASKS, ROWS, D, generator=g)
    return RandomExpansion(feature_dim=D, width=WIDTH, normalise=False, seed=1)(z)


def joint(data: Tensor, lam: float, sizes: list[int] | None = None) -> Tensor:
    """Ridge on everything at once, as an ordinary least-squares problem with lam added as rows.

    With sizes n_c, class c has that many rows and weighs in by N / (C n_c).
    """
    sizes = sizes or [ROWS] * TASKS
    x = torch.cat([data[:, t, :n] for t, n in enumerate(sizes)], 1)
    y = torch.cat([torch.eye(TASKS).double()[t].expand(n, -1) for t, n in enumerate(sizes)])
    mean = sum(sizes) / len(sizes)
    root = torch.cat([torch.full((n,), (mean / n) ** 0.5, dtype=torch.float64) for n in sizes])[
        :, None
    ]
    x = torch.cat([root * x, lam**0.5 * torch.eye(WIDTH).double().expand(BANKS, -1, -1)], 1)
    y = torch.cat([root * y, torch.zeros(WIDTH, TASKS).double()])
    return torch.linalg.lstsq(x, y.expand(BANKS, -1, -1)).solution


def learn(
    data: Tensor, order: Sequence[int], batch: int, sizes: list[int] | None = None, **arguments: Any
) -> RecursiveRidge:
    ridge = RecursiveRidge(num_banks=BANKS, width=WIDTH, **arguments)
    for task in order:
        ridge.grow(max(ridge.columns, task + 1))
        for x in data[:, task, : (sizes or [ROWS] * TASKS)[task]].split(batch, 1):
            ridge.update(ALL, x, torch.full((BANKS,), task))
    return ridge


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


ORDERS = {
    "forward": range(TASKS),
    "backward": range(TASKS)[::-1],
    "mixed": (3, 0, 7, 1, 6, 2, 5, 4),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lam", [1.0, 100.0])
@pytest.mark.parametrize("batch", [1, 7, ROWS])
@pytest.mark.parametrize("order", list(ORDERS.values()), ids=list(ORDERS))
def test_any_batches_and_any_task_order_give_the_joint_solution(
    data: Tensor, order: Sequence[int], batch: int, lam: float, form: str
) -> None:
    ridge = learn(data, order, batch, lam=lam, form=form)
    assert error(ridge.solution(ALL), joint(data, lam)) <= 1e-8


@pytest.mark.parametrize("form", FORMS)
def test_the_joint_solution_is_met_at_the_width_of_the_acceptance_check(form: str) -> None:
    g = torch.Generator().manual_seed(0)
    expand = RandomExpansion(feature_dim=64, width=512, normalise=False)
    x = expand(torch.randn(1, 8, 150, 64, generator=g) + torch.randn(1, 8, 1, 64, generator=g))
    ridge = RecursiveRidge(num_banks=1, width=512, columns=8, form=form)
    for task in range(8):
        ridge.update(torch.zeros(1).long(), x[:, task], torch.tensor([task]))
    flat, y = x[0].flatten(0, 1), torch.eye(8).double().repeat_interleave(150, 0)
    rows = torch.cat([flat, torch.eye(512).double()])
    wanted = torch.linalg.lstsq(rows, torch.cat([y, torch.zeros(512, 8).double()])).solution
    assert error(ridge.solution(torch.zeros(1).long())[0], wanted) <= 1e-8


@pytest.mark.parametrize("form", FORMS)
def test_r_is_the_inverse_and_symmetric_positive_definite(data: Tensor, form: str) -> None:
    ridge = learn(data, list(range(TASKS)), 7, form=form)
    x = data.flatten(1, 2)
    system = x.mT @ x + torch.eye(WIDTH).double()
    r = ridge.covariance(ALL)
    assert float((r @ system - torch.eye(WIDTH).double()).abs().max()) <= 1e-8
    assert torch.equal(r, r.mT)
    assert float(torch.linalg.eigvalsh(r).min()) > 0


@pytest.mark.parametrize("form", FORMS)
def test_a_label_for_each_row_does_what_whole_tasks_do(data: Tensor, form: str) -> None:
    g = torch.Generator().manual_seed(5)
    mixed = torch.randperm(TASKS * ROWS, generator=g)
    labels = torch.arange(TASKS).repeat_interleave(ROWS)[mixed].expand(BANKS, -1)
    for weighting in ["none"] + ["inverse_count"] * (form == "gram"):
        ridge = RecursiveRidge(
            num_banks=BANKS, width=WIDTH, columns=TASKS, form=form, weighting=weighting
        )
        ridge.update(ALL, data.flatten(1, 2)[:, mixed], labels)
        assert error(ridge.solution(ALL), joint(data, 1.0)) <= 1e-8


def test_inverse_counts_give_the_weighted_joint_solution(data: Tensor) -> None:
    sizes = [45, 3, 20, 1, 7, 45, 12, 30]
    weighted = learn(data, [6, 2, 0, 7, 1, 5, 3, 4], 4, sizes, weighting="inverse_count")
    assert error(weighted.solution(ALL), joint(data, 1.0, sizes)) <= 1e-8
    plain = learn(data, list(range(TASKS)), 4, sizes)
    assert error(plain.solution(ALL), joint(data, 1.0, sizes)) > 1e-2


def test_equal_counts_make_inverse_counts_the_plain_solution(data: Tensor) -> None:
    weighted = learn(data, list(range(TASKS)), ROWS, weighting="inverse_count")
    assert error(weighted.solution(ALL), joint(data, 1.0)) <= 1e-8


def test_a_linear_expansion_has_the_rank_of_the_features_and_relu_has_full_rank() -> None:
    z = torch.randn(400, D, generator=torch.Generator().manual_seed(2))
    for relu, rank in ((False, D), (True, WIDTH)):
        x = RandomExpansion(feature_dim=D, width=WIDTH, relu=relu)(z)
        assert int(torch.linalg.matrix_rank(x)) == rank


def test_expanded_features_follow_from_the_seed_and_not_from_their_length() -> None:
    z = torch.randn(5, D)
    expand = RandomExpansion(feature_dim=D, width=9, seed=4)
    assert torch.equal(expand(z), RandomExpansion(feature_dim=D, width=9, seed=4)(z))
    assert not torch.equal(expand(z), RandomExpansion(feature_dim=D, width=9, seed=5)(z))
    assert torch.allclose(expand(z), expand(7 * z.double()), rtol=1e-6)
    raw = RandomExpansion(feature_dim=D, width=9, normalise=False)
    assert torch.allclose(raw(7 * z.double()), 7 * raw(z.double()))


@pytest.mark.parametrize("form", FORMS)
def test_growing_leaves_old_columns_and_starts_new_ones_at_zero(data: Tensor, form: str) -> None:
    ridge = learn(data, [0, 1], ROWS, form=form)
    before = ridge.solution(ALL)
    ridge.grow(5)
    after = ridge.solution(ALL)
    assert torch.allclose(after[..., :2], before, rtol=1e-12, atol=1e-15)
    assert not after[..., 2:].any()
    with pytest.raises(InvalidValueError, match="columns already"):
        ridge.grow(4)


@pytest.mark.parametrize(
    ("form", "weighting"), [("gram", "none"), ("recursive", "none"), ("gram", "inverse_count")]
)
def test_moving_classes_is_as_if_their_rows_had_been_of_the_target(
    data: Tensor, form: str, weighting: str
) -> None:
    ridge = learn(data, [0, 1, 2, 3], ROWS, form=form, weighting=weighting)
    # Bank 0 gives up classes 1 and 3, bank 1 class 2.
    ridge.move(torch.tensor([0, 1, 0]), torch.tensor([1, 2, 3]), 0)
    wanted = RecursiveRidge(num_banks=BANKS, width=WIDTH, columns=4, form=form, weighting=weighting)
    for task, labels in enumerate([(0, 0), (0, 1), (2, 0), (0, 3)]):
        wanted.update(ALL, data[:, task], torch.tensor(labels))
    assert error(ridge.solution(ALL), wanted.solution(ALL)) <= 1e-8
    assert torch.equal(ridge.seen(ALL), wanted.seen(ALL))
    assert ridge.nbytes(ALL).tolist() == wanted.nbytes(ALL).tolist()


def test_forgetting_with_inverse_counts_is_as_if_the_class_had_never_come(data: Tensor) -> None:
    ridge = learn(data, [0, 1, 2], ROWS, weighting="inverse_count")
    ridge.forget(ALL, torch.tensor([1, 1]))
    without = learn(data, [0, 2], ROWS, weighting="inverse_count")
    assert torch.equal(ridge.solution(ALL), without.solution(ALL))
    assert ridge.nbytes(ALL).tolist() == without.nbytes(ALL).tolist()


@pytest.mark.parametrize("form", FORMS)
def test_clearing_a_bank_leaves_the_others(data: Tensor, form: str) -> None:
    ridge = learn(data, [0, 1], ROWS, form=form)
    before = ridge.solution(ALL)
    ridge.clear(torch.tensor([0]))
    assert not ridge.solution(torch.tensor([0])).any()
    assert torch.equal(ridge.solution(torch.tensor([1]))[0], before[1])
    ridge.update(torch.tensor([0]), data[:1, 0], torch.tensor([0]))
    ridge.update(torch.tensor([0]), data[:1, 1], torch.tensor([1]))
    assert torch.allclose(ridge.solution(torch.tensor([0]))[0], before[0], atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_the_state_brings_everything_back_and_fits_no_other_regression(
    data: Tensor, form: str
) -> None:
    ridge = learn(data, [0, 1], 7, form=form)
    again = RecursiveRidge(num_banks=BANKS, width=WIDTH, form=form)
    again.restore(ridge.state())
    assert torch.equal(again.solution(ALL), ridge.solution(ALL))
    for one in (ridge, again):
        one.update(ALL, data[:, 2], torch.tensor([1, 0]))
    assert torch.equal(again.solution(ALL), ridge.solution(ALL))
    other = FORMS[1 - FORMS.index(form)]
    with pytest.raises(InvalidValueError, match="lacks"):
        RecursiveRidge(num_banks=BANKS, width=WIDTH, form=other).restore(ridge.state())
    with pytest.raises(InvalidValueError, match="shapes"):
        RecursiveRidge(num_banks=BANKS, width=9, form=form).restore(ridge.state())


def test_bytes_are_one_gram_matrix_and_a_column_for_each_class(data: Tensor) -> None:
    assert RecursiveRidge(num_banks=BANKS, width=WIDTH).nbytes(ALL).tolist() == [0, 0]
    plain = learn(data, [0, 1, 2], ROWS)
    assert plain.nbytes(ALL).tolist() == [8 * (WIDTH**2 + 3 * WIDTH)] * 2
    by_class = learn(data, [0, 1, 2], ROWS, weighting="inverse_count")
    assert by_class.nbytes(ALL).tolist() == [8 * 3 * (WIDTH**2 + WIDTH)] * 2


def test_arguments_that_cannot_be_used_are_refused(data: Tensor) -> None:
    with pytest.raises(InvalidValueError, match="lam"):
        RecursiveRidge(num_banks=1, width=4, lam=0.0)
    with pytest.raises(InvalidValueError, match="inverse_count"):
        RecursiveRidge(num_banks=1, width=4, form="recursive", weighting="inverse_count")
    with pytest.raises(UnknownNameError, match="gram"):
        RecursiveRidge(num_banks=1, width=4, form="grm")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="inverse_count"):
        RecursiveRidge(num_banks=1, width=4, weighting="inverse")  # type: ignore[arg-type]
    ridge = learn(data, [0], ROWS, form="recursive")
    with pytest.raises(InvalidValueError, match="Call grow"):
        ridge.update(ALL, data[:, 1], torch.tensor([0, 1]))
    with pytest.raises(StateError, match="keeps no Gram"):
        ridge.gram(ALL)
