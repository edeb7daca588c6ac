r"""Minimise sum_j c_j / p_j, p linear in distributions: the convex programme of reading C.

The variables are distributions x(.|o), one for each symbol o, and p_j = sum_o sum_a B[j, o, a]
x(a|o) are the probabilities that a try succeeds. 1/p is convex, so the programme has no other local
optima, and any feasible point proves a bound on the optimum (`lower_bound`).
"""

from __future__ import annotations

import numpy as np

from nsr_gym.regret.problems import Floats

_GROWTH, _ROUNDS, _NEWTON = 10.0, 12, 50
_NEAR, _THERE = 1 / 64, 1e-6  # squared length of a Newton step that needs no search; that is none


def minimise_inverse(counts: Floats, maps: Floats, start: Floats) -> Floats:
    """Return distributions that minimise sum_j c_j / p_j.

    A barrier method: for growing t, Newton's method minimises t f(x) - sum log x on the simplices.
    At its optimum `lower_bound` is within O A / t of f, so that the result needs no trust.
    Steps are taken in units of x, which keeps the equations in good order near the boundary.

    Args:
        counts: (J,) c, positive.
        maps: (J, O, A) B, at least 0; every j has a positive entry.
        start: (O, A) distributions, every entry positive.

    Returns:
        (O, A) distributions, every entry positive.
    """
    o, a = start.shape
    columns = maps.reshape(len(counts), o * a)
    simplex: Floats = np.repeat(
        np.eye(o), a, axis=1
    )  # (O, O A) sums over each symbol's allocations
    x = start.ravel().copy()
    sharpness = o * a / _objective(counts, columns, x)
    for _ in range(_ROUNDS):
        sharpness *= _GROWTH
        for _ in range(_NEWTON):
            step, decrement = _newton(sharpness, counts, columns, simplex, x)
            length = 1.0
            # 4 (t f - sum log x) is self-concordant (1/p bends no faster than log x lets it), so
            # that full steps converge once they are short. Searching there compares rounding.
            if decrement > _NEAR:
                length = _length(sharpness, counts, columns, x, step, decrement)
            x *= 1.0 + length * step
            x /= np.repeat(simplex @ x, a)
            if decrement < _THERE:
                break
    return np.asarray(x.reshape(o, a))


def lower_bound(counts: Floats, maps: Floats, point: Floats) -> float:
    """Return a bound that sum_j c_j / p_j is nowhere below, proved by the gradient at a point.

    f is convex: f(y) >= f(x) + grad f(x) . (y - x), and the right side is least where every
    symbol's distribution puts all on the smallest entry of the gradient.

    Args:
        counts: (J,) c, at least 0; j with c_j = 0 do not count.
        maps: (J, O, A) B.
        point: (O, A) distributions x with p_j > 0 wherever c_j > 0.
    """
    used = counts > 0
    c, b = counts[used], maps[used]
    p = np.einsum("joa,oa->j", b, point)
    gradient = -np.einsum("j,joa->oa", c / p**2, b)
    return float((c / p).sum() + gradient.min(axis=1).sum() - (gradient * point).sum())


def _objective(counts: Floats, columns: Floats, x: Floats) -> float:
    return float((counts / (columns @ x)).sum())


def _newton(
    sharpness: float, counts: Floats, columns: Floats, simplex: Floats, x: Floats
) -> tuple[Floats, float]:
    """Return the Newton step relative to x and the decrease that it promises, doubled."""
    p = columns @ x
    scaled, sums = columns * x, simplex * x  # by x, as the step is
    slope = -sharpness * (counts / p**2) @ columns
    # What the simplex takes up anyway is large and goes first; what is left is small.
    level = simplex.T @ ((simplex @ ((slope * x - 1.0) * x)) / (simplex @ x**2))
    gradient = (slope - level) * x - 1.0
    # The Hessian is I + G^T D^-1 G; keeping D apart keeps large and small numbers apart.
    n, j = len(x), len(counts)
    system = np.zeros((n + j + len(sums),) * 2)
    system[:n, :n] = np.eye(n)
    system[n:, :n] = np.concatenate([scaled, sums])
    system[:n, n:] = system[n:, :n].T
    diagonal = p**3 / (2.0 * sharpness * counts)
    system[range(n, n + j), range(n, n + j)] = -diagonal
    right = np.concatenate([-gradient, np.zeros(j + len(sums))])
    step = np.linalg.solve(system, right)[:n]
    # Not -gradient @ step, which is a small difference of large numbers.
    return step, float(step @ step + ((scaled @ step) ** 2 / diagonal).sum())


def _length(
    sharpness: float, counts: Floats, columns: Floats, x: Floats, step: Floats, decrement: float
) -> float:
    """Return how far to go so that x stays inside and the barrier's objective falls enough."""
    length = min(1.0, -0.95 / min(float(step.min()), -1e-300))
    p, direction = columns @ x, columns @ (x * step)
    for _ in range(40):
        # Differences of the terms, not of sums that are large and nearly equal.
        fall = counts * length * direction / (p * (p + length * direction))
        if sharpness * fall.sum() + np.log1p(length * step).sum() >= 0.1 * length * decrement:
            break
        length /= 2.0
    return length
