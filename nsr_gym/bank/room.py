"""Making room: which entries go so that a new content fits a bank's capacity and byte budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nsr_gym.bank.arrays import NO_LIMIT, Bools, Ints, first

if TYPE_CHECKING:
    from nsr_gym.bank.bank import TaskKnowledgeBank


def make_room(
    bank: TaskKnowledgeBank, rows: Ints, growth: Ints, kept: Bools, *, keep: Ints | None = None
) -> tuple[Bools, Ints]:
    """Evict by the bank's retention rule until the new content fits.

    What entries share (a basis, a summary) counts in full with the first of them, so a newcomer
    that would not fit beside it alone is refused before anything goes for it.

    Args:
        bank: the banks.
        rows: (n,) distinct ones of them.
        growth: (n,) bytes that the content needs beyond what it replaces.
        kept: (n,) which contents are to be kept so far.
        keep: (n,) slots that the contents replace, which must not go; None where they are added.

    Returns:
        Which contents are kept (n,), and how many entries went for each (n,).
    """
    evicted = np.zeros(len(rows), dtype=np.int64)
    capacity, budget = bank.capacities[rows], bank.budgets[rows]
    sizes = bank._bytes
    slots_left = bytes_left = None
    if keep is None and bool((capacity < NO_LIMIT).any()):
        slots_left = capacity - 1 - bank.occupied[rows].sum(axis=1)
    if bool((budget < NO_LIMIT).any()):
        shared = sum(bank._shared(np.ones_like(growth)).values())
        alone = growth + shared if keep is None else growth + shared + sizes[rows, keep]
        kept = kept & (alone <= budget)
        bytes_left = budget - growth - shared - sizes[rows].sum(axis=1)
    while True:
        short = np.zeros(len(rows), dtype=bool)
        for left in (slots_left, bytes_left):
            if left is not None:
                short |= left < 0
        need = np.flatnonzero(short & kept)
        if not len(need):
            return kept, evicted
        allowed = bank.occupied[rows[need]]
        if keep is not None:
            allowed[np.arange(len(need)), keep[need]] = False
        victim = first(bank._rule(bank, rows[need]), allowed)
        kept[need[victim < 0]] = False
        goes, victim = need[victim >= 0], victim[victim >= 0]
        if slots_left is not None:
            slots_left[goes] += 1
        if bytes_left is not None:
            bytes_left[goes] += sizes[rows[goes], victim]
        bank._drop(rows[goes], victim)
        evicted[goes] += 1
