"""How much of a search is reranked, and the order that the scores give."""

from __future__ import annotations

import math
from collections.abc import Sequence


def candidates_in_time(tokens: Sequence[int], token_s: float, left_s: float) -> int:
    """How many of the first candidates can be read in the time.

    tokens: of each candidate with the query. token_s: the time of one.
    """
    spent_s = 0.0
    for number, count in enumerate(tokens):
        spent_s += count * token_s
        if spent_s > left_s:
            return number
    return len(tokens)


def reordered(scores: Sequence[float]) -> list[int]:
    """The candidates' numbers by score, best first. Equal ones stay as they were; NaN comes last."""
    return sorted(
        range(len(scores)),
        key=lambda number: -math.inf if math.isnan(scores[number]) else scores[number],
        reverse=True,
    )
