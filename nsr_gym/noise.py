"""Random numbers by position: a function of (key, counter), without a generator that has a state.

An episode draws one key when it begins; every number it ever needs follows from the key and from
where it is needed. A thousand episodes side by side draw theirs in one array operation, and each
draws what it would have drawn alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniform(keys: ArrayLike, counters: ArrayLike) -> NDArray[np.float64]:
    """Return numbers in [0, 1), one for each pair of key and counter.

    Steele, Lea and Flood's SplitMix64 (OOPSLA 2014): the counter-th output of the generator that
    is seeded with the mixed key, its upper 53 bits.

    Args:
        keys: non-negative whole numbers below 2^64.
        counters: the same; broadcast against the keys.

    Returns:
        float64 of the broadcast shape.
    """
    state = np.asarray(keys).astype(np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        state = (
            _mix(state + _GOLDEN)
            + (np.asarray(counters).astype(np.uint64) + np.uint64(1)) * _GOLDEN
        )
        return np.asarray((_mix(state) >> np.uint64(11)) * 2.0**-53)


def normal(keys: ArrayLike, counters: ArrayLike) -> NDArray[np.float64]:
    """Return standard normal numbers, one for each pair of key and counter.

    The inverse of the normal distribution function at `uniform` of the same pair, moved to the
    middle of its interval, so that 0 does not become minus infinity.

    Args:
        keys: as for `uniform`.
        counters: the same; broadcast against the keys.

    Returns:
        float64 of the broadcast shape.
    """
    from scipy.special import ndtri

    return np.asarray(ndtri(uniform(keys, counters) + 2.0**-54))


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX[0]
    z = (z ^ (z >> np.uint64(27))) * _MIX[1]
    return z ^ (z >> np.uint64(31))
