"""DualGPM: which input directions of a site are protected, for E episodes side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from nsr_gym.errors import InvalidValueError
from nsr_gym.learning.checks import check_choice, check_count, check_share

Energy = Literal["covariance", "activations"]
"""What the energy of a direction u is, for inputs with covariance C: u^T C^2 u or u^T C u."""

_ROUNDING = 1e-12
"""Share of the energy that rounding may hide."""


@dataclass(frozen=True)
class Protection:
    """What protects some episodes.

    Attributes:
        vectors: (n, d, d // 2) orthonormal columns, zero from `counts` on.
        counts: (n,) int64, stored vectors.
        retain: (n,) bool; True: the vectors span the free space; False: the protected one.
    """

    vectors: Tensor
    counts: Tensor
    retain: Tensor

    def __getitem__(self, rows: Tensor) -> Protection:
        """Return what protects some of the episodes (a copy)."""
        return Protection(self.vectors[rows], self.counts[rows], self.retain[rows])


class DualGPM:
    """The protected input space of one site (InfLoRA, Liang and Li, CVPR 2024, arXiv 2404.00228).

    With C = (1/m) sum x x^T of a task's inputs and P the projector on the protected space, an
    update adds the leading directions of what is left of the task, F C with F = I - P, until P
    holds the share eps of its energy. A basis M of the smaller of the two spaces is stored:
    of the protected one ("remove": P = M M^T), or, where that has more than d/2 dimensions, of
    the free one ("retain": P = I - M M^T). So no more than d/2 vectors are ever stored.

    Energies: `"covariance"` sums squared singular values of C, as InfLoRA's released code does;
    `"activations"` sums those of the inputs, that is eigenvalues of C, as GPM (Saha and others,
    ICLR 2021) does, and protects more directions.

    Departures from the released code: the first task is counted as every other one (there it
    keeps one direction less than reaches eps), and eps may be constant, because an environment
    need not know how many tasks will come. Directions are found in the free space itself, so
    that none leans into the protected one by rounding.
    """

    def __init__(
        self,
        *,
        num_episodes: int,
        dimension: int,
        energy: Energy = "covariance",
        eps: float = 0.999,
        lame: float | None = None,
        horizon: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Start with nothing protected.

        Args:
            num_episodes: E.
            dimension: d, inputs of the site.
            energy: the convention.
            eps: share of a task's energy to protect, `lamb` of the schedule.
            lame: at which share the schedule eps_t = eps + (lame - eps) t / T ends; None: eps
                is constant.
            horizon: T, the tasks that will come; needed with `lame`. t counts an episode's
                updates from 0 and stays at T from then on.
            device: where the vectors are kept, in float64.

        Raises:
            UnknownNameError: an unknown convention.
            InvalidValueError: a share outside (0, 1], a count below 1, or `lame` without T.
        """
        check_choice("energy convention", energy, get_args(Energy))
        check_count("num_episodes", num_episodes)
        self.dimension = check_count("dimension", dimension)
        self._eps = check_share("eps", eps)
        self._lame = self._eps if lame is None else check_share("lame", lame)
        if lame is not None and horizon is None:
            raise InvalidValueError("Expected a horizon with lame, the number of tasks; got none.")
        self._horizon = 1 if horizon is None else check_count("horizon", horizon)
        self.energy = energy
        self._held = Protection(
            torch.zeros(num_episodes, dimension, dimension // 2, dtype=torch.float64).to(device),
            torch.zeros(num_episodes, dtype=torch.int64, device=device),
            torch.zeros(num_episodes, dtype=torch.bool, device=device),
        )
        self._updates = torch.zeros(num_episodes, dtype=torch.int64, device=device)

    def begin(self, rows: Tensor) -> None:
        """Protect nothing in episodes `rows` (n,)."""
        for part in (self._held.vectors, self._held.counts, self._held.retain, self._updates):
            part[rows] = 0

    def held(self, rows: Tensor) -> Protection:
        """Return what protects episodes `rows` (n,)."""
        return self._held[rows]

    def protected(self, rows: Tensor) -> Tensor:
        """Return the projectors P on the protected spaces, (n, d, d)."""
        return projector(self._held[rows])

    def free_dimension(self, rows: Tensor) -> Tensor:
        """Return d minus the dimension of the protected space, (n,) int64."""
        return _free(self._held[rows])

    def eps(self, rows: Tensor) -> Tensor:
        """Return the share of energy that the next update protects, (n,) float64."""
        part = self._updates[rows].double().div(self._horizon).clamp(max=1.0)
        return self._eps + (self._lame - self._eps) * part

    def design(
        self, covariance: Tensor, rows: Tensor, width: int, *, inside: bool = False
    ) -> Tensor:
        """Return the directions that a new task may best use without touching what is protected.

        They are the leading left singular vectors of H = C - P C, in both modes.

        Args:
            covariance: (n, d, d), C of the new task's inputs before it is trained.
            rows: (n,) episodes.
            width: how many to return, r.
            inside: whether to take those of P C instead, within what is protected.

        Returns:
            (n, r, d) orthonormal rows, zero rows beyond the dimension of the space.
        """
        held = self._held[rows]
        barred, dimension = projector(held), _free(held)
        if inside:
            one = torch.eye(self.dimension, dtype=barred.dtype, device=barred.device)
            barred, dimension = one - barred, self.dimension - dimension
        _, vectors = _spectrum(covariance @ covariance, barred)
        return leading(vectors, dimension, width)

    def updated(self, covariance: Tensor, rows: Tensor) -> Protection:
        """Return what protects episodes once a task is learned; nothing is stored yet.

        Args:
            covariance: (n, d, d), C of the task's inputs under the trained model.
            rows: (n,) episodes.
        """
        held, eps = self._held[rows], self.eps(rows)
        before, dimension = projector(held), _free(held)
        inner = covariance if self.energy == "activations" else covariance @ covariance
        values, vectors = _spectrum(inner, before)
        order = torch.arange(self.dimension, device=values.device)
        values = values.clamp(min=0.0).masked_fill(order >= dimension[:, None], 0.0)
        # What is left once the first 0, 1, 2, ... of the free directions are protected too.
        left = values.flip(1).cumsum(1).flip(1)
        added = (left > (1.0 - eps)[:, None] + _ROUNDING).sum(dim=1)
        free = dimension - added
        retain = self.dimension - free > self.dimension // 2
        kept = torch.where(retain, free, self.dimension - free)
        # Eigenvectors come with the free directions first and those of most energy leading: the
        # added ones, then those that stay free.
        slots = torch.arange(self.dimension // 2, device=values.device)
        remaining = _columns(vectors, added[:, None] + slots)
        # In "remove" the old vectors stay as they are and the added ones follow.
        after = slots - held.counts[:, None]
        extended = _columns(vectors, after.clamp(min=0))
        extended = torch.where((after < 0)[:, None, :], held.vectors, extended)
        chosen = torch.where(retain[:, None, None], remaining, extended)
        return Protection(chosen * (slots < kept[:, None])[:, None, :], kept, retain)

    def store(self, rows: Tensor, protection: Protection) -> None:
        """Keep what `updated` returned, for episodes `rows` (n,)."""
        self._held.vectors[rows] = protection.vectors
        self._held.counts[rows] = protection.counts
        self._held.retain[rows] = protection.retain
        self._updates[rows] += 1

    def nbytes(self, rows: Tensor) -> Tensor:
        """Return the bytes of the stored vectors, (n,) int64."""
        return self._held.counts[rows] * self.dimension * self._held.vectors.element_size()


def projector(protection: Protection) -> Tensor:
    """Return P on the protected spaces, (n, d, d)."""
    vectors = protection.vectors
    spanned = vectors @ vectors.mT
    one = torch.eye(vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
    return torch.where(protection.retain[:, None, None], one - spanned, spanned)


def leading(vectors: Tensor, available: Tensor, width: int) -> Tensor:
    """Return the first `width` columns of (n, d, d) as rows (n, width, d).

    Rows from `available` (n,) on are zero.
    """
    rows = vectors.mT[:, :width].contiguous()
    if rows.shape[1] < width:
        rows = torch.nn.functional.pad(rows, (0, 0, 0, width - rows.shape[1]))
    beyond = torch.arange(width, device=vectors.device) >= available[:, None]
    return rows.masked_fill(beyond[:, :, None], 0.0)


def _free(protection: Protection) -> Tensor:
    width = protection.vectors.shape[1]
    return torch.where(protection.retain, protection.counts, width - protection.counts)


def _columns(vectors: Tensor, at: Tensor) -> Tensor:
    at = at.clamp(max=vectors.shape[2] - 1)
    return vectors.gather(2, at[:, None, :].expand(-1, vectors.shape[1], -1))


def _spectrum(energy: Tensor, protected: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (n, d), as shares, and eigenvectors (n, d, d) of F K F; free ones first.

    Subtracting P moves the protected directions to the eigenvalue -1, away from every free one:
    without it, free directions of no energy share their eigenvalue 0 and mix with them.
    """
    one = torch.eye(energy.shape[-1], dtype=energy.dtype, device=energy.device)
    free = one - protected
    total = energy.diagonal(dim1=1, dim2=2).sum(dim=1)
    scale = total.clamp(min=torch.finfo(energy.dtype).tiny)[:, None, None]
    inner = free @ (energy / scale) @ free - protected
    values, vectors = torch.linalg.eigh((inner + inner.mT) / 2)
    return values.flip(1), vectors.flip(2)
