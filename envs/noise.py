"""Disturbs the embeddings of arriving tasks, so that similarity becomes unreliable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nsr_gym.envs.dynamics import Arrival, Floats, Ints
from nsr_gym.noise import normal

_ARRIVAL, _PROBE = (np.uint64(purpose << 32) for purpose in (0x656D6261, 0x656D6270))
"""Set these random numbers apart from others that follow from an episode's key."""


class EmbeddingNoise:
    """Turns an embedding e into e + sigma g / sqrt(d), normalised; g is standard normal, (d,).

    The length of the disturbance is about sigma, whatever d. What an arrival is disturbed by
    depends on the episode's key and the number of the visit, what a probe is disturbed by on the
    key and the task.
    """

    def __init__(self, num_episodes: int) -> None:
        self._keys = np.zeros(num_episodes, dtype=np.uint64)
        self._sigma = np.zeros(num_episodes)

    def begin(self, rows: Ints, keys: NDArray[np.uint64], sigma: Floats) -> None:
        """Start episodes `rows` with keys (n, 2) and sigma (n,)."""
        self._keys[rows] = keys[:, 0]
        self._sigma[rows] = sigma

    def disturb(self, arrival: Arrival) -> Arrival:
        """Return the arrival with other embeddings where sigma is not 0."""
        visits = arrival.visits
        sigma = self._sigma[visits.rows]
        noisy = np.flatnonzero(sigma)
        if not len(noisy):
            return arrival
        width = arrival.embedding.shape[1]
        purpose, numbers = (_PROBE, visits.tasks) if arrival.probe else (_ARRIVAL, visits.numbers)
        counters = numbers[noisy, None] * width + np.arange(width)
        drawn = normal(self._keys[visits.rows[noisy], None] ^ purpose, counters)
        moved = arrival.embedding[noisy] + sigma[noisy, None] / np.sqrt(width) * drawn
        # Rows are summed one by one, so that an episode's rounding does not depend on the others.
        length = np.sqrt(np.einsum("nd,nd->n", moved, moved))
        embedding = arrival.embedding.copy()
        embedding[noisy] = moved / length[:, None]
        return replace(arrival, embedding=embedding)
