"""Retention rules: which entry goes when a bank is full.

A rule maps a bank and the rows in question to sort keys, most important first, each (n, K): the
entry with the smallest keys goes first, and the lower slot among equals. A first key of infinity
means "never goes": an addition that would need this entry's place is refused.

The keys come from the order of events within a bank, not from its visit clock, so no two entries
tie by having been touched in the same visit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nsr_gym.errors import unknown

if TYPE_CHECKING:
    from nsr_gym.bank.bank import TaskKnowledgeBank

Keys = tuple[NDArray[Any], ...]
RetentionRule = Callable[["TaskKnowledgeBank", NDArray[np.int64]], Keys]


def lru(bank: TaskKnowledgeBank, rows: NDArray[np.int64]) -> Keys:
    """Least recently used goes: recalled or written longest ago."""
    return (bank.used_order[rows],)


def fifo(bank: TaskKnowledgeBank, rows: NDArray[np.int64]) -> Keys:
    """First in, first out: created longest ago goes; updates do not renew."""
    return (bank.created_order[rows],)


def lfu(bank: TaskKnowledgeBank, rows: NDArray[np.int64]) -> Keys:
    """Least frequently used goes: fewest recalls, ties by least recently used."""
    return bank.times_recalled[rows], bank.used_order[rows]


def oldest_accuracy(bank: TaskKnowledgeBank, rows: NDArray[np.int64]) -> Keys:
    """The entry whose accuracy was measured longest ago goes; every write measures it anew."""
    return (bank.version[rows],)


def pin(bank: TaskKnowledgeBank, rows: NDArray[np.int64]) -> Keys:
    """Keep the first: nothing goes, and an addition to a full bank is refused."""
    return (np.full((len(rows), bank.slots), np.inf),)


def importance(bank: TaskKnowledgeBank, rows: NDArray[np.int64]) -> Keys:
    """Lowest importance goes, ties by least recently used."""
    return bank.importance[rows], bank.used_order[rows]


RETENTION_RULES: dict[str, RetentionRule] = {
    "lru": lru,
    "fifo": fifo,
    "lfu": lfu,
    "oldest-accuracy": oldest_accuracy,
    "pin": pin,
    "importance": importance,
}


def retention_rule(name: str) -> RetentionRule:
    """Look a rule up by its name.

    Raises:
        UnknownNameError: there is no such rule; the message names the closest ones.
    """
    if name not in RETENTION_RULES:
        raise unknown("retention rule", name, RETENTION_RULES)
    return RETENTION_RULES[name]
