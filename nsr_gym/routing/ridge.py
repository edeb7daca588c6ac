"""Recursive least squares with a random expansion: the analytic core of ASR and ACIL.

The weights after any sequence of updates are those of one ridge regression on everything that came
(Any-SSR / ASR, arXiv 2503.13575; ACIL, Zhuang et al. 2022). What holds is equality of *weights*:
the joint solution itself moves when a class is added, so an input may well change its route.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsr_gym.errors import InvalidValueError, StateError, unknown
from nsr_gym.routing.arrays import check_count, check_positive
from nsr_gym.routing.base import Ints

Form = Literal["gram", "recursive"]
Weighting = Literal["none", "inverse_count"]


class RecursiveRidge:
    """Ridge regression on one-hot targets, learned batch by batch, for E banks side by side.

    `W = (sum X^T X + lam I)^-1 sum X^T Y`, all in float64 (the recursion diverges in float32).
    Two equivalent forms:

    - "gram" keeps `G = sum X^T X` and `Q = sum X^T Y` and solves by Cholesky when it is read.
      Symmetric by construction, and the safer one;
    - "recursive" keeps `R = (G + lam I)^-1` and `W`:
      `R <- R - R X^T (I + X R X^T)^-1 X R`, then `W <- W + R X^T (Y - X W)` with the new R.

    Columns may be added at any time; a new one starts at zero, because its `Q` is zero.

    With `weighting="inverse_count"` every class c has a Gram matrix of its own and weighs in with
    `N / (C n_c)`, where n_c of the N rows and C classes seen belong to it: in proportion to
    `1 / n_c`, scaled so that equal counts leave the plain solution, and lam its meaning. Costs
    C Gram matrices instead of one, and needs the "gram" form.

    Args:
        num_banks: E.
        width: number of inputs.
        columns: classes at the start.
        lam: the regulariser, above 0.
        form: "gram" or "recursive".
        weighting: "none" or "inverse_count".
        device: a torch device.

    Raises:
        InvalidValueError: a number out of range, or inverse counts with the recursive form.
        UnknownNameError: a form or weighting that does not exist.
    """

    def __init__(
        self,
        *,
        num_banks: int,
        width: int,
        columns: int = 0,
        lam: float = 1.0,
        form: Form = "gram",
        weighting: Weighting = "none",
        device: str = "cpu",
    ) -> None:
        check_count("num_banks", num_banks)
        check_count("width", width)
        check_positive("lam", lam)
        if form not in get_args(Form):
            raise unknown("form of the ridge regression", form, get_args(Form))
        if weighting not in get_args(Weighting):
            raise unknown("weighting", weighting, get_args(Weighting))
        if form == "recursive" and weighting == "inverse_count":
            raise InvalidValueError(
                "inverse_count needs a Gram matrix for each class; use form='gram' with it."
            )
        self.num_banks, self.width, self.columns = num_banks, width, 0
        self.lam, self.form, self.weighting = float(lam), form, weighting
        self.device = torch.device(device)
        self._eye = torch.eye(width, dtype=torch.float64, device=self.device)
        self._by_class = weighting == "inverse_count"
        self._name = "inverse" if form == "recursive" else "gram"
        grams = (num_banks, 0, width, width) if self._by_class else (num_banks, width, width)
        self._square = self._zeros(*grams)
        self._targets = self._zeros(num_banks, width, 0)
        self._counts = self._zeros(num_banks, 0)
        self._solved = self._zeros(num_banks, width, 0)
        self._stale = torch.ones(num_banks, dtype=torch.bool, device=self.device)
        self.grow(columns)
        self.clear(torch.arange(num_banks, device=self.device))

    def grow(self, columns: int) -> None:
        """Have `columns` classes from now on; those that are there stay.

        Raises:
            InvalidValueError: fewer than there are.
        """
        more = columns - self.columns
        if more < 0:
            raise InvalidValueError(f"There are {self.columns} columns already; got {columns}.")
        e, w = self.num_banks, self.width
        self._targets = torch.cat([self._targets, self._zeros(e, w, more)], -1)
        self._solved = torch.cat([self._solved, self._zeros(e, w, more)], -1)
        self._counts = torch.cat([self._counts, self._zeros(e, more)], -1)
        if self._by_class:
            self._square = torch.cat([self._square, self._zeros(e, more, w, w)], 1)
        self.columns = columns

    def clear(self, rows: Tensor) -> None:
        """Forget everything about banks `rows` (n,)."""
        self._square[rows] = self._eye / self.lam if self.form == "recursive" else 0.0
        self._targets[rows] = 0.0
        self._counts[rows] = 0.0
        self._stale[rows] = True

    def update(self, rows: Tensor, x: Tensor, labels: Tensor) -> None:
        """Take in m rows for each of n different banks.

        Args:
            rows: (n,) banks, each once.
            x: (n, m, width).
            labels: classes, (n, m), or (n,) where all rows of a bank belong to one.

        Raises:
            InvalidValueError: a label beyond the columns there are.
        """
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.columns:
            raise InvalidValueError(
                f"Expected labels between 0 and {self.columns - 1}; got {int(labels.min())} to "
                f"{int(labels.max())}. Call grow first."
            )
        x = x.to(self.device, torch.float64)
        of_row = labels if labels.ndim == 2 else labels[:, None].expand(-1, x.shape[1])
        y = self._zeros(*x.shape[:2], self.columns)
        y.scatter_(2, of_row.unsqueeze(-1), 1.0)
        self._counts[rows] += y.sum(1)
        self._stale[rows] = True
        if self.form == "recursive":
            self._recur(rows, x, y)
            return
        self._targets[rows] += x.mT @ y
        if not self._by_class:
            self._square.index_add_(0, rows, x.mT @ x)
        elif labels.ndim == 1:
            self._square[rows, labels] += x.mT @ x
        else:
            for label in labels.unique().tolist():
                of_class = x * (labels == label).unsqueeze(-1)
                self._square[rows, label] += of_class.mT @ of_class

    def move(self, rows: Tensor, source: Tensor, target: int) -> None:
        """Let everything that belonged to classes `source` (n,) of `rows` (n,) be of `target`."""
        for part in (self._targets.mT, self._counts):
            moved = part[rows, source]
            part.index_put_((rows, torch.full_like(source, target)), moved, accumulate=True)
            part[rows, source] = 0.0
        if self._by_class:
            moved = self._square[rows, source]
            where = rows, torch.full_like(source, target)
            self._square.index_put_(where, moved, accumulate=True)
            self._square[rows, source] = 0.0
        self._stale[rows] = True

    def forget(self, rows: Tensor, labels: Tensor) -> None:
        """Take classes `labels` (n,) of `rows` (n,) out of the targets.

        With inverse counts it is as if they had never come. Otherwise what they added to the
        shared Gram matrix cannot be taken out again: their inputs stay, as examples of no class.
        """
        self._targets.mT[rows, labels] = 0.0
        self._counts[rows, labels] = 0.0
        if self._by_class:
            self._square[rows, labels] = 0.0
        self._stale[rows] = True

    def solution(self, rows: Tensor) -> Tensor:
        """Return the weights W of banks `rows`, (n, width, columns)."""
        if self.form == "recursive":
            return self._targets[rows]
        stale = rows[self._stale[rows]].unique()
        if len(stale):
            square, targets = self._system(stale)
            factor = torch.linalg.cholesky(self._regularised(square))
            self._solved[stale] = torch.cholesky_solve(targets, factor)
            self._stale[stale] = False
        return self._solved[rows]

    def covariance(self, rows: Tensor) -> Tensor:
        """Return `R = (G + lam I)^-1` of banks `rows`, (n, width, width)."""
        if self.form == "recursive":
            return self._square[rows]
        square, _ = self._system(rows)
        return torch.cholesky_inverse(torch.linalg.cholesky(self._regularised(square)))

    def gram(self, rows: Tensor) -> Tensor:
        """Return G, weighted as the classes are, (n, width, width).

        Raises:
            StateError: in the recursive form, which does not keep it.
        """
        if self.form == "recursive":
            raise StateError("The recursive form keeps no Gram matrix; use form='gram'.")
        return self._system(rows)[0]

    def seen(self, rows: Tensor) -> Tensor:
        """Return which classes have rows, (n, columns) bool."""
        return self._counts[rows] > 0

    def nbytes(self, rows: Tensor) -> Ints:
        """Return the bytes kept for each of n banks, (n,); 0 for one that has learned nothing.

        Gram matrices (or R) and one column for each class that has rows. Solutions that are
        kept until the next update follow from these and are not counted.
        """
        classes = self.seen(rows).sum(1).cpu().numpy()
        squares = classes if self._by_class else classes > 0
        return np.asarray(8 * self.width * (squares * self.width + classes), dtype=np.int64)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return everything as arrays that `restore` takes."""
        parts = {self._name: self._square, "targets": self._targets, "counts": self._counts}
        return {name: part.cpu().numpy().copy() for name, part in parts.items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take what `state` gave, exactly.

        Raises:
            InvalidValueError: it is that of a regression with other arguments.
        """
        names = (self._name, "targets", "counts")
        if missing := set(names) - set(state):
            raise InvalidValueError(
                f"The state lacks {', '.join(sorted(missing))}; it is not one of a ridge "
                f"regression in the form {self.form!r}."
            )
        square, targets, counts = (np.array(state[name]) for name in names)
        w, columns = self.width, counts.shape[-1]
        grams = (self.num_banks, columns, w, w) if self._by_class else (self.num_banks, w, w)
        if square.shape != grams or targets.shape != (self.num_banks, w, columns):
            raise InvalidValueError(
                f"The state has shapes {square.shape} and {targets.shape}; {grams} and "
                f"{(self.num_banks, w, columns)} fit. Build with the arguments it was saved with."
            )
        self._square, self._targets, self._counts = (
            torch.from_numpy(part).to(self.device) for part in (square, targets, counts)
        )
        self._solved = torch.zeros_like(self._targets)
        self._stale[:] = True
        self.columns = columns

    def _recur(self, rows: Tensor, x: Tensor, y: Tensor) -> None:
        r, w = self._square[rows], self._targets[rows]
        xr = x @ r
        small = xr @ x.mT + torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        r = r - xr.mT @ torch.cholesky_solve(xr, torch.linalg.cholesky(small))
        # Rounding would slowly make R asymmetric, and then it need not stay positive definite.
        r = (r + r.mT) / 2
        self._square[rows] = r
        self._targets[rows] = w + r @ (x.mT @ (y - x @ w))

    def _regularised(self, square: Tensor) -> Tensor:
        """Add lam to the diagonals of a copy that nobody else holds."""
        square.diagonal(dim1=-2, dim2=-1).add_(self.lam)
        return square

    def _system(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if not self._by_class:
            return self._square[rows], self._targets[rows]
        counts = self._counts[rows]
        seen = (counts > 0).sum(-1, keepdim=True).clamp(min=1)
        total = counts.sum(-1, keepdim=True)
        share = torch.where(counts > 0, total / (seen * counts.clamp(min=1.0)), 0.0)
        square = torch.einsum("nc,ncij->nij", share, self._square[rows])
        return square, self._targets[rows] * share.unsqueeze(1)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)
