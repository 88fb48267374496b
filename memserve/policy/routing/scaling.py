"""How many workers there should be."""

from __future__ import annotations

import math
from collections.abc import Sequence

TARGET = 0.75
"""The part of an engine's time, or of its seats, that may be asked for before another worker is worth it."""
SPARE = 0.8
"""A worker goes when the others would be asked for less than this part of that."""


def demand(offered: float, seats: float) -> float:
    """What is asked of one worker, in workers.

    offered: the part of the engine's time that requests have asked for lately, the refused ones too.
    seats: the part of its seats that are taken.
    """
    return max(offered, seats) / TARGET


def wanted_workers(demands: Sequence[float], running: int) -> int:
    """demands: of each worker that has reported; the others are taken for their mean. running: how many there
    are."""
    if not demands or running < 1:
        return running
    whole = sum(demands) * running / len(demands)
    if whole > running:
        return math.ceil(whole)
    fewer = max(math.ceil(whole / SPARE), 1)
    return min(fewer, running)
