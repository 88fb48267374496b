"""Seeded choices. The caller brings the source of numbers, so that equal seeds give equal lessons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Choices over numbers from 0 to below 1."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random

    def below(self, count: int) -> int:
        return int(self._random() * count)

    def chance(self, share: float) -> bool:
        return self._random() < share

    def choice(self, of: Sequence[T]) -> T:
        """Raises IndexError when there is nothing to choose from."""
        return of[self.below(len(of))]

    def shuffled(self, of: Sequence[T]) -> list[T]:
        mixed = list(of)
        for place in range(len(mixed) - 1, 0, -1):
            other = self.below(place + 1)
            mixed[place], mixed[other] = mixed[other], mixed[place]
        return mixed

    def sample(self, of: Sequence[T], count: int) -> list[T]:
        """At most `count` different places of the sequence."""
        return self.shuffled(of)[:count]
