"""Which workers of a large fleet are looked at for a request."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

HOLDERS, IDLE, RANDOM = 3, 3, 2
"""How many of the best holders of the prompt, of those with the least to do, and at random."""
FEW = HOLDERS + IDLE + RANDOM


def few(
    count: int, leading: Mapping[int, int], backlog_s: Sequence[float], random: Callable[[], float]
) -> Sequence[int]:
    """The numbers of the workers to look at, at most FEW of `count`.

    leading: the prompt's leading blocks that workers hold, by number.
    backlog_s: [count] seconds that each has to do.
    random: from 0 to 1.
    """
    if count <= FEW:
        return range(count)
    holders = heapq.nlargest(HOLDERS, leading, key=leading.__getitem__)
    idle = heapq.nsmallest(IDLE, range(count), key=backlog_s.__getitem__)
    return sorted({*holders, *idle, *(int(random() * count) for _ in range(RANDOM))})
