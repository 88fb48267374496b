"""Sums of what was lately. The clock is an argument."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Generic, TypeVar

K = TypeVar("K")


class Fading(Generic[K]):
    """Sums by key, each of which falls to a third within `seconds`."""

    def __init__(self, seconds: float, forgotten: float) -> None:
        """forgotten: a sum that is no more than this is no longer kept."""
        self._seconds = seconds
        self._forgotten = forgotten
        self._sums: dict[K, float] = {}
        self._at_s = 0.0

    def count(self, key: K, amount: float, now_s: float) -> None:
        self._fade(now_s)
        self._sums[key] = self._sums.get(key, 0.0) + amount

    def sums(self, now_s: float) -> Mapping[K, float]:
        self._fade(now_s)
        return self._sums

    def _fade(self, now_s: float) -> None:
        keep = math.exp(-max(now_s - self._at_s, 0.0) / self._seconds)
        self._sums = {key: held * keep for key, held in self._sums.items() if held * keep > self._forgotten}
        self._at_s = max(now_s, self._at_s)
