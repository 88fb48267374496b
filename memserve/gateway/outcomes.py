"""What became of answers with a module, for whoever watches canaries."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

# Modules that are remembered: those that somebody answered with last. Only canaries are judged by it, and
# those are asked for.
KEPT = 4096


@dataclass(frozen=True, slots=True)
class Outcomes:
    """answered: answers that began. refused: workers that would not answer with it."""

    answered: int = 0
    refused: int = 0

    def since(self, before: Outcomes) -> Outcomes:
        """What has come since; all, where the count has begun anew."""
        if before.answered > self.answered or before.refused > self.refused:
            return self
        return Outcomes(self.answered - before.answered, self.refused - before.refused)


class OutcomeCounts:
    """Outcomes by digest, of the most recently used modules."""

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
