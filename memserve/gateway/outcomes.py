"""Counts how answers with each module went, for the watch over canaries."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

# How many modules' counts are kept: the modules that were used last. Only canaries are judged by their
# counts. Requests use canaries, so that canaries stay among these modules.
KEPT = 4096


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How answers with one module went."""

    answered: int = 0
    """Answers that began."""
    refused: int = 0
    """Workers that would not answer with the module."""

    def since(self, before: Outcomes) -> Outcomes:
        """What was counted after `before`. All of it when the count has begun anew since then."""
        if before.answered > self.answered or before.refused > self.refused:
            return self
        return Outcomes(self.answered - before.answered, self.refused - before.refused)


class OutcomeCounts:
    """Outcomes by module digest, of the most recently used modules."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._counts: OrderedDict[str, Outcomes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def of(self, digest: str) -> Outcomes:
        return self._counts.get(digest, Outcomes())

    def add(self, digest: str, *, answered: int = 0, refused: int = 0) -> None:
        before = self._counts.pop(digest, Outcomes())
        self._counts[digest] = Outcomes(before.answered + answered, before.refused + refused)
        if len(self._counts) > self._kept:
            self._counts.popitem(last=False)
